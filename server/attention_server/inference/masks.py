"""Masks as numbers that are added to scores: those of a request, those of a site, and their sum."""

from functools import lru_cache
from typing import Any

import numpy as np
from attention_proto import masks
from attention_proto.attention.v1.attention_pb2 import Layer
from attention_proto.masks import Mask, additive
from numpy.typing import NDArray

from attention_server.domain.messages import NO_MASK, Sequence
from attention_server.errors import join_path
from attention_server.inference import validation as check

Vectors = NDArray[np.float32]
Positions = NDArray[np.bool_] | None  # None for all
HIDDEN = np.float32(-np.inf)
LEAST = np.finfo(np.float32).min
FLOOR = np.float32(-(2.0**126))  # a quarter of LEAST; scores vanish in rounding next to either
MAX_SITE_MASKS = 64  # kept
MAX_KEPT_PAIRS = 256 * 256  # queries x keys of a mask that is kept


def requested_mask(sequence: Sequence, mask: Mask, layer: Layer, queries: int, keys: int, first: int) -> Vectors | None:
    """Add up the request's mask and the sequence's own.

    Args:
        sequence: as sent.
        mask: the request's.
        layer: the mask may differ by its heads.
        queries: T.
        keys: S.
        first: the position of the first query among the keys, behind a prefix; 0 for the alignment of the mask.

    Returns:
        Float32 [1 or H, T, S], -inf only where a key is hidden; None for no mask.

    Raises:
        InvalidRequest: a mask does not fit.
    """
    parts: list[Vectors] = []
    biased = False
    for each, path in ((mask, ""), (sequence.mask, sequence.path)):
        if each is NO_MASK or each.is_open:
            continue
        check.mask(each, layer, queries, keys, join_path(path, "mask"))
        parts.append(additive(each, queries, keys, first))
        biased = biased or each.bias is not None
    if not parts:
        return None
    if len(parts) == 1:
        return raise_low_rows(parts[0]) if biased else parts[0]
    return raise_low_rows(
        np.add(*parts, dtype=np.float64)
    )  # the sum of two finite float32 numbers may overflow float32


def site_mask(
    queries: int, keys: int, *, causal: bool, window: int, positions: NDArray[np.intp] | None = None
) -> Vectors | None:
    """Return the mask of a site itself, float32 [1, T, S], read-only; None where it hides no key.

    Args:
        queries: T.
        keys: S.
        causal: whether a query attends to keys at its own position and before alone.
        window: a query attends to keys at a distance below this number; 0 for any distance.
        positions: of the queries among the keys, [T]; None for those from 0.
    """
    if not causal and not window:
        return None
    if positions is not None:
        return _mask_of_rows(positions, keys, causal=causal, window=window)
    make = _kept_site_mask if queries * keys <= MAX_KEPT_PAIRS else _site_mask
    return make(queries, keys, causal=causal, window=window)


def _site_mask(queries: int, keys: int, *, causal: bool, window: int) -> Vectors | None:
    mask = additive(masks.site_mask(causal=causal, window=window), queries, keys)
    if mask.min() > HIDDEN:
        return None
    mask.flags.writeable = False
    return mask


def _mask_of_rows(positions: NDArray[np.intp], keys: int, *, causal: bool, window: int) -> Vectors | None:
    """Return the mask of a site for queries at some positions, [1, T, S]; None where it hides no key."""
    distance = np.arange(keys) - positions[:, None]
    hidden = distance > 0 if causal else np.zeros(distance.shape, np.bool_)
    if window:
        hidden |= np.abs(distance) >= window
    return np.where(hidden, HIDDEN, np.float32(0))[None] if hidden.any() else None


_kept_site_mask = lru_cache(MAX_SITE_MASKS)(_site_mask)


def add_masks(first: Vectors | None, second: Vectors | None) -> Vectors | None:
    """Return the sum of two masks or biases, which broadcast; None for none.

    A row of which no key is left stays hidden, and one that has low numbers alone is raised; see `raise_low_rows`.
    """
    if first is None or second is None:
        return second if first is None else first
    return raise_low_rows(np.add(first, second, dtype=np.float64))


def raise_low_rows(added: NDArray[np.floating[Any]]) -> Vectors:
    """Return biases as float32, of which a graph takes only -inf for hidden.

    onnxruntime's Attention treats a row of which no score is above float32's least as hidden whole. Softmax does not
    change when a row is shifted, so a row with a largest bias below FLOOR is shifted up, to a largest bias of FLOOR.

    Args:
        added: [1 or H, T, S], float32 or float64; finite or -inf.
    """
    largest = added.max(-1, keepdims=True)
    if largest.min() < FLOOR:
        low = (largest < FLOOR) & (largest > HIDDEN)
        added = added + np.where(low, FLOOR - largest, 0).astype(added.dtype)
    if added.dtype == np.float32:
        return added
    return np.where(added == HIDDEN, HIDDEN, np.maximum(added, LEAST)).astype(np.float32)


def unmasked(added: Vectors | None) -> tuple[Positions, Positions]:
    """Return whether each query position may attend, [T], and each key position is attended, [S]; None for all."""
    if added is None:
        return None, None
    left = added > HIDDEN
    return _unless_all(np.any(left, axis=(0, 2))), _unless_all(np.any(left, axis=(0, 1)))


def _unless_all(positions: NDArray[np.bool_]) -> Positions:
    return None if positions.all() else positions
