"""Versions that are loaded and unloaded on request."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import requests
from attention_proto.inference import grpc_predict_v2_pb2 as pb
from attention_proto.inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from attention_server.domain.index_entry import IndexEntry
from attention_server.domain.messages import MemoryRequest, Request, Sequence
from attention_server.errors import InvalidRequest, NotFound, Unimplemented
from attention_server.repository import repository as repository_module
from attention_server.repository.loader import find
from serving import HANG, run_server, start_server, wait_until

from tests.local_server import local_server
from tests.server.lives import EXPLICIT, QUERY, ask, other_weights, someone, state
from tests.server.spoil import cut, flip_a_byte


def test_by_default_nothing_changes(models, publish):
    """Without a mode, later versions are ignored, and nothing is loaded on request."""
    with local_server(models) as server:
        publish(2)
        for change in (server.service.load_model, server.service.unload_model):
            with pytest.raises(Unimplemented):
                change("multi", someone())
        assert [(entry.version, entry.state) for entry in server.service.index()] == [(1, "READY")]


def test_load_and_unload(models, publish):
    """Nothing is loaded at the start; a load serves every version of a model, an unload none."""
    publish(1, model="dot")
    with local_server(models, **EXPLICIT) as server:
        service = server.service
        not_loaded = [IndexEntry(name, 1, "UNAVAILABLE", "not loaded") for name in ("dot", "multi")]
        assert service.ready
        assert service.index() == not_loaded
        assert not service.is_ready("multi")
        service.load_model("multi", someone())
        assert service.index() == [not_loaded[0], IndexEntry("multi", 1, "READY", "")]
        assert service.is_ready("multi")
        publish(2, other_weights)
        assert ask(service)[0] == 1
        service.load_model("multi", someone())
        assert ask(service)[0] == 2
        assert ask(service, 1)[0] == 1
        shutil.rmtree(models / "multi/1")
        service.load_model("multi", someone())
        assert not [entry for entry in service.index() if entry.version == 1 and entry.state == "READY"]
        with pytest.raises(NotFound):
            ask(service, 1)
        service.unload_model("multi", someone())
        assert state(service, 2) == ("UNAVAILABLE", "not loaded")
        for attempt in (ask, lambda _: service.unload_model("multi", someone())):
            with pytest.raises(NotFound, match="multi"):
                attempt(service)


def test_statistics_while_a_model_is_unloaded(models, publish, monkeypatch):
    """Statistics of all models leave out one that is unloaded meanwhile; asked for by name, it is not found."""
    publish(1, model="dot")
    with local_server(models, **EXPLICIT) as server:
        server.service.load_model("multi", someone())
        monkeypatch.setattr(server.repository, "names", lambda: ["dot", "multi"])  # "dot" was there a moment ago
        assert [each.model for each in server.service.statistics()] == ["multi"]
        with pytest.raises(NotFound):
            server.service.statistics("dot")


def test_a_slow_disk_holds_up_no_other_call(models, monkeypatch):
    """While the folder is read for an index or for a model's readiness, both protocols answer further calls."""
    reading, read = threading.Event(), threading.Event()

    def slow(root):
        reading.set()
        assert read.wait(HANG)
        return find(root)

    with local_server(models, **EXPLICIT) as server, ThreadPoolExecutor() as threads:
        monkeypatch.setattr(repository_module, "find", slow)
        with grpc.insecure_channel(server.grpc) as channel:
            stub = GRPCInferenceServiceStub(channel)
            calls = [
                lambda: stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=HANG),
                lambda: stub.ModelReady(pb.ModelReadyRequest(name="multi"), timeout=HANG),
                lambda: requests.post(f"{server.url}/v2/repository/index", timeout=HANG),
                lambda: requests.get(f"{server.url}/v2/models/multi/ready", timeout=HANG),
            ]
            for call in calls:
                reading.clear()
                read.clear()
                waiting = threads.submit(call)
                try:
                    assert reading.wait(HANG)
                    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=HANG).live
                    assert requests.get(f"{server.url}/healthz", timeout=HANG).ok
                    assert not waiting.done()
                finally:
                    read.set()
                waiting.result(HANG)


