"""Dense batches: split into sequences of their own lengths, and made of sequences by padding with zeros."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from attention_proto.masks import Mask
from attention_proto.text import Truncate

from attention_server.codecs.batch import BATCHED
from attention_server.domain import messages as domain
from attention_server.domain.limits import Limits
from attention_server.domain.messages import NO_MASK, Array
from attention_server.errors import InvalidRequest

RANKS = {
    "query": 3,
    "key": 3,
    "value": 3,
    "text": 1,
    "text_pair": 1,
    "memory_text": 1,
    "token_ids": 2,
    "memory_token_ids": 2,
    "query_lengths": 1,
    "key_lengths": 1,
}
SHAPES = {1: "[batch]", 2: "[batch, length]", 3: "[batch, length, width]"}
PADDED = {"query": ("query", "token_ids"), "key": ("key", "memory_token_ids")}  # inputs that have such lengths
SEQUENCES = ("query", "text", "token_ids", "memory_text", "memory_token_ids")  # of which one tells the batch size
ARRAYS = {"query", "key", "value"}
TEXTS = ("text", "text_pair", "memory_text")
MASKS = ("allowed", "bias")
INPUTS = (*RANKS, *MASKS)


class BatchLengths(NamedTuple):
    """The lengths of dense inputs.

    Attributes:
        queries: T; 0 for text.
        keys: S; 0 for text and for a kept memory.
        self_attention: whether the query's positions are the keys.
    """

    queries: int
    keys: int
    self_attention: bool


def batch_lengths(inputs: Mapping[str, Array], memory: str) -> BatchLengths:
    """Return the lengths of dense inputs; `memory` is the id of a kept memory, or empty."""
    queries, keys = _longest(inputs, "query"), _longest(inputs, "key")
    self_attention = not memory and not any(each in inputs for each in (*PADDED["key"], "memory_text"))
    return BatchLengths(queries, queries if self_attention else keys, self_attention)


def without_columns(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return inputs of one value for each sequence as [B], which MLServer's clients send as columns [B, 1]."""
    return {
        name: array[:, 0] if RANKS.get(name) == 1 and array.ndim == 2 and array.shape[1] == 1 else array
        for name, array in inputs.items()
    }


def split(
    inputs: Mapping[str, Array],
    memory: str,
    limits: Limits,
    truncate: Truncate = "none",
    mask_layers: tuple[str, ...] = (),
) -> Iterator[domain.Sequence]:
    """Yield the sequences of a dense batch without padding; equal lengths stay one batch.

    Args:
        inputs: query [B, T, Dq], key [B, S, Dk], value [B, S, Dv], text [B], token_ids [B, T], lengths [B], masks.
        memory: the id of a kept memory that all sequences attend to, or empty.
        limits: limits of one request.
        truncate: where tokens of each text are dropped that are more than the model reads.
        mask_layers: the layers that the masks are for; empty for all.

    Raises:
        InvalidRequest: an input has the wrong rank, type or batch size, or a length is out of range.
        TooLarge: the batch has more sequences than a request may have.
    """
    batch = _batch_size(inputs, limits)
    if not batch:
        yield domain.Sequence(memory=memory)  # the service reports a missing input
        return
    query, key, value = (inputs.get(name) for name in ("query", "key", "value"))
    texts = {name: inputs[name] for name in TEXTS if name in inputs}
    ids, memory_ids = inputs.get("token_ids"), inputs.get("memory_token_ids")
    if batch > 1 and not memory and truncate == "none" and inputs.keys() <= ARRAYS and _lengths_match(inputs):
        yield domain.Sequence(query=query, key=key, value=value, part=0, batch=batch)
        return
    longest = batch_lengths(inputs, memory)
    queries = _lengths(inputs, "query", batch)
    keys = queries if longest.self_attention and "key_lengths" not in inputs else _lengths(inputs, "key", batch)
    for i in range(batch):
        masks = {name: _mask(inputs[name], i, batch, name) for name in MASKS if name in inputs}
        trimmed: dict[str, Any] = {name: _trim(x, longest, queries[i], keys[i]) for name, x in masks.items()}
        yield domain.Sequence(
            part=i if batch > 1 else None,
            query=None if query is None else query[i, : queries[i]],
            key=None if key is None else key[i, : keys[i]],
            value=None if value is None else value[i, : keys[i] or None],
            **{name: each[i] for name, each in texts.items()},
            truncate=truncate,
            token_ids=None if ids is None else ids[i, : queries[i]],
            memory_token_ids=None if memory_ids is None else memory_ids[i, : keys[i]],
            memory=memory,
            mask=Mask(**trimmed, layers=mask_layers) if trimmed else NO_MASK,
        )


