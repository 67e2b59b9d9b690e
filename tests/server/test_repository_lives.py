"""Versions that come and go while the server answers: verified before they take over, drained before they leave."""

import gc
import os
import re
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.app import Follower
from attention_server.auth.callers import ALL_RIGHTS
from attention_server.domain.call import CallContext
from attention_server.domain.messages import IndexEntry, MemoryRequest, Request, Sequence
from attention_server.errors import InvalidRequest, NotFound, Unavailable, Unimplemented
from serving import HANG, run_server, start_server, wait_until

from tests.conftest import read_message, refused, request_message
from tests.local_server import IN_A_SLOT, local_server, predict
from tests.server.spoil import change_weights, edit

QUERY = np.linspace(-1, 1, 5 * 24, dtype=np.float32).reshape(5, 24)
ASKED = ["output", "weights", "q", "k", "v", "heads"]
POLLING = ("--repository-mode", "poll", "--repository-poll", 0.02)
POLL = {"repository_mode": "poll"}
EXPLICIT = {"repository_mode": "explicit"}
SPARSE = 8 * 2**20


def someone() -> CallContext:
    return CallContext("test", rights=ALL_RIGHTS)


@pytest.fixture
def models(repository, tmp_path):
    """A repository of its own, with version 1 of `multi`."""
    shutil.copytree(repository / "multi", tmp_path / "models/multi")
    return tmp_path / "models"


@pytest.fixture
def publish(repository, models, tmp_path):
    """Publish a version as the documents say: made whole aside, then renamed. `publish(2)`, `publish(2, spoil)`."""

    def publish(version, change=None, model="multi"):
        shutil.copytree(repository / model / "1", tmp_path / "aside")
        if change is not None:
            change(tmp_path / "aside")
        (models / model).mkdir(exist_ok=True)
        (tmp_path / "aside").rename(models / model / str(version))

    return publish


def other_weights(folder):
    change_weights(folder, 1.5)


def ask(service, version=0, model="multi"):
    """Ask the core for an output, and which version gave it."""
    response = service.submit(Request(model, version, (Sequence(query=QUERY),)), someone()).result(30)
    return response.version, response.results[0].outputs["output"]


def state(service, version, model="multi"):
    """Return what the index has of a version: state and reason."""
    (entry,) = [each for each in service.index() if (each.name, each.version) == (model, version)] or [None]
    return entry and (entry.state, entry.reason)


def version_of(transport):
    return transport.attend("multi", query=QUERY)["version"]


# --- what is refused -------------------------------------------------------------------------------------------------


def flip_a_byte(folder):
    content = bytearray((folder / "attend.onnx").read_bytes())
    content[-9] ^= 1
    (folder / "attend.onnx").write_bytes(content)


