"""The inputs on which a version is compared with its source."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from attention_export.importing.transformer.reference import Arguments, Array, EagerModel
from attention_export.importing.transformer.runner import Tokens, VersionRunner
from attention_export.importing.transformer.sides import SOURCE, Side, arguments, embeddings, stacks

LENGTHS = (1, 2, 23, 64, 512)  # weights of all sites in float64 take 8 H T^2 bytes each
LENGTHS_OF_LARGE = (2, 23, 128)  # of a large model, beside edges of windows; each case reads all parameters twice
LONGEST_WINDOW = 1024  # tokens; the edges of wider windows are not compared
PADDED = (5, 13, 1, 8)  # lengths in one padded batch
SEED = 0


@dataclass(frozen=True)
class Case:
    """Sequences for the source and the version.

    Attributes:
        name: said in a refusal.
        tokens: of each chain; types are None where the version is to take its default.
        arguments: of the source's forward.
        lengths: of each chain the length of each sequence, the rest being padding; None for no padding.
        masked: whether the sites' masked graphs run.
    """

    name: str
    tokens: tuple[Tokens, ...]
    arguments: Arguments
    lengths: tuple[tuple[int, ...], ...] | None = None
    masked: bool = False

    def sequences(self) -> Iterator[tuple[slice, tuple[int, ...]]]:
        """Yield the parts of the batch that the version computes at once: rows, and the length in each chain."""
        if self.lengths is None:
            yield slice(None), tuple(each.tokens.shape[1] for each in self.tokens)
            return
        for row, lengths in enumerate(zip(*self.lengths, strict=True)):
            yield slice(row, row + 1), lengths

    def cut(self, rows: slice, lengths: tuple[int, ...]) -> list[Tokens]:
        """Return some sequences of the batch, without padding."""
        return [
            Tokens(
                each.tokens[rows, :length],
                None if each.types is None else each.types[rows, :length],
                each.first_position,
            )
            for each, length in zip(self.tokens, lengths, strict=True)
        ]


@dataclass(frozen=True)
class Words:
    """The tokens of one sequence of a model.

    Attributes:
        side: the sequence.
        size: the size of the vocabulary.
        padding: the padding token, which some models do not count as a position; -1 for none.
        special: the special tokens beside padding.
        most: the longest sequence.
    """

    side: Side
    size: int
    padding: int
    special: tuple[int, ...]
    most: int

    def draw(self, rng: np.random.Generator, batch: int, length: int) -> Array:
        """Return random tokens without padding, each special token among them where the length allows."""
        drawn = self.without_padding(rng.integers(0, self.size, (batch, length)))
        places = rng.permutation(batch * length)[: len(self.special)]
        if batch * length > len(self.special):
            drawn.ravel()[places] = self.special
        return drawn

    def without_padding(self, tokens: Array) -> Array:
        """Return tokens with another one in place of padding."""
        return np.where(tokens == self.padding, (self.padding + 1) % self.size, tokens)

    def spread(self) -> Array:
        """Return tokens from the first to the last of the vocabulary, INT64 [3, 64]."""
        return np.linspace(0, self.size - 1, 192).round().astype(np.int64).reshape(3, 64)


@dataclass
class CaseBuilder:
    """Makes cases for one model.

    Attributes:
        model: the source.
        words: of each sequence.
        types: the number of token types that the source knows.
        base: the position of the first token.
        starts: the token before a target, in the version and in the source.
    """

    model: EagerModel
    words: tuple[Words, ...]
    types: int
    base: int
    starts: tuple[int, int]
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(SEED))

    def plain(self, lengths: tuple[int, ...], batch: int = 1) -> Case:
        """Return a case of tokens alone: positions, types and mask are the source's defaults."""
        tokens = [words.draw(self.rng, batch, length) for words, length in zip(self.words, lengths, strict=True)]
        return self._of(f"{batch} x {' and '.join(map(str, lengths))} tokens", tokens, masked=lengths[-1] == 2)

    def started(self) -> Case:
        """Return a case in which source and version begin the target by a start token of their own."""
        case = self.plain(tuple(min(5, words.most) for words in self.words))
        *_, target = case.tokens
        expected = target.tokens.copy()
        target.tokens[:, 0], expected[:, 0] = self.starts
        case.arguments["decoder_input_ids"] = expected
        return replace(case, name=f"{case.name} behind the start token")

    def typed(self, length: int) -> Case:
        """Return a case of several token types."""
        tokens = self.words[0].draw(self.rng, 2, length)
        types = self.rng.integers(0, self.types, tokens.shape)
        types[0, -1] = self.types - 1
        name = f"{length} tokens of types 0 to {self.types - 1}"
        return Case(name, (Tokens(tokens, types),), {"input_ids": tokens, "token_type_ids": types})

    def padded(self, lengths: tuple[tuple[int, ...], ...]) -> Case:
        """Return a case of batches that the source takes padded, with a mask, and the version without padding.

        Args:
            lengths: of each stack of the model, the number of tokens of each sequence.
        """
        tokens, masks = [], {}
        for words, each in zip(self.words, lengths, strict=True):
            mask = (np.arange(max(each)) < np.array(each)[:, None]).astype(np.int64)
            drawn = words.draw(self.rng, len(each), max(each))
            tokens.append(np.where(mask == 1, drawn, max(words.padding, 0)))
            masks[f"{words.side.argument}attention_mask"] = mask
        name = f"a batch of {', '.join(map(str, lengths[-1]))} tokens, padded in the source"
        return self._of(name, tokens, masks, lengths=lengths)

    def vocabulary(self) -> Case:
        """Return a case of tokens spread over the whole vocabulary, padding too where positions can be told."""
        name = "tokens from the first to the last of the vocabulary"
        tokens = [words.spread() for words in self.words]
        if "position_ids" in self.model.parameters:
            tokens[0][0, 1] = max(self.words[0].padding, 0)
            return self._positioned(name, tokens[0], 0)
        return self._of(name, [w.without_padding(each) for w, each in zip(self.words, tokens, strict=True)])

    def last_positions(self, most: int) -> Case:
        """Return a case of two sequences, one at the end of the model's positions and one at its begin."""
        first = most - min(8, most)
        tokens = self.words[0].draw(self.rng, 2, most - first)
        name = f"positions {first} to {most - 1} beside 0 to {most - first - 1}"
        return self._positioned(name, tokens, np.array([[first], [0]]))

    def _positioned(self, name: str, tokens: Array, first: int | Array) -> Case:
        positions = np.broadcast_to(self.base + first + np.arange(tokens.shape[1]), tokens.shape).copy()
        given = {"input_ids": tokens, "position_ids": positions}
        if "attention_mask" in self.model.parameters:
            given["attention_mask"] = np.ones_like(tokens)
        return Case(name, (Tokens(tokens, first_position=first),), given)

    def _of(self, name: str, tokens: list[Array], further: Arguments | None = None, **options: Any) -> Case:
        given = arguments({words.side: each for words, each in zip(self.words, tokens, strict=True)})
        return Case(name, tuple(map(Tokens, tokens)), given | (further or {}), **options)