def test_loaded_at_the_start(models, publish):
    """Models named are loaded at the start, a star names all, and a name without a folder ends it."""
    publish(1, model="dot")
    publish(2, flip_a_byte)
    explicit = ("--repository-mode", "explicit", "--load-model")
    with start_server(models, *explicit, "multi") as server:
        assert server.log.count("model loaded") == 1
        assert server.log.count("version refused") == 1
        assert [each["name"] for each in requests.get(f"{server.url}/v1/models", timeout=HANG).json()["models"]] == [
            "multi"
        ]
    with start_server(models, *explicit, "*") as server:
        assert server.log.count("model loaded") == 2
    done = run_server("--models", models, "--rest-port", 0, "--grpc-port", 0, *explicit, "nobody")
    assert done.returncode == 1
    assert "'nobody'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../models/multi", "multi/1", "/etc", "multi\0", "multi\n", "\0", "mülti", "x" * 129]
)
def test_names_that_lead_away(models, name):
    """A name that is none is refused before a look at the disk; nothing is loaded by it."""
    with local_server(models, **EXPLICIT) as server:
        with pytest.raises(InvalidRequest) as caught:
            server.service.load_model(name, someone())
        assert caught.value.field == "model"
        with pytest.raises(NotFound):
            server.service.unload_model(name, someone())
        with pytest.raises(NotFound):
            server.service.is_ready(name)
        assert [entry.state for entry in server.service.index()] == ["UNAVAILABLE"]


def test_a_load_of_nothing(models):
    """A model without a folder is not found; one without a version in it is told so."""
    with local_server(models, **EXPLICIT) as server:
        with pytest.raises(NotFound, match="nobody"):
            server.service.load_model("nobody", someone())
        (models / "empty").mkdir()
        with pytest.raises(InvalidRequest, match="no versions"):
            server.service.load_model("empty", someone())


def test_a_load_of_what_cannot_be_served(models, publish):
    """A load without a servable version gives the reason of each, and loaded versions serve on."""
    with local_server(models, **EXPLICIT) as server:
        server.service.load_model("multi", someone())
        expected = ask(server.service)[1]
        shutil.rmtree(models / "multi/1")
        publish(1, flip_a_byte)
        publish(2, cut)
        with pytest.raises(InvalidRequest, match=r"version 1: attend.onnx .*; version 2: explain.onnx "):
            server.service.load_model("multi", someone())
        version, output = ask(server.service)
        assert version == 1
        np.testing.assert_array_equal(output, expected)
        assert state(server.service, 1) == ("READY", "")
        assert state(server.service, 2)[0] == "UNAVAILABLE"


def test_a_version_replaced_under_its_number(models, publish):
    """New files under a number take over as a whole; holders of the old ones keep the leases to the end, and memories
    of the old files are not taken for the new files'."""
    with local_server(models, **EXPLICIT) as server:
        service = server.service
        service.load_model("multi", someone())
        memory = service.submit_memory(MemoryRequest("multi", key=QUERY), someone()).result(HANG)
        first = ask(service)[1]
        with server.repository.lease("multi") as held:
            shutil.rmtree(models / "multi/1")
            publish(1, other_weights)
            service.load_model("multi", someone())
            second = ask(service)[1]
            assert not np.allclose(first, second)
            with server.repository.lease("multi") as new:
                assert new is not held
            with pytest.raises(NotFound, match="create it again"):
                service.submit(Request("multi", 0, (Sequence(query=QUERY, memory=memory.id),)), someone()).result(HANG)
            assert service.submit_memory(MemoryRequest("multi", key=QUERY), someone()).result(HANG).id != memory.id
        wait_until(lambda: len(service.memories("multi", someone())) == 1)  # the old one's went with it


def test_the_same_version_written_anew(models, publish):
    """Files that are the same as before change nothing: memories are kept."""
    with local_server(models, **EXPLICIT) as server:
        server.service.load_model("multi", someone())
        memory = server.service.submit_memory(MemoryRequest("multi", key=QUERY), someone()).result(HANG)
        with server.repository.lease("multi") as before:
            pass
        shutil.rmtree(models / "multi/1")
        publish(1)
        server.service.load_model("multi", someone())
        with server.repository.lease("multi") as after:
            assert after is before
        assert server.service.memory("multi", memory.id, someone()) is memory
