"""Long sequences: sites computed in blocks of rows give what whole matrices give."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import numpy as np
import psutil
import pytest
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.masks import Mask
from attention_server.contexts.store import MemoryStore
from attention_server.domain.limits import Limits
from attention_server.domain.messages import NO_MASK, Alignment, KeySpan, OutputSpec, Sequence, TopK
from attention_server.errors import TooLarge
from attention_server.inference import input_checker, masks, row_blocks
from attention_server.inference import model as models
from attention_server.inference.engine.onnxruntime import OnnxGraph, OnnxRuntime
from attention_server.inference.engine.protocol import Run
from attention_server.repository.loader import load
from serving import HANG, start_server, wait_until

from tests.messages import request_message
from tests.server import small_transformer as small

LIMITS = Limits(sequences=1, scores_bytes=2**30, answer_bytes=2**30, memory_ttl=1.0)
NO_LIMIT = [("grpc.max_receive_message_length", -1)]
QUERIES, KEYS, TOKENS = 23, 19, 9
RNG = np.random.default_rng(5)
VECTORS = {
    "cross": Sequence(
        query=RNG.standard_normal((QUERIES, 16)).astype(np.float32),
        key=RNG.standard_normal((KEYS, 12)).astype(np.float32),
        value=RNG.standard_normal((KEYS, 10)).astype(np.float32),
    ),
    "grouped": Sequence(
        query=RNG.standard_normal((QUERIES, 16)).astype(np.float32),
        key=RNG.standard_normal((KEYS, 8)).astype(np.float32),
        value=RNG.standard_normal((KEYS, 6)).astype(np.float32),
    ),
    "small": Sequence(text=" ".join("abcdef"[i] for i in RNG.integers(0, 6, TOKENS))),
}
ALLOWED = RNG.random((4, QUERIES, KEYS)) < 0.6
ALLOWED[:, 5:10] = False
MASKS = {
    "none": NO_MASK,
    "window": Mask(causal="top_left", window=(2, -1)),
    "of a layer": Mask(causal="top_left", window=(2, -1), layers=("0",)),
    "two windows": Mask(causal="bottom_right", window=(3, 1)),
    "allowed": Mask(allowed=ALLOWED[:1]),
    "bias": Mask(window=(6, 4), bias=np.where(ALLOWED, np.float32(0.5), -np.float32(np.inf))),
}
SPANS = tuple([KeySpan(f"{ends}", *ends) for ends in ((3, 5), (0, 9), (8, 9), (1, 2), (4, 8))])
SPECS = [
    OutputSpec("weights"),
    OutputSpec("scores", heads=(1, 0)),
    OutputSpec("weights", top_k=3, reduce="mean"),
    OutputSpec("weights", top_k=30),
    OutputSpec("scores", top_k=9, reduce="max", rows=(-1, 2, 6)),
    OutputSpec("weights", rows=(7, 3, 4), data_type="FP16"),
    OutputSpec("weights", pool="mean", top_k=4),
    OutputSpec("weights", pool="mean", reduce="mean"),
    OutputSpec("weights", pool="last"),
    OutputSpec("scores", pool="mean", rows=(3, 8, 4)),
    OutputSpec("entropy"),
    OutputSpec("entropy", reduce="max", pool="mean"),
    OutputSpec("lse"),
    OutputSpec("weights", spans=SPANS),
    OutputSpec("weights", spans=SPANS, reduce="max", rows=(7, 2)),
    OutputSpec("weights", spans=SPANS[3:4], pool="mean", data_type="FP16"),
    OutputSpec("received", spans=SPANS, rows=(5, 8)),
    OutputSpec("received", reduce="max"),
    OutputSpec("received", rows=(5, 2, 8), top_k=4),
    OutputSpec("statistics", heads=(1, 0)),
    OutputSpec("q"),
    OutputSpec("k"),
    OutputSpec("heads", heads=(1,)),
    OutputSpec("contributions", reduce="mean", pool="mean"),
    OutputSpec("output"),
]
OF_LAYERS = [
    OutputSpec("weights", layers=("*",), top_k=2),
    OutputSpec("weights", pairs=("1.0", "0.1", "1.1")),
    OutputSpec("weights", pairs=("1.0", "0.1"), reduce="mean", top_k=3),
    OutputSpec("scores", pairs=("1.0", "0.1", "0.0"), reduce="max", pool="mean"),
    OutputSpec("weights", fold="mean", top_k=3),
    OutputSpec("weights", fold="max", heads=(1,), rows=(-1, 2), data_type="FP16"),
    OutputSpec("weights", fold="max", layers=("0",), pool="mean"),
    OutputSpec("weights", fold="rollout"),
    OutputSpec("weights", fold="rollout", rows=(7, 3), top_k=2),
    OutputSpec("weights", fold="rollout", spans=(KeySpan("some", 2, 5),), pool="mean"),
    OutputSpec("weights", fold="max", spans=(KeySpan("some", 2, 5), KeySpan("last", 8, 9))),
    OutputSpec("weights", fold="rollout", layers=("0",), pool="last"),
    OutputSpec("entropy", pairs=("1.0", "0.1"), reduce="mean"),
    OutputSpec("received", pairs=("1.0", "0.1"), reduce="mean"),
    OutputSpec("statistics", layers=("*",)),
    OutputSpec("weights", pairs=("1.0", "0.1"), spans=SPANS),
    OutputSpec("weights", pairs=("1.0", "0.1", "0.0"), spans=SPANS, reduce="max"),
    OutputSpec("hidden", layers=("*",)),
]


@pytest.fixture(scope="module")
def loaded(repository, tmp_path_factory):
    folders = {name: repository / name / "1" for name in ("cross", "grouped")}
    folders["small"] = small.write(tmp_path_factory.mktemp("long") / "small/1")
    return {name: load(folder, OnnxRuntime("cpu", 1), 2**30) for name, folder in folders.items()}


@pytest.fixture
def blocks(monkeypatch):
    """Return a function that makes sequences of more than a few rows long, in blocks of so many."""

    def cut(rows):
        for module in (row_blocks, models):
            monkeypatch.setattr(module, "MAX_WHOLE_ROWS", 2)
        monkeypatch.setattr(row_blocks, "BLOCK_ROWS", rows)
        monkeypatch.setattr(row_blocks, "LEAST_BLOCK_ROWS", rows)
        monkeypatch.setattr(masks, "MAX_WHOLE_PAIRS", 4)

    return cut


def named(specs):
    return tuple(spec._replace(alias=f"{i}") for i, spec in enumerate(specs))


def answer(model, sequence, specs, mask, run=None):
    cached = model.plan(specs)
    ((prepared, _),) = model.checker.prepare(sequence, cached, mask, MemoryStore(1), LIMITS)
    (result,) = model.answer([prepared], cached.plan, run or Run())()
    return result.outputs


def compare(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Alignment):
            assert found[name] == value, name
        elif isinstance(value, TopK):
            compare({"values": found[name].values}, {"values": value.values})
            np.testing.assert_array_equal(found[name].indices, value.indices, err_msg=name)
        else:
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
            np.testing.assert_allclose(found[name], value, atol=2e-6, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("mask", MASKS)
def test_blocks_give_what_a_whole_matrix_gives(loaded, blocks, name, mask):
    """Every stage and option is the same in blocks of rows, over the keys that these see, as whole."""
    model = loaded[name]
    specs = named([*SPECS, *(OF_LAYERS if name == "small" else [])])
    if name == "grouped":
        specs = tuple(spec for spec in specs if spec.name != "contributions")
    asked = MASKS[mask]
    if name == "small":  # of 2 heads and as many keys as queries
        cut = [None if each is None else each[:2, :TOKENS, :TOKENS] for each in (asked.allowed, asked.bias)]
        asked = replace(asked, allowed=cut[0], bias=cut[1])
    whole = answer(model, VECTORS[name], specs, asked)
    blocks(4)
    compare(answer(model, VECTORS[name], specs, asked), whole)
    last = tuple(spec for spec in specs if spec.rows)  # the last layer computes these rows alone
    compare(answer(model, VECTORS[name], last, asked), {spec.alias: whole[spec.alias] for spec in last})
    cut = tuple(spec for spec in specs if spec.name != "scores")  # a block computes the keys that it sees alone
    found = answer(model, VECTORS[name], cut, asked)
    compare(found, {output: whole[output] for output in found})


def test_a_rollout_that_is_too_long(loaded, blocks, monkeypatch):
    """Its matrices count as memory, with a length that fits, and its products as work."""
    blocks(4)
    monkeypatch.setattr(input_checker, "MAX_WHOLE_ROWS", 2)
    checker, sequence = loaded["small"].checker, VECTORS["small"]
    mean, rollout = (loaded["small"].plan((OutputSpec("weights", fold=fold),)) for fold in ("mean", "rollout"))

    def profile(text, cached, limits=LIMITS):
        return checker.prepare(Sequence(text=text), cached, NO_MASK, MemoryStore(1), limits)[0][1]

    of_mean, of_rollout = (profile(sequence.text, each) for each in (mean, rollout))
    products = TOKENS**3 // sum(loaded["small"].layers[-1].widths(small.WIDTH, small.WIDTH)[:2])
    assert of_rollout.work_bytes == of_mean.work_bytes + 4 * products
    whole = of_rollout.stage_bytes
    assert whole > of_mean.stage_bytes
    limits = replace(LIMITS, scores_bytes=whole - 1)
    with pytest.raises(TooLarge, match=r"--max-scores-mib\): (\d+) positions fit") as refused:
        profile(sequence.text, rollout, limits)
    fits = int(str(refused.value).rpartition(": ")[2].split()[0])
    words = sequence.text.split()
    profile(" ".join(words[:fits]), rollout, limits)
    with pytest.raises(TooLarge):
        profile(" ".join(words[: fits + 1]), rollout, limits)


def test_the_bits_do_not_depend_on_slots(loaded, blocks):
    """Blocks are the same whether one thread computes them or three."""
    blocks(1)
    specs = named([spec for spec in SPECS if spec.name != "contributions"])
    alone = answer(loaded["grouped"], VECTORS["grouped"], specs, NO_MASK)
    with ThreadPoolExecutor(3) as pool:
        helped = answer(loaded["grouped"], VECTORS["grouped"], specs, NO_MASK, Run(Helpers(pool)))
    for name, value in alone.items():
        for one, other in zip(np.atleast_1d(value), np.atleast_1d(helped[name]), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


class Helpers:
    """Three idle slots."""

    idle_slots = 3

    def __init__(self, pool):
        self.pool = pool

    def map(self, each, items):
        return list(self.pool.map(each, items))


@pytest.mark.parametrize(
    ("mask", "rows", "share"),
    [
        (Mask(causal="top_left", window=(15, 0)), 16, 0.031),
        (Mask(window=(80, 80)), 32, 0.19),
        (Mask(causal="top_left"), 128, 0.6),
    ],
    ids=["causal window", "window", "causal"],
)
@pytest.mark.parametrize("spec", [OutputSpec("output"), OutputSpec("weights", top_k=3)], ids=["output", "top 3"])
def test_a_window_costs_what_it_sees(repository, monkeypatch, mask, rows, share, spec):
    """Scores are computed of the keys that a block of rows can see, few rows where each sees few keys."""
    products = []
    run = OnnxGraph.run

    def counted(graph, outputs, feeds, *rest):
        products.append(feeds["k"].shape[1] * feeds["query" if "query" in feeds else "q"].shape[1])
        return run(graph, outputs, feeds, *rest)

    monkeypatch.setattr(OnnxGraph, "run", counted)
    model = load(repository / "dot/1", OnnxRuntime("cpu", 1), 2**30)
    products.clear()
    answer(model, Sequence(query=np.ones((1024, 2), np.float32)), (spec,), mask)
    assert len(products) == 1024 // rows
    assert sum(products) <= share * 1024**2


LENGTHS = [700, pytest.param(8192, marks=pytest.mark.long)]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["none", "causal", "window", "bias"])
def test_long_sequences_against_float64(repository, length, kind):
    """Output, top k and pooled weights of long sequences equal float64, with ties at the edges of blocks.

    Keys repeat, so that a row has equal weights in several blocks; the bias hides every key of one row.
    """
    rng = np.random.default_rng(length)
    period = length // 3
    key = np.tile(rng.standard_normal((period, 8)), (4, 1))[:length].astype(np.float32)
    query, value = (rng.standard_normal((length, 8)).astype(np.float32) for _ in range(2))
    bias = np.where(np.arange(length)[:, None] == 300, -np.inf, rng.integers(0, 2, (1, length))).astype(np.float32)
    mask = {
        "none": NO_MASK,
        "causal": Mask(causal="top_left"),
        "window": Mask(causal="top_left", window=(40, -1)),
        "bias": Mask(bias=bias),
    }[kind]
    model = load(repository / "dot/1", OnnxRuntime("cpu", 1), 2**30)
    specs = (OutputSpec("output"), OutputSpec("weights", top_k=5), OutputSpec("weights", "mean", pool="mean"))
    found = answer(model, Sequence(query=query, key=key, value=value), specs, mask)
    total, pooled = np.zeros(length), 0
    for begin in range(0, length, 500):
        rows = np.arange(begin, min(begin + 500, length))
        scores = query[rows].astype(np.float64) @ key.T
        distance = np.arange(length) - rows[:, None]
        if kind in ("causal", "window"):
            scores[distance > 0] = -np.inf
        if kind == "window":
            scores[distance < -40] = -np.inf
        if kind == "bias":
            scores += bias[rows]
        seen = np.isfinite(scores).any(-1, keepdims=True)
        weights = np.exp(scores - np.where(seen, scores.max(-1, keepdims=True), 0))
        weights = np.where(seen, weights / np.maximum(weights.sum(-1, keepdims=True), 1), 0)
        total, pooled = total + weights.sum(0), pooled + seen.sum()
        np.testing.assert_allclose(found["output"][rows], weights @ value, atol=1e-5)
        top = found["weights"]
        np.testing.assert_allclose(top.values[0, rows], -np.sort(-weights, -1)[:, :5], atol=1e-5)
        at = np.take_along_axis(weights, top.indices[0, rows].astype(int), -1)
        np.testing.assert_allclose(at, top.values[0, rows], atol=1e-5)
        equal = np.diff(top.values[0, rows]) == 0
        assert (np.diff(top.indices[0, rows].astype(int))[equal] > 0).all()
    np.testing.assert_allclose(found["mean"][0], total / pooled, atol=1e-6)


def test_memory_comes_back(dot_only):
    """Soon after the last of some large answers the server has no more memory than before, up to 64 MiB."""
    with start_server(dot_only) as server, grpc.insecure_channel(server.grpc, options=NO_LIMIT) as channel:
        attend = channel.unary_unary("/attention.v1.AttentionService/Attend", pb.AttendRequest.SerializeToString)
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        query = np.random.default_rng(0).standard_normal((6000, 8)).astype(np.float32)
        body = request_message("dot", [{"query": query}], outputs=["weights"])
        for _ in range(2):
            assert len(attend(body, timeout=HANG)) > 4 * 6000**2
        wait_until(lambda: process.memory_info().rss <= before + 64 * 2**20)
