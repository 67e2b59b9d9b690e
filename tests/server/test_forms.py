"""The forms of a stage, against loops."""

import numpy as np
from attention_server.inference.postprocess import top_k
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, max_side=8)
FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 3e38, -3e38])
NUMBERS = st.one_of(FEW, st.floats(allow_nan=False, allow_infinity=False, width=32))


@st.composite
def cases(draw):
    shape = draw(SHAPES)
    stage = draw(hnp.arrays(np.float32, shape, elements=NUMBERS))
    hidden_shape = (draw(st.sampled_from([1, shape[0]])), *shape[1:])
    hidden = draw(st.one_of(st.none(), hnp.arrays(np.bool_, hidden_shape)))
    return stage, draw(st.integers(1, 10)), hidden


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cases())
def test_top_k(case):
    """The k largest of each row: descending, of equals the lower index first, masked keys last; k over S is S."""
    stage, k, hidden = case
    found = top_k(stage, k, hidden)
    masked = np.zeros(stage.shape, bool) if hidden is None else np.broadcast_to(hidden, stage.shape)
    assert found.indices.shape == found.values.shape == (*stage.shape[:2], min(k, stage.shape[2]))
    assert found.indices.dtype == np.uint16
    for h, t in np.ndindex(stage.shape[:2]):
        row = [(masked[h, t, j], -float(stage[h, t, j]), j) for j in range(stage.shape[2])]
        seen = [j for hide, _, j in sorted(row) if not hide]
        indices = found.indices[h, t].tolist()
        assert indices[: len(seen)] == seen[:k]
        rest = indices[len(seen) :]
        assert all(masked[h, t, j] for j in rest)
        assert rest == sorted(rest)
        np.testing.assert_array_equal(found.values[h, t], stage[h, t, indices])
