"""A budget of models: graphs used least recently go, and come back with the next request."""

import gc
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import requests
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.domain.messages import MemoryRequest, Request, Sequence
from attention_server.errors import InvalidRequest, Unavailable
from prometheus_client.parser import text_string_to_metric_families
from serving import HANG, wait_until

from tests.local_server import IN_A_SLOT, local_server
from tests.server.lives import EXPLICIT, POLL, QUERY, ask, other_weights, someone, state
from tests.server.spoil import flip_a_byte

EVICTED = "evicted to make room; the next request loads it again"
BUDGET = {"model_budget_mib": 1}  # more than all of these have: tests set fewer bytes


class HeldOpen:
    """Holds up the engine's `open` from now on, counts graphs opened, and may fail them."""

    def __init__(self, server, monkeypatch):
        self.began, self.may_go, self.count = threading.Event(), threading.Event(), 0
        self.fault = None
        opened = server.core.engine.open

        def held(content):
            self.count += 1
            self.began.set()
            assert self.may_go.wait(HANG)
            if self.fault:
                raise self.fault
            return opened(content)

        monkeypatch.setattr(server.core.engine, "open", held)


def set_budget(server, size):
    """Set the budget in bytes, and evict what is over it."""
    server.repository.residency.budget = size
    server.repository.residency.make_room()


def evict_multi(server):
    """Evict `multi`: by a budget for one version, and a use of another."""
    set_budget(server, 2**20)
    ask(server.service, model="multi")
    server.service.submit(Request("dot", 0, (Sequence(query=QUERY),)), someone()).result(HANG)
    set_budget(server, 1)
    assert not resident(server)["multi", 1]


def resident(server):
    """Return the bytes in memory of each version."""
    return {key: each.bytes for key, each in server.service.residency().versions.items()}


def metrics(server):
    text = requests.get(f"{server.url}/metrics", timeout=HANG).text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def attend_message():
    query = pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=QUERY.shape, data=QUERY.tobytes())
    return pb.AttendRequest(model="multi", inputs=[pb.Sequence(query=query)])


@pytest.fixture
def both(models, publish):
    """A repository with `multi` and `dot`."""
    publish(1, model="dot")
    return models


@pytest.fixture
def server(both):
    with local_server(both, **BUDGET, predicted=IN_A_SLOT) as running:
        yield running


def test_the_least_recently_used_goes_and_comes_back(server):
    """Over the budget the version used last stays; the other's graphs are freed, and its next answer is the same bits.

    Meanwhile lists, readiness, metadata, checks of requests and metrics are those of a version that answers.
    """
    before = ask(server.service)[1]
    with server.repository.lease("multi") as model:
        graphs = [weakref.ref(graph.graph) for graph in model.graphs.values()]
    del model
    gc.disable()
    try:
        evict_multi(server)
        assert not any(graph() for graph in graphs)
    finally:
        gc.enable()
    assert state(server.service, 1) == ("READY", EVICTED)
    assert state(server.service, 1, "dot") == ("READY", "")
    assert server.service.is_ready("multi")
    listed = {each["name"]: each for each in requests.get(f"{server.url}/v1/models", timeout=HANG).json()["models"]}
    assert listed["multi"]["evicted"] and "evicted" not in listed["dot"]
    assert requests.get(f"{server.url}/v2/models/multi/ready", timeout=HANG).json() == {"name": "multi", "ready": True}
    with pytest.raises(InvalidRequest, match="query"):
        server.service.submit(Request("multi", 0, (Sequence(query=QUERY[:, :5]),)), someone())
    server.service.release_memory()
    found = metrics(server)
    assert found["attention_model_resident_bytes", "1", "multi"] == 0 < found["attention_model_budget_bytes",]
    assert found["attention_model_evictions_total", "1", "multi"] == 1
    assert found["attention_model_reloads_total", "1", "loaded", "multi"] == 0
    assert np.array_equal(ask(server.service)[1], before)
    assert state(server.service, 1) == ("READY", "")
    assert metrics(server)["attention_model_reloads_total", "1", "loaded", "multi"] == 1
    wait_until(lambda: resident(server) == {("dot", 1): 0, ("multi", 1): int(listed["multi"]["memory_bytes"])})


def test_concurrent_first_requests_load_once(server, monkeypatch):
    """First requests over every way of asking wait for one reload, and all are answered."""
    expected = ask(server.service)[1]
    evict_multi(server)
    held = HeldOpen(server, monkeypatch)
    body = {"inputs": [{"query": QUERY.tolist()}]}
    message = attend_message()
    with grpc.insecure_channel(server.grpc) as channel, ThreadPoolExecutor() as threads:
        stub = AttentionServiceStub(channel)
        stream = [pb.AttendStreamRequest(id="1", request=message)]
        asked = [
            threads.submit(lambda: requests.post(f"{server.url}/v1/models/multi:attend", json=body, timeout=HANG)),
            threads.submit(lambda: stub.Attend(message, timeout=HANG)),
            threads.submit(lambda: next(iter(stub.AttendStream(iter(stream), timeout=HANG)))),
        ]
        assert held.began.wait(HANG)
        wait_until(lambda: metrics(server).get(("attention_requests_in_flight", "Attend", "rest")) == 1)
        wait_until(lambda: metrics(server).get(("attention_requests_in_flight", "Attend", "grpc")) == 1)
        assert not any(each.done() for each in asked)
        held.may_go.set()
        rest, unary, streamed = [each.result(HANG) for each in asked]
    with server.repository.lease("multi") as model:
        assert held.count == len(model.graphs)
    assert rest.ok
    for answer in (unary.results[0], streamed.response.results[0]):
        assert np.array_equal(np.frombuffer(answer.outputs[0].tensor.data, np.float32), expected.ravel())


