"""The ranking of a model's heads by how well each aligns words, against given alignments."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Manifest
from attention_proto.chains import crosses, has_source
from numpy.typing import NDArray
from tokenizers import Tokenizer

from attention_export.importing.transformer.runner import Tokens, VersionRunner
from attention_export.manifest import read_manifest
from attention_export.verify import run, session

KEPT_BYTES = 2 * 2**30  # of a version's files that stay open
FIELDS = ("memory_text", "text", "alignment")
LINK = re.compile(r"(\d+)([-p?])(\d+)")  # sure, or possible

Array = NDArray[Any]
Links = frozenset[tuple[int, int]]  # positions of words: source, target


class Pair(NamedTuple):
    """A sentence pair with its alignment.

    Attributes:
        where: the place in the file, for errors.
        source, target: the texts; words are what stands between spaces.
        sure, possible: links; sure ones are possible too.
    """

    where: str
    source: str
    target: str
    sure: Links
    possible: Links


@dataclass
class Score:
    """The agreement of one aligner with all alignments.

    Attributes:
        name: of the head, LAYER.HEAD, or of the layer, whose heads' mean aligns.
        links, sure, right_sure, right: the number of its links, of sure links, and of its links that are sure and that
            are possible.
    """

    name: str
    links: int = 0
    sure: int = 0
    right_sure: int = 0
    right: int = 0

    def add(self, links: Links, pair: Pair) -> None:
        """Count the links of one sentence pair."""
        self.links += len(links)
        self.sure += len(pair.sure)
        self.right_sure += len(links & pair.sure)
        self.right += len(links & pair.possible)

    @property
    def error_rate(self) -> float:
        """The alignment error rate, 1 - (|A and S| + |A and P|) / (|A| + |S|), of links A, sure S and possible P.

        Och and Ney (2003), A Systematic Comparison of Various Statistical Alignment Models, section 6.
        """
        return 1 - (self.right_sure + self.right) / max(1, self.links + self.sure)

    @property
    def precision(self) -> float:
        """The share of its links that are possible."""
        return self.right / max(1, self.links)

    @property
    def recall(self) -> float:
        """The share of sure links that it has."""
        return self.right_sure / max(1, self.sure)


def rank_heads(folder: Path, gold: Path) -> list[Score]:
    """Return the score of every head of each site over another sequence, and of each site's mean, the best first.

    A word of the target is linked to each word of the source that one of its tokens attends to most; the row of a token
    is the one that it is predicted from, which stands one before its own behind a start token.

    Args:
        folder: of a version that reads a text and a memory text.
        gold: sentence pairs with alignments; see `read_pairs`.

    Raises:
        ValueError: the model does not attend to another text, or the file is no list of aligned pairs.
    """
    manifest = read_manifest(folder)
    if not (manifest.text.HasField("front") and manifest.text.HasField("memory_front")):
        raise ValueError(f"{folder} reads no text and memory text, so that nothing can be aligned")
    weights_of = _runner(folder, manifest)
    source, target = _Words(folder, manifest, is_source=True), _Words(folder, manifest, is_source=False)
    scores: dict[str, Score] = {}
    for pair in read_pairs(gold):
        sources, targets = source.read(pair.source, pair.where), target.read(pair.target, pair.where)
        for name, weights in weights_of(sources.ids, targets.ids).items():
            each = {f"{name}.{head}": of_head for head, of_head in enumerate(weights)}
            for aligner, of_aligner in ({name: weights.mean(0)} | each).items():
                scores.setdefault(aligner, Score(aligner)).add(_links(of_aligner, sources, targets), pair)
    return sorted(scores.values(), key=lambda score: score.error_rate)


def read_pairs(path: Path) -> Iterator[Pair]:
    """Yield the sentence pairs of a file.

    Args:
        path: lines of source, target and alignment with tabs between them; or JSON lines of `memory_text`, `text` and
            `alignment`. An alignment is in Pharaoh's form: `0-1 1-0` are sure links, source before target, words from
            0; `2p1` or `2?1` is a possible one.

    Raises:
        ValueError: a line is no such pair.
    """
    count = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            count += 1
            yield _pair(f"{path.name}, line {number}", line, is_json=path.suffix == ".jsonl")
    if not count:
        raise ValueError(f"{path} has no lines")


def _pair(where: str, line: str, *, is_json: bool) -> Pair:
    row = json.loads(line) if is_json else None
    fields: list[Any] = [row.get(name) for name in FIELDS] if isinstance(row, dict) else line.split("\t")
    if len(fields) != 3 or not all(isinstance(field, str) for field in fields):
        raise ValueError(f"{where}: give source, target and alignment")
    source, target, alignment = fields
    lengths = len(source.split()), len(target.split())
    sure, possible = set[tuple[int, int]](), set[tuple[int, int]]()
    for written in alignment.split():
        found = LINK.fullmatch(written)
        link = (int(found[1]), int(found[3])) if found else (-1, -1)
        if not all(0 <= position < length for position, length in zip(link, lengths, strict=True)):
            raise ValueError(f"{where}: {written[:64]!r} is no link of {lengths[0]} words with {lengths[1]}, as 0-1")
        possible.add(link)
        if found and found[2] == "-":
            sure.add(link)
    return Pair(where, source, target, frozenset(sure), frozenset(possible))


class _Tokens(NamedTuple):
    """A text as tokens.

    Attributes:
        ids: INT64 [1, T].
        words: the word of each token; -1 of a special one.
    """

    ids: Array
    words: list[int]


class _Words:
    """Reads texts of a model as tokens, each with the word that it is a part of."""

    def __init__(self, folder: Path, manifest: Manifest, *, is_source: bool) -> None:
        text = manifest.text
        name = (text.memory_tokenizer.name if is_source else "") or text.tokenizer.name
        self._tokenizer = Tokenizer.from_file(str(folder / name))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._longest = text.max_memory_tokens if is_source else text.max_tokens
        self._start = text.start_token if not is_source and text.HasField("start_token") else None

    def read(self, text: str, where: str) -> _Tokens:
        """Return the tokens of a text.

        Raises:
            ValueError: it has none, or more than the model reads.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=self._start is None)
        lead = [] if self._start is None else [self._start]
        ids = [*lead, *encoding.ids]
        if not ids or 0 < self._longest < len(ids):
            raise ValueError(f"{where}: has {len(ids)} tokens; this model reads 1 to {self._longest}")
        ends = [found.end() for found in re.finditer(r"\S+", text)]
        words = [-1] * len(lead)
        for special, (begin, end) in zip(encoding.special_tokens_mask, encoding.offsets, strict=True):
            # Of a token with the space before a word, the end tells the word.
            words.append(-1 if special or begin == end else int(np.searchsorted(ends, end)))
        return _Tokens(np.array([ids], np.int64), words)


