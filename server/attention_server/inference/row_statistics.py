"""Statistics of rows of attention weights: one number a row, for stages that are computed after the graphs."""

import numpy as np
from numpy.typing import NDArray

LEAST = np.finfo(np.float32).tiny


def entropy(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the entropy of each row in nats, [..., S] -> [...]; a row of zeros has entropy 0.

    A weight below the least normal number counts as 0: its share of the entropy is below 1e-36.
    """
    logs = np.log(np.maximum(weights, LEAST))
    logs *= weights
    # 0 - x, not -x: a row with one key is 0, not -0; rounding can leave the one weight above 1.
    nats: NDArray[np.float32] = np.maximum(np.float32(0) - logs.sum(-1), np.float32(0))
    return nats


FROM_WEIGHTS = {"entropy": entropy}  # stages that a function computes from weights, [B, H, T, S]
