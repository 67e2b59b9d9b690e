"""The same job on a Ray cluster, of which a node dies meanwhile."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from serving import clean_env, free_port

from tests.batch.scoring import SECONDS, begun, scored, shards_done, summary, wait_until, write_vectors

RAY = Path(sys.executable).with_name("ray")
SHARD = 20
OUTPUTS = ("--outputs", "output:mean,entropy,weights", "--shard-rows", SHARD)
ROWS = 6000
# A node ends if one of its agents has not written down its port within 15 seconds, which no option changes. It does not
# wait for ports that are given, except for that of an HTTP server, which this installation of Ray lacks: see `answer`.
AGENTS = ("dashboard-agent-grpc", "dashboard-agent-listen", "runtime-env-agent", "metrics-export")
NODE_ID = re.compile(r"Initializing NodeManager node_id=(\w+)")
# A slow node is not dead. A dead node refuses connections, so that each of its health checks fails at once.
PATIENT = {
    "RAY_health_check_timeout_ms": str(SECONDS * 1000),
    "RAY_agent_register_timeout_ms": str(SECONDS * 1000),
    "RAY_gcs_server_request_timeout_seconds": str(SECONDS),
    "RAY_raylet_start_wait_time_s": str(SECONDS),
    "RAY_worker_register_timeout_seconds": str(SECONDS),
}

Process = subprocess.Popen[bytes]


class Cluster(NamedTuple):
    """A cluster: the variables that a run reaches it by, and a function that returns its node, made where none runs."""

    env: dict[str, str]
    node: Callable[[], Process]


@contextmanager
def node(folder: Path, ip: str, *arguments: str) -> Iterator[Process]:
    """Run a node until the block ends, and everything that it started."""
    folder.mkdir()
    log = folder / "log"
    common = ["--node-ip-address", ip, "--object-store-memory", "100000000", "--block", "--temp-dir", str(folder)]
    ports = [f"--{agent}-port={free_port()}" for agent in AGENTS]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [RAY, "start", *arguments, *common, *ports],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=clean_env({"RAY_USAGE_STATS_ENABLED": "0", **PATIENT}),
        )

    def started() -> bool:
        answer(folder)
        return "Ray runtime started" in log.read_text()

    try:
        wait_until(started, process)
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answer(folder: Path) -> None:
    """Write down, as the agent will, that it has no HTTP server, however long the agent takes to start."""
    for log in folder.glob("session_2*/logs/raylet.out"):
        found = NODE_ID.search(log.read_text())
        port = log.parents[1] / f"dashboard_agent_listen_port_{found and found[1]}"
        if found and not port.exists():
            whole = folder / "port"
            whole.write_text("-1")
            whole.rename(port)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster with one core on the node that the tests ask for, and no core besides."""
    if not RAY.exists():
        pytest.fail("ray is what the engine ray needs: pip install 'attention-service[ray]'")
    # Sockets lie in these folders, so the names must be short.
    with TemporaryDirectory(prefix="ray", dir="/tmp") as folder, ExitStack() as nodes:
        port = str(free_port())
        head = ("--head", "--port", port, "--num-cpus", "0", "--include-dashboard", "false", "--disable-usage-stats")
        nodes.enter_context(node(Path(folder) / "a", "127.0.0.2", *head))
        address = f"127.0.0.2:{port}"
        names, started = iter("bcd"), []

        def with_a_core() -> Process:
            if not started or started[-1].poll() is not None:
                name = next(names)
                ip = f"127.0.0.{ord(name) - ord('a') + 2}"
                arguments = ("--address", address, "--num-cpus", "1")
                started.append(nodes.enter_context(node(Path(folder) / name, ip, *arguments)))
            return started[-1]

        yield Cluster({"RAY_ADDRESS": address, **PATIENT}, with_a_core)


@pytest.mark.long
def test_a_node_that_dies(repository, server, tmp_path, cluster):
    """A node is killed among its shards; a new node finishes the run, which writes the same bytes as a server.

    That run goes on from the journal of one that was killed.
    """
    source = write_vectors(tmp_path / "in.parquet", ROWS)
    arguments = ("--model", "multi", "--engine", "ray", "--models", repository, *OUTPUTS)
    whole, output = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    assert scored(source, whole, "--model", "multi", "--target", server.grpc, *OUTPUTS).returncode == 0

    node = cluster.node()
    first = begun(source, output, *arguments, env=cluster.env)
    wait_until(lambda: shards_done(output) > 2, first)
    first.kill()
    first.wait()
    done = shards_done(output)
    assert 2 < done < ROWS // SHARD

    second = begun(source, output, *arguments, env=cluster.env, stderr=subprocess.PIPE)
    wait_until(lambda: shards_done(output) > done, second)  # on the only node that has a core
    os.killpg(node.pid, signal.SIGKILL)
    node.wait()
    assert shards_done(output) < ROWS // SHARD
    cluster.node()
    _, said = second.communicate()
    assert second.returncode == 0, said
    assert summary(subprocess.CompletedProcess([], 0, b"", said))["resumed"] == done * SHARD
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.long
def test_sigterm_on_a_cluster(repository, tmp_path, cluster):
    """On a cluster too, SIGTERM stops a run cleanly, with status 4 and a summary."""
    cluster.node()
    source, output = write_vectors(tmp_path / "in.parquet", ROWS), tmp_path / "out.parquet"
    arguments = ("--model", "multi", "--engine", "ray", "--models", repository, *OUTPUTS)
    run = begun(source, output, *arguments, env=cluster.env, stderr=subprocess.PIPE)
    wait_until(lambda: shards_done(output) > 0, run)
    run.terminate()
    _, said = run.communicate()
    assert run.returncode == 4, said
    assert summary(subprocess.CompletedProcess([], 0, b"", said))["status"] == "interrupted"
