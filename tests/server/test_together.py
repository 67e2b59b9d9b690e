"""Sequences that run together, and one that runs in several slots: faster, and the same to the bit."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from serving import HANG, wait_until

from tests.local_server import IN_A_SLOT, local_server
from tests.messages import read_message, request_message
from tests.refusals import Refused, refused

DRAWN = np.random.default_rng(8)
WIDTHS = {"self": 12, "multi": 24, "cross": (16, 12, 10), "grouped": (16, 8, 6), "dot": 5}
EVERYTHING = ["q", "k", "v", "scores", "weights", "entropy", "heads", "output"]
LONG = 300


@pytest.fixture(scope="module")
def models(repository, tmp_path_factory):
    """The models of vectors; of one model the version with a query that can stand in for key and value."""
    folder = tmp_path_factory.mktemp("models")
    for name in WIDTHS:
        (folder / name).mkdir()
        (folder / name / "1").symlink_to(repository / name / "1")
    (folder / "text-cross").symlink_to(repository / "text-cross")
    return folder


@pytest.fixture(scope="module")
def merging_one(models):
    """A server of `merging` for tests that leave it as it is."""
    with merging(models) as server:
        yield server


@pytest.fixture(scope="module")
def of_one_slot(models):
    with local_server(models, slots=1) as server:
        yield server


@pytest.fixture(scope="module")
def of_two_slots(models):
    with local_server(models, slots=2, predicted=IN_A_SLOT) as server:
        yield server


def sequence(name, length, keys=None):
    """Draw a sequence that a model takes."""
    widths = WIDTHS[name]
    if isinstance(widths, int):
        return {"query": DRAWN.standard_normal((length, widths), np.float32)}
    lengths = (length, keys or length, keys or length)
    drawn = [DRAWN.standard_normal(shape, np.float32) for shape in zip(lengths, widths, strict=True)]
    return dict(zip(("query", "key", "value"), drawn, strict=True))


@contextmanager
def merging(models, *, most=8, **options):
    """A server with batches of tiny sequences for every model, independent of this machine's measurements."""
    with local_server(models, max_queued=32, **options) as server:
        for name in [*WIDTHS, "text-cross"]:
            with server.repository.lease(name) as model:
                model.costs.batches[:] = [(most, 0.5)] * 17
        yield server


def assert_same(results, expected):
    """Check that results are equal to the bit."""
    assert len(results) == len(expected)
    for one, other in zip(results, expected, strict=True):
        assert one["outputs"].keys() == other["outputs"].keys()
        for name, array in one["outputs"].items():
            np.testing.assert_array_equal(array, other["outputs"][name], name)
        assert one["predictions"] == other["predictions"]
        assert one["tokens"] == other["tokens"]


@pytest.mark.parametrize("mask", [{}, {"causal": "top_left"}, {"window": {"left": 1, "right": 0}}], ids=str)
@pytest.mark.parametrize("name", WIDTHS)
def test_equal_lengths_of_one_request(merging_one, connect, name, mask):
    """The sequences of a request that are equally short run together; each has the answer that it has alone."""
    lengths = (3, 2, 3, 40, 3, 2, 3)
    sequences = [sequence(name, length, length + 1) for length in lengths]
    gate = merging_one.gate
    gate.reset()
    ask = connect("grpc", merging_one.rest, merging_one.grpc).attend
    options = {"outputs": EVERYTHING, **({"shared_mask": mask} if mask else {})}
    alone = [ask(name, inputs=[each], **options)["results"][0] for each in sequences]
    runs = gate.runs // len(sequences)  # of one
    gate.reset()
    assert_same(ask(name, inputs=sequences, **options)["results"], alone)
    assert gate.runs == 3 * runs


def test_texts_run_together(merging_one, connect):
    """Texts of one length run together, fronts, heads and all, and are answered as alone."""
    texts = [("twenty one", "ein und"), ("cats and", "zwanzig Katzen"), ("dogs", "und Hunde"), ("one and", "ein ein")]
    inputs = [{"text": text, "memory_text": memory} for text, memory in texts]
    gate = merging_one.gate
    gate.reset()
    ask = connect("grpc", merging_one.rest, merging_one.grpc).attend
    outputs = [*EVERYTHING, "predictions"]
    alone = [ask("text-cross", inputs=[each], outputs=outputs)["results"][0] for each in inputs]
    runs = gate.runs // 4
    gate.reset()
    assert_same(ask("text-cross", inputs=inputs, outputs=outputs)["results"], alone)
    assert gate.runs < 4 * runs


def queued_behind_one(server, threads, asks):
    """Send requests in a row that all have to wait; let all run; return the outcome of each."""
    server.gate.close()
    first = threads.submit(asks[0])
    assert server.gate.arrived.wait(HANG)
    rest = []
    for ask in asks[1:]:
        rest.append(threads.submit(ask))
        wait_until(lambda: server.scheduler.state().queued == len(rest))
    server.gate.runs = 0
    server.gate.open()
    return [future.exception(HANG) or future.result() for future in (first, *rest)]


def test_equal_lengths_of_several_requests(models, connect):
    """Queued requests of one kind are merged: the same model, outputs, mask and lengths. Answers are those of
    each
    request alone."""
    sequences = [sequence("multi", length) for length in (2, 3, 3, 3, 3, 3, 2)]
    weights = {"outputs": ["weights"]}
    causal = {"shared_mask": {"causal": "top_left"}}
    options = [{}, {}, {}, weights, causal, {}, {}]
    with merging(models, predicted=IN_A_SLOT) as server, ThreadPoolExecutor(len(sequences)) as threads:
        attend = connect("grpc", server.rest, server.grpc).attend
        asks = [
            lambda each=each, more=more: attend("multi", inputs=[each], **more)["results"]
            for each, more in zip(sequences, options, strict=True)
        ]
        alone = [ask() for ask in asks]
        answers = queued_behind_one(server, threads, asks)
        for answer, expected in zip(answers, alone, strict=True):
            assert_same(answer, expected)
        assert server.gate.runs == 1 + 2 * 4  # the rest of the first; three together, and three by themselves


