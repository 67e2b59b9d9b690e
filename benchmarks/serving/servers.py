"""The servers under load: start commands, and processes that are stopped with all descendants."""

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
MOSEC_TIMEOUT = 30_000  # ms of a request, as the load generators wait; its own is 3,000
MODELS: Mapping[str, Mapping[str, float]] = {"attend": {}, "explain": {}}  # of the block


class ServerFailed(RuntimeError):
    """A server failed to start or has ended; the message has the last line of its log."""


@dataclass(frozen=True)
class Start:
    """The start command of a server.

    Attributes:
        command: the program and its arguments.
        address: the address of its main protocol.
        env: environment variables in addition to this process's.
        rest: the address of its REST port; empty if unused.
    """

    command: Sequence[object]
    address: str
    env: Mapping[str, str] = field(default_factory=dict)
    rest: str = ""


class Server:
    """A running server process in its own session.

    Args:
        name: the name of the log file.
        start: the start command.
        cores: the cores it may use, in taskset's form.
        logs: the folder of the log file.
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
        """Check that the process runs.

        Raises:
            ServerFailed: the process has ended.
        """
        if self._process.poll() is not None:
            said = self._log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise ServerFailed(f"ended with status {self._process.returncode}: {said[-1][-200:]}")

    def stop(self) -> None:
        """Terminate the process and its descendants; kill those still alive after `SECONDS_TO_STOP`."""
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [self._process, *self._process.children(recursive=True)]
            self._process.terminate()
            _, alive = psutil.wait_procs(family, SECONDS_TO_STOP)
            for process in alive:  # descendants in other sessions too
                process.kill()
        with contextlib.suppress(ProcessLookupError):  # children of a server that died before
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def environment() -> dict[str, str]:
    """Return this process's variables without the server's settings, with the benchmarks on Python's path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ATTENTION_")}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))}


def attention(models: Path, *arguments: object, tree: Path = ROOT) -> Start:
    """Return the start command of the service.

    Args:
        models: the repository.
        arguments: further arguments.
        tree: the source tree of the server.
    """
    rest, grpc = free_ports(2)
    command = (OWN["server"] / "bin/python", "-m", "attention_server.app", "--models", models)
    ports = ("--rest-port", rest, "--grpc-port", grpc, "--log-level", "warning")
    return Start((*command, *ports, *arguments), f"127.0.0.1:{grpc}", source_path(tree), f"127.0.0.1:{rest}")


def source_path(tree: Path) -> dict[str, str]:
    """Return PYTHONPATH for the packages of a source tree."""
    folders = [tree, *(tree / name for name in ("proto", "client", "server", "model_export"))]
    return {"PYTHONPATH": os.pathsep.join(map(str, folders))}


def bare_grpc(block: Path) -> Start:
    """Return the start command of the bare gRPC server."""
    (port,) = free_ports(1)
    command = (OWN["development"] / "bin/python", "-m", "benchmarks.serving.peers.bare_grpc", f"127.0.0.1:{port}")
    return Start(command, f"127.0.0.1:{port}", {"BLOCK": str(block)})


def mosec(python: Path, graphs: Path, *, batched: bool, module: str = "benchmarks.serving.peers.mosec_server") -> Start:
    """Return the start command of mosec, with or without batching."""
    (port,) = free_ports(1)
    command = (python, "-m", module, "--address", "127.0.0.1", "--port", port, "--timeout", MOSEC_TIMEOUT)
    env = {"BLOCK": str(graphs), "FUSED": str(graphs), "BATCHED": "1" if batched else ""}
    return Start(command, f"127.0.0.1:{port}", env)


def triton(python: Path, graphs: Path, module: str = "benchmarks.serving.peers.triton_server") -> Start:
    """Return the start command of Triton by pytriton, with a path to the Python library that its binary loads."""
    http, grpc, metrics = free_ports(3)
    library = os.pathsep.join(filter(None, (sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH"))))
    command = (python, "-m", module, http, grpc, metrics)
    env = {"BLOCK": str(graphs), "FUSED": str(graphs), "LD_LIBRARY_PATH": library}
    return Start(command, f"127.0.0.1:{grpc}", env)


def mlserver(
    python: Path,
    graphs: Path,
    folder: Path,
    implementation: str = "benchmarks.serving.peers.mlserver_runtime.Runtime",
    models: Mapping[str, Mapping[str, float]] = MODELS,
) -> Start:
    """Return the start command of MLServer without worker processes; write its settings into `folder`.

    Args:
        python: of its environment.
        graphs: the folder that the runtime reads.
        folder: of the settings.
        implementation: the class of the runtime.
        models: further settings of each model.
    """
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
    files = {folder / "settings.json": settings} | {
        folder / name / "model-settings.json": {"name": name, "implementation": implementation} | dict(more)
        for name, more in models.items()
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    env = {"BLOCK": str(graphs), "FUSED": str(graphs)}
    return Start((python.with_name("mlserver"), "start", folder), f"127.0.0.1:{grpc}", env)


def free_ports(count: int) -> list[int]:
    """Return free ports of the loopback interface."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
