"""Masks of requests and of sites, as additive masks in NumPy: causal, window, explicit and additive parts."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Causal = Literal["none", "top_left", "bottom_right"]
UNBOUNDED = -1


@dataclass(frozen=True)
class Mask:
    """The keys that each query may attend to. A key must pass every part.

    Attributes:
        causal: hides later positions; query and key are aligned at their first (`top_left`) or last (`bottom_right`)
            position.
        window: (left, right), inclusive distances from the diagonal; -1 is unbounded.
        allowed: bool, broadcastable to [H, T, S]; true = may attend.
        bias: float32, broadcastable to [H, T, S], added to the scores; -inf hides a key.
        layers: the sites that it is for, as in the option `layers` of an output; empty for all.
    """

    causal: Causal = "none"
    window: tuple[int, int] = (UNBOUNDED, UNBOUNDED)
    allowed: NDArray[np.bool_] | None = None
    bias: NDArray[np.float32] | None = None
    layers: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether the mask hides no key and adds nothing, for sequences of any lengths."""
        return (
            self.causal == "none"
            and self.window == (UNBOUNDED, UNBOUNDED)
            and self.allowed is None
            and self.bias is None
        )


def site_mask(*, causal: bool, window: int) -> Mask:
    """Return the mask of a site itself, which is added to a request's.

    Args:
        causal: whether a query attends to keys at its own position and before alone.
        window: a query attends to keys at a distance below this number; 0 for any distance.
    """
    reach = window - 1 if window else UNBOUNDED
    return Mask(causal="top_left" if causal else "none", window=(reach, reach))


def additive(mask: Mask, queries: int, keys: int, first: int = 0) -> NDArray[np.float32]:
    """Return the additive mask of the scores: float32 [1 or H, T, S], -inf where a key is hidden.

    Args:
        mask: a mask with arrays that are broadcastable to [H, T, S].
        queries: T.
        keys: S.
        first: the position of the first query among the keys, if above 0: of a sequence behind a prefix, which leaves
            nothing to align.
    """
    return additive_block(mask, queries, keys, np.arange(queries), slice(0, keys), first)


def additive_block(
    mask: Mask, queries: int, keys: int, rows: NDArray[np.intp], columns: slice, first: int = 0
) -> NDArray[np.float32]:
    """Return some rows and columns of an additive mask, float32 [1 or H, rows, columns]; see `additive`."""
    distance = np.arange(columns.start, columns.stop) - rows[:, None] - _shift(mask, queries, keys, first)
    added = np.where(_band(mask, distance), np.float32(0), np.float32(-np.inf))[None]
    if mask.allowed is not None:
        added = np.where(_cut(mask.allowed, rows, columns), added, np.float32(-np.inf))
    if mask.bias is not None:
        # -inf plus a finite bias or -inf is -inf; the server refuses +inf and NaN before.
        added = added + _cut(mask.bias, rows, columns)
    return np.ascontiguousarray(np.broadcast_to(added, (len(added), *distance.shape)), np.float32)


def reach(
    mask: Mask, queries: int, keys: int, rows: NDArray[np.intp], first: int = 0
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return for each row the first key that its band leaves, and the one behind the last: equal where it leaves none.

    Args:
        mask: `allowed` and `bias` are not looked at.
        queries: T.
        keys: S.
        rows: query positions.
        first: the position of the first query among the keys; as in `additive`.
    """
    diagonal = rows + _shift(mask, queries, keys, first)
    left, right = mask.window
    if mask.causal != "none":
        right = 0
    begin = np.zeros_like(rows) if left == UNBOUNDED else np.clip(diagonal - left, 0, keys)
    end = np.full_like(rows, keys) if right == UNBOUNDED else np.clip(diagonal + right + 1, 0, keys)
    return begin, np.maximum(begin, end)


def _shift(mask: Mask, queries: int, keys: int, first: int) -> int:
    return keys - queries if mask.causal == "bottom_right" and not first else first


def _cut(array: NDArray[Any], rows: NDArray[np.intp], columns: slice) -> NDArray[Any]:
    """Return rows and columns of an array that is broadcastable to [H, T, S]."""
    array = array.reshape((1,) * (3 - array.ndim) + array.shape)
    array = array if array.shape[1] == 1 else array[:, rows]
    return array if array.shape[2] == 1 else array[:, :, columns]


def _band(mask: Mask, distance: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return the causal and the window part of a mask by the distance from the diagonal, true = may attend."""
    left, right = mask.window
    allowed = np.ones(distance.shape, np.bool_)
    if mask.causal != "none":
        allowed &= distance <= 0
    if left != UNBOUNDED:
        allowed &= distance >= -left
    if right != UNBOUNDED:
        allowed &= distance <= right
    return allowed
