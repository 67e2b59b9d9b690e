"""Rows made one on the server: the mean, the first or the last of the rows that a mask leaves."""

import numpy as np
import pytest
from attention_server.inference.engine.onnxruntime import OnnxGraph

from tests.local_server import local_server
from tests.refusals import refused
from tests.server.reference import CLOSE, ROWS, STAGES, additive, read_block

RNG = np.random.default_rng(3)
VECTORS = {
    "query": RNG.standard_normal((5, 16)).astype(np.float32),
    "key": RNG.standard_normal((6, 12)).astype(np.float32),
    "value": RNG.standard_normal((6, 10)).astype(np.float32),
}
HEADS, QUERIES, KEYS = 4, 5, 6
HIDDEN_ROWS = np.ones((QUERIES, KEYS), bool)
HIDDEN_ROWS[[0, 3]] = False  # two queries that attend to nothing
HIDDEN_ROWS[:, [2, 5]] = False  # two keys that no query attends to
BY_HEAD = np.ones((HEADS, QUERIES, KEYS), bool)
BY_HEAD[:2, 1] = False  # a query that attends in two heads only
BY_HEAD[:, 4] = False
MASKS = {
    "none": {},
    "rows": {"allowed": HIDDEN_ROWS},
    "by head": {"allowed": BY_HEAD},
    # Five queries over six keys: the last query sees all, and a window hides the first key from everyone.
    "causal": {"causal": "bottom_right", "window": {"left": 0, "right": -1}},
    "bias": {"bias": np.where(HIDDEN_ROWS, 0.5, -np.inf).astype(np.float32)},
}
of_every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
every_pool = pytest.mark.parametrize("pool", ["mean", "first", "last"])


def reference(repository, mask):
    """All stages in float64, and which rows the mask leaves of each."""
    added = additive(mask, HEADS, QUERIES, KEYS)
    stages = read_block(repository, "cross").stages(**VECTORS, added=added)
    attending, attended = np.isfinite(added).any((0, 2)), np.isfinite(added).any((0, 1))
    return stages, {name: attended if name in ("k", "v") else attending for name in STAGES}


def pooled(stage, left, pool, rows=None, axis=-2):
    """Pool by loops: the rows chosen, of these the ones that are left, and of these one."""
    length = stage.shape[axis]
    chosen = [row % length for row in (range(length) if rows is None else rows)]
    real = [np.take(stage, row, axis) for row in chosen if left[row]]
    return sum(real) / len(real) if pool == "mean" else real[0 if pool == "first" else -1]


def ask(transport, mask, **spec):
    request = dict(VECTORS) | ({"mask": mask} if mask else {})
    (value,) = transport.outputs("cross", outputs=[spec], **request).values()
    return value


@every_pool
@of_every_mask
def test_every_stage_pooled(transport, repository, mask, pool):
    """A pooled stage has no dimension of rows, and pools the visible rows alone."""
    stages, left = reference(repository, mask)
    asked = [{"name": name, "pool": pool} for name in STAGES]
    outputs = transport.outputs("cross", outputs=asked, **VECTORS, **({"mask": mask} if mask else {}))
    for name in STAGES:
        expected = pooled(stages[name], left[name], pool, axis=ROWS[name])
        assert outputs[name].shape == expected.shape
        np.testing.assert_allclose(outputs[name], expected, **CLOSE, err_msg=name)


@every_pool
@of_every_mask
@pytest.mark.parametrize("name", ["output", "v", "entropy"])
def test_rows_are_chosen_before(transport, repository, mask, pool, name):
    """Of the chosen rows, in the given order, the visible ones are pooled."""
    stages, left = reference(repository, mask)
    rows = [-1, 0, 2]
    np.testing.assert_allclose(
        ask(transport, mask, name=name, pool=pool, rows=rows),
        pooled(stages[name], left[name], pool, rows, ROWS[name]),
        **CLOSE,
    )


@every_pool
@of_every_mask
def test_heads_are_reduced_before(transport, repository, mask, pool):
    """Heads are chosen and reduced, then rows pooled: [1, S]."""
    stages, left = reference(repository, mask)
    found = ask(transport, mask, name="weights", heads=[3, 1], reduce="max", pool=pool)
    expected = pooled(stages["weights"][[3, 1]].max(0, keepdims=True), left["weights"], pool)
    np.testing.assert_allclose(found, expected, **CLOSE)


