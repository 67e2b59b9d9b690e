"""Versions that are published in and removed from a folder that the server polls, and a pinned default version."""

import re
import shutil

import numpy as np
import pytest
import requests
from serving import HANG, run_server, start_server, wait_until

from tests.refusals import refused
from tests.server.lives import POLLING, QUERY, other_weights, version_of


def test_a_new_version_takes_over_and_goes(models, publish, connect):
    """A new version becomes the default, versions answer side by side, and a version goes with its folder."""
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
                    wait_until(lambda: re.search(r"manifest.json cannot be read: .* line \d+ column", server.log))
                elif number == len(files) - 1:
                    wait_until(lambda: f"reason='{files[-1].name} is not the file" in server.log)
                copy.write(content[len(content) // 2 :])
        wait_until(lambda: version_of(transport) == 2)


def rename_root(models, aside):
    models.rename(aside)
    return lambda: aside.rename(models)


def empty_root(models, aside):
    """The remains of an unmounted disk: an empty folder."""
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
        (rename_root, "the repository is no folder that can be read"),
        (empty_root, "the repository has become empty"),
        (empty_model, "multi has become empty"),
    ],
)
def test_a_disk_that_goes_away(models, publish, tmp_path, connect, unmount, words):
    """A repository, or a model's folder, that vanishes or becomes empty retires nothing, which the log says once and
    the index says; when it is back, the versions removed from it go."""
    publish(1, model="dot")
    with start_server(models, *POLLING) as server:

        def index():
            entries = requests.post(f"{server.url}/v2/repository/index", timeout=HANG).json()
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
    """A pinned version is the default after every publication; when it goes, no version replaces it."""
    publish(2, other_weights)
    with start_server(models, *POLLING, "--default-version", "multi=1") as server:
        transport = connect("grpc", server.rest, server.grpc)
        publish(3)
        wait_until(lambda: "version=3" in server.log)
        assert version_of(transport) == 1
        described = requests.get(f"{server.url}/v1/models/multi", timeout=HANG).json()
        assert (described["version"], described["versions"]) == (1, [1, 2, 3])
        assert transport.attend("multi", version=2, query=QUERY)["version"] == 2
        shutil.rmtree(models / "multi/1")
        wait_until(lambda: "model unloaded" in server.log)
        with refused("UNAVAILABLE", "model", "version 1", "2, 3"):
            transport.attend("multi", query=QUERY)
        assert transport.attend("multi", version=2, query=QUERY)["version"] == 2
        assert requests.get(f"{server.url}/v1/models", timeout=HANG).json() == {"models": []}


def test_a_pin_is_held_by_default_too(models, publish):
    """A pinned default needs no special mode; one that is not there ends the start, with its name."""
    publish(2)
    with start_server(models, "--default-version", "multi=1") as server:
        assert requests.get(f"{server.url}/v1/models/multi", timeout=HANG).json()["version"] == 1
    done = run_server("--models", models, "--rest-port", 0, "--grpc-port", 0, "--default-version", "multi=3")
    assert done.returncode == 1
    assert "default of multi is to be its version 3" in done.stderr.splitlines()[-1]
