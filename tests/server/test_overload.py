"""A server under overload: the requests that are refused or shed, and the traces of callers that have gone."""

import hashlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
from attention_client import AttentionClient
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.auth.callers import Callers
from attention_server.errors import Cancelled
from attention_server.http2.limits import RESET_BURST
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.inference.engine.protocol import Run
from serving import HANG, ROOT, start_server, wait_until

from tests.local_server import DEADLINES, IN_A_SLOT, SOON_IN_A_SLOT, local_server
from tests.messages import tensor
from tests.refusals import refused, refused_by_grpc

DRAWN = np.random.default_rng(5)
QUERY = DRAWN.standard_normal((2, 12), np.float32)


@pytest.fixture
def self_only(repository, tmp_path):
    """A repository of one small model."""
    (tmp_path / "self").symlink_to(repository / "self")
    return tmp_path


def message(*queries, **options):
    return pb.AttendRequest(
        model="self", version=1, inputs=[pb.Sequence(query=tensor(query)) for query in queries], **options
    )


def output(response):
    return [np.frombuffer(result.outputs[0].tensor.data, np.float32) for result in response.results]


@pytest.fixture
def two_callers(tmp_path):
    """Two named callers, and the metadata with a token of each."""
    names = ("greedy", "light")
    path = tmp_path / "tokens.toml"
    path.write_text("".join(f'[{name}]\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n' for name in names))
    return Callers(path), [[("authorization", f"Bearer {name}")] for name in names]


