"""What stands for several sequences in a sequence's place: a dense batch, or sequences one behind the other."""

import itertools
from collections.abc import Iterator
from collections.abc import Sequence as Several
from dataclasses import replace
from typing import Any

from attention_server.domain.limits import Limits
from attention_server.domain.messages import NO_MASK, Array, Sequence
from attention_server.errors import InvalidRequest, join_path

BATCHED = 3  # the rank of [B, T, D]
PACKED = 2  # of [sum of lengths, D]


def expand(sequence: Sequence, lengths: Several[int], limits: Limits) -> list[Sequence]:
    """Return what a query [B, T, D] stands for, or one of several sequences of these lengths, one behind the other.

    What goes with a batch is shared, or has a leading B too; key and value of several are packed as the query is. Where
    nothing but arrays of its own goes with each sequence, those of equal shapes stay one batch.

    Raises:
        InvalidRequest: the shapes differ, or are not those of the lengths.
        TooLarge: there are more sequences than a request may have.
    """
    if lengths:
        return list(_unpacked(sequence, lengths, limits))
    if sequence.query is None or sequence.query.ndim != BATCHED:
        return [sequence]
    batch = len(sequence.query)
    if not batch:
        raise InvalidRequest("is a batch of no sequences", field=join_path(sequence.path, "query"))
    limits.check_sequences(batch, join_path(sequence.path, "query"))
    arrays = (sequence.key, sequence.value)
    if batch > 1 and _has_arrays_alone(sequence) and all(x is None or _leads(x, batch) for x in arrays):
        return [sequence._replace(part=0, batch=batch)]
    key = _part(sequence.key, BATCHED - 1, join_path(sequence.path, "key"), batch)
    value = _part(sequence.value, BATCHED - 1, join_path(sequence.path, "value"), batch)
    allowed = _part(sequence.mask.allowed, BATCHED, join_path(sequence.path, "mask.allowed"), batch)
    bias = _part(sequence.mask.bias, BATCHED, join_path(sequence.path, "mask.bias"), batch)
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


def _has_arrays_alone(sequence: Sequence) -> bool:
    texts = (sequence.text, sequence.memory_text)
    return sequence.mask is NO_MASK and not sequence.memory and all(each is None for each in texts)


def _leads(array: Array, batch: int) -> bool:
    return array.ndim == BATCHED and len(array) == batch


def _part(array: Array | None, rank: int, name: str, batch: int) -> list[Any]:
    if array is None or array.ndim <= rank:
        return [array] * batch
    if len(array) != batch:
        raise InvalidRequest(f"has {len(array)} sequences, but query has {batch}", field=name)
    return list(array)


def _unpacked(sequence: Sequence, lengths: Several[int], limits: Limits) -> Iterator[Sequence]:
    """Yield sequences that lie one behind the other; neighbours of one length are a batch."""
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
    path, _, _, _, text, memory_text, memory, mask, *_ = sequence
    begin = part = 0
    may_batch = _has_arrays_alone(sequence)
    for length, alike in itertools.groupby(lengths):
        count = len(list(alike))
        for batch in [count] if may_batch else [1] * count:
            end = begin + length * batch
            query, key, value = [_cut(array, begin, end, batch) for _, array in arrays]
            yield Sequence(path, query, key, value, text, memory_text, memory, mask, part, batch)
            begin, part = end, part + batch


def _cut(array: Array | None, begin: int, end: int, batch: int) -> Array | None:
    """Return positions from `begin` to `end`, those of a batch as [B, T, D]."""
    if array is None:
        return None
    cut = array[begin:end]
    return cut if batch == 1 else cut.reshape(batch, len(cut) // batch, array.shape[1])
