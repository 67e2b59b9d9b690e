"""Requests and responses as pure data, the same for every protocol.

Shapes: B sequences of a batch, T queries, S keys, H heads; Dq, Dk and Dv are the widths of query, key and value.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from attention_proto.masks import Mask
from attention_proto.stages import OPTIONS, DataType, Fold, Pool, Reduce
from attention_proto.text import Truncate
from numpy.typing import NDArray

Array = NDArray[np.generic]

CANDIDATE_BYTES = 512  # of a candidate in memory; to write one takes as long as to write so many bytes of a tensor

LINK_BYTES = 128  # of a link in memory, and more than it takes on the wire in any form

NO_MASK = Mask()  # hides no key; requests without a mask share this object, so that `is` recognizes them


class Sequence(NamedTuple):
    """One sequence and its memory; or a batch of sequences of equal shapes, given as arrays alone.

    Attributes:
        path: path in the request, for errors: `inputs[0]`, or empty for a request's own fields.
        query: [T, Dq]; [B, T, Dq] in a batch, and likewise key and value.
        key: [S, Dk].
        value: [S, Dv].
        text: the query as text, for a text model.
        text_pair: the second text of a pair, of which `text` is the first.
        memory_text: the memory as text, for a text model.
        token_ids: the query as ids of tokens, integers [T], for a text model.
        memory_token_ids: the memory as ids of tokens, integers [S], for a text model.
        truncate: where tokens of a text are dropped that are more than the model reads.
        memory: id of a kept memory.
        mask: mask of this sequence alone.
        extend: whether it is kept behind the memory, under a new id.
        part: index among the sequences that were sent as one batch, in a batch that of the first; None for a sequence
            that was sent by itself.
        batch: B; 1 for one sequence, with arrays without a batch dimension.
    """

    path: str = ""
    query: Array | None = None
    key: Array | None = None
    value: Array | None = None
    text: str | None = None
    text_pair: str | None = None
    memory_text: str | None = None
    token_ids: Array | None = None
    memory_token_ids: Array | None = None
    truncate: Truncate = "none"
    memory: str = ""
    mask: Mask = NO_MASK
    extend: bool = False
    part: int | None = None
    batch: int = 1

    @property
    def has_text(self) -> bool:
        """Whether a field of texts is set: a text, ids of tokens, or an option of them."""
        return not (
            self.text is None
            and self.token_ids is None
            and self.memory_text is None
            and self.memory_token_ids is None
            and self.text_pair is None
            and self.truncate == "none"
        )

    def each(self) -> "Iterator[Sequence]":
        """Yield the sequences of a batch one by one; yield a single sequence itself."""
        if self.batch == 1:
            yield self
            return
        for i in range(self.batch):
            query, key, value = [None if x is None else x[i] for x in (self.query, self.key, self.value)]
            yield self._replace(query=query, key=key, value=value, part=(self.part or 0) + i, batch=1)


class Sample(NamedTuple):
    """A draw of a prediction's label; see `Sample` of the contract. The seed is None for a new draw each time."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None


class KeySpan(NamedTuple):
    """A range of keys with a name; see `KeySpan` of the contract."""

    name: str
    begin: int
    end: int
    characters: bool = False


class OutputSpec(NamedTuple):
    """One requested output; see `OutputSpec` of the contract.

    `path` is the output's path in the caller's message, for errors; empty for `outputs[i]` by its index.
    """

    name: str
    alias: str = ""
    heads: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    reduce: Reduce = "none"
    top_k: int = 0
    data_type: DataType = "FP32"
    layers: tuple[str, ...] = ()
    pool: Pool = "none"
    pairs: tuple[str, ...] = ()
    top: int = 0
    sample: Sample | None = None
    spans: tuple[KeySpan, ...] = ()
    fold: Fold = "none"
    baseline: str = ""
    path: str = ""

    @property
    def given(self) -> set[str]:
        """The options that differ from the default, by name in requests."""
        default = OutputSpec(self.name)
        return {name for name, each in OPTIONS.items() if getattr(self, each.field) != getattr(default, each.field)}

    @property
    def is_whole(self) -> bool:
        """Whether the stage is sent unchanged: all heads and rows, in full precision."""
        return self._replace(alias="", layers=(), path="") == OutputSpec(self.name)


class Ablation(NamedTuple):
    """Heads that are switched off; see `Ablation` of the contract."""

    layers: tuple[str, ...] = ()
    heads: tuple[int, ...] = ()


class Request(NamedTuple):
    """Attention over one or more sequences."""

    model: str
    version: int = 0
    inputs: tuple[Sequence, ...] = ()
    outputs: tuple[OutputSpec, ...] = ()
    mask: Mask = NO_MASK
    token_offsets: bool = False
    ablate: tuple[Ablation, ...] = ()
    score_temperature: float | None = None


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """A request to project and keep a memory.

    Attributes:
        model: name of the model.
        version: version of the model; 0 for the default.
        key: [S, Dk]; None where `memory_text` or `memory_token_ids` is given.
        value: [S, Dv]; None for the key.
        memory_text: the memory as text, for a text model.
        memory_token_ids: the memory as ids of tokens, integers [S], for a text model.
        truncate: where tokens of the text are dropped that are more than the model reads.
        ttl: time to live after the last use, in seconds; None for the server's default.
        pinned: whether it is never evicted.
        data_type: the format in which keys and values are kept.
        id: the id under which it is kept; empty for one that the server chooses.
    """

    model: str
    version: int = 0
    key: Array | None = None
    value: Array | None = None
    memory_text: str | None = None
    memory_token_ids: Array | None = None
    truncate: Truncate = "none"
    ttl: float | None = None
    pinned: bool = False
    data_type: str = "FP32"
    id: str = ""


