"""The preparation of a sequence: texts are tokenized, shapes and numbers checked, masks combined."""

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer, Manifest, Side
from attention_proto.chains import (
    OF_TARGET,
    SiteAxes,
    has_source,
    lengths_by_axes,
    site_axes,
    source_chain,
    target_chain,
)
from attention_proto.folder import TRANSFORMER
from attention_proto.masks import Mask
from attention_proto.stages import OF_KEYS
from numpy.typing import NDArray

from attention_server.contexts.memory import Memory
from attention_server.contexts.past import Continuation, Past
from attention_server.domain.limits import Limits
from attention_server.domain.messages import NO_MASK, Array, MemoryRequest, Sequence, Tokens
from attention_server.domain.tokenization import HELD_TOKEN_BYTES
from attention_server.errors import InvalidRequest, join_path
from attention_server.inference import validation as check
from attention_server.inference.masks import RequestMask, requested_mask, unmasked
from attention_server.inference.tokenizer import TextTokenizer

Vectors = NDArray[np.float32]


class PreparedInput(NamedTuple):
    """A checked sequence, ready to compute; or a batch, which has arrays alone.

    Attributes:
        query, key, value: [B, T, Dq], [B, S, Dk], [B, S, Dv], of one sequence with a B of 1; None for one that is
            made of tokens, or that defaults to another of the three.
        tokens, memory_tokens: of the texts.
        queries, keys: T and S.
        added: the mask, added to the scores, [1 or H, T, S]; of a long sequence made by blocks; None for no mask. Some
            may be for some sites alone.
        attending: whether a query position may attend to any key in any head, [T]; None where all may.
        attended: whether any query may attend to a key position, [S]; None where all are attended.
        memory: kept tensors.
        path: of the sequence in the request, for errors.
        part: the index in the batch that was sent; of a batch the first one; None for a sequence sent by itself.
        batch: B; 1 for one sequence.
        seed: of draws of labels; None for new draws.
        continuation: the prefix that it goes on behind, and whether it is kept there; None for neither.
    """

    query: Vectors | None
    key: Vectors | None
    value: Vectors | None
    tokens: Tokens | None
    memory_tokens: Tokens | None
    queries: int
    keys: int
    added: RequestMask = None
    memory: Memory | None = None
    path: str = ""
    part: int | None = None
    attending: NDArray[np.bool_] | None = None
    attended: NDArray[np.bool_] | None = None
    batch: int = 1
    seed: int | None = None
    continuation: Continuation | None = None

    @property
    def first(self) -> int:
        """The position of the first query: the length of the prefix."""
        return 0 if self.continuation is None else self.continuation.first

    def rows(self, stage: str) -> tuple[int, NDArray[np.bool_] | None]:
        """Return the number of rows of a stage, and a mask of the rows that may attend or be attended; None for all."""
        return (self.keys, self.attended) if stage in OF_KEYS else (self.queries, self.attending)

    def cut(self, most: int) -> "list[PreparedInput]":
        """Cut a batch into batches of at most so many sequences."""
        if self.batch <= most:
            return [self]
        parts = []
        for begin in range(0, self.batch, most):
            end = min(begin + most, self.batch)
            query, key, value = [None if x is None else x[begin:end] for x in (self.query, self.key, self.value)]
            part = (self.part or 0) + begin
            parts.append(self._replace(query=query, key=key, value=value, part=part, batch=end - begin))
        return parts

    @property
    def size(self) -> int:
        """Bytes of its arrays and tokens, those of the memory left out."""
        arrays = (self.query, self.key, self.value, self.added)
        tokens = [len(each.ids) for each in (self.tokens, self.memory_tokens) if each is not None]
        return sum([each.nbytes for each in arrays if each is not None]) + HELD_TOKEN_BYTES * sum(tokens)

    def input_widths(self) -> tuple[int, int]:
        """Return the widths of query and value as sent; 0 for a text."""
        value = self.memory.tensors.get("v") if self.memory else self.value if self.value is not None else self.key
        if value is None:
            value = self.query
        return 0 if self.query is None else self.query.shape[-1], 0 if value is None else value.shape[-1]