def stack(arrays: Sequence[Array], shape: tuple[int, ...], fill: object) -> Array:
    """Return arrays as one batch [B, *shape]; each is padded at its ends with `fill`."""
    if all(array.shape == shape for array in arrays):
        return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
    dense = np.full((len(arrays), *shape), fill, arrays[0].dtype)
    for row, array in zip(dense, arrays, strict=True):
        row[tuple(map(slice, array.shape))] = array
    return dense


def _lengths_match(inputs: Mapping[str, Array]) -> bool:
    """Return whether the value, if there is one, is as long as the key, or as the query where there is no key."""
    value = inputs.get("value")
    return value is None or value.shape[1] == inputs.get("key", inputs["query"]).shape[1]


def _batch_size(inputs: Mapping[str, Array], limits: Limits) -> int:
    """Return the batch size, the same for every input; 0 without any sequence."""
    for name, rank in RANKS.items():
        if name in inputs and inputs[name].ndim != rank:
            raise InvalidRequest(f"must have shape {SHAPES[rank]}, not {list(inputs[name].shape)}", field=name)
        if name in inputs and (inputs[name].dtype == object) != (name in TEXTS):
            raise InvalidRequest(f"must {'' if name in TEXTS else 'not '}be BYTES", field=name)
    first = next((name for name in SEQUENCES if name in inputs), None)
    if first is None:
        return 0
    batch = len(inputs[first])
    if not batch:
        raise InvalidRequest("is a batch of no sequences", field=first)
    limits.check_sequences(batch, first)
    for name in RANKS:
        if name in inputs and len(inputs[name]) != batch:
            raise InvalidRequest(f"has {len(inputs[name])} sequences, but {first} has {batch}", field=name)
    return batch


def _lengths(inputs: Mapping[str, Array], name: str, batch: int) -> list[int]:
    """Return the length of each sequence of `name`, query or key; zeros if that input is missing."""
    field = f"{name}_lengths"
    lengths, longest = inputs.get(field), _longest(inputs, name)
    if lengths is None:
        return [longest] * batch
    if not any(each in inputs for each in PADDED[name]):
        raise InvalidRequest(f"goes with {name}, which was not sent", field=field)
    if lengths.dtype != np.int64:
        raise InvalidRequest(f"must be INT64, not {lengths.dtype}", field=field)
    given: list[int] = lengths.tolist()
    if not all(1 <= length <= longest for length in given):
        raise InvalidRequest(f"must be from 1 to {longest}, the length of {name}", field=field)
    return given


def _longest(inputs: Mapping[str, Array], name: str) -> int:
    """Return the length that query or key is padded to, of vectors or ids; 0 where both are missing."""
    return max((inputs[each].shape[1] for each in PADDED[name] if each in inputs), default=0)


def _mask(array: Array, i: int, batch: int, name: str) -> Array:
    """Return sequence i's mask of [B or 1, H or 1, T or 1, S or 1]; a mask of lower rank holds for every sequence."""
    if array.dtype == object:
        raise InvalidRequest("must not be BYTES", field=name)
    if array.ndim <= BATCHED:
        return array
    if len(array) not in (1, batch):
        raise InvalidRequest(f"has {len(array)} sequences, but there are {batch}", field=name)
    mask: Array = array[i if len(array) > 1 else 0]
    return mask


def _trim(mask: Array, longest: BatchLengths, queries: int, keys: int) -> Array:
    """Return a mask [..., T, S] without the rows and columns of padding."""
    if mask.ndim and mask.shape[-1] == longest.keys:
        mask = mask[..., :keys]
    if mask.ndim > 1 and mask.shape[-2] == longest.queries:
        mask = mask[..., :queries, :]
    return mask
