"""How far served results may be from those of `transformers`, and how far they are."""

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 5e-5  # of the largest value


def distance(found: NDArray, expected: NDArray) -> float:
    """Return the largest difference, as a part of the largest value; AssertionError for another shape."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())
