"""Invariants of every block, for any numbers: an answer depends on its question alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.reference import BLOCKS, read_block

bounded = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SAME = {"atol": 1e-6, "rtol": 1e-5}
every_block = pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.model)
LENGTHS = st.integers(1, 12)
SEEDS = st.integers(0, 2**32 - 1)
ASKED = ["weights", "output"]


@pytest.fixture(scope="session", params=["grpc", "rest-json"])
def ask(request, server, connect):
    """Ask for outputs, over gRPC and REST."""
    return connect(request.param, server.rest, server.grpc)


def same(one, other):
    for name, stage in one.items():
        np.testing.assert_allclose(stage, other[name], **SAME, err_msg=name)


@every_block
@bounded
@given(queries=LENGTHS, keys=LENGTHS, others=st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=4), seed=SEEDS)
def test_neighbours_change_nothing(ask, case, queries, keys, others, seed):
    """An answer is the same alone, beside further sequences of its message, and beside concurrent requests."""
    rng = np.random.default_rng(seed)
    mine = case.vectors(rng, queries, keys)
    neighbours = [case.vectors(rng, *lengths) for lengths in others]
    alone = ask.outputs(case.model, outputs=ASKED, **mine)
    place = seed % (len(neighbours) + 1)
    inputs = [*neighbours[:place], mine, *neighbours[place:]]
    same(ask.attend(case.model, inputs=inputs, outputs=ASKED)["results"][place]["outputs"], alone)


@every_block
def test_what_is_in_flight_changes_nothing(ask, case):
    """Concurrent requests have the answers that each has alone."""
    rng = np.random.default_rng(0)
    requests = [case.vectors(rng, *rng.integers(1, 40, 2)) for _ in range(24)]

    def answer(vectors):
        return ask.outputs(case.model, outputs=ASKED, **vectors)

    alone = [answer(vectors) for vectors in requests]
    with ThreadPoolExecutor(8) as callers:
        for one, other in zip(callers.map(answer, requests), alone, strict=True):
            same(one, other)


@every_block
@bounded
@given(queries=LENGTHS, keys=LENGTHS, padding=st.tuples(LENGTHS, LENGTHS), seed=SEEDS)
def test_padding_changes_nothing(ask, case, queries, keys, padding, seed):
    """Keys that a mask hides, and queries beside, leave all further rows unchanged."""
    rng = np.random.default_rng(seed)
    vectors = case.vectors(rng, queries, keys)
    alone = ask.outputs(case.model, outputs=ASKED, **vectors)
    longer = case.vectors(rng, *padding)
    padded = {name: np.concatenate([part, longer[name] * 50]) for name, part in vectors.items()}
    allowed = np.arange(keys + padding[1]) < keys
    found = ask.outputs(case.model, outputs=ASKED, mask={"allowed": allowed}, **padded)
    same({"weights": found["weights"][:, :queries, :keys], "output": found["output"][:queries]}, alone)
    assert not found["weights"][..., keys:].any()


@every_block
@bounded
@given(queries=LENGTHS, keys=LENGTHS, seed=SEEDS)
def test_order_of_keys_is_no_matter(ask, case, queries, keys, seed):
    """Keys and values permuted together give the same output, and the weights permuted."""
    rng = np.random.default_rng(seed)
    vectors = case.vectors(rng, queries, keys)
    order = rng.permutation(keys)
    moved = ask.outputs(
        case.model,
        outputs=ASKED,
        query=vectors["query"],
        key=vectors["key"][order],
        value=vectors["value"][order],
    )
    alone = ask.outputs(case.model, outputs=ASKED, **vectors)
    same(moved, {"weights": alone["weights"][..., order], "output": alone["output"]})


@every_block
@bounded
@given(length=st.integers(2, 12), causal=st.sampled_from(["top_left", "bottom_right"]), data=st.data(), seed=SEEDS)
def test_the_future_is_not_seen(ask, case, length, causal, data, seed):
    """A causal answer does not depend on later positions."""
    rng = np.random.default_rng(seed)
    past = data.draw(st.integers(1, length - 1))
    vectors = case.vectors(rng, length, length)
    later = case.vectors(rng, length, length)
    changed = {name: np.concatenate([part[:past], later[name][past:] * 3]) for name, part in vectors.items()}
    mask = {"causal": causal}
    one = ask.outputs(case.model, outputs=ASKED, mask=mask, **vectors)
    other = ask.outputs(case.model, outputs=ASKED, mask=mask, **changed)
    same({name: stage[..., :past, :] for name, stage in one.items()}, {n: s[..., :past, :] for n, s in other.items()})


@every_block
@bounded
@given(queries=LENGTHS, keys=LENGTHS, hidden=st.sampled_from([0.0, 0.3, 0.9]), seed=SEEDS)
def test_the_stages_agree(ask, repository, case, queries, keys, hidden, seed):
    """softmax(mask(scores)) = weights, weights.v = heads, heads.M_O = output; rows sum to 1 or are all zero."""
    rng = np.random.default_rng(seed)
    allowed = rng.random((queries, keys)) >= hidden
    bias = rng.standard_normal((1, keys)).astype(np.float32)
    names = ["k", "v", "q", "scores", "weights", "entropy", "heads", "output"]
    mask = {"allowed": allowed, "bias": bias}
    answer = ask.attend(case.model, outputs=names, mask=mask, **case.vectors(rng, queries, keys))
    stages = {name: stage.astype(np.float64) for name, stage in answer["results"][0]["outputs"].items()}
    masked = np.where(allowed, stages["scores"] + bias, -np.inf)
    raised = np.exp(masked - np.where(allowed.any(-1, keepdims=True), masked.max(-1, keepdims=True), 0))
    total = raised.sum(-1, keepdims=True)
    weights = np.divide(raised, total, out=np.zeros_like(raised), where=total > 0)
    np.testing.assert_allclose(stages["weights"], weights, atol=1e-5)
    entropy = -(weights * np.log(weights, out=np.zeros_like(weights), where=weights > 0)).sum(-1)
    np.testing.assert_allclose(stages["entropy"], entropy, atol=1e-5)
    sums = stages["weights"].sum(-1)
    np.testing.assert_allclose(sums, np.broadcast_to(allowed.any(-1), sums.shape), atol=1e-5)
    assert not stages["weights"][:, ~allowed].any()
    group = len(stages["q"]) // len(stages["v"])
    np.testing.assert_allclose(stages["heads"], stages["weights"] @ stages["v"].repeat(group, 0), atol=1e-5, rtol=1e-4)
    joined = np.concatenate(list(stages["heads"]), -1)
    output = read_block(repository, case.model, answer["version"]).affine(joined, "O")
    np.testing.assert_allclose(stages["output"], output, atol=1e-5, rtol=1e-4)