def _links(weights: Array, source: _Tokens, target: _Tokens) -> Links:
    """Return the links of words for weights [T, S]."""
    keys = weights.argmax(-1)
    before = int(target.words[0] < 0)  # a start token shifts the row that predicts a token
    linked = ((source.words[keys[row - before]], word) for row, word in enumerate(target.words) if word >= 0)
    return frozenset(link for link in linked if link[0] >= 0)


def _runner(folder: Path, manifest: Manifest) -> Callable[[Array, Array], Mapping[str, Array]]:
    """Return the function from source and target, INT64 [1, S] and [1, T], to weights [H, T, S] by site."""
    if has_source(manifest):
        return _encoder_decoder(VersionRunner(folder, KEPT_BYTES))
    if len(manifest.layers) == 1 and crosses(manifest.layers[0], manifest):
        return _block(folder, manifest)
    raise ValueError(f"{folder} has no site that attends to another sequence, so that nothing can be aligned")


def _encoder_decoder(runner: VersionRunner) -> Callable[[Array, Array], Mapping[str, Array]]:
    def weights(source: Array, target: Array) -> Mapping[str, Array]:
        found = runner.run([Tokens(source), Tokens(target)])[1].sites
        layers = runner.chains[1].layers
        return {
            layer.name: site.weights[0]
            for layer, site in zip(layers, found, strict=True)
            if crosses(layer, runner.manifest)
        }

    return weights


def _block(folder: Path, manifest: Manifest) -> Callable[[Array, Array], Mapping[str, Array]]:
    layer = manifest.layers[0]
    graph = next(each for each in layer.attend if each.weights and not each.mask)
    names = (manifest.text.front, manifest.text.memory_front, manifest.segments[0].graph, graph.file)
    front, memory_front, project, attend = (session(folder / file.name) for file in names)

    def weights(source: Array, target: Array) -> Mapping[str, Array]:
        key = run(memory_front, {"tokens": source})
        kept = run(project, {"key": key["key"], "value": key.get("value", key["key"])})
        found = run(attend, run(front, {"tokens": target}) | kept)
        return {layer.name: found["weights"][0]}

    return weights


def ranked_rows(scores: Sequence[Score]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the rows of a table: name, error rate, precision, recall and number of links."""
    for score in scores:
        figures = (score.error_rate, score.precision, score.recall)
        yield score.name, *(f"{figure:.3f}" for figure in figures), str(score.links)  # type: ignore[misc]