def test_a_deadline_and_a_caller_who_goes_are_kept(server, monkeypatch):
    """A deadline ends the wait for a reload; a cancelled request is never computed; the reload itself goes on."""
    evict_multi(server)
    held = HeldOpen(server, monkeypatch)
    runs = server.gate.runs
    cancelled = someone()
    future = server.service.submit(Request("multi", 0, (Sequence(query=QUERY),)), cancelled)
    assert held.began.wait(HANG)
    late = requests.post(
        f"{server.url}/v1/models/multi:attend",
        json={"inputs": [{"query": QUERY.tolist()}]},
        headers={"X-Request-Timeout": "0.05"},
        timeout=HANG,
    )
    assert late.status_code == 504
    cancelled.cancel()
    assert future.cancelled()
    held.may_go.set()
    wait_until(lambda: resident(server)["multi", 1])
    assert server.gate.runs == runs
    ask(server.service)


def test_leases_keep_what_is_in_use(server):
    """A version with a request stays over the budget, and goes when its last request ends."""
    evict_multi(server)
    server.gate.close()
    slow = server.service.submit(Request("multi", 0, (Sequence(query=QUERY),)), someone())
    assert server.gate.arrived.wait(HANG)
    dot = server.service.submit(Request("dot", 0, (Sequence(query=QUERY),)), someone())
    wait_until(lambda: metrics(server)["attention_model_reloads_total", "1", "dot", "loaded"])
    assert resident(server)["multi", 1]
    server.gate.open()
    slow.result(HANG)
    dot.result(HANG)
    wait_until(lambda: not resident(server)["multi", 1])


def test_a_failed_reload_is_told_and_tried_again(both, server, tmp_path):
    """What cannot be loaded again is UNAVAILABLE with a reason, over a stream too; back in place, it is served."""
    evict_multi(server)
    (both / "multi/1").rename(tmp_path / "away")
    with pytest.raises(Unavailable, match="evicted to make room, and cannot be loaded again") as refused:
        ask(server.service)
    assert str(both) not in str(refused.value)
    assert state(server.service, 1)[0] == "UNAVAILABLE"
    assert not server.service.is_ready("multi")
    assert metrics(server)["attention_model_reloads_total", "1", "failed", "multi"] == 1
    message = attend_message()
    with grpc.insecure_channel(server.grpc) as channel:
        stream = [pb.AttendStreamRequest(id=id_, request=message) for id_ in "12"]
        answers = list(AttentionServiceStub(channel).AttendStream(iter(stream), timeout=HANG))
    assert [each.error.code for each in answers] == [grpc.StatusCode.UNAVAILABLE.value[0]] * 2
    shutil.copytree(tmp_path / "away", both / "multi/1")
    flip_a_byte(both / "multi/1")
    with pytest.raises(Unavailable, match="SHA-256 differs"):
        ask(server.service)
    shutil.rmtree(both / "multi/1")
    (tmp_path / "away").rename(both / "multi/1")
    ask(server.service)
    assert state(server.service, 1) == ("READY", "")


def test_memories_stay_valid(server):
    """A memory of an evicted version is kept, and used when the version comes back."""
    memory = server.service.submit_memory(MemoryRequest("multi", key=QUERY), someone()).result(HANG)

    def attend():
        request = Request("multi", 0, (Sequence(query=QUERY, memory=memory.id),))
        return server.service.submit(request, someone()).result(HANG).results[0].outputs["output"]

    before = attend()
    evict_multi(server)
    assert np.array_equal(attend(), before)


def test_the_budget_holds_while_models_are_loaded(both, publish):
    """Loads on request and of changed folders keep the budget; a changed version replaces an evicted one."""
    publish(2, model="dot")
    with local_server(both, **BUDGET, **EXPLICIT) as server:
        server.repository.residency.budget = 1
        for name in ("multi", "dot"):
            server.service.load_model(name, someone())
        assert state(server.service, 1) == ("READY", EVICTED)
        assert not any(resident(server).values())
        server.service.unload_model("multi", someone())
        assert ("multi", 1) not in resident(server)
    with local_server(both, **BUDGET, **POLL) as server:
        evict_multi(server)
        before = ask(server.service)[1]
        evict_multi(server)
        shutil.rmtree(both / "multi/1")
        publish(1, other_weights)
        server.repository.poll()
        assert not np.array_equal(ask(server.service)[1], before)


def test_files_put_back_bring_a_failed_version_back(both, tmp_path):
    """In mode poll, the same files written anew make an evicted version that could not be loaded ready again."""
    with local_server(both, **BUDGET, **POLL) as server:
        evict_multi(server)
        shutil.copytree(both / "multi/1", tmp_path / "copy")
        shutil.rmtree(both / "multi/1")
        with pytest.raises(Unavailable):
            ask(server.service)
        (tmp_path / "copy").rename(both / "multi/1")
        server.repository.poll()
        assert state(server.service, 1) == ("READY", "")
        ask(server.service)