def test_a_greedy_caller_does_not_starve_others(self_only, two_callers):
    """One caller fills the queue; another's calls are all answered, and the first one's that are refused hear when to
    come back."""
    callers, (greedy, light) = two_callers
    with (
        local_server(self_only, predicted=IN_A_SLOT, callers=callers) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        attend = AttentionServiceStub(channel).Attend.future
        server.gate.close()
        calls = [attend(message(QUERY), metadata=greedy, timeout=HANG)]
        assert server.gate.arrived.wait(HANG)
        calls += [attend(message(QUERY), metadata=greedy, timeout=HANG) for _ in range(20)]
        wait_until(lambda: sum(call.done() for call in calls) == 12)  # refused: 1 runs, 8 wait
        favoured = []
        for _ in range(3):
            favoured.append(attend(message(QUERY), metadata=light, timeout=HANG))
            wait_until(lambda: sum(call.done() for call in calls) == 12 + len(favoured))
        server.gate.open()
        assert all(len(call.result(HANG).results) == 1 for call in favoured)
        errors = [call.exception(HANG) for call in calls]
    answered = errors.count(None)
    assert answered == 6
    for error in filter(None, errors):
        refusal = refused_by_grpc(error)
        assert refusal.code == "UNAVAILABLE"
        assert refusal.retry_after > 0


def test_tokens_wait_for_a_slot(tmp_path):
    """A request for tokens is queued as any other, so that long texts take no core from further callers."""
    (tmp_path / "multi-head").symlink_to(ROOT / "models/multi-head")
    text = "Leo gave Mia a letter"
    with (
        local_server(tmp_path, predicted=IN_A_SLOT) as server,
        AttentionClient(server.grpc) as client,
        ThreadPoolExecutor(3) as threads,
    ):
        server.gate.close()
        running = threads.submit(client.attend, "multi-head", text=text)
        assert server.gate.arrived.wait(HANG)
        by_grpc = threads.submit(client.tokenize, "multi-head", [text])
        url = f"{server.url}/v1/models/multi-head:tokenize"
        by_rest = threads.submit(requests.post, url, json={"text": text}, timeout=HANG)
        wait_until(lambda: server.scheduler.state().queued == 2)
        assert not by_grpc.done()
        assert not by_rest.done()
        server.gate.open()
        assert running.result(HANG).tokens == by_grpc.result(HANG)[0].tokens == tuple(text.split())
        assert by_rest.result(HANG).json()["results"][0]["tokens"] == text.split()


def test_a_client_of_many_connections_is_one_caller(self_only, connect):
    """Without tokens a caller is a host, however many connections it opens."""
    with local_server(self_only, max_queued=2, predicted=IN_A_SLOT) as server, ThreadPoolExecutor(4) as threads:
        server.gate.close()
        asked = []
        channels = []
        for index in range(3):
            channels.append(grpc.insecure_channel(server.grpc, [("grpc.use_local_subchannel_pool", 1)]))
            asked.append(threads.submit(AttentionServiceStub(channels[-1]).Attend, message(QUERY), timeout=HANG))
            wait_until(lambda: server.gate.arrived.is_set() and server.scheduler.state().queued == index)  # noqa: B023
        with refused("UNAVAILABLE", None, "full"):
            connect("rest-json", server.rest, server.grpc).attend("self", version=1, query=QUERY)
        server.gate.open()
        assert all(len(each.result(HANG).results) == 1 for each in asked)
        for channel in channels:
            channel.close()


def test_a_deadline_that_will_pass_in_the_queue(self_only, connect):
    """A request that cannot be answered in time, as predicted, is refused at once, by either transport."""
    with local_server(self_only, predicted=30.0) as server, ThreadPoolExecutor(2) as threads:
        attend = connect("grpc", server.rest, server.grpc).attend
        server.gate.close()
        running = threads.submit(attend, "self", version=1, query=QUERY)
        assert server.gate.arrived.wait(HANG)
        queued = threads.submit(attend, "self", version=1, query=QUERY)
        wait_until(lambda: server.scheduler.state().queued == 1)
        for name in ("grpc", "rest-json"):
            with refused("UNAVAILABLE", None, "after the deadline") as caught:
                connect(name, server.rest, server.grpc).attend("self", version=1, query=QUERY, timeout=20)
            assert caught.value.retry_after > 20
        server.gate.open()
        for each in (running, queued):
            assert len(each.result(HANG)["results"]) == 1


# --- cancelled -------------------------------------------------------------------------------------------------------


def test_a_run_that_was_ended_leaves_its_graph_sound(repository):
    """A run that is ended stops, and the graph stays usable."""
    graph = OnnxRuntime("cpu", threads=1).open((repository / "self/1/project.onnx").read_bytes())
    feeds = {"key": QUERY[None], "value": QUERY[None]}
    before = graph.run(["k"], feeds, Run())
    ended = Run(callers=2)
    ended.drop_caller()
    np.testing.assert_array_equal(graph.run(["k"], feeds, ended), before)  # one still waits
    ended.drop_caller()
    with pytest.raises(Cancelled):
        graph.run(["k"], feeds, ended)
    np.testing.assert_array_equal(graph.run(["k"], feeds, Run()), before)


@pytest.mark.parametrize("way", ["cancelled", "deadline"])
def test_a_call_that_ends_while_it_runs(self_only, way):
    """A call that is cancelled or expires while it runs computes no further, and its slot is free."""
    with (
        local_server(self_only, predicted=SOON_IN_A_SLOT) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        attend = AttentionServiceStub(channel).Attend
        expected = output(attend(message(QUERY)))
        server.gate.close()
        before = server.gate.runs
        if way == "cancelled":
            call = attend.future(message(QUERY))
            assert server.gate.arrived.wait(HANG)
            call.cancel()
        for deadline in DEADLINES if way == "deadline" else ():
            assert attend.future(message(QUERY), timeout=deadline).exception(HANG)
            if server.gate.arrived.is_set():
                break
        assert server.gate.arrived.is_set()
        wait_until(lambda: server.gate.last.ended)
        server.gate.open()
        wait_until(lambda: server.scheduler.state().running == 0)
        assert server.gate.runs == before + 1  # of the two graphs that it takes
        np.testing.assert_array_equal(output(attend(message(QUERY))), expected)


def _status(process, name):
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.mark.parametrize("calls", [2_000, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_many_cancelled_calls_leave_nothing(self_only, calls):
    """Calls that are cancelled at any moment leave no thread, no slot and no memory behind, and the next is right."""
    queries = [DRAWN.standard_normal((length, 12), np.float32) for length in (2, 64, 256)]
    at_once = 24  # more than run and fewer than may wait: each is cancelled queued, running or answered
    with start_server(self_only, "--slots", 2) as server, grpc.insecure_channel(server.grpc) as channel:
        attend = AttentionServiceStub(channel).Attend
        expected = output(attend(message(*queries)))

        def cancel_many(count):
            for done in range(0, count, RESET_BURST):  # a connection with more resets would be ended
                own_connection = [("grpc.use_local_subchannel_pool", 1)]
                with grpc.insecure_channel(server.grpc, own_connection) as resetting:
                    _cancel(AttentionServiceStub(resetting).Attend, queries, min(count - done, RESET_BURST), at_once)

        cancel_many(calls // 4)  # lasting allocations are made here
        threads, memory = _status(server.process, "Threads"), _status(server.process, "VmRSS")
        cancel_many(calls)
        every_slot = [attend.future(message(*queries), timeout=HANG) for _ in range(8)]
        for call in every_slot:
            np.testing.assert_equal(output(call.result()), expected)
        # The pool may grow to its bound; a leak has no bound.
        assert _status(server.process, "Threads") <= threads + 2 * at_once
        assert _status(server.process, "VmRSS") <= memory + 32 * 1024
        assert "Traceback" not in server.log


def _cancel(attend, queries, count, at_once):
    """Send calls, at most `at_once` at a time, and cancel each at once or soon."""
    random = np.random.default_rng(count)
    flying: set[Future[object]] = set()
    for i in range(count):
        call = attend.future(message(queries[i % 3]))
        ended: Future[object] = Future()
        call.add_done_callback(partial(_end, ended))
        delay = random.choice((0.0, 0.0005, 0.002))
        if delay:
            threading.Timer(delay, call.cancel).start()
        else:
            call.cancel()
        flying.add(ended)
        while len(flying) >= at_once:
            flying = wait(flying, 60, "FIRST_COMPLETED").not_done
    assert not wait(flying, 60).not_done


def _end(ended, _call):
    ended.set_result(None)
