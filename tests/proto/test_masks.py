"""The additive form of a mask, compared with a loop."""

import numpy as np
from attention_proto.masks import Mask, additive, site_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

BIASES = st.sampled_from([0.0, 1.5, -2.0, -np.inf])


@st.composite
def broadcastable(draw, dtype, shape, elements):
    """An array that can be broadcast to a shape."""
    sides = [draw(st.sampled_from([1, side])) for side in shape]
    return draw(hnp.arrays(dtype, tuple(sides[draw(st.integers(0, 3)) :]), elements=elements))


@st.composite
def cases(draw):
    heads, queries, keys = shape = tuple(draw(st.integers(1, 4)) for _ in range(3))
    side = st.integers(-1, 4)
    mask = Mask(
        causal=draw(st.sampled_from(["none", "top_left", "bottom_right"])),
        window=(draw(side), draw(side)),
        allowed=draw(st.one_of(st.none(), broadcastable(np.bool_, shape, st.booleans()))),
        bias=draw(st.one_of(st.none(), broadcastable(np.float32, shape, BIASES))),
    )
    return mask, heads, queries, keys


def naive(mask, heads, queries, keys):
    """Decide each position by itself."""
    added = np.zeros((heads, queries, keys), np.float32)
    for h, i, j in np.ndindex(added.shape):
        here = i + (keys - queries if mask.causal == "bottom_right" else 0)
        seen = mask.causal == "none" or j <= here
        left, right = mask.window
        seen = seen and (left == -1 or j >= here - left) and (right == -1 or j <= here + right)
        if mask.allowed is not None:
            seen = seen and np.broadcast_to(mask.allowed, added.shape)[h, i, j]
        if mask.bias is not None:
            added[h, i, j] = np.broadcast_to(mask.bias, added.shape)[h, i, j]
        if not seen:
            added[h, i, j] = -np.inf
    return added


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cases())
def test_additive(case):
    """Causal both ways, windows, allowed and bias combine with and; -inf hides; one mask may serve all heads."""
    mask, heads, queries, keys = case
    added = additive(mask, queries, keys)
    assert added.dtype == np.float32
    assert added.shape[0] in (1, heads)
    assert added.shape[1:] == (queries, keys)
    np.testing.assert_array_equal(np.broadcast_to(added, (heads, queries, keys)), naive(mask, heads, queries, keys))


@settings(deadline=None, derandomize=True)
@given(cases())
def test_open(case):
    """A mask that says it is open adds nothing."""
    mask, _, queries, keys = case
    if mask.is_open:
        assert not additive(mask, queries, keys).any()
    assert Mask().is_open


@given(st.booleans(), st.integers(0, 6), st.integers(1, 7))
def test_the_mask_of_a_site(causal, window, length):
    """A site's window is the number of keys in reach, the query's own among them."""
    added = additive(site_mask(causal=causal, window=window), length, length)
    for i, j in np.ndindex(length, length):
        seen = (j <= i or not causal) and (abs(i - j) < window or not window)
        assert added[0, i, j] == (0 if seen else -np.inf)
