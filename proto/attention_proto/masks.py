"""What the mask of a request means, in NumPy: the one place for causal, window, explicit and additive masks."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Causal = Literal["none", "top_left", "bottom_right"]
UNBOUNDED = -1


@dataclass(frozen=True)
class Mask:
    """Which keys a query may attend to; everything said combines with and.

    Attributes:
        causal: hides the future; positions are lined up at the first (`top_left`) or the last (`bottom_right`) of both.
        window: (left, right), inclusive distances from the diagonal; -1 is unbounded.
        allowed: bool, broadcastable to [H, T, S]; true = may attend.
        bias: float32, broadcastable to [H, T, S], added to the scores; -inf hides a key.
    """

    causal: Causal = "none"
    window: tuple[int, int] = (UNBOUNDED, UNBOUNDED)
    allowed: NDArray[np.bool_] | None = None
    bias: NDArray[np.float32] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it hides and adds nothing, whatever the lengths."""
        return (
            self.causal == "none"
            and self.window == (UNBOUNDED, UNBOUNDED)
            and self.allowed is None
            and self.bias is None
        )


def additive(mask: Mask, queries: int, keys: int) -> NDArray[np.float32]:
    """Return what is added to the scores: float32 [1 or H, T, S], -inf where a key is hidden.

    Args:
        mask: what the caller said; its arrays must be broadcastable to [H, T, S].
        queries: T.
        keys: S.
    """
    added = np.where(_band(mask, queries, keys), np.float32(0), np.float32(-np.inf))[None]
    if mask.allowed is not None:
        added = np.where(mask.allowed, added, np.float32(-np.inf))
    if mask.bias is not None:
        # -inf + -inf is -inf and a finite bias leaves -inf alone; +inf and NaN are refused before they come here.
        added = added + mask.bias
    heads = added.shape[0]
    return np.ascontiguousarray(np.broadcast_to(added, (heads, queries, keys)), np.float32)


def _band(mask: Mask, queries: int, keys: int) -> NDArray[np.bool_]:
    """Return the part of a mask that follows from positions alone: bool [T, S], true = may attend."""
    shift = keys - queries if mask.causal == "bottom_right" else 0
    distance = np.arange(keys)[None, :] - np.arange(queries)[:, None] - shift
    left, right = mask.window
    allowed = np.ones((queries, keys), np.bool_)
    if mask.causal != "none":
        allowed &= distance <= 0
    if left != UNBOUNDED:
        allowed &= distance >= -left
    if right != UNBOUNDED:
        allowed &= distance <= right
    return allowed