def prepare(
    sequence: Sequence,
    mask: Mask,
    memory: Memory | None,
    limits: Limits,
    manifest: Manifest,
    reader: TextTokenizer | None,
    memory_reader: TextTokenizer | None,
) -> PreparedInput:
    """Tokenize a sequence's texts, check its arrays and combine its masks.

    Args:
        sequence: one, as sent; its sources were checked.
        mask: the request's.
        memory: the memory that the sequence names.
        limits: of one request.
        manifest: of the model.
        reader: the model's tokenizer; None for a model without text.
        memory_reader: its tokenizer of memory texts; None for a model without.

    Raises:
        InvalidRequest: the model cannot take it.
        TooLarge: it needs more memory than a request may.
    """
    is_pair, path = has_source(manifest), sequence.path
    layer = target_chain(manifest).layers[0] if is_pair else manifest.layers[0]
    past = None if memory is None else memory.past
    if memory is not None and sequence.key is not None:  # checked: of a block that projects nothing
        past = Past.of(*[memory.vectors()[name][0] for name in ("k", "v")])
    first = 0 if past is None else past.length
    tokens = _read_query(sequence, reader, first)
    memory_tokens = _read_memory(sequence, memory_reader, path)
    memory_apart = memory_tokens is not None or memory is not None
    query, key, value = _vectors(sequence, layer, memory_apart=memory_apart)
    if memory is not None:
        _check_memory(memory, layer, query, join_path(path, "query"))
    if key is not None and past is not None:
        _check_own(key, value, past, path)
    queries = _length(tokens, query)
    _check_length(queries, first, manifest, join_path(path, "query"))
    keys = _length(memory_tokens, key) or queries
    if value is not None and len(value) != keys:
        raise InvalidRequest(f"has {len(value)} positions, but there are {keys} keys", field=join_path(path, "value"))
    keys = (memory.source_length if memory is not None and key is None else 0) or first + keys
    if is_pair:
        layer = _check_sites(manifest, limits, queries, keys, first, path)
        check.source_mask(mask, "mask")
        check.source_mask(sequence.mask, join_path(path, "mask"))
    else:
        limits.check_pairs(layer.heads, queries, keys, path)
    added = requested_mask(sequence, mask, manifest, layer, queries, keys, 0 if is_pair else first)
    attending, attended = unmasked(added)
    # A query that is its own key matters where it is attended, not where it attends; one that is the input of all
    # projections matters where it does either; a target's row is a key of all later ones, whatever is masked.
    is_only_input = check.attends_to_itself(manifest)
    own_key = query is not None and key is None and not memory_apart and added is not None and not is_only_input
    own_rows = attended if attended is None or is_pair else attended[first:]
    read = _either(attending, own_rows) if is_only_input else None if is_pair else attending
    return PreparedInput(
        query=_ready(query, read, path, "query"),
        key=_ready(query if own_key else key, own_rows, path, "query" if own_key else "key"),
        value=_ready(value, own_rows, path, "value"),
        tokens=tokens,
        memory_tokens=memory_tokens,
        queries=queries,
        keys=keys,
        added=added,
        memory=memory,
        path=path,
        part=sequence.part,
        attending=attending,
        attended=attended,
        continuation=Continuation(past, keeps=sequence.extend) if past is not None or sequence.extend else None,
    )


def _check_sites(manifest: Manifest, limits: Limits, queries: int, keys: int, first: int, path: str) -> Layer:
    """Check the scores of each kind of site of an encoder-decoder; return its first cross site, which masks are for."""
    kinds = {(site_axes(layer, manifest), layer.heads) for layer in manifest.layers}
    lengths = lengths_by_axes(queries, keys, first)
    for axes, heads in sorted(kinds):
        limits.check_pairs(heads, *lengths[axes], path)
    return next(layer for layer in manifest.layers if layer.side == Side.SIDE_CROSS)