@of_every_mask
@pytest.mark.parametrize("name", ["weights", "scores"])
def test_the_largest_are_taken_after(transport, repository, mask, name):
    """The top k are those of the pooled rows, [H, k]; a key that is hidden from all of these rows comes last."""
    stages, left = reference(repository, mask)
    hidden = (additive(mask, HEADS, QUERIES, KEYS) == -np.inf)[:, left[name]].all(1)
    whole = pooled(stages[name], left[name], "mean")
    indices, values = ask(transport, mask, name=name, pool="mean", top_k=KEYS)
    for head in range(HEADS):
        order = sorted(
            range(KEYS), key=lambda key: (hidden[head, key], 0 if hidden[head, key] else -whole[head, key], key)
        )
        assert indices[head].tolist() == order
        np.testing.assert_allclose(values[head], whole[head, order], **CLOSE)


def test_half_precision(transport, repository):
    """The mean is taken in FP32, and sent in FP16."""
    stages, left = reference(repository, {})
    found = ask(transport, {}, name="output", pool="mean", data_type="FP16")
    assert (found.dtype, found.shape) == (np.float16, stages["output"].shape[1:])
    np.testing.assert_allclose(found, pooled(stages["output"], left["output"], "mean"), rtol=1e-3, atol=1e-3)


@every_pool
def test_nothing_is_left(transport, pool):
    """Where the mask leaves none of the rows, there is nothing to pool, and the field says so."""
    for mask, rows in (({"allowed": np.zeros((1, KEYS), bool)}, []), ({"allowed": HIDDEN_ROWS}, [3, 0])):
        with refused("INVALID_ARGUMENT", "outputs[0].pool", "mask leaves no row"):
            ask(transport, mask, name="output", pool=pool, rows=rows)


@pytest.mark.parametrize("outputs", [["output"], [{"name": "q", "rows": [1]}, {"name": "heads", "pool": "last"}]])
def test_beside_others(transport, repository, outputs):
    """Further outputs of the request have the same values as alone."""
    asked = [*outputs, {"name": "output", "as": "cls", "pool": "first"}, {"name": "weights", "rows": [-1, 1]}]
    found = transport.outputs("cross", outputs=asked, **VECTORS)
    stages, _ = reference(repository, {})
    np.testing.assert_allclose(found["cls"], stages["output"][0], **CLOSE)
    np.testing.assert_allclose(found["weights"], stages["weights"][:, [-1, 1]], **CLOSE)
    if outputs == ["output"]:
        np.testing.assert_allclose(found["output"], stages["output"], **CLOSE)
    else:
        np.testing.assert_allclose(found["q"], stages["q"][:, [1]], **CLOSE)
        np.testing.assert_allclose(found["heads"], stages["heads"][:, -1], **CLOSE)


def test_rows_of_a_sequence_of_their_own(transport, repository):
    """Chosen rows of a self-attention attend to the whole sequence."""
    query = RNG.standard_normal((7, 24)).astype(np.float32)
    expected = read_block(repository, "multi").stages(query, added=additive({"causal": "top_left"}, 3, 7, 7))
    asked = [{"name": "output", "rows": [3]}, {"name": "weights", "pool": "last"}, "k"]
    found = transport.outputs("multi", query=query, outputs=asked, mask={"causal": "top_left"})
    np.testing.assert_allclose(found["output"], expected["output"][[3]], **CLOSE)
    np.testing.assert_allclose(found["weights"], expected["weights"][:, -1], **CLOSE)
    np.testing.assert_allclose(found["k"], expected["k"], **CLOSE)


