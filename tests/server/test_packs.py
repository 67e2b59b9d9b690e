"""Sequences of any lengths, requests and callers in one pass through a transformer have the bits of each alone."""

from contextlib import contextmanager
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
from attention_proto.masks import Mask
from attention_server.auth.callers import ALL_RIGHTS
from attention_server.contexts.store import HeldMemories, MemoryStore
from attention_server.domain.call import CallContext
from attention_server.domain.limits import Limits
from attention_server.domain.messages import NO_MASK, OutputSpec, Request, Sequence, TopK
from attention_server.errors import DeadlineExceeded, InvalidRequest
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.inference.engine.protocol import Run
from attention_server.inference.independence import Probe
from attention_server.inference.shared_graphs import keeps_bits
from attention_server.repository.loader import load
from attention_server.scheduling.cost_model import LONGEST_PACKED, PACK_ROWS
from attention_server.scheduling.fair_queue import PASS_BYTES
from attention_server.scheduling.job import Job
from serving import HANG, wait_until

from tests.local_server import IN_A_SLOT, local_server
from tests.server import transformer
from tests.server.transformer import WORDS

LONGEST, WIDTH = 120, 32
LIMITS = Limits(sequences=64, scores_bytes=2**30, answer_bytes=2**30, memory_ttl=60)
EVERY = ("*",)
PLANS = (
    (OutputSpec("predictions"),),
    (OutputSpec("hidden"),),
    (OutputSpec("hidden", pool="mean"), OutputSpec("weights", layers=EVERY, top_k=2)),
    (OutputSpec("weights", layers=EVERY), OutputSpec("scores", layers=EVERY), OutputSpec("k", layers=EVERY)),
    (OutputSpec("hidden", pool="last"), OutputSpec("contributions", layers=("0",)), OutputSpec("lse", layers=EVERY)),
    (OutputSpec("embeddings"), OutputSpec("entropy"), OutputSpec("received"), OutputSpec("predictions", top=2)),
)
MASKS = (NO_MASK, NO_MASK, NO_MASK, Mask(causal="top_left"))
DRAWN = np.random.default_rng(26)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A transformer of three layers: one is causal, one has a bias; it predicts."""
    folder = tmp_path_factory.mktemp("packs")
    shape = transformer.Shape(longest=LONGEST, width=WIDTH, head_dims=(16, 16, 12))
    transformer.write(folder / "encoder/1", shape)
    return folder


@pytest.fixture(scope="module")
def model(models):
    return load(models / "encoder/1", OnnxRuntime("cpu", 1), 2**31)


@pytest.fixture
def server(models):
    """A server of one slot; every request is computed in the slot's thread."""
    with local_server(models, max_queued=64, max_wait=1000.0, predicted=IN_A_SLOT) as running:
        yield running


def draw(most=8):
    """Draw sequences of words, many of them short, some of one length."""
    lengths = np.exp(DRAWN.uniform(0, np.log(LONGEST), DRAWN.integers(2, most + 1))).astype(int)
    return [Sequence(token_ids=DRAWN.integers(0, len(WORDS), length)) for length in lengths]


def prepared(model, sequences, cached, masks):
    pairs = [
        model.checker.prepare(each, cached, mask, HeldMemories(MemoryStore(1)), LIMITS)[0]
        for each, mask in zip(sequences, masks, strict=True)
    ]
    return [one for one, _ in pairs], [profile for _, profile in pairs]


def assert_same(result, alone):
    assert result.predictions == alone.predictions
    assert result.outputs.keys() == alone.outputs.keys()
    for name, expected in alone.outputs.items():
        pairs = [(result.outputs[name], expected)]
        if isinstance(expected, TopK):
            pairs = list(zip(result.outputs[name], expected, strict=True))
        for found, right in pairs:
            np.testing.assert_array_equal(found, right, name)


