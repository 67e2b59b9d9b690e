"""Admission control under overload: when requests are shed, which are admitted, and the price of a refusal."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import numpy as np
import pytest
import requests
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.errors import Full, Unavailable
from attention_server.scheduling.admission import (
    MAX_SHED_SECONDS,
    MIN_SHED_SECONDS,
    PERMITS_PER_SLOT,
    RECOVERY_QUEUE,
    AdmissionController,
)
from attention_server.scheduling.fair_queue import QueueLimits
from attention_server.scheduling.scheduler import Scheduler
from serving import HANG, start_server, wait_until

from tests.local_server import IN_A_SLOT, local_server
from tests.messages import tensor
from tests.observability.conftest import entries, metrics_of
from tests.refusals import refused_by_grpc
from tests.server.jobs import held, submit

QUERY = np.ones((2, 3), np.float32)
NONSENSE = b"\xff" * 40


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def admission():
    clock = Clock()
    made = AdmissionController(2, max_wait=1.0, clock=clock)
    made.tick = clock
    return made


def test_open_until_the_queue_was_full(admission):
    """Without an overload every request is admitted."""
    for _ in range(100):
        admission.acquire("a")
    assert not admission.is_shedding
    assert admission.bound == float("inf")


def test_closed_for_a_while_that_doubles(admission):
    """A full queue trips the breaker; one soon afterwards lasts twice as long, up to a bound."""
    closed = MIN_SHED_SECONDS
    for _ in range(8):
        admission.trip()
        admission.tick.now += 0.999 * closed
        admission.trip()  # earlier requests
        assert admission.is_shedding
        admission.tick.now += 0.002 * closed
        assert not admission.is_shedding
        assert admission.bound == RECOVERY_QUEUE
        closed = min(MAX_SHED_SECONDS, 2 * closed)
    admission.tick.now += MAX_SHED_SECONDS
    assert admission.bound == float("inf")
    admission.trip()
    admission.tick.now += MIN_SHED_SECONDS
    assert not admission.is_shedding


def wait_out(admission):
    """Move the clock to where shedding ends, within a tenth of a second."""
    while admission.is_shedding:
        admission.tick.now += 0.1


def come(admission, count, seconds):
    """Let `count` requests arrive at once, answer the admitted ones in turn, and return the number."""
    permits = []
    for _ in range(count):
        with suppress(Full):
            permits.append(admission.acquire("a"))
    for permit in permits:
        admission.tick.now += seconds
        permit.release()
    return len(permits)


def test_bursts_are_no_overload(admission):
    """After a burst that leaves the slots idle, requests are admitted again before the restriction's time is over."""
    for _ in range(6):
        admission.trip()
        wait_out(admission)  # the next trip lasts for 32 s
    admission.trip()
    assert come(admission, 30, 0.01) == 2 * PERMITS_PER_SLOT
    admission.tick.now += MIN_SHED_SECONDS
    assert come(admission, 30, 0.01) == 30
    assert not admission.is_shedding
    assert admission.bound == float("inf")


@pytest.mark.parametrize("times", [1.1, 2, 10])
def test_an_overload_stays_one(admission, times):
    """While more requests arrive than can be computed, the breaker stays open for its time."""
    for _ in range(3):
        admission.trip()
        wait_out(admission)
    admission.trip()
    end = admission.tick.now + 2**3 * MIN_SHED_SECONDS
    while admission.tick.now < end - 0.2:
        # In 20 ms two slots answer the admitted requests; `times` as many arrive.
        assert (
            come(admission, round(2 * PERMITS_PER_SLOT * times), 0.02 / (2 * PERMITS_PER_SLOT))
            < 2 * PERMITS_PER_SLOT * times
        )
    assert admission.is_shedding


def test_places_behind_a_closed_door(admission):
    """Each slot has a number of permits; callers with fewer get further ones; a release makes room."""
    admission.trip()
    greedy = [admission.acquire("greedy") for _ in range(2 * PERMITS_PER_SLOT)]
    with pytest.raises(Full, match="full"):
        admission.acquire("greedy")
    with admission.acquire("light"), admission.acquire("light"):
        pass
    greedy[0].release()
    with admission.acquire("greedy"), pytest.raises(Full):
        admission.acquire("greedy")


def test_requests_from_before_the_trip_hold_permits(admission):
    """Requests admitted before the restriction count as permits to the end of the request."""
    before = [admission.acquire("a") for _ in range(3 * PERMITS_PER_SLOT)]
    admission.trip()
    with pytest.raises(Full):
        admission.acquire("a")
    admission.acquire("b").release()
    for permit in before:
        permit.release()
    for _ in range(3 * PERMITS_PER_SLOT):
        admission.acquire("a").release()


def test_a_trip_excludes_arrivals():
    """A request that arrives while a full queue trips the breaker is decided on after the trip: it is shed."""
    arriving = threading.Thread(target=lambda: refused.append(_is_refused(admission)))
    refused = []

    def clock():
        if threading.current_thread() is tripping and not arriving.ident:
            arriving.start()
            arriving.join(0.1)  # without the lock it would be admitted meanwhile
        return 0.0

    tripping = None
    admission = AdmissionController(1, max_wait=1.0, clock=clock)
    for _ in range(PERMITS_PER_SLOT):
        admission.acquire("a")
    tripping = threading.current_thread()
    admission.trip()
    arriving.join()
    assert refused == [True]