def cut(folder):
    os.truncate(folder / "explain.onnx", (folder / "explain.onnx").stat().st_size // 2)


def cut_with_its_hash(folder):
    cut(folder)
    edit(folder)


def lie_about_widths(folder):
    edit(folder, lambda manifest: manifest["layers"][0].update(query_dim=23))


def swap_graphs(folder):
    shutil.copy(folder / "project.onnx", folder / "attend.onnx")
    edit(folder)


def oversize(folder):
    os.truncate(folder / "block.safetensors", SPARSE)


def pipe(folder):
    (folder / "project.onnx").unlink()
    os.mkfifo(folder / "project.onnx")


def lead_away(folder):
    edit(folder, lambda manifest: manifest["layers"][0]["attend"][0]["file"].update(name="../1/attend.onnx"))


REFUSALS = {
    flip_a_byte: "attend.onnx is not the file that manifest.json names: its SHA-256 differs",
    cut: "explain.onnx is not the file that manifest.json names: its SHA-256 differs",
    cut_with_its_hash: "cannot be loaded",
    lie_about_widths: "23",
    swap_graphs: "attend.onnx",
    oversize: "a version may have 4194304",
    pipe: "project.onnx is no regular file",
    lead_away: "no plain file name",
    lambda folder: (folder / "manifest.json").unlink(): "manifest.json cannot be read: No such file",
    lambda folder: (folder / "manifest.json").write_bytes(b"\xff"): "manifest.json cannot be read",
    lambda folder: os.truncate(folder / "manifest.json", 100): "manifest.json cannot be read",
    lambda folder: os.truncate(folder / "manifest.json", 17 * 2**20): "manifest.json has more than",
    lambda folder: (folder / "project.onnx").unlink(): "project.onnx cannot be read: No such file",
}


def test_what_is_refused_leaves_the_old_version_serving(models, publish, connect):
    """A version that is not what it says is refused with its reason, to who asks for it and in the log; the one
    before it answers on, is the default, and the model is described by it."""
    with start_server(models, *POLLING, "--max-version-mib", 4) as server:
        transport = connect("grpc", server.rest, server.grpc)
        expected = transport.outputs("multi", query=QUERY)["output"]
        for version, (spoil, reason) in enumerate(REFUSALS.items(), 2):
            publish(version, spoil)
            wait_until(lambda: re.search(rf"version refused .*version={version}\b", server.log))  # noqa: B023 # at once
            wait_until(lambda: "LOADING" not in requests.post(f"{server.url}/v2/repository/index", timeout=HANG).text)
            with refused("UNAVAILABLE", "model", f"version {version} is UNAVAILABLE", reason):
                transport.attend("multi", version=version, query=QUERY)
            answer = transport.attend("multi", query=QUERY)
            assert answer["version"] == 1
            np.testing.assert_array_equal(answer["results"][0]["outputs"]["output"], expected)
        listed = requests.get(f"{server.url}/v1/models", timeout=60).json()["models"]
        assert [(model["version"], model["versions"]) for model in listed] == [(1, [1])]
        assert server.log.count("version refused") == len(REFUSALS)  # and not at each look


def test_the_index_tells_why(models, publish):
    """The index has every version with its state, and the reason of what is not ready."""
    with local_server(models, **POLL) as server:
        publish(3, flip_a_byte)
        publish(2)
        server.repository.poll()
        reason = "attend.onnx is not the file that manifest.json names: its SHA-256 differs"
        assert server.service.index() == [
            IndexEntry("multi", 1, "READY", ""),
            IndexEntry("multi", 2, "READY", ""),
            IndexEntry("multi", 3, "UNAVAILABLE", reason),
        ]
        assert [server.service.is_ready("multi", version) for version in (0, 1, 2, 3)] == [True, True, True, False]
        shutil.rmtree(models / "multi/3")
        server.repository.poll()
        assert state(server.service, 3) is None


def test_a_start_without_anything_to_serve(models, connect):
    """Following the folder, the server starts whatever lies in it: the model that cannot be served says why, until it
    can."""
    kept = (models / "multi/1/manifest.json").read_bytes()
    (models / "multi/1/manifest.json").unlink()
    with start_server(models, *POLLING) as server:
        assert requests.get(f"{server.url}/readyz", timeout=60).status_code == 200
        assert requests.get(f"{server.url}/v1/models", timeout=60).json() == {"models": []}
        transport = connect("rest-json", server.rest, server.grpc)
        with refused("UNAVAILABLE", "model", "manifest.json cannot be read"):
            transport.attend("multi", query=QUERY)
        with refused("NOT_FOUND", "model", "nobody"):
            transport.attend("nobody", query=QUERY)
        (models / "multi/1/manifest.json").write_bytes(kept)
        wait_until(lambda: "model loaded" in server.log)
        assert version_of(transport) == 1


# --- the folder is followed ------------------------------------------------------------------------------------------


def test_a_new_version_takes_over_and_goes(models, publish, connect):
    """What is published becomes the default, versions answer side by side, and with its folder a version goes."""
    with start_server(models, *POLLING) as server:
        transport = connect("grpc", server.rest, server.grpc)
        first = transport.outputs("multi", query=QUERY)["output"]
        publish(2, other_weights)
        wait_until(lambda: version_of(transport) == 2)
        second = transport.outputs("multi", query=QUERY)["output"]
        assert not np.allclose(first, second)
        np.testing.assert_array_equal(transport.outputs("multi", version=1, query=QUERY)["output"], first)
        publish(1, model="dot")
        wait_until(lambda: "model=dot" in server.log)
        assert transport.outputs("dot", query=QUERY)["output"].shape == QUERY.shape
        (models / "multi/2").rename(models / "gone")
        wait_until(lambda: "model unloaded" in server.log)  # until then it is there, and being unloaded
        assert version_of(transport) == 1
        with refused("NOT_FOUND", "version", "no version 2; it has 1"):
            transport.attend("multi", version=2, query=QUERY)
        (models / "multi").rename(models / ".multi")
        wait_until(lambda: server.log.count("model unloaded") == 2)
        with refused("NOT_FOUND", "model", "there is dot"):
            transport.attend("multi", query=QUERY)


def test_a_folder_that_is_half_copied(models, repository, connect):
    """A version written file by file in its place is unavailable until its last file is whole, and then answers."""
    with start_server(models, *POLLING) as server:
        transport = connect("grpc", server.rest, server.grpc)
        slow = models / "multi/2"
        slow.mkdir()
        wait_until(lambda: "manifest.json cannot be read" in server.log)
        files = sorted((repository / "multi/1").iterdir(), reverse=True)  # the manifest in the middle
        for number, file in enumerate(files):
            content = file.read_bytes()
            with (slow / file.name).open("wb") as copy:
                copy.write(content[: len(content) // 2])
                copy.flush()
                with refused("UNAVAILABLE", "model", "version 2 is"):
                    transport.attend("multi", version=2, query=QUERY)
                assert version_of(transport) == 1
                if file.name == "manifest.json":
                    wait_until(lambda: "manifest.json cannot be read: Failed to load JSON" in server.log)
                elif number == len(files) - 1:
                    wait_until(lambda: f"reason='{files[-1].name} is not the file" in server.log)
                copy.write(content[len(content) // 2 :])
        wait_until(lambda: version_of(transport) == 2)


def rename_root(models, aside):
    models.rename(aside)
    return lambda: aside.rename(models)


def empty_root(models, aside):
    """What an unmounted disk leaves: an empty folder."""
    models.rename(aside)
    models.mkdir()

    def mount():
        models.rmdir()
        aside.rename(models)

    return mount


def empty_model(models, aside):
    """The same, where each model has a disk of its own: at once, without a moment in which the folder is missing."""
    (models / "multi/1").rename(aside)
    return lambda: aside.rename(models / "multi/1")


@pytest.mark.parametrize(
    ("unmount", "words"),
    [
        (rename_root, "models is no folder that can be read"),
        (empty_root, "models has become empty"),
        (empty_model, "multi has become empty"),
    ],
)
def test_a_disk_that_goes_away(models, publish, tmp_path, connect, unmount, words):
    """A repository, or a model's folder, that vanishes or becomes empty retires nothing, which the log says once and
    the index says; when it is back, what was removed from it goes."""
    publish(1, model="dot")
    with start_server(models, *POLLING) as server:

        def index():
            entries = requests.post(f"{server.url}/v2/repository/index", timeout=60).json()
            return {entry["name"]: (entry["state"], entry["reason"]) for entry in entries}

        mount = unmount(models, tmp_path / "away")
        wait_until(lambda: words in server.log)
        transport = connect("grpc", server.rest, server.grpc)
        assert version_of(transport) == 1
        state, reason = index()["multi"]
        assert state == "READY"
        assert words in reason
        assert "serves on" in reason
        mount()
        wait_until(lambda: index()["multi"] == ("READY", ""))
        assert "model unloaded" not in server.log
        assert server.log.count(words) == 1
        shutil.rmtree(models / "multi")
        wait_until(lambda: "model unloaded" in server.log)
        assert list(index()) == ["dot"]
        with refused("NOT_FOUND", "model", "there is dot"):
            transport.attend("multi", query=QUERY)


def test_a_pinned_default(models, publish, connect):
    """A pinned version answers where none is named, whatever else comes; when it goes, no other stands in for it."""
    publish(2, other_weights)
    with start_server(models, *POLLING, "--default-version", "multi=1") as server:
        transport = connect("grpc", server.rest, server.grpc)
        publish(3)
        wait_until(lambda: "version=3" in server.log)
        assert version_of(transport) == 1
        described = requests.get(f"{server.url}/v1/models/multi", timeout=60).json()
        assert (described["version"], described["versions"]) == (1, [1, 2, 3])
        assert transport.attend("multi", version=2, query=QUERY)["version"] == 2
        shutil.rmtree(models / "multi/1")
        wait_until(lambda: "model unloaded" in server.log)
        with refused("UNAVAILABLE", "model", "version 1", "2, 3"):
            transport.attend("multi", query=QUERY)
        assert transport.attend("multi", version=2, query=QUERY)["version"] == 2
        assert requests.get(f"{server.url}/v1/models", timeout=60).json() == {"models": []}


def test_a_pin_is_held_by_default_too(models, publish):
    """A pinned default needs no other mode; one that is not there ends the start, with its name."""
    publish(2)
    with start_server(models, "--default-version", "multi=1") as server:
        assert requests.get(f"{server.url}/v1/models/multi", timeout=60).json()["version"] == 1
    done = run_server("--models", models, "--rest-port", 0, "--grpc-port", 0, "--default-version", "multi=3")
    assert done.returncode == 1
    assert "default of multi is to be its version 3" in done.stderr.splitlines()[-1]


def test_by_default_nothing_changes(models, publish):
    """Without a mode, what is published later is left alone, and nothing is loaded on request."""
    with local_server(models) as server:
        publish(2)
        for change in (server.service.load_model, server.service.unload_model):
            with pytest.raises(Unimplemented):
                change("multi", someone())
        assert [(entry.version, entry.state) for entry in server.service.index()] == [(1, "READY")]


# --- on request ------------------------------------------------------------------------------------------------------


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


def test_loaded_at_the_start(models, publish):
    """Models named are loaded at the start, a star names all, and a name without a folder ends it."""
    publish(1, model="dot")
    publish(2, flip_a_byte)
    explicit = ("--repository-mode", "explicit", "--load-model")
    with start_server(models, *explicit, "multi") as server:
        assert server.log.count("model loaded") == 1
        assert server.log.count("version refused") == 1
        assert [each["name"] for each in requests.get(f"{server.url}/v1/models", timeout=60).json()["models"]] == [
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
    """A load of which nothing can be served says why of each version, and what was loaded answers on."""
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
    """Other files under a number take over as a whole; who holds the old ones has them to the end, and memories made by
    them are not taken for the new ones'."""
    with local_server(models, **EXPLICIT) as server:
        service = server.service
        service.load_model("multi", someone())
        memory = service.submit_memory(MemoryRequest("multi", key=QUERY), someone()).result(30)
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
                service.submit(Request("multi", 0, (Sequence(query=QUERY, memory=memory.id),)), someone()).result(30)
            assert service.submit_memory(MemoryRequest("multi", key=QUERY), someone()).result(30).id != memory.id
        wait_until(lambda: len(service.memories("multi", someone())) == 1)  # the old one's went with it


def test_the_same_version_written_anew(models, publish):
    """Files that are the same as before change nothing: memories are kept."""
    with local_server(models, **EXPLICIT) as server:
        server.service.load_model("multi", someone())
        memory = server.service.submit_memory(MemoryRequest("multi", key=QUERY), someone()).result(30)
        with server.repository.lease("multi") as before:
            pass
        shutil.rmtree(models / "multi/1")
        publish(1)
        server.service.load_model("multi", someone())
        with server.repository.lease("multi") as after:
            assert after is before
        assert server.service.memory("multi", memory.id, someone()) is memory


# --- coming and going ------------------------------------------------------------------------------------------------


def test_loading_is_not_ready(models, publish):
    """While a version is being warmed it is LOADING, asked for it is unavailable, and the old one answers."""
    with local_server(models, **POLL) as server, ThreadPoolExecutor(1) as aside:
        publish(2)
        server.gate.close()
        look = aside.submit(server.repository.poll)
        assert server.gate.arrived.wait(30)
        assert state(server.service, 2) == ("LOADING", "being verified and warmed")
        assert not server.service.is_ready("multi", 2)
        assert server.service.is_ready("multi")
        with pytest.raises(Unavailable, match="version 2 is LOADING"):
            ask(server.service, 2)
        with server.repository.lease("multi") as model:
            assert model.version == 1
        server.gate.open()
        look.result(30)
        assert state(server.service, 2) == ("READY", "")


def test_before_it_is_ready(models, publish):
    """Before the first load has ended nothing is ready, and the index tells what is on its way."""
    publish(1, model="dot")
    with local_server(models, load=False) as server, ThreadPoolExecutor(1) as aside:
        assert server.service.index() == []
        assert not server.service.is_ready("multi")
        server.gate.close()
        start = aside.submit(server.repository.load)
        assert server.gate.arrived.wait(30)
        assert {entry.state for entry in server.service.index()} == {"LOADING"}
        assert not server.service.is_ready("multi")
        with pytest.raises(Unavailable, match="still loading"):
            ask(server.service)
        server.gate.open()
        start.result(30)
        assert {entry.state for entry in server.service.index()} == {"READY"}


def test_an_unload_drains(models):
    """What is being unloaded takes no new requests, answers those that it has, and only then is gone, its memories
    too."""
    with local_server(models, **EXPLICIT) as server, ThreadPoolExecutor(2) as aside:
        service = server.service
        service.load_model("multi", someone())
        predict(server.repository, IN_A_SLOT)  # the loop computes nothing
        expected = ask(service)[1]
        memory = service.submit_memory(MemoryRequest("multi", key=QUERY), someone()).result(30)
        server.gate.close()
        asked = aside.submit(ask, service)
        assert server.gate.arrived.wait(30)
        unload = aside.submit(service.unload_model, "multi", someone())
        wait_until(lambda: state(service, 1)[0] == "UNLOADING")
        assert not service.is_ready("multi")
        with pytest.raises(Unavailable, match="UNLOADING"):
            ask(service)
        assert not unload.done()
        server.gate.open()
        np.testing.assert_array_equal(asked.result(30)[1], expected)
        unload.result(30)
        assert state(service, 1) == ("UNAVAILABLE", "not loaded")
        service.load_model("multi", someone())
        with pytest.raises(NotFound):
            service.memory("multi", memory.id, someone())
        assert service.memories("multi", someone()) == []


def test_an_unload_ends_within_the_grace(models):
    """A request that holds a version for ever does not hold up its unload; it can go on with what it holds."""
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
    """A stop ends the following at once between two looks, however seldom they are; a look that has begun is waited
    for within the grace."""
    with start_server(models, "--repository-mode", "poll", "--repository-poll", 3600) as server:
        server.process.terminate()
        assert server.process.wait(HANG) == 0
    with local_server(models, **POLL) as server:
        shutil.copytree(models / "multi/1", models / "multi/2")
        server.gate.close()
        follower = Follower(server.repository, 0.001)
        follower.start()
        assert server.gate.arrived.wait(30)
        assert not follower.stop(0.01)
        server.gate.open()
        assert follower.stop(30)
        assert server.service.is_ready("multi", 2)


# --- under load ------------------------------------------------------------------------------------------------------

VARIANTS = 5  # neighbouring versions never look alike
CALLERS = 8
SWAPS = 100
SETTLED = 20  # swaps after which memory has its level
MORE_MIB = 12


def resident(pid):
    """Return what a process holds in memory, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


class Callers:
    """Callers who ask without a pause, and look at each answer.

    Attributes:
        answers: how many came, by version.
        faults: what went wrong.
    """

    def __init__(self, address, expected):
        self.answers = {}
        self.faults = []
        self._address, self._expected = address, expected
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CALLERS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self):
        request = request_message("multi", [{"query": QUERY}], outputs=ASKED)
        with grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = AttentionServiceStub(channel)
            while not self._stopping.is_set():
                try:
                    self._look_at(stub.Attend(request, timeout=30))
                except (grpc.RpcError, AssertionError) as error:
                    self.faults.append(error)

    def _look_at(self, message):
        answer = read_message(message)
        outputs = answer["results"][0]["outputs"]
        for name, expected in self._expected[answer["version"] % VARIANTS].items():
            np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-6)
        self.answers[answer["version"]] = self.answers.get(answer["version"], 0) + 1


def test_a_hundred_swaps_under_load(models, publish, repository, tmp_path, connect):
    """While 8 callers ask without a pause, 100 times a new version takes over and the one before it goes: no request
    fails, every answer is whole of the version that it names, and memory is back at its level."""
    variants = []
    for number in range(VARIANTS):
        folder = tmp_path / f"variant-{number}"
        shutil.copytree(repository / "multi/1", folder)
        change_weights(folder, 1 + number / 4)
        variants.append(folder)

    def put(version):
        shutil.copytree(variants[version % VARIANTS], tmp_path / "next")
        (tmp_path / "next").rename(models / "multi" / str(version))

    shutil.rmtree(models / "multi/1")
    for version in range(1, VARIANTS + 1):
        put(version)
    with start_server(models, *POLLING) as server, grpc.insecure_channel(server.grpc) as channel:
        transport = connect("grpc", server.rest, server.grpc)
        expected = {
            version % VARIANTS: transport.outputs("multi", version=version, query=QUERY, outputs=ASKED)
            for version in range(1, VARIANTS + 1)
        }
        for one, other in zip(expected.values(), [*expected.values()][1:], strict=False):
            assert not any(np.allclose(one[name], other[name], rtol=1e-3) for name in ASKED)
        for version in range(1, VARIANTS):
            shutil.rmtree(models / "multi" / str(version))
        stub = AttentionServiceStub(channel)

        def served():
            return list(stub.GetModel(pb.GetModelRequest(model="multi")).versions)

        wait_until(lambda: served() == [VARIANTS])
        before = resident(server.process.pid)
        with Callers(server.grpc, expected) as callers:
            for version in range(VARIANTS, VARIANTS + SWAPS):
                put(version + 1)
                wait_until(lambda: version + 1 in served())  # noqa: B023 # at once
                shutil.rmtree(models / "multi" / str(version))
                wait_until(lambda: served() == [version + 1])  # noqa: B023 # at once
                if version == VARIANTS + SETTLED:
                    level = resident(server.process.pid)
            wait_until(lambda: callers.faults or VARIANTS + SWAPS in callers.answers)
            last = resident(server.process.pid)
        assert not callers.faults, (len(callers.faults), callers.faults[0])
        assert set(range(VARIANTS + 1, VARIANTS + SWAPS + 1)) - callers.answers.keys() == set()
        wait_until(lambda: server.log.count("model unloaded") == VARIANTS - 1 + SWAPS)
        after = resident(server.process.pid)
        print(
            f"{sum(callers.answers.values())} answers; MiB: {before:.1f} before, {level:.1f} settled, {last:.1f} "
            f"at the last swap, {after:.1f} after"
        )
        assert after < level + MORE_MIB
