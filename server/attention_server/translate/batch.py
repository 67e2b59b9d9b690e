"""A dense batch in a sequence's place becomes the sequences it stands for."""

from dataclasses import replace
from typing import Any

from attention_server.domain import Array, Limits, Sequence, join_path
from attention_server.errors import InvalidRequest

BATCHED = 3  # the rank of [B, T, D]


def expand(sequence: Sequence, limits: Limits) -> list[Sequence]:
    """Return one sequence for each of a query [B, T, D]; what goes with it is shared, or has a leading B too.

    Raises:
        InvalidRequest: the leading dimensions differ.
        TooLarge: there are more than a request may have.
    """
    if sequence.query is None or sequence.query.ndim != BATCHED:
        return [sequence]
    batch = len(sequence.query)
    if not batch:
        raise InvalidRequest("is a batch of no sequences", field=join_path(sequence.path, "query"))
    limits.check_sequences(batch, join_path(sequence.path, "query"))
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


def _part(array: Array | None, rank: int, name: str, batch: int) -> list[Any]:
    if array is None or array.ndim <= rank:
        return [array] * batch
    if len(array) != batch:
        raise InvalidRequest(f"has {len(array)} sequences, but query has {batch}", field=name)
    return list(array)
