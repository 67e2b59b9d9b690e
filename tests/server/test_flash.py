"""Long sequences without weights: heads come from a graph that makes no matrix of scores, and are the same."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from attention_proto.masks import Mask
from attention_server.domain.messages import NO_MASK, Ablation, OutputSpec, Sequence
from attention_server.inference import flash
from attention_server.inference.engine.onnxruntime import OnnxGraph, OnnxRuntime
from attention_server.inference.engine.protocol import Run
from attention_server.repository.loader import RepositoryError, load

from tests.server.test_long import LIMITS, Helpers, MemoryStore

LENGTH = 600  # above MAX_WHOLE_ROWS
KINDS = ("cross", "dot", "multi", "self")
SPECS = (OutputSpec("output"), OutputSpec("heads"), OutputSpec("q"), OutputSpec("k"))


@pytest.fixture
def runs(monkeypatch):
    """Let graphs without scores be used for short sequences and narrow heads; return the number of rows of each run."""
    monkeypatch.setattr(flash, "LEAST_WIDTH", 1)
    monkeypatch.setattr(flash, "LEAST_QUERIES", 128)
    monkeypatch.setattr(flash, "LEAST_KEYS", 128)
    monkeypatch.setattr(flash, "LEAST_ROWS", 64)
    rows = []
    run = OnnxGraph.run

    def counted(graph, outputs, feeds, *rest):
        if "MultiHeadAttention" in graph.nodes["cpu"]:
            rows.append(feeds["q"].shape[1])
        return run(graph, outputs, feeds, *rest)

    monkeypatch.setattr(OnnxGraph, "run", counted)
    return rows


def loaded(repository, kind):
    return load(repository / kind / "1", OnnxRuntime("cpu", 1), 2**30)


def sequence(model, length=LENGTH):
    about, draw = model.layers[0].about, np.random.default_rng(length)
    widths = {"query": about.query_dim or 16}
    if about.key_dim not in (0, about.query_dim) or model.manifest.block == "cross_attention":
        widths |= {"key": about.key_dim, "value": about.value_dim}
    return Sequence(**{name: draw.standard_normal((length, width), np.float32) for name, width in widths.items()})


def answer(model, given, specs=SPECS, mask=NO_MASK, run=None, **changes):
    cached = model.plan(specs, **changes)
    ((prepared, _),) = model.checker.prepare(given, cached, mask, MemoryStore(1), LIMITS)
    (result,) = model.answer([prepared], cached.plan, run or Run())()
    return result.outputs


@pytest.mark.parametrize("kind", KINDS)
def test_heads_without_scores_are_those_with_scores(repository, runs, monkeypatch, kind):
    """Every block's heads and output are the same, in blocks of rows on one thread or three, bit for bit."""
    model = loaded(repository, kind)
    given = sequence(model)
    runs.clear()
    found = answer(model, given)
    assert sorted(runs) == [LENGTH // flash.BLOCKS] * flash.BLOCKS
    with ThreadPoolExecutor(3) as pool:
        helped = answer(model, given, run=Run(Helpers(pool)))
    for name, value in found.items():
        np.testing.assert_array_equal(helped[name], value, err_msg=name)
    monkeypatch.setattr(flash, "LEAST_KEYS", LENGTH + 1)
    runs.clear()
    expected = answer(model, given)
    assert not runs
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("specs", "asked"),
    [
        ((OutputSpec("output"), OutputSpec("weights", top_k=2)), {}),
        ((OutputSpec("output"), OutputSpec("entropy")), {}),
        ((OutputSpec("output"),), {"mask": Mask(causal="top_left")}),
        ((OutputSpec("output"),), {"ablate": (Ablation(heads=(0,)),)}),
        ((OutputSpec("output"),), {"score_temperature": 2.0}),
        ((OutputSpec("output", rows=(3, 5)),), {}),
    ],
    ids=["weights", "entropy", "mask", "ablated", "temperature", "rows"],
)
def test_scores_are_made_where_they_are_needed(repository, runs, specs, asked):
    """Weights, masks and changes of scores, and a few rows, are computed as ever."""
    model = loaded(repository, "multi")
    runs.clear()
    answer(model, sequence(model), specs, **asked)
    assert not runs


def test_long_sequences_against_float64(repository):
    """From the length at which it is chosen, `output` is that of float64."""
    model = loaded(repository, "dot")
    length = flash.LEAST_QUERIES + 1
    x = np.random.default_rng(1).standard_normal((length, 32)).astype(np.float32)
    found = answer(model, Sequence(query=x), (OutputSpec("output"),))["output"]
    q = x.astype(np.float64).reshape(length, model.layers[0].about.heads, -1)
    scores = np.einsum("thd,shd->hts", q, q) * (model.layers[0].about.scale or q.shape[-1] ** -0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, np.einsum("hts,shd->thd", weights, q).reshape(found.shape), atol=1e-5)


def test_a_graph_that_computes_other_heads_is_not_served(repository, runs, monkeypatch):
    """A version is refused at load where the heads without scores are not those with scores."""
    made = flash.one_node
    wrong = {"num_heads": 1, "scale": 3.0}
    monkeypatch.setattr(flash, "one_node", lambda *given: made(*given[:-1], wrong))
    with pytest.raises(RepositoryError, match="layer 0: its heads differ by"):
        loaded(repository, "dot")
