"""Long sequences without weights: heads come from a graph that makes no matrix of scores, and are the same."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from attention_proto.masks import Mask
from attention_server.domain.messages import NO_MASK, Ablation, KeySpan, OutputSpec, Sequence, TopK
from attention_server.errors import InvalidRequest
from attention_server.inference import flash, head_weights
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
    monkeypatch.setattr(head_weights, "LEAST_QUERIES", 128)
    monkeypatch.setattr(head_weights, "LEAST_KEYS", 128)
    return count_runs(monkeypatch, "MultiHeadAttention")


def count_runs(monkeypatch, operator):
    """Return the list that receives the number of rows of each run of a graph with an operator."""
    rows = []
    run = OnnxGraph.run

    def counted(graph, outputs, feeds, *rest):
        if operator in graph.nodes["cpu"]:
            rows.append(feeds["q"].shape[-2])
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


def compare(found, expected, *, exactly=False):
    for name, value in expected.items():
        numbers = [(found[name].values, value.values)] if isinstance(value, TopK) else [(found[name], value)]
        if isinstance(value, TopK):
            np.testing.assert_array_equal(found[name].indices, value.indices, err_msg=name)
        for one, other in numbers:
            np.testing.assert_allclose(
                one, other, atol=0 if exactly else 2e-6, rtol=0 if exactly else 2e-5, err_msg=name
            )


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
    monkeypatch.setattr(flash, "_file", lambda heads, scale, made=flash._file: made(heads, 3.0 + scale))
    with pytest.raises(RepositoryError, match="layer 0: its heads differ by"):
        loaded(repository, "dot")


def test_a_graph_that_computes_other_weights_is_not_served(repository, runs, monkeypatch):
    """A version is refused at load where the weights of one head alone are not those of the site."""
    monkeypatch.setattr(head_weights, "AXIS", -2)
    with pytest.raises(RepositoryError, match="layer 0: its weights differ by"):
        loaded(repository, "dot")


OF_WEIGHTS = (
    OutputSpec("weights"),
    OutputSpec("weights", top_k=8),
    OutputSpec("weights", reduce="mean", top_k=3),
    OutputSpec("weights", heads=(1,), rows=(-1, 300, 4), data_type="FP16"),
    OutputSpec("weights", heads=(1, 0), reduce="max", pool="mean"),
    OutputSpec("weights", spans=(KeySpan("some", 2, 500), KeySpan("one", 599, 600)), reduce="mean"),
    OutputSpec("entropy"),
    OutputSpec("entropy", reduce="max"),
    OutputSpec("received"),
    OutputSpec("received", reduce="mean", top_k=4),
    OutputSpec("statistics", heads=(0, 1)),
)
ROLLOUT = OutputSpec("weights", fold="rollout", top_k=2)


@pytest.mark.parametrize("kind", ["multi", "cross"])
def test_weights_by_heads_are_those_of_all_heads(repository, runs, monkeypatch, kind):
    """Every output of weights is the same head by head, in blocks of rows on one thread or three, bit for bit."""
    model = loaded(repository, kind)
    asked = (*OF_WEIGHTS, ROLLOUT) if kind == "multi" else OF_WEIGHTS
    given, specs = sequence(model), tuple(spec._replace(alias=f"{i}") for i, spec in enumerate(asked))
    counts = count_runs(monkeypatch, "Softmax")
    found = answer(model, given, specs)
    assert len(counts) == model.layers[0].about.heads * -(-LENGTH // head_weights.ROWS)
    with ThreadPoolExecutor(3) as pool:
        compare(answer(model, given, specs, run=Run(Helpers(pool))), found, exactly=True)
    monkeypatch.setattr(head_weights, "LEAST_KEYS", LENGTH + 1)
    counts.clear()
    compare(found, answer(model, given, specs))
    assert not counts


def test_scores_beyond_float32_are_refused_by_heads(repository, runs):
    """Finite vectors with scores that overflow are refused, though no output that was asked for would show it."""
    model = loaded(repository, "dot")
    with pytest.raises(InvalidRequest, match="overflows"):
        answer(model, Sequence(query=np.full((LENGTH, 4), 1e30, np.float32)), (OutputSpec("weights", top_k=2),))
