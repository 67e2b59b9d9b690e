"""The draw of a label: temperature, top k and top p, by the rules of the logits warpers of `transformers`."""

import numpy as np
from numpy.typing import NDArray

from attention_server.domain.messages import Sample

Numbers = NDArray[np.float64]


def draw(logits: NDArray[np.floating], sample: Sample, seed: int | None, row: int) -> int:
    """Draw a label.

    Args:
        logits: of each label, [V].
        sample: the filters.
        seed: of the request; None for a new draw.
        row: the position that the label is drawn for; each position of a seed has a generator of its own, so that a
            draw depends neither on the rows beside it nor on further sequences.

    Returns:
        The label's position.
    """
    cumulative = np.cumsum(distribution(logits, sample))
    generator = np.random.default_rng(None if seed is None else (seed, row))
    return int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))


def distribution(logits: NDArray[np.floating], sample: Sample) -> Numbers:
    """Return the probability of each label to be drawn, [V]; 0 where the filters leave it out.

    Formulas: TemperatureLogitsWarper, TopKLogitsWarper and TopPLogitsWarper of `transformers`, in this order and in
    float64. Labels that equal the k-th largest are kept. Of equal labels, top p keeps the lower ids.

    Args:
        logits: of each label, [V]; -inf for one that is impossible.
        sample: the filters.
    """
    scores = logits.astype(np.float64) / sample.temperature
    if 0 < sample.top_k < len(scores):
        scores[scores < np.partition(scores, -sample.top_k)[-sample.top_k]] = -np.inf
    if sample.top_p < 1:
        descending = np.argsort(-scores, kind="stable")
        ascending = descending[np.isfinite(scores[descending])][::-1]
        removed = np.cumsum(_softmax(scores[ascending])) <= 1 - sample.top_p
        removed[-1:] = False  # the most probable label always stays
        scores[ascending[removed]] = -np.inf
    return _softmax(scores)


def _softmax(scores: Numbers) -> Numbers:
    powers: Numbers = np.exp(scores - scores.max())
    total: np.float64 = powers.sum()
    return powers / total