def check_mix(model, specs):
    cached = model.plan(specs)
    sequences = draw()
    masks = [MASKS[DRAWN.integers(len(MASKS))] for _ in sequences]
    mix, profiles = prepared(model, sequences, cached, masks)
    assert len({profile.company.kind for profile in profiles} - {None}) == 1
    found = model.answer(mix, cached.plan, Run())()
    for one, result in zip(mix, found, strict=True):
        (alone,) = model.answer([one], cached.plan, Run())()
        assert_same(result, alone)


def test_a_hundred_mixes_have_the_bits_of_each_sequence_alone(model):
    """Every output and prediction, with masks and without, of sequences of random lengths in one pass."""
    for number in range(100):
        check_mix(model, PLANS[number % len(PLANS)])


@pytest.mark.parametrize("specs", [PLANS[1], PLANS[3]], ids=["rows", "stages"])
def test_dense_batches_share_a_pass_with_sequences(model, specs):
    """Sequences sent as one array, and single ones, of vectors, run in one pass with the bits of each alone."""
    cached, held = model.plan(specs), HeldMemories(MemoryStore(1))
    shapes = [(4, 3), (1, 3), (2, 17), (1, 1), (6, 8), (1, 40)]
    arrays = [DRAWN.standard_normal((*shape, WIDTH), np.float32) for shape in shapes]
    sent = [Sequence(query=each if len(each) > 1 else each[0], batch=len(each)) for each in arrays]
    pairs = [pair for each in sent for pair in model.checker.prepare(each, cached, NO_MASK, held, LIMITS)]
    mix = [one for one, _ in pairs]
    assert len({profile.company.kind for _, profile in pairs} - {None}) == 1
    assert sum(one.batch for one in mix) == sum(count for count, _ in shapes)
    for one, result in zip(mix, model.answer(mix, cached.plan, Run())(), strict=True):
        for place, alone in enumerate(one.cut(1)):
            (expected,) = model.answer([alone], cached.plan, Run())()
            own = {name: array[place] if one.batch > 1 else array for name, array in result.outputs.items()}
            assert_same(result._replace(outputs=own), expected)


@pytest.mark.parametrize(
    "names", [("segment-1.onnx",), ("front.onnx",), ("segment-0.onnx", "segment-2.onnx")], ids=", ".join
)
def test_a_graph_with_other_bits_in_company_runs_on_one_sequence_at_a_time(models, model, names):
    """A graph that is not shared has one run for each sequence, all further ones have one; the answers are equal."""
    own = replace(model, costs=replace(model.costs, shared=model.costs.shared.difference(names)))
    for specs in PLANS:
        check_mix(own, specs)


def test_rows_that_depend_on_the_run_are_not_shared():
    """A graph whose rows differ in their last bit by the number of rows, or with company, is not shared."""
    inputs = {"x": DRAWN.standard_normal((2, 23, 8), np.float32)}

    def probe(last):
        return Probe("graph", lambda given: {"y": given["x"] + last(given["x"].shape[1])}, inputs, ("x",))

    assert keeps_bits(probe(lambda _: np.float32(0)))
    assert not keeps_bits(probe(lambda rows: np.float32(1e-6 if rows == 1 else 0)))
    assert not keeps_bits(probe(lambda rows: np.float32(1e-6 if rows % 4 == 3 else 0)))
    assert not keeps_bits(probe(lambda rows: np.float32(1e-6 if rows == PACK_ROWS else 0)))
    assert not keeps_bits(probe(lambda rows: np.float32(1e-6 if rows == LONGEST_PACKED else 0)))
    summed = Probe("graph", lambda given: {"y": given["x"] + given["x"].sum(1, keepdims=True)}, inputs, ("x",))
    assert not keeps_bits(summed)


def test_the_reserved_peak_holds_for_every_pass(model):
    """The largest peak that a job of a pass reserves is no less than the bytes of all jobs of the pass."""
    for number in range(60):
        cached = model.plan(PLANS[number % len(PLANS)])
        sequences = [each for _ in range(12) for each in draw()]
        _, profiles = prepared(model, sequences, cached, [NO_MASK] * len(sequences))
        rows, together, reserved = 0, 0, 0
        for profile in profiles:
            rows += profile.queries
            if rows > profile.company.max_rows or together + profile.peak_bytes > PASS_BYTES:
                break
            together += profile.peak_bytes
            of_row = profile.peak_bytes / profile.queries
            reserved = max(reserved, profile.peak_bytes, min(PASS_BYTES, int(of_row * profile.company.max_rows)))
        assert together <= reserved + len(profiles)  # bytes rounded down