def _check_length(queries: int, first: int, manifest: Manifest, field: str) -> None:
    most = max_length(manifest)
    if 0 < most < first + queries:
        behind = f" behind {first}" if first else ""
        raise InvalidRequest(f"has {queries} positions{behind}; this model reads at most {most}", field=field)


def max_length(manifest: Manifest) -> int:
    """Return the largest number of vectors that a model takes as a query; 0 for any.

    A transformer knows the positions of its longest text alone.
    """
    return manifest.text.max_tokens if manifest.block == TRANSFORMER else 0


def shapes(sequence: Sequence, mask: Mask) -> Hashable | None:
    """Return the shapes and types of a sequence's arrays; None with a text, mask or memory, and where it is kept."""
    if mask is not NO_MASK or sequence.mask is not NO_MASK or sequence.memory or sequence.has_text or sequence.extend:
        return None
    query, key, value = sequence.query, sequence.key, sequence.value
    own = int(sequence.batch > 1)  # dimensions of one sequence begin there
    if query is not None and key is None and value is None:
        return query.shape[own:], query.dtype.char
    return tuple([None if each is None else (each.shape[own:], each.dtype.char) for each in (query, key, value)])


def separators(prepared: PreparedInput, axes: SiteAxes) -> NDArray[np.bool_] | None:
    """Return which keys of a site are special tokens of a text, [S]; None where its keys are of no text.

    Args:
        prepared: the sequence.
        axes: of the site.
    """
    memory = prepared.memory
    if keys_are_apart(prepared, axes):
        source = memory.tokens if memory else prepared.memory_tokens
        return None if source is None else np.array(source.special, np.bool_)
    kept = () if memory is None or memory.past is None else memory.past.special
    own = [False] * prepared.queries if prepared.tokens is None else prepared.tokens.special
    return np.array([*kept, *own], np.bool_)


def keys_are_apart(prepared: PreparedInput, axes: SiteAxes) -> bool:
    """Return whether the keys of a site are of another sequence than the queries."""
    memory = prepared.memory
    source = memory.tokens if memory else prepared.memory_tokens
    has_keys = prepared.key is not None or source is not None or (memory is not None and memory.source_length > 0)
    return axes != OF_TARGET and has_keys


def prepare_alike(sequence: Sequence, queries: int, keys: int) -> PreparedInput:
    """Prepare a sequence or a batch of `shapes` that were accepted before, with so many queries and keys.

    Raises:
        InvalidRequest: a number is NaN or infinite.
    """
    query, key, value = [
        None if array is None else _alike(array, sequence, name)
        for name, array in (("query", sequence.query), ("key", sequence.key), ("value", sequence.value))
    ]
    path, part = sequence.path, sequence.part
    return PreparedInput(query, key, value, None, None, queries, keys, path=path, part=part, batch=sequence.batch)


def _alike(array: Array, sequence: Sequence, name: str) -> Vectors:
    """Check the numbers of an array; return it as float32, [B, length, width]."""
    vectors = check.finite(np.ascontiguousarray(array, np.float32), None, sequence.path, name)
    return vectors[None] if sequence.batch == 1 else vectors


def prepare_memory(
    request: MemoryRequest,
    manifest: Manifest,
    reader: TextTokenizer | None,
    memory_reader: TextTokenizer | None,
    limits: Limits,
) -> tuple[Vectors | None, Vectors | None, Tokens | None]:
    """Check a request for a memory; return key and value, or the tokens of its text.

    The text is a memory text; of a decoder, which keeps a prefix, a text as those that it attends over.

    Raises:
        InvalidRequest: the model cannot take it.
    """
    memory_reader = reader if check.attends_to_itself(manifest) else memory_reader
    check.memory_sources(request, manifest, reads_memory_text=memory_reader is not None)
    tokens = _read_memory(request, memory_reader, "")
    if tokens is not None and manifest.block == TRANSFORMER:
        length, layers = len(tokens.ids), (source_chain(manifest) or target_chain(manifest)).layers
        limits.check_pairs(max(layer.heads for layer in layers), length, length, "memory_text")
    if request.key is None:
        return None, None, tokens
    layer = manifest.layers[0]
    key = check.finite(check.vectors(request.key, layer.key_dim, "key"), None, "", "key")
    if request.value is None:
        check.stands_in(key, layer.value_dim, "the key", "value")
        return key, None, None
    value = check.finite(check.vectors(request.value, layer.value_dim, "value"), None, "", "value")
    if len(value) != len(key):
        raise InvalidRequest(f"has {len(value)} positions, but there are {len(key)} keys", field="value")
    return key, value, None


