"""Versions that are refused: damaged files, and a start without anything to serve."""

import os
import re
import shutil

import grpc
import numpy as np
import requests
from attention_server.domain.index_entry import IndexEntry
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from serving import HANG, start_server, wait_until

from tests.local_server import local_server
from tests.refusals import refused
from tests.server.lives import POLL, POLLING, QUERY, state, version_of
from tests.server.spoil import cut, edit, flip_a_byte, insert

SPARSE = 8 * 2**20


def cut_with_its_hash(folder):
    cut(folder)
    edit(folder)


def lie_about_widths(folder):
    edit(folder, lambda manifest: manifest["layers"][0].update(query_dim=23))


def lie_about_the_scale(folder):
    edit(folder, lambda manifest: manifest["layers"][0].update(scale=1.5 * manifest["layers"][0]["scale"]))


def name_a_source(folder):
    edit(folder, lambda manifest: manifest["layers"][0].update(side="SIDE_SOURCE"))


def name_a_second_layer(folder):
    edit(folder, lambda manifest: manifest["layers"].append(manifest["layers"][0] | {"name": "1"}))


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


def need_memory(folder):
    """Let a graph compute a tensor of 400 GB at its first run."""
    huge = ("Expand", [np.array([10**11, 1, 1, 1])], {})
    insert(folder / "attend.onnx", "output", huge, ("ReduceMean", [np.array([0])], {"keepdims": 0}))
    edit(folder)


REFUSALS = {
    need_memory: "MiB to be loaded, warmed and measured",
    flip_a_byte: "attend.onnx is not the file that manifest.json names: its SHA-256 differs",
    cut: "explain.onnx is not the file that manifest.json names: its SHA-256 differs",
    cut_with_its_hash: "cannot be loaded; the log has the cause",
    lie_about_widths: "23",
    lie_about_the_scale: "graphs give other weights than the manifest's scale",
    name_a_source: "these are of transformers, and the first site is one of them",
    name_a_second_layer: "is one attention, and the manifest has 2 layers",
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
    """A version that contradicts its manifest is refused with its reason, to its callers and in the log; the one
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
        assert re.search(r"version refused .*cannot be loaded: (?!attend|layer)", server.log)  # onnxruntime's words
        listed = requests.get(f"{server.url}/v1/models", timeout=HANG).json()["models"]
        assert [(model["version"], model["versions"]) for model in listed] == [(1, [1])]
        assert server.log.count("version refused") == len(REFUSALS)  # and not at each look


def test_one_entry_that_cannot_be_read(models, publish):
    """Circular links, in the root and in a model, are logged once, and are in the index where there is a name and a
    version; all else is served, new versions too."""
    (models / "loop").symlink_to("loop")
    (models / "multi/3").symlink_to("3")
    with start_server(models, *POLLING) as server:
        publish(2)
        wait_until(lambda: "version=2" in server.log)
        entries = requests.post(f"{server.url}/v2/repository/index", timeout=HANG).json()
        found = {(entry["name"], entry["version"]): (entry["state"], entry["reason"]) for entry in entries}
        assert found.keys() == {("multi", "1"), ("multi", "2"), ("multi", "3")}
        assert found["multi", "1"] == found["multi", "2"] == ("READY", "")
        assert found["multi", "3"] == ("UNAVAILABLE", "manifest.json cannot be read: Too many levels of symbolic links")
        assert server.log.count("model cannot be read") == 1
        assert server.log.count("version refused") == 1
        assert str(models) not in str(entries)


def test_a_model_that_becomes_unreadable_serves_on(models, publish, tmp_path):
    """A model with a folder that has become unreadable is served from memory, and the index has the reason."""
    publish(1, model="dot")
    with local_server(models, **POLL) as server:
        (models / "multi").rename(tmp_path / "away")
        (models / "multi").symlink_to("multi")
        server.repository.poll()
        reason = (
            "the folder of multi cannot be read: Too many levels of symbolic links; what was loaded from it serves on"
        )
        assert state(server.service, 1) == ("READY", reason)
        assert state(server.service, 1, "dot") == ("READY", "")


def test_the_index_tells_why(models, publish):
    """The index has every version with its state, and the reason of each that is not ready."""
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


def health(target):
    with grpc.insecure_channel(target) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=HANG).status


def test_a_start_without_anything_to_serve(models, connect):
    """In mode poll the server starts with any content of the folder: the model that cannot be served says why, until it
    can."""
    kept = (models / "multi/1/manifest.json").read_bytes()
    (models / "multi/1/manifest.json").unlink()
    with start_server(models, *POLLING) as server:
        probe = requests.get(f"{server.url}/readyz", timeout=HANG)
        assert (probe.status_code, probe.json()) == (503, {"status": "empty"})
        assert health(server.grpc) == HealthCheckResponse.NOT_SERVING
        assert requests.get(f"{server.url}/v1/models", timeout=HANG).json() == {"models": []}
        transport = connect("rest-json", server.rest, server.grpc)
        with refused("UNAVAILABLE", "model", "manifest.json cannot be read"):
            transport.attend("multi", query=QUERY)
        with refused("NOT_FOUND", "model", "nobody"):
            transport.attend("nobody", query=QUERY)
        (models / "multi/1/manifest.json").write_bytes(kept)
        wait_until(lambda: "model loaded" in server.log)
        assert version_of(transport) == 1
        assert requests.get(f"{server.url}/readyz", timeout=HANG).status_code == 200
        wait_until(lambda: health(server.grpc) == HealthCheckResponse.SERVING)
