"""Masks of requests and of sites, as additive masks in NumPy: causal, window, explicit and additive parts."""

from dataclasses import dataclass
from typing import Literal

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
    """

    causal: Causal = "none"
    window: tuple[int, int] = (UNBOUNDED, UNBOUNDED)
    allowed: NDArray[np.bool_] | None = None
    bias: NDArray[np.float32] | None = None

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
    added = np.where(_band(mask, queries, keys, first), np.float32(0), np.float32(-np.inf))[None]
    if mask.allowed is not None:
        added = np.where(mask.allowed, added, np.float32(-np.inf))
    if mask.bias is not None:
        # -inf plus a finite bias or -inf is -inf; the server refuses +inf and NaN before.
        added = added + mask.bias
    heads = added.shape[0]
    return np.ascontiguousarray(np.broadcast_to(added, (heads, queries, keys)), np.float32)


def _band(mask: Mask, queries: int, keys: int, first: int) -> NDArray[np.bool_]:
    """Return the causal and the window part of a mask: bool [T, S], true = may attend."""
    shift = keys - queries if mask.causal == "bottom_right" and not first else first
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
