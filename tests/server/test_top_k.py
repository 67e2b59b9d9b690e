"""The k largest of long rows, against a stable sort."""

import numpy as np
import pytest
from attention_server.inference.top_k import LEAST_KEYS, top_k

KEYS = 2 * LEAST_KEYS + 3  # no multiple of a group


def rows_of(kind, rng):
    """Return [2, 6, KEYS]: random numbers, many equal ones, one number, or both zeros."""
    drawn = rng.standard_normal((2, 6, KEYS)).astype(np.float32)
    return {"random": drawn, "equal": np.round(drawn), "one": drawn * 0 + 1, "zeros": np.copysign(0, drawn)}[kind]


@pytest.mark.parametrize("kind", ["random", "equal", "one", "zeros"])
@pytest.mark.parametrize("k", [1, 8, 64, KEYS + 1])
@pytest.mark.parametrize("heads", [None, 1, 2])
def test_the_k_largest_of_long_rows(kind, k, heads):
    """Rows of thousands of keys give the first k of a stable descending sort, masked keys, in their order, behind."""
    rng = np.random.default_rng(k)
    rows = rows_of(kind, rng)
    hidden = None if heads is None else rng.random((heads, 6, KEYS)) < np.array([0, 0.1, 0.9, 0.999, 1, 1])[:, None]
    found = top_k(rows, k, hidden)
    masks = np.broadcast_to(False if hidden is None else hidden, rows.shape)
    expected = np.lexsort((np.where(masks, 0, -rows), masks), axis=-1)[..., :k]
    np.testing.assert_array_equal(found.indices, expected)
    np.testing.assert_array_equal(found.values, np.take_along_axis(rows, expected, -1))