def test_predictions_beside_rows(transport):
    """The head reads its own rows, independently of the sent ones."""
    asked = {"text": "I gave my cat Tater a toy"}
    whole = transport.one("multi-head", outputs=["predictions", "output"], **asked)
    some = transport.one("multi-head", outputs=["predictions", {"name": "output", "rows": [-1]}], **asked)
    np.testing.assert_allclose(some["outputs"]["output"], whole["outputs"]["output"][[-1]], **CLOSE)
    for one, other in zip(some["predictions"], whole["predictions"], strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_only_rows_that_are_needed_are_computed(repository, connect, monkeypatch):
    """A request for some rows computes these alone: the graph gets no further rows."""
    computed = []
    original = OnnxGraph.run

    def noted(self, outputs, feeds, run):
        computed.append(feeds["query"].shape[1] if "query" in feeds else None)
        return original(self, outputs, feeds, run)

    monkeypatch.setattr(OnnxGraph, "run", noted)
    with local_server(repository) as server:
        transport = connect("grpc", server.rest, server.grpc)
        for outputs, rows in (
            ([{"name": "output", "pool": "first"}, {"name": "weights", "rows": [-1]}], 2),
            ([{"name": "output", "rows": [1]}, "k"], 1),
            ([{"name": "output", "pool": "mean"}, {"name": "q", "rows": [1]}], QUERIES),
        ):
            computed.clear()
            transport.attend("cross", outputs=outputs, **VECTORS)
            assert [each for each in computed if each is not None] == [rows]
        computed.clear()
        transport.attend(
            "cross", outputs=[{"name": "output", "pool": "mean"}], mask={"allowed": HIDDEN_ROWS}, **VECTORS
        )
        assert [each for each in computed if each is not None] == [QUERIES - 2]


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that run, by names of inputs."""
    run, fed = OnnxGraph.run, []

    def noted(self, outputs, feeds, under):
        fed.append(frozenset(feeds))
        return run(self, outputs, feeds, under)

    monkeypatch.setattr(OnnxGraph, "run", noted)
    return fed


POOLS = {"query", "key", "value", "pool"}
PROJECTS, ATTENDS = {"key", "value"}, {"query", "k", "v"}


@pytest.mark.parametrize(
    ("outputs", "mask", "expected"),
    [
        ([{"name": "output", "pool": "mean"}], {}, [POOLS]),
        ([{"name": "output", "pool": "mean"}, {"name": "output", "as": "b", "pool": "last"}], {}, [POOLS]),
        ([{"name": "output", "pool": "first", "data_type": "FP16"}], {}, [POOLS]),
        ([{"name": "output", "pool": "mean"}, {"name": "output", "as": "all"}], {}, [PROJECTS, ATTENDS]),
        ([{"name": "output", "pool": "mean"}, {"name": "heads", "pool": "mean"}], {}, [PROJECTS, ATTENDS]),
        ([{"name": "output", "pool": "mean"}], {"causal": "top_left"}, [PROJECTS, ATTENDS | {"mask"}]),
    ],
)
def test_rows_are_averaged_where_only_their_mean_is_sent(repository, connect, graphs, outputs, mask, expected):
    """One graph runs where every output is a pooled one of the output and nothing is masked; else rows are needed."""
    with local_server(repository) as server:
        transport = connect("grpc", server.rest, server.grpc)
        graphs.clear()
        more = {name: np.tile(array, (6, 1)) for name, array in VECTORS.items()}
        transport.attend("cross", outputs=outputs, **more, **({"mask": mask} if mask else {}))
        assert graphs == expected
        graphs.clear()
        transport.attend("cross", outputs=outputs, **VECTORS, **({"mask": mask} if mask else {}))
        assert POOLS not in graphs  # such short ones may run together, which the graph is not for


@pytest.mark.parametrize(("name", "version"), [("self", 2), ("multi", 1), ("cross", 1)])
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (7, 3), (16, 16), (1, 17), (17, 1), (60, 41), (255, 200), (255, 300), (300, 4)]
)
def test_means_of_any_length(repository, transport, name, version, queries, keys):
    """Means are the same whether rows are averaged before projection or computed one by one."""
    block = read_block(repository, name, version)
    widths = [block.matrices[f"M_{each}"].shape[0] for each in "QKV"]
    lengths = (queries, keys, keys)
    vectors = {
        each: RNG.standard_normal((length, width)).astype(np.float32)
        for each, length, width in zip(VECTORS, lengths, widths, strict=True)
    }
    asked = [
        {"name": "output", "pool": "mean", "as": "mean"},
        {"name": "output", "pool": "last", "as": "last"},
        {"name": "output", "pool": "mean", "rows": [-1, 0][: min(2, queries)], "as": "ends"},
    ]
    found = transport.outputs(name, outputs=asked, **vectors)
    rows = block.stages(**vectors, added=np.zeros((1, 1, 1)))["output"]
    np.testing.assert_allclose(found["mean"], rows.mean(0), **CLOSE)
    np.testing.assert_allclose(found["last"], rows[-1], **CLOSE)
    np.testing.assert_allclose(found["ends"], rows[[-1, 0][: min(2, queries)]].mean(0), **CLOSE)


def test_predictions_are_not_pooled(transport):
    """Predictions have no numbers to make a mean of."""
    with refused("INVALID_ARGUMENT", "outputs[0].pool", "predictions take rows, sample, top alone"):
        transport.attend("multi-head", text="I gave", outputs=[{"name": "predictions", "pool": "mean"}])