def test_one_fault_among_several(models, connect):
    """Where one of several that run together overflows, it alone is refused."""
    good = [sequence("multi", 3) for _ in range(4)]
    bad = {"query": np.full((3, 24), 3e38, np.float32)}
    with merging(models, predicted=IN_A_SLOT) as server, ThreadPoolExecutor(6) as threads:
        attend = connect("grpc", server.rest, server.grpc).attend
        asks = [lambda each=each: attend("multi", inputs=[each])["results"] for each in (*good, bad)]
        alone = [ask() for ask in asks[:-1]]
        *answers, fault = queued_behind_one(server, threads, asks)
        for answer, expected in zip(answers, alone, strict=True):
            assert_same(answer, expected)
        assert isinstance(fault, Refused)
        assert fault.code == "INVALID_ARGUMENT"
        assert fault.field == "inputs[0]"


def test_one_fault_in_a_request(merging_one, connect):
    """Where one of the sequences of a request that run together overflows, it is the one that is named."""
    bad = {"query": np.full((3, 24), 3e38, np.float32)}
    attend = connect("grpc", merging_one.rest, merging_one.grpc).attend
    with refused("INVALID_ARGUMENT", "inputs[2]", "overflows"):
        attend("multi", inputs=[sequence("multi", 3), sequence("multi", 3), bad, sequence("multi", 3)])


@pytest.mark.parametrize("outputs", [["output"], EVERYTHING], ids=str)
@pytest.mark.parametrize("mask", [{}, {"causal": "bottom_right"}], ids=str)
@pytest.mark.parametrize("name", WIDTHS)
def test_a_long_sequence_that_is_alone_runs_in_every_slot(of_one_slot, of_two_slots, connect, name, mask, outputs):
    """While no further request waits, a long sequence is cut into as many parts as there are slots; the answer has the
    same bits."""
    one = sequence(name, LONG, LONG + 9)
    options = {"outputs": outputs, **({"shared_mask": mask} if mask else {})}
    expected = connect("grpc", of_one_slot.rest, of_one_slot.grpc).attend(name, inputs=[one], **options)["results"]
    attend, gate = connect("grpc", of_two_slots.rest, of_two_slots.grpc).attend, of_two_slots.gate
    with ThreadPoolExecutor(1) as threads:
        gate.reset()
        gate.close()
        answer = threads.submit(attend, name, inputs=[one], **options)
        wait_until(lambda: gate.runs == 2)
        gate.open()
        assert_same(answer.result(HANG)["results"], expected)
        wait_until(lambda: of_two_slots.scheduler.idle_slots == 2)


def test_a_request_that_is_not_alone_runs_in_one_slot(models, connect):
    """While further requests wait, a long sequence has one slot, and the second slot runs them."""
    with local_server(models, slots=2, predicted=IN_A_SLOT) as server, ThreadPoolExecutor(2) as threads:
        attend = connect("grpc", server.rest, server.grpc).attend
        server.gate.close()
        short = threads.submit(attend, "self", **sequence("self", 2))
        wait_until(lambda: server.gate.runs == 1)
        long = threads.submit(attend, "self", **sequence("self", LONG))
        wait_until(lambda: server.gate.runs == 2)
        assert server.scheduler.idle_slots == 0
        server.gate.open()
        assert all(len(each.result(HANG)["results"]) == 1 for each in (short, long))


def test_many_sequences_that_are_alone_run_in_every_slot(models, connect):
    """A request of several sequences that is alone spreads them over the slots."""
    sequences = [sequence("self", 90 + i) for i in range(5)]
    with local_server(models, slots=2, predicted=IN_A_SLOT) as server, ThreadPoolExecutor(1) as threads:
        attend = connect("grpc", server.rest, server.grpc).attend
        alone = [attend("self", inputs=[each])["results"][0] for each in sequences]
        server.gate.runs = 0
        server.gate.close()
        answer = threads.submit(attend, "self", inputs=sequences)
        wait_until(lambda: server.gate.runs == 2)
        server.gate.open()
        assert_same(answer.result(HANG)["results"], alone)


def test_tiny_messages_of_a_stream(models, connect):
    """Messages of a stream that arrive during a computation run together, on one slot too."""
    sequences = [sequence("multi", 3) for _ in range(8)]  # as many as are let in before the size of an answer is known
    with merging(models, predicted=IN_A_SLOT) as server, grpc.insecure_channel(server.grpc) as channel:
        attend = connect("grpc", server.rest, server.grpc).attend
        alone = [attend("multi", inputs=[each])["results"] for each in sequences]
        server.gate.close()
        server.gate.runs = 0

        def messages():
            for i, each in enumerate(sequences):
                yield pb.AttendStreamRequest(id=str(i), request=request_message("multi", [each]))
                wait_until(lambda: server.gate.runs)  # the first runs by itself

        answers = AttentionServiceStub(channel).AttendStream(messages())
        wait_until(lambda: server.gate.runs == 1 and server.scheduler.state().queued == 7)
        server.gate.open()
        found = {int(answer.id): read_message(answer.response)["results"] for answer in answers}
        for i, expected in enumerate(alone):
            assert_same(found[i], expected)
        assert server.gate.runs == 2 + 2  # the first, and the rest together
