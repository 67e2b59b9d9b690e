"""The servers under load: how each is started on its core, found ready, and ended with all that it started."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.serving.environments import OWN, ROOT

SECONDS_TO_STOP = 15


class ServerFailed(RuntimeError):
    """A server does not come up, or has ended; the message is the last that it said."""


@dataclass(frozen=True)
class Start:
    """How a server is started.

    Attributes:
        command: its program and arguments.
        address: where it will answer.
        env: variables beside those of this process.
        rest: where it will answer over REST; empty for a server that is not asked so.
    """

    command: Sequence[object]
    address: str
    env: Mapping[str, str] = field(default_factory=dict)
    rest: str = ""


class Server:
    """A server that runs, in a session of its own, until `stop`.

    Args:
        name: for its log.
        start: what to run.
        cores: which it may use, as taskset takes them.
        logs: the folder for its log.
    """

    def __init__(self, name: str, start: Start, cores: str, logs: Path) -> None:
        self.address = start.address
        self.rest = start.rest
        self._log = logs / f"{name.replace(' ', '-')}.log"
        with self._log.open("w") as log:
            self._process = psutil.Popen(
                ["taskset", "--cpu-list", cores, *map(str, start.command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment() | dict(start.env),
                cwd=ROOT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise ServerFailed when it has ended."""
        if self._process.poll() is not None:
            said = self._log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise ServerFailed(f"ended with status {self._process.returncode}: {said[-1][-200:]}")

    def stop(self) -> None:
        """End it and all that it started: politely, and after a while for good."""
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [self._process, *self._process.children(recursive=True)]
            self._process.terminate()
            _, alive = psutil.wait_procs(family, SECONDS_TO_STOP)
            for process in alive:  # those too that have left its session
                process.kill()
        with contextlib.suppress(ProcessLookupError):  # one that died has left its children to nobody
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def environment() -> dict[str, str]:
    """Return this process's variables without the server's settings, and with the benchmarks to be imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ATTENTION_")}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))}


def attention(models: Path, *arguments: object, tree: Path = ROOT) -> Start:
    """Return how our server is started.

    Args:
        models: the repository.
        arguments: further ones of the command line.
        tree: the source tree whose server runs.
    """
    rest, grpc = free_ports(2)
    command = (OWN["server"] / "bin/python", "-m", "attention_server.app", "--models", models)
    ports = ("--rest-port", rest, "--grpc-port", grpc, "--log-level", "warning")
    return Start((*command, *ports, *arguments), f"127.0.0.1:{grpc}", source_path(tree), f"127.0.0.1:{rest}")


def source_path(tree: Path) -> dict[str, str]:
    """Return the variable by which Python imports the packages of a source tree."""
    folders = [tree, *(tree / name for name in ("proto", "client", "server", "model_export"))]
    return {"PYTHONPATH": os.pathsep.join(map(str, folders))}


def bare_grpc(block: Path) -> Start:
    """Return how the floor of our transport is started."""
    (port,) = free_ports(1)
    command = (OWN["development"] / "bin/python", "-m", "benchmarks.serving.peers.bare_grpc", f"127.0.0.1:{port}")
    return Start(command, f"127.0.0.1:{port}", {"BLOCK": str(block)})


def mosec(python: Path, block: Path, *, batched: bool) -> Start:
    """Return how mosec is started, one by one or with batching."""
    (port,) = free_ports(1)
    command = (python, "-m", "benchmarks.serving.peers.mosec_server", "--address", "127.0.0.1", "--port", port)
    return Start(command, f"127.0.0.1:{port}", {"BLOCK": str(block), "BATCHED": "1" if batched else ""})


def triton(python: Path, block: Path) -> Start:
    """Return how Triton is started: through pytriton, whose binary looks for Python's library."""
    http, grpc, metrics = free_ports(3)
    library = os.pathsep.join(filter(None, (sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH"))))
    command = (python, "-m", "benchmarks.serving.peers.triton_server", http, grpc, metrics)
    return Start(command, f"127.0.0.1:{grpc}", {"BLOCK": str(block), "LD_LIBRARY_PATH": library})


def mlserver(python: Path, block: Path, folder: Path) -> Start:
    """Return how MLServer is started, in its own process alone, from a folder that is written for it."""
    http, grpc, metrics = free_ports(3)
    settings = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "parallel_workers": 0,
        "grpc_max_message_length": -1,
        "debug": False,
        "metrics_dir": str(folder / "metrics"),
    }
    implementation = "benchmarks.serving.peers.mlserver_runtime.Runtime"
    files = {folder / "settings.json": settings} | {
        folder / name / "model-settings.json": {"name": name, "implementation": implementation}
        for name in ("attend", "explain")
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return Start((python.with_name("mlserver"), "start", folder), f"127.0.0.1:{grpc}", {"BLOCK": str(block)})


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
