"""The inputs on which a version is compared with its source."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from attention_export.importing.transformer.reference import Arguments, Array, EagerModel
from attention_export.importing.transformer.runner import VersionRunner

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
        tokens: INT64 [B, T].
        arguments: of the source's forward.
        token_types: INT64 [B, T]; None where the version is to take its default.
        lengths: of each sequence, the rest being padding; None for T.
        first_position: of the first token, beside the model's own base.
        masked: whether the sites' masked graphs run.
    """

    name: str
    tokens: Array
    arguments: Arguments
    token_types: Array | None = None
    lengths: tuple[int, ...] | None = None
    first_position: int = 0
    masked: bool = False

    def sequences(self) -> Iterator[tuple[slice, int]]:
        """Yield the parts of the batch that the version computes at once: rows and length."""
        if self.lengths is None:
            yield slice(None), self.tokens.shape[1]
            return
        for row, length in enumerate(self.lengths):
            yield slice(row, row + 1), length


@dataclass
class CaseBuilder:
    """Makes cases for one model.

    Attributes:
        model: the source.
        words: the size of the vocabulary.
        padding: the padding token, which some models do not count as a position; -1 for none.
        special: the special tokens beside padding.
        types: the number of token types that the source knows.
        base: the position of the first token.
    """

    model: EagerModel
    words: int
    padding: int
    special: tuple[int, ...]
    types: int
    base: int
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(SEED))

    def tokens(self, batch: int, length: int) -> Array:
        """Return random tokens without padding, each special token among them where the length allows."""
        drawn = self.rng.integers(0, self.words, (batch, length))
        drawn[drawn == self.padding] = (self.padding + 1) % self.words
        places = self.rng.permutation(batch * length)[: len(self.special)]
        if batch * length > len(self.special):
            drawn.ravel()[places] = self.special
        return drawn

    def plain(self, length: int, batch: int = 1) -> Case:
        """Return a case of tokens alone: positions, types and mask are the source's defaults."""
        tokens = self.tokens(batch, length)
        return Case(f"{batch} x {length} tokens", tokens, {"input_ids": tokens}, masked=length == 2)

    def typed(self, length: int) -> Case:
        """Return a case of several token types."""
        tokens = self.tokens(2, length)
        types = self.rng.integers(0, self.types, tokens.shape)
        types[0, -1] = self.types - 1
        name = f"{length} tokens of types 0 to {self.types - 1}"
        return Case(name, tokens, {"input_ids": tokens, "token_type_ids": types}, types)

    def padded(self, lengths: tuple[int, ...]) -> Case:
        """Return a case in which the source hides padding, and the version sees none."""
        tokens = self.tokens(len(lengths), max(lengths))
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        tokens = np.where(mask == 1, tokens, max(self.padding, 0))
        name = f"a batch of {', '.join(map(str, lengths))} tokens, padded in the source"
        return Case(name, tokens, {"input_ids": tokens, "attention_mask": mask}, lengths=lengths)

    def vocabulary(self) -> Case:
        """Return a case of tokens spread over the whole vocabulary, padding too where positions can be told."""
        tokens = np.linspace(0, self.words - 1, 192).round().astype(np.int64).reshape(3, 64)
        name = "tokens from the first to the last of the vocabulary"
        if "position_ids" in self.model.parameters:
            tokens[0, 1] = max(self.padding, 0)
            return self._positioned(name, tokens, 0)
        tokens[tokens == self.padding] = (self.padding + 1) % self.words
        return Case(name, tokens, {"input_ids": tokens})

    def last_positions(self, most: int) -> Case:
        """Return a case at the end of the model's positions."""
        first = most - min(8, most)
        return self._positioned(f"positions {first} to {most - 1}", self.tokens(1, most - first), first)

    def _positioned(self, name: str, tokens: Array, first: int) -> Case:
        positions = np.broadcast_to(self.base + first + np.arange(tokens.shape[1]), tokens.shape).copy()
        arguments = {"input_ids": tokens, "position_ids": positions}
        if "attention_mask" in self.model.parameters:
            arguments["attention_mask"] = np.ones_like(tokens)
        return Case(name, tokens, arguments, first_position=first)


def comparison_cases(version: VersionRunner, model: EagerModel, lengths: tuple[int, ...]) -> list[Case]:
    """Return the cases of a model, the shortest first.

    Beside the given lengths there are those at the edges of windows; some are in batches, with several token types,
    padded in the source, spread over the vocabulary, or at the end of the position table.
    """
    text = version.manifest.text
    most = text.max_tokens
    builder = _builder(version, model)
    windows = {layer.window for layer in version.manifest.layers if 0 < layer.window <= LONGEST_WINDOW}
    edges = {window + step for window in windows for step in (-1, 0, 1)}
    chosen = {*lengths[:-1], *edges, min(most, lengths[-1])}
    cases = [builder.plain(length, 1 + (length in (2, 64))) for length in sorted(chosen) if 0 < length <= most]
    short = min(23, most)
    if builder.types > 1:
        cases.append(builder.typed(short))
    if "attention_mask" in model.parameters:
        # A row of padding without any key in its window is NaN in float64, and spoils its sequence in the source.
        least = max(PADDED) + 1 - min((layer.window for layer in version.manifest.layers if layer.window), default=most)
        cases.append(builder.padded(tuple(min(max(length, least), most) for length in PADDED)))
    if most >= 64:
        cases.append(builder.vocabulary())
    if "position_ids" in model.parameters:
        cases.append(builder.last_positions(most))
    return cases


def _builder(version: VersionRunner, model: EagerModel) -> CaseBuilder:
    text = version.manifest.text
    config = model.model.config
    words = model.model.get_input_embeddings().num_embeddings
    padding = getattr(config, "pad_token_id", None)
    padding = -1 if padding is None else int(padding)
    tokenizer = Tokenizer.from_file(str(version.folder / text.tokenizer.name))
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    known = tuple(number for number in sorted(special) if number < words and number != padding)
    types = getattr(config, "type_vocab_size", 1) if "token_type_ids" in model.parameters else 1
    return CaseBuilder(model, words, padding, known, types, text.position_base)
