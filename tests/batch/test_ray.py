"""The same job on a Ray cluster of two nodes, of which one dies meanwhile."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from serving import clean_env

from tests.batch.scoring import begun, scored, shards_done, summary, wait_until, write_vectors

RAY = Path(sys.executable).with_name("ray")
OUTPUTS = ("--outputs", "output:mean,entropy:mean,weights", "--shard-rows", 50)
ADDRESS = re.compile(r"--address='(127\.0\.0\.2:\d+)'")


@contextmanager
def node(folder: Path, ip: str, *arguments: str) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """Run a node of one core until the block ends, and everything that it started."""
    folder.mkdir()
    log = folder / "log"
    common = ["--node-ip-address", ip, "--num-cpus", "1", "--object-write_part-memory", "100000000", "--block"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [RAY, "start", *arguments, *common, "--temp-dir", folder],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=clean_env({"RAY_USAGE_STATS_ENABLED": "0"}),
        )
    try:
        wait_until(lambda: "Ray runtime started" in log.read_text(), process)
        assert process.poll() is None, log.read_text()
        yield process, log
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def cluster() -> Iterator[tuple[dict[str, str], "subprocess.Popen[bytes]"]]:
    """A head and another node, each on an address of its own; how to reach them, and the other's process."""
    # Sockets lie in these folders, whose names must be short.
    with TemporaryDirectory(prefix="ray", dir="/tmp") as folder, ExitStack() as nodes:
        head = ("--head", "--port", "0", "--include-dashboard", "false", "--disable-usage-stats")
        process, log = nodes.enter_context(node(Path(folder) / "a", "127.0.0.2", *head))
        wait_until(lambda: ADDRESS.search(log.read_text()), process)  # it is said after the word that it runs
        found = ADDRESS.search(log.read_text())
        assert found, log.read_text()
        other, _ = nodes.enter_context(node(Path(folder) / "b", "127.0.0.3", "--address", found[1]))
        yield {"RAY_ADDRESS": found[1]}, other


def works(node: "subprocess.Popen[bytes]") -> bool:
    """Whether an actor runs on a node: one of its session's processes bears the name."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == node.pid and b"MapWorker" in (folder / "cmdline").read_bytes():
                return True
        except OSError:  # it has ended meanwhile
            continue
    return False


@pytest.mark.timeout(240)
def test_a_node_that_dies(repository, server, tmp_path, cluster):
    """Actors on two nodes score; one node is killed among the shards; the file is the same bytes as a server's.

    A second run, after the first was killed too, goes on from the same journal.
    """
    if not RAY.exists():
        pytest.fail("ray is what the engine ray needs: pip install 'attention-service[ray]'")
    address, other = cluster
    source = write_vectors(tmp_path / "in.parquet", 6000)
    arguments = ("--model", "multi", "--engine", "ray", "--models", repository, *OUTPUTS)
    whole, output = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    assert scored(source, whole, "--model", "multi", "--target", server.grpc, *OUTPUTS).returncode == 0

    first = begun(source, output, *arguments, env=address)
    wait_until(lambda: shards_done(output) > 2, first)
    first.kill()
    first.wait()
    done = shards_done(output)
    assert 2 < done < 100

    second = begun(source, output, *arguments, env=address, stderr=subprocess.PIPE)
    wait_until(lambda: shards_done(output) > done and works(other), second)
    assert shards_done(output) < 100, "it was nearly over"
    os.killpg(other.pid, signal.SIGKILL)
    _, said = second.communicate()
    assert second.returncode == 0, said
    assert summary(subprocess.CompletedProcess([], 0, b"", said))["resumed"] == done * 50
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.timeout(240)
def test_sigterm_on_a_cluster(repository, tmp_path, cluster):
    """On a cluster too, SIGTERM stops a run cleanly, with status 4 and a summary."""
    address, _ = cluster
    source, output = write_vectors(tmp_path / "in.parquet", 6000), tmp_path / "out.parquet"
    arguments = ("--model", "multi", "--engine", "ray", "--models", repository, *OUTPUTS)
    run = begun(source, output, *arguments, env=address, stderr=subprocess.PIPE)
    wait_until(lambda: shards_done(output) > 0, run)
    run.terminate()
    _, said = run.communicate()
    assert run.returncode == 4, said
    assert summary(subprocess.CompletedProcess([], 0, b"", said))["status"] == "interrupted"