def _check_own(key: Vectors, value: Vectors | None, past: Past, path: str) -> None:
    """Check that keys and values are as wide as those of the memory before them."""
    of_key, of_value = past.widths[0]
    check.vectors(key, of_key, join_path(path, "key"))
    if value is None:
        check.stands_in(key, of_value, "the key", join_path(path, "value"))
    else:
        check.vectors(value, of_value, join_path(path, "value"))


def _check_memory(memory: Memory, layer: Layer, query: Vectors | None, field: str) -> None:
    """Check that the query is as wide as the kept keys, for a block that takes any width."""
    if query is not None and not layer.query_dim and memory.tensors:
        check.vectors(query, memory.tensors["k"].shape[2] // layer.key_value_heads * layer.heads, field)


def _read_query(sequence: Sequence, reader: TextTokenizer | None, first: int) -> Tokens | None:
    """Return the tokens of a sequence's text or ids, behind `first` tokens; None for vectors, or without a target."""
    path = sequence.path
    if reader is not None and sequence.token_ids is not None:
        return reader.take(sequence.token_ids, join_path(path, "token_ids"), first)
    if reader is None or sequence.text is None:
        return None
    pair_field = join_path(path, "text_pair")
    return reader.read(
        sequence.text,
        join_path(path, "text"),
        truncate=sequence.truncate,
        pair=sequence.text_pair,
        pair_field=pair_field,
        first=first,
    )


def _read_memory(sent: Sequence | MemoryRequest, reader: TextTokenizer | None, path: str) -> Tokens | None:
    """Return the tokens of a memory's text or ids; None for vectors, or without a memory."""
    if reader is not None and sent.memory_token_ids is not None:
        return reader.take(sent.memory_token_ids, join_path(path, "memory_token_ids"))
    if reader is not None and sent.memory_text is not None:
        return reader.read(sent.memory_text, join_path(path, "memory_text"), truncate=sent.truncate)
    return None


def _length(tokens: Tokens | None, vectors: Vectors | None) -> int:
    return len(tokens.ids) if tokens is not None else 0 if vectors is None else len(vectors)


def _vectors(
    sequence: Sequence, layer: Layer, *, memory_apart: bool
) -> tuple[Vectors | None, Vectors | None, Vectors | None]:
    """Check the arrays that were sent, and the widths of those that a missing one defaults to."""
    path = sequence.path
    query = key = value = None
    if sequence.query is not None:
        query = check.vectors(sequence.query, layer.query_dim, join_path(path, "query"))
    key_width = layer.key_dim or (query.shape[1] if query is not None else 0)
    if sequence.key is not None:
        key = check.vectors(sequence.key, key_width, join_path(path, "key"))
    elif query is not None and not memory_apart:
        check.stands_in(query, key_width, "the query", join_path(path, "key"))
    if sequence.value is not None:
        value = check.vectors(sequence.value, layer.value_dim, join_path(path, "value"))
    elif key is not None:
        check.stands_in(key, layer.value_dim, "the key", join_path(path, "value"))
    elif query is not None and not memory_apart:
        check.stands_in(query, layer.value_dim, "the query", join_path(path, "value"))
    return query, key, value


def _either(first: NDArray[np.bool_] | None, second: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return the positions that are in one of two choices; None for all."""
    return None if first is None or second is None else first | second


def _ready(array: Vectors | None, matters: NDArray[np.bool_] | None, path: str, name: str) -> Vectors | None:
    """Reject NaN and infinity at unmasked positions, zero them at masked ones, and add the axis B."""
    return None if array is None else check.finite(array, matters, path, name)[None]