def comparison_cases(
    version: VersionRunner, model: EagerModel, lengths: tuple[int, ...], start_token: int | None = None
) -> list[Case]:
    """Return the cases of a model, the shortest first.

    Beside the given lengths there are those at the edges of windows; some are in batches, with several token types,
    padded in the source, spread over the vocabulary, or at the end of the position table. Source and target of an
    encoder-decoder have different lengths, and its targets begin with a start token.
    """
    builder = _builder(version, model, lengths[-1], start_token)
    most = builder.words[-1].most
    windows = {layer.window for layer in version.manifest.layers if 0 < layer.window <= LONGEST_WINDOW}
    edges = {window + step for window in windows for step in (-1, 0, 1)}
    chosen = sorted(n for n in {*lengths[:-1], *edges, min(most, lengths[-1])} if 0 < n <= most)
    cases = [
        builder.plain(_lengths(builder, length, other), 1 + (length in (2, 64)))
        for length, other in zip(chosen, [*chosen[1:], chosen[0]], strict=True)
    ]
    if len(builder.words) > 1:
        cases.append(builder.started())
    if builder.types > 1:
        cases.append(builder.typed(min(23, most)))
    if "attention_mask" in model.parameters:
        cases.append(builder.padded(tuple(_padded_lengths(version, words) for words in builder.words)))
    if all(words.most >= 64 for words in builder.words):
        cases.append(builder.vocabulary())
    if "position_ids" in model.parameters:
        cases.append(builder.last_positions(most))
    return cases


def _lengths(builder: CaseBuilder, length: int, other: int) -> tuple[int, ...]:
    """Return a length for each sequence: the given one for the last, another one for the source's."""
    *sources, _ = builder.words
    return (*(min(other, words.most) for words in sources), length)


def _padded_lengths(version: VersionRunner, words: Words) -> tuple[int, ...]:
    # A row of padding without any key in its window is NaN in float64, and spoils its sequence in the source.
    windows = [layer.window for layer in version.manifest.layers if layer.window]
    least = max(PADDED) + 1 - min(windows, default=words.most)
    lengths = (*PADDED[1:], PADDED[0]) if words.side is SOURCE else PADDED
    return tuple(min(max(length, least), words.most) for length in lengths)


def _builder(version: VersionRunner, model: EagerModel, longest: int, start_token: int | None) -> CaseBuilder:
    text = version.manifest.text
    config = model.model.config
    types = getattr(config, "type_vocab_size", 1) if "token_type_ids" in model.parameters else 1
    words = tuple(_words(version, model, side, longest) for side in stacks(model.model))
    return CaseBuilder(model, words, types, text.position_base, (text.start_token, start_token or 0))


def _words(version: VersionRunner, model: EagerModel, side: Side, longest: int) -> Words:
    text = version.manifest.text
    whole = model.model
    size = len(embeddings(whole)[side].weight)
    padding = getattr(whole.config, "pad_token_id", None)
    padding = -1 if padding is None else int(padding)
    is_source = side is SOURCE
    file = text.memory_tokenizer.name if is_source and text.HasField("memory_tokenizer") else text.tokenizer.name
    tokenizer = Tokenizer.from_file(str(version.folder / file))
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    known = tuple(number for number in sorted(special) if number < size and number != padding)
    most = text.max_memory_tokens if is_source else text.max_tokens
    return Words(side, size, padding, known, most or longest)
