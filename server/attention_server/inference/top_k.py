"""The k largest numbers of each row, the lower index first among equals."""

import numpy as np
from numpy.typing import NDArray

from attention_server.domain.messages import TopK
from attention_server.inference.planner import index_type

LAST = np.int64(0xFFFFFFFF)  # the largest position that fits into one integer with a rank
MASKED = np.iinfo(np.int64).min  # the order of a masked key, and of none
LEAST_GROUPS = 4  # for each of the k: fewer groups leave too many candidates
MAX_GROUP = 16
LEAST_KEYS = 128  # shorter rows are ordered whole as quickly
MAX_CANDIDATES = 8  # for each of the k: a row with more, which has many equal numbers, is ordered whole


def top_k(stage: NDArray[np.float32], k: int, hidden: NDArray[np.bool_] | None) -> TopK:
    """Return the k largest of each row: descending, lower index first among equals, hidden ones last.

    Args:
        stage: [..., S], finite.
        k: the number; at most S are returned.
        hidden: broadcastable to the stage.
    """
    keys = stage.shape[-1]
    k = min(k, keys)
    group = min(MAX_GROUP, keys // (LEAST_GROUPS * k))
    if group < 2 or keys < LEAST_KEYS:
        indices = _largest(_order(stage, hidden), k)
    else:
        rows = np.ascontiguousarray(stage).reshape(-1, keys)
        masks = None if hidden is None else np.broadcast_to(hidden, stage.shape).reshape(-1, keys)
        indices = _among_candidates(rows, k, masks, group).reshape(*stage.shape[:-1], k)
    return TopK(indices.astype(index_type(keys)), np.take_along_axis(stage, indices, -1))


def _among_candidates(
    rows: NDArray[np.float32], k: int, hidden: NDArray[np.bool_] | None, group: int
) -> NDArray[np.int64]:
    """Return the positions of the k largest of each of many numbers, [R, S] -> [R, k].

    The k-th largest of the maxima of groups is at most the k-th largest of all: a number below it is none of the k.
    """
    keys = rows.shape[-1]
    open_rows = rows if hidden is None else np.where(hidden, np.float32(-np.inf), rows)
    groups = keys // group
    maxima = open_rows[:, : groups * group].reshape(-1, group, groups).max(1)
    least = np.partition(maxima, groups - k, axis=-1)[:, groups - k, None]
    places = np.flatnonzero(open_rows >= least)
    row = places // keys
    counts = np.bincount(row, minlength=len(rows))
    crowded = counts > MAX_CANDIDATES * k
    if crowded.any():
        kept = ~crowded[row]
        places, row, counts = places[kept], row[kept], np.where(crowded, 0, counts)
    nth = np.arange(len(places)) - (np.cumsum(counts) - counts)[row]
    order = np.full((len(rows), max(k, counts.max())), MASKED)
    order[row, nth] = _order(open_rows.ravel()[places, None], None, (places - row * keys)[:, None])[:, 0]
    indices = _largest(order, k)
    if crowded.any():
        indices[crowded] = _largest(_order(rows[crowded], None if hidden is None else hidden[crowded]), k)
    return indices


def _order(
    numbers: NDArray[np.float32], hidden: NDArray[np.bool_] | None, positions: NDArray[np.intp] | None = None
) -> NDArray[np.int64]:
    """Pack each number and its position into one integer of the same order; positions default to those in the row.

    A partition, which is linear, then selects the largest, and equal numbers are in order too.
    """
    rank = _ascending_bits(numbers)
    if hidden is not None:
        rank = np.where(hidden, np.iinfo(np.int32).min, rank)
    order: NDArray[np.int64] = rank.astype(np.int64) << 32
    order |= LAST - (np.arange(numbers.shape[-1]) if positions is None else positions)
    return order


def _largest(order: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Return the positions of the k largest in each row, descending."""
    keys = order.shape[-1]
    largest = np.sort(np.partition(order, keys - k, axis=-1)[..., keys - k :], axis=-1)[..., ::-1]
    return LAST - (largest & LAST)


def _ascending_bits(x: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return integers in the order of the numbers, above the least: a float's bits, turned round where it is negative.

    A float's bits are its sign and its magnitude, where those of an integer are a two's complement.
    """
    bits = (np.ascontiguousarray(x) + np.float32(0)).view(np.int32)  # + 0: -0.0 equals 0.0
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