# --- through the service ----------------------------------------------------------------------------------------------


def ask(server, inputs, specs=PLANS[2], **call):
    """Submit a request; return its call and the future of its response."""
    context = CallContext("id", rights=ALL_RIGHTS, **call)
    return context, server.service.submit(Request("encoder", inputs=tuple(inputs), outputs=tuple(specs)), context)


@contextmanager
def busy(server):
    """Hold up the server's slot until the block ends: requests that are submitted there share a pass."""
    held, left = Event(), Event()
    future = server.scheduler.submit(Job(None, lambda _: (held.set(), left.wait(HANG), lambda: [None])[2], cost=0.1))
    assert held.wait(HANG)
    try:
        yield
    finally:
        left.set()
        future.result(HANG)


def test_requests_of_many_callers_share_a_pass(server):
    """Requests of one or more sequences, of any caller, share a pass when a slot is free; each has its answer."""
    requests = [(draw(3)[: 1 + i % 3], {"caller": f"caller{i % 4}"}) for i in range(8)]
    alone = [ask(server, inputs)[1].result(HANG) for inputs, _ in requests]
    with busy(server):
        sent = [ask(server, inputs, **more) for inputs, more in requests]
    for (_, future), expected in zip(sent, alone, strict=True):
        for found, right in zip(future.result(HANG).results, expected.results, strict=True):
            assert_same(found, right)
    passes = [each for call, _ in sent for each in call.record.passes]
    lengths = [len(each.token_ids) for inputs, _ in requests for each in inputs]
    assert (sum(count for count, _ in passes), sum(rows for _, rows in passes)) == (len(lengths), sum(lengths))
    assert len(passes) <= 1 + sum(lengths) // (PACK_ROWS - 3 * LONGEST)


def test_one_that_ends_does_not_fail_the_others(server):
    """Of a pass one call expires before and one is cancelled while it runs: all further ones are answered."""
    inputs = [Sequence(text="ein und")]
    expected = ask(server, inputs)[1].result(HANG)
    with busy(server):
        sent = [ask(server, inputs)[1] for _ in range(3)]
        late, expired = ask(server, inputs, timeout=1.0)
        leaving, _ = ask(server, inputs)
        wait_until(lambda: late.is_expired)
        server.gate.close()
    assert server.gate.arrived.wait(HANG)
    leaving.cancel()
    server.gate.open()
    for future in sent:
        assert_same(future.result(HANG).results[0], expected.results[0])
    with pytest.raises(DeadlineExceeded):
        expired.result(HANG)


def test_one_that_overflows_fails_alone(server):
    """A sequence with an overflow is refused by its name; those of the same pass are answered as alone."""
    good = [DRAWN.standard_normal((length, WIDTH), np.float32) for length in (3, 5, 5, 9)]
    requests = [([Sequence(query=each)], {}) for each in good]
    specs = (OutputSpec("k", layers=("0",)), OutputSpec("hidden"))
    alone = [ask(server, inputs, specs)[1].result(HANG) for inputs, _ in requests]
    bad = Sequence(query=np.full((4, WIDTH), 3e38, np.float32), path="inputs[1]", part=None)
    with busy(server):
        sent = [ask(server, inputs, specs)[1] for inputs, _ in requests]
        fault = ask(server, [Sequence(query=good[0], path="inputs[0]"), bad], specs)[1]
    for future, expected in zip(sent, alone, strict=True):
        assert_same(future.result(HANG).results[0], expected.results[0])
    with pytest.raises(InvalidRequest, match="overflows") as caught:
        fault.result(HANG)
    assert caught.value.field == "inputs[1]"
