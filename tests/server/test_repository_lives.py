"""Versions in transit: warmed before taking over, drained before leaving."""

import gc
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from attention_server.app import Follower
from attention_server.domain.messages import MemoryRequest
from attention_server.errors import NotFound, Unavailable
from serving import HANG, start_server, wait_until

from tests.local_server import IN_A_SLOT, local_server, predict
from tests.server.lives import EXPLICIT, POLL, QUERY, ask, someone, state


def test_loading_is_not_ready(models, publish):
    """While a version is being warmed it is LOADING, asked for it is unavailable, and the old one answers."""
    with local_server(models, **POLL) as server, ThreadPoolExecutor(1) as aside:
        publish(2)
        server.gate.close()
        look = aside.submit(server.repository.poll)
        assert server.gate.arrived.wait(HANG)
        assert state(server.service, 2) == ("LOADING", "being verified and warmed")
        assert not server.service.is_ready("multi", 2)
        assert server.service.is_ready("multi")
        with pytest.raises(Unavailable, match="version 2 is LOADING"):
            ask(server.service, 2)
        with server.repository.lease("multi") as model:
            assert model.version == 1
        server.gate.open()
        look.result(HANG)
        assert state(server.service, 2) == ("READY", "")


def test_before_it_is_ready(models, publish):
    """Before the first load has ended nothing is ready, and the index has the loading versions."""
    publish(1, model="dot")
    with local_server(models, load=False) as server, ThreadPoolExecutor(1) as aside:
        assert server.service.index() == []
        assert not server.service.is_ready("multi")
        server.gate.close()
        start = aside.submit(server.repository.load)
        assert server.gate.arrived.wait(HANG)
        assert {entry.state for entry in server.service.index()} == {"LOADING"}
        assert not server.service.is_ready("multi")
        with pytest.raises(Unavailable, match="still loading"):
            ask(server.service)
        server.gate.open()
        start.result(HANG)
        assert {entry.state for entry in server.service.index()} == {"READY"}


def test_an_unload_drains(models):
    """A version that is being unloaded takes no new requests, answers its running ones, and then goes with its
    memories."""
    with local_server(models, **EXPLICIT) as server, ThreadPoolExecutor(2) as aside:
        service = server.service
        service.load_model("multi", someone())
        predict(server.repository, IN_A_SLOT)  # the loop computes nothing
        expected = ask(service)[1]
        memory = service.submit_memory(MemoryRequest("multi", key=QUERY), someone()).result(HANG)
        server.gate.close()
        asked = aside.submit(ask, service)
        assert server.gate.arrived.wait(HANG)
        unload = aside.submit(service.unload_model, "multi", someone())
        wait_until(lambda: state(service, 1)[0] == "UNLOADING")
        assert not service.is_ready("multi")
        with pytest.raises(Unavailable, match="UNLOADING"):
            ask(service)
        assert not unload.done()
        server.gate.open()
        np.testing.assert_array_equal(asked.result(HANG)[1], expected)
        unload.result(HANG)
        assert state(service, 1) == ("UNAVAILABLE", "not loaded")
        service.load_model("multi", someone())
        with pytest.raises(NotFound):
            service.memory("multi", memory.id, someone())
        assert service.memories("multi", someone()) == []


def test_an_unload_ends_within_the_grace(models):
    """A request that holds a version for ever does not hold up its unload; it can go on with its lease."""
    with local_server(models, **EXPLICIT, grace=0.1) as server:
        server.service.load_model("multi", someone())
        with server.repository.lease("multi") as model:
            server.service.unload_model("multi", someone())
            with pytest.raises(NotFound):
                ask(server.service)
            model.warm()


def test_what_is_unloaded_is_freed(models):
    """After an unload nothing keeps a version's graphs: no waiting for a collection of garbage, no cycle."""
    with local_server(models, **EXPLICIT) as server:
        server.service.load_model("multi", someone())
        ask(server.service)
        with server.repository.lease("multi") as model:
            graphs = [weakref.ref(graph.graph) for graph in model.graphs.values()]
        del model
        assert len(graphs) > 3
        gc.disable()
        try:
            server.service.unload_model("multi", someone())
            wait_until(lambda: not any(graph() for graph in graphs))
        finally:
            gc.enable()


def test_a_stop_does_not_wait_for_a_look(models):
    """A stop ends the following at once between two looks, however rare; a look that has begun is waited
    for within the grace."""
    with start_server(models, "--repository-mode", "poll", "--repository-poll", 3600) as server:
        server.process.terminate()
        assert server.process.wait(HANG) == 0
    with local_server(models, **POLL) as server:
        shutil.copytree(models / "multi/1", models / "multi/2")
        server.gate.close()
        follower = Follower(server.repository, 0.001, lambda: None)
        follower.start()
        assert server.gate.arrived.wait(HANG)
        assert not follower.stop(0.01)
        server.gate.open()
        assert follower.stop(HANG)
        assert server.service.is_ready("multi", 2)