def _is_refused(admission):
    try:
        admission.acquire("a")
    except Full:
        return True
    return False


def test_a_shorter_queue_afterwards():
    """After shedding, a part of the queue is enough to trip the breaker again."""
    clock = Clock()
    scheduler = Scheduler(1, QueueLimits(50, 1.05, 1000), clock=clock)
    try:
        with held(scheduler):
            for _ in range(11):
                submit(scheduler, int, cost=0.1, caller="a")
            with pytest.raises(Unavailable, match="full"):
                submit(scheduler, int, cost=0.1, caller="a")
            assert scheduler.admission.is_shedding
            clock.now = 1.1 * MIN_SHED_SECONDS
            with pytest.raises(Unavailable, match="more was asked for"):
                submit(scheduler, int, cost=0.1, caller="a")
            assert scheduler.admission.is_shedding
            submit(scheduler, int, cost=0.1, caller="light")  # has less in the queue than the first caller
            scheduler.release.set()
    finally:
        scheduler.close()


def message():
    return pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=tensor(QUERY))])


@pytest.fixture
def endless(monkeypatch):
    """Shedding never ends by itself."""
    monkeypatch.setattr("attention_server.scheduling.admission.MIN_SHED_SECONDS", float("inf"))


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_refused_unread(dot_only, endless, transport):
    """While requests are shed, a refused one is not parsed; when a permit is free, the next is answered rightly."""
    with (
        local_server(dot_only, predicted=IN_A_SLOT) as server,
        ThreadPoolExecutor(4) as threads,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        stub = AttentionServiceStub(channel)
        expected = stub.Attend(message())
        raw = channel.unary_unary("/attention.v1.AttentionService/Attend")
        server.service.admission.trip()
        server.gate.close()
        inside = [threads.submit(stub.Attend, message()) for _ in range(PERMITS_PER_SLOT)]
        wait_until(lambda: sum(in_scheduler(server)) == PERMITS_PER_SLOT)
        if transport == "grpc":
            with pytest.raises(grpc.RpcError) as caught:
                raw(NONSENSE, timeout=HANG)
            refusal = refused_by_grpc(caught.value)
            assert (refusal.code, refusal.retry_after > 0) == ("UNAVAILABLE", True)
        else:
            answer = requests.post(f"{server.url}/v1/models/dot:attend", data=NONSENSE, timeout=HANG)
            assert (answer.status_code, float(answer.headers["retry-after"]) > 0) == (503, True)
        assert stub.ListModels(
            pb.ListModelsRequest(), timeout=HANG
        ).models  # a method that computes nothing is answered
        server.gate.open()
        assert all(each.result(HANG) == expected for each in inside)
        wait_until(lambda: not server.service.observer.open_records())
        assert stub.Attend(message(), timeout=HANG) == expected
        with pytest.raises(grpc.RpcError) as caught:
            raw(NONSENSE, timeout=HANG)
        assert refused_by_grpc(caught.value).code == "INVALID_ARGUMENT"
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_unary("/attention.v1.AttentionService/Attend")(iter([]), timeout=HANG))
        assert refused_by_grpc(caught.value).code == "UNIMPLEMENTED"
        for _ in range(PERMITS_PER_SLOT):  # no refusal has kept a permit
            assert stub.Attend(message(), timeout=HANG) == expected


def in_scheduler(server):
    """Return the numbers of running and of queued requests."""
    state = server.scheduler.state()
    return state.running, state.queued


def test_a_caller_that_leaves_before_its_message_arrives(dot_only, endless):
    """Callers that are admitted, send nothing and leave hold no permit any more."""
    with local_server(dot_only, slots=1) as server, grpc.insecure_channel(server.grpc) as channel:
        server.service.admission.trip()
        door = threading.Event()

        def nothing():
            door.wait(HANG)
            yield from ()

        records = server.service.observer.open_records
        for _ in range(PERMITS_PER_SLOT):  # of one slot: one permit that is kept refuses the request at the end
            call = channel.stream_unary("/attention.v1.AttentionService/Attend").future(nothing())
            wait_until(records)
            call.cancel()
            wait_until(lambda: not records())
        door.set()
        assert AttentionServiceStub(channel).Attend(message(), timeout=HANG).results


def test_refusals_are_counted_in_the_log(dot_only):
    """A server that refuses much says so every second, and counts each in its metrics."""
    with start_server(dot_only, "--slots", 1, "--max-queued", 1, "--log-format", "json") as server:
        long = pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=tensor(np.ones((1500, 64), np.float32)))] * 8)
        with grpc.insecure_channel(server.grpc) as channel:
            calls = [AttentionServiceStub(channel).Attend.future(long, timeout=HANG) for _ in range(12)]
            refusals = sum(call.code() is grpc.StatusCode.UNAVAILABLE for call in calls)
        assert refusals
        wait_until(lambda: entries(server.log, "more is asked for than can be computed"))
        assert not entries(server.log)
        assert metrics_of(server)("attention_rejections_total", reason="full") == refusals