@dataclass(frozen=True, slots=True)
class MemoryDescription:
    """A kept memory without its keys and values.

    Attributes:
        id: by which its owner names it.
        model, version: the model that projected it.
        source_length, prefix_length: number of keys of another sequence, and of positions to go on behind.
        tokens: as its text spells them; empty for a memory made of vectors.
        truncated_tokens: number of tokens of its text that were dropped.
        size, shared_size: bytes of its keys and values, and of the shared ones.
        seconds_left: until it is forgotten unless used.
        pinned: whether it is never evicted.
        data_type: FP32 or FP16, the format in which it is kept.
        max_storage_error: largest absolute difference between a kept number and the projected one.
    """

    id: str
    model: str
    version: int
    source_length: int
    prefix_length: int
    tokens: tuple[str, ...]
    truncated_tokens: int
    size: int
    shared_size: int
    seconds_left: float
    pinned: bool
    data_type: str
    max_storage_error: float

    @property
    def length(self) -> int:
        """The number of positions of both."""
        return self.source_length + self.prefix_length


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """A request for one vector of each sequence.

    Attributes:
        model: name of the model.
        version: version of the model; 0 for the default.
        inputs: the sequences, texts or ids of tokens.
        dimensions: width of the vectors; 0 for the model's.
    """

    model: str
    version: int = 0
    inputs: tuple[Sequence, ...] = ()
    dimensions: int = 0


class TopK(NamedTuple):
    """The largest entries of each row: positions and values, [H, T, k]; pooled, [H, k]."""

    indices: Array
    values: Array


class Link(NamedTuple):
    """A pair of a key position and a query position."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Alignment:
    """The key that each query attends to most.

    Attributes:
        links: in the order of the rows.
    """

    links: tuple[Link, ...]

    @property
    def pharaoh(self) -> str:
        """The links in Pharaoh's form: `0-1 1-0`, source before target."""
        return " ".join([f"{source}-{target}" for source, target in self.links])

    @property
    def nbytes(self) -> int:
        """Bytes of its links, in memory and, within a small factor, as written."""
        return LINK_BYTES * len(self.links)


OutputValue = Array | TopK | Alignment


class Span(NamedTuple):
    """A range of characters of a text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as tokens of a model's tokenizer, or tokens that were sent as ids.

    Attributes:
        ids: token ids, INT64 [T].
        types: token types, INT64 [T]: the place of each token's text in a pair.
        vocabulary: each token as the vocabulary spells it.
        shown: each token as the text spells it.
        spans: the range of each token in the text, in a pair in its own one; empty for tokens that were sent as ids.
        truncated: the number of tokens that were dropped.
        special: whether each token is one that the tokenizer put beside the text; of tokens sent as ids, one that its
            vocabulary calls special.
    """

    ids: NDArray[np.int64]
    types: NDArray[np.int64]
    vocabulary: tuple[str, ...]
    shown: tuple[str, ...]
    spans: tuple[Span, ...]
    truncated: int = 0
    special: tuple[bool, ...] = ()


class Candidate(NamedTuple):
    """A label of a predictor, its id among the predictor's labels, and its probability."""

    id: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prediction of a model's head.

    Attributes:
        name: of the predictor.
        label: the most probable label, or the one that was drawn.
        probability: of the label.
        row: None for a prediction from the mean of all rows.
        id: of the label.
        top: the most probable labels, descending; empty where the request asks for the first alone.
    """

    name: str
    label: str
    probability: float
    row: int | None
    id: int = 0
    top: tuple[Candidate, ...] = ()


class Result(NamedTuple):
    """The result of one sequence; or of a batch: arrays alone, with a leading dimension B.

    Attributes:
        outputs: outputs by name, in the order of the request.
        tokens: tokens of the query, where it is no vectors.
        memory_tokens: tokens of the memory, where it is no vectors.
        predictions: predictions of the model's head; None where the request has none.
        batch: B; 1 for one sequence, with arrays without a batch dimension.
        memory: the kept part of it, without its tokens; None where it is not kept.
    """

    outputs: dict[str, OutputValue]
    tokens: Tokens | None = None
    memory_tokens: Tokens | None = None
    predictions: tuple[Prediction, ...] | None = None
    batch: int = 1
    memory: "MemoryDescription | None" = None

    def each(self) -> "Iterator[Result]":
        """Yield the results of a batch one by one; yield a single result itself."""
        if self.batch == 1:
            yield self
            return
        for i in range(self.batch):
            yield Result({name: x[i] for name, x in self.outputs.items()})  # type: ignore[index] # arrays alone


class Response(NamedTuple):
    """The response to a request: one result for each sequence or batch, in order."""

    model: str
    version: int
    results: tuple[Result, ...]
    token_offsets: bool = False
    ablate: tuple[Ablation, ...] = ()
    score_temperature: float | None = None

    def each(self) -> Iterator[Result]:
        """Yield one result for each sequence, in order."""
        for result in self.results:
            yield from result.each()

    @property
    def size(self) -> int:
        """The bytes of all tensors and candidates."""
        size = 0
        for result in self.results:
            for prediction in result.predictions or ():
                size += CANDIDATE_BYTES * len(prediction.top)
            for x in result.outputs.values():
                size += x.indices.nbytes + x.values.nbytes if isinstance(x, TopK) else x.nbytes
        return size
