"""Statistics of rows of attention weights or scores, each of any block of rows.

Those of rows, `entropy` and `lse`, have one number a row. Those over rows, `received` and `statistics`, are sums in
float64: the sums of two blocks add up to those of both.
"""

from collections.abc import Callable, Mapping

import numpy as np
from attention_proto.stages import STATISTICS
from numpy.typing import NDArray

Rows = NDArray[np.float32]  # of weights, [..., r, S]
Sums = NDArray[np.float64]
Positions = NDArray[np.intp]
Separators = NDArray[np.bool_] | None  # which keys are special tokens, [S]; None for none

LEAST = np.finfo(np.float32).tiny
NO_KEY = np.float32(-1e30)  # the lse of a row without keys: JSON has no -inf, and exp of it is 0


def entropy(weights: Rows) -> NDArray[np.float32]:
    """Return the entropy of each row in nats, [..., S] -> [...]; a row of zeros has entropy 0.

    A weight below the least normal number counts as 0: its share of the entropy is below 1e-36.
    """
    logs = np.log(np.maximum(weights, LEAST))
    logs *= weights
    # 0 - x, not -x: a row with one key is 0, not -0; rounding can leave the one weight above 1.
    nats: NDArray[np.float32] = np.maximum(np.float32(0) - logs.sum(-1), np.float32(0))
    return nats


def lse(scores: Rows, added: NDArray[np.float32] | None, temperature: float = 1) -> NDArray[np.float32]:
    """Return the log of the sum of exp of each row of masked scores, [..., S] -> [...]; at least NO_KEY.

    Args:
        scores: before the mask.
        added: the mask, broadcastable to the scores; None for no mask.
        temperature: divides the masked scores.
    """
    with np.errstate(over="ignore", divide="ignore"):  # of low biases, and of hidden rows
        masked = scores if added is None else scores + added
        masked = masked if temperature == 1 else masked * np.float32(1 / temperature)
        largest = np.maximum(masked.max(-1, keepdims=True), NO_KEY)
        logs: NDArray[np.float32] = np.log(np.exp(masked - largest).sum(-1)) + largest[..., 0]
    return np.maximum(logs, NO_KEY)


def received(weights: Rows, positions: Positions, separators: Separators) -> Sums:  # noqa: ARG001 # as its neighbours
    """Return the sum of the weights that each key receives, [..., r, S] -> [..., S]."""
    sums: Sums = weights.sum(-2, dtype=np.float64)
    return sums


def statistics(weights: Rows, positions: Positions, separators: Separators) -> Sums:
    """Return the sums of STATISTICS over rows, and the number of rows that have a weight, [..., r, S] -> [..., 9].

    A row adds nothing to the weight on a position at which there is no key.

    Args:
        weights: of some rows.
        positions: of these rows in the sequence, [r].
        separators: which keys are special tokens.
    """
    keys = np.arange(weights.shape[-1])

    def at(offset: int) -> NDArray[np.float32]:
        there = (positions + offset >= 0) & (positions + offset < len(keys))
        found: NDArray[np.float32] = weights[..., np.flatnonzero(there), positions[there] + offset]
        return found

    largest = weights.max(-1)
    distances = np.abs(positions[:, None] - keys).astype(np.float32)
    of_rows: Mapping[str, NDArray[np.float32]] = {
        "entropy": entropy(weights),
        "previous": at(-1),
        "self": at(0),
        "next": at(1),
        "first": weights[..., 0],
        "separators": weights[..., [] if separators is None else np.flatnonzero(separators)].sum(-1),
        "distance": (weights * distances).sum(-1),
        "largest": largest,
    }
    sums = [of_rows[name].sum(-1, dtype=np.float64) for name in STATISTICS]
    return np.stack([*sums, (largest > 0).sum(-1, dtype=np.float64)], -1)


def means(sums: Sums) -> Sums:
    """Return the means of `statistics`, [..., 9] -> [..., 8]; zeros where no row has a weight."""
    found: Sums = sums[..., :-1] / np.maximum(sums[..., -1:], 1)
    return found


OverRows = Callable[[Rows, Positions, Separators], Sums]
# Stages over rows of weights: the sums of a block of rows, and the function from all sums to the stage.
OVER_ROWS: Mapping[str, tuple[OverRows, Callable[[Sums], Sums]]] = {
    "received": (received, lambda sums: sums),
    "statistics": (statistics, means),
}
