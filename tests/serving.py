"""A server in a process of its own, the models that it serves, and how tests wait."""

import fcntl
import hashlib
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from threading import Event, Timer
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
SERVER = ROOT / ".venv/bin/attention-server"
HANG = 240  # seconds: after these a wait is given up as one that will not end; no promise about a machine's speed
PORTS = itertools.count(20_000 + os.getpid() % 300 * 40)  # below those that the system gives, and of this process alone
READY = re.compile(r"ready rest=(\S+) grpc=(\S+)\n")


def wait_until(condition: Callable[[], object], seconds: float = HANG) -> None:
    """Wait until a condition holds that no event tells of; fail where it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come to hold"
        Event().wait(0.001)  # lets other threads run


def made_once(kept: Path, sources: Iterable[Path | bytes], make: Callable[[Path], object]) -> Path:
    """Return a folder that is made once for each state of its sources, by one process for all that ask at a time.

    Args:
        kept: the folder to keep it in.
        sources: the files, and further bytes, that it depends on.
        make: makes the folder at a path.
    """
    content = (each if isinstance(each, bytes) else each.read_bytes() for each in sources)
    made = kept / hashlib.sha256(b"".join(content)).hexdigest()[:16]
    kept.mkdir(parents=True, exist_ok=True)
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            with TemporaryDirectory(dir=kept) as scratch:
                make(Path(scratch) / "models")
                (Path(scratch) / "models").rename(made)
    return made


def made_repository(kept: Path = ROOT / ".pytest_cache/d/repositories") -> Path:
    """Return a folder of models, made once for each state of the exporter and the contract.

    Args:
        kept: the folder to keep them in; by default pytest's cache.
    """
    maker = ROOT / "tests/server/make_repository.py"
    exporter = ROOT / "model_export/attention_export"
    training = {
        "cli.py",
        "command.py",
        "training.py",
        "training_bars.py",
        "figures.py",
    }  # change often, export the same
    sources = [maker, *(file for file in sorted(exporter.glob("*.py")) if file.name not in training)]
    sources += [
        ROOT / "proto/attention_proto/attention/v1/attention_pb2.py",
        *sorted((ROOT / "models/multi-head").rglob("*.*")),
    ]

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, maker, folder], check=True, capture_output=True, text=True)
        shutil.copytree(ROOT / "models/multi-head", folder / "multi-head")

    return made_once(kept, sources, make)


def free_port() -> int:
    """Return a port of this machine that no process has, and that the system gives to none that asks for any port."""
    for port in PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


@dataclass
class Server:
    """A running server.

    Attributes:
        process: its process.
        rest, grpc: the addresses that it listens on.
        log_file: the file that its log goes to.
    """

    process: subprocess.Popen[str]
    rest: str
    grpc: str
    log_file: Path

    @property
    def url(self) -> str:
        return f"http://{self.rest}"

    @property
    def log(self) -> str:
        return self.log_file.read_text()


def bearer(token: str) -> dict[str, str]:
    """Return the headers of a request with a token."""
    return {"authorization": f"Bearer {token}"}


GRPC_SERVER: list[str] = []  # the flag of the servers that the current test starts; set by conftest


@contextmanager
def start_server(
    models: Path,
    *arguments: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    command: Sequence[object] = (SERVER,),
) -> Iterator[Server]:
    """Run the server on free ports until the block ends; it must then stop cleanly.

    Args:
        models: its repository.
        arguments: more flags.
        env: more variables.
        cwd: where it runs.
        command: the program and its first arguments.
    """
    command = [*command, "--rest-port", 0, "--grpc-port", 0, "--models", models, *GRPC_SERVER, *arguments]
    with TemporaryDirectory() as scratch:
        log_file = Path(scratch) / "log"
        with log_file.open("w") as log:
            process = subprocess.Popen(
                list(map(str, command)), stdout=subprocess.PIPE, stderr=log, text=True, env=clean_env(env), cwd=cwd
            )
        with process:
            try:
                yield Server(process, *_addresses(process, log_file), log_file)
                process.terminate()  # a no-op where the test has stopped it
                assert process.wait(HANG) == 0, log_file.read_text()
            finally:
                process.kill()


def _addresses(process: subprocess.Popen[str], log_file: Path) -> tuple[str, str]:
    assert process.stdout is not None
    late = Timer(HANG, process.kill)
    late.start()
    line = process.stdout.readline()
    late.cancel()
    ready = READY.fullmatch(line)
    assert ready, f"said {line!r} in place of its addresses\n{log_file.read_text()}"
    return ready[1], ready[2]


def connections(address: str) -> int:
    """Return how many connections this machine's processes hold that a server accepted at an address."""
    port = int(address.rpartition(":")[2])
    held = psutil.net_connections("tcp")
    return sum(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in held if each.pid)


def clean_env(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of this process without settings of the server, and with the variables given."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ATTENTION_")} | dict(env or {})


def run_server(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    command: Sequence[object] = (SERVER,),
) -> Any:
    """Run a server that must end by itself, and return the finished process; a server that gets ready is stopped."""
    command = list(map(str, [*command, *arguments]))
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, env=clean_env(env), cwd=cwd, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        late = Timer(HANG, process.kill)
        late.start()
        assert process.stdout is not None
        first = process.stdout.readline()
        if READY.fullmatch(first):
            process.terminate()
        rest = process.stdout.read()
        process.wait()
        late.cancel()
        errors.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, first + rest, errors.read())
