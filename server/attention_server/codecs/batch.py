"""Batches in place of one sequence: dense [B, T, D], or packed [sum of lengths, D]."""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from attention_server.domain.limits import Limits
from attention_server.domain.messages import NO_MASK, Array, Sequence
from attention_server.errors import InvalidRequest, join_path

BATCHED = 3  # the rank of [B, T, D]
PACKED = 2  # of [sum of lengths, D]


def expand(sequence: Sequence, lengths: Collection[int], limits: Limits) -> list[Sequence]:
    """Return the sequences of a batch, or the sequence itself if it is none.

    Sequences of equal shapes stay one batch if they consist of their own arrays alone: no mask, text or kept memory.

    Args:
        sequence: dense, with query [B, T, D], and every other array shared or with a leading B too; or packed, with
            query, key and value [sum of lengths, D].
        lengths: the length of each packed sequence; empty for a dense batch or one sequence.
        limits: limits of one request.

    Raises:
        InvalidRequest: the shapes differ, or are not those of the lengths.
        TooLarge: there are more sequences than a request may have.
    """
    if lengths:
        return list(_unpack(sequence, lengths, limits))
    if sequence.query is None or sequence.query.ndim != BATCHED:
        return [sequence]
    batch = len(sequence.query)
    if not batch:
        raise InvalidRequest("is a batch of no sequences", field=join_path(sequence.path, "query"))
    limits.check_sequences(batch, join_path(sequence.path, "query"))
    arrays = (sequence.key, sequence.value)
    if batch > 1 and _has_only_arrays(sequence) and all(x is None or _has_batch_axis(x, batch) for x in arrays):
        return [sequence._replace(part=0, batch=batch)]
    key = _per_sequence(sequence.key, BATCHED - 1, join_path(sequence.path, "key"), batch)
    value = _per_sequence(sequence.value, BATCHED - 1, join_path(sequence.path, "value"), batch)
    allowed = _per_sequence(sequence.mask.allowed, BATCHED, join_path(sequence.path, "mask.allowed"), batch)
    bias = _per_sequence(sequence.mask.bias, BATCHED, join_path(sequence.path, "mask.bias"), batch)
    return [
        sequence._replace(
            part=index,
            query=query,
            key=key[index],
            value=value[index],
            mask=replace(sequence.mask, allowed=allowed[index], bias=bias[index]),
        )
        for index, query in enumerate(sequence.query)
    ]


def _has_only_arrays(sequence: Sequence) -> bool:
    return sequence.mask is NO_MASK and not sequence.memory and not sequence.has_text


def _has_batch_axis(array: Array, batch: int) -> bool:
    return array.ndim == BATCHED and len(array) == batch


def _per_sequence(array: Array | None, rank: int, name: str, batch: int) -> list[Any]:
    """Return each sequence's array; an array of at most `rank` dimensions is shared."""
    if array is None or array.ndim <= rank:
        return [array] * batch
    if len(array) != batch:
        raise InvalidRequest(f"has {len(array)} sequences, but query has {batch}", field=name)
    return list(array)


def _unpack(sequence: Sequence, lengths: Collection[int], limits: Limits) -> Iterator[Sequence]:
    """Yield packed sequences; neighbours of equal length are one batch."""
    field = join_path(sequence.path, "lengths")
    limits.check_sequences(len(lengths), field)
    if min(lengths) < 1:
        raise InvalidRequest("must be at least 1 each", field=field)
    if sequence.query is None:
        raise InvalidRequest("goes with a query, which was not sent", field=field)
    total = sum(lengths)
    arrays = (("query", sequence.query), ("key", sequence.key), ("value", sequence.value))
    for name, array in arrays:
        if array is not None and (array.ndim != PACKED or len(array) != total):
            raise InvalidRequest(
                f"has shape {list(array.shape)}, but the lengths say [{total}, width]",
                field=join_path(sequence.path, name),
            )
    begin = part = 0
    may_batch = _has_only_arrays(sequence)
    for length, alike in itertools.groupby(lengths):
        count = len(list(alike))
        for batch in [count] if may_batch else [1] * count:
            end = begin + length * batch
            query, key, value = [_slice(array, begin, end, batch) for _, array in arrays]
            yield sequence._replace(query=query, key=key, value=value, part=part, batch=batch)
            begin, part = end, part + batch


def _slice(array: Array | None, begin: int, end: int, batch: int) -> Array | None:
    """Return positions `begin` to `end` of a packed array: [T, D], or [B, T, D] for a batch."""
    if array is None:
        return None
    packed = array[begin:end]
    return packed if batch == 1 else packed.reshape(batch, len(packed) // batch, array.shape[1])
