"""Trials of the server on the device: its choice of a device, its failures, its rate and memory."""

import http.client
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
from attention_server.inference.engine.protocol import Engine, Run

from benchmarks.gpu.device import memory_bytes
from benchmarks.gpu.graphs import one_line
from benchmarks.gpu.inputs import Sizes, random_feeds

SERVER = (sys.executable, "-c", "from attention_server.command import main; main()")
# Bound to one core before the server counts its cores.
ON_ONE_CORE = (
    sys.executable,
    "-c",
    f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); {SERVER[-1]}",
)
HIDDEN = {"CUDA_VISIBLE_DEVICES": "-1"}
TEXT = "I gave my cat Tater a toy"
MOST_ERROR = 1e-4  # of weights, beside those of the CPU
START_SECONDS = 90
LOAD_SECONDS = 3.0
CALLERS = 8


@dataclass(frozen=True)
class Trial:
    """One thing that was tried.

    Attributes:
        name: the action.
        found: the observation.
        passed: whether the observation is as it should be.
    """

    name: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Load:
    """A server under load.

    Attributes:
        place: the device that computes.
        rate: answers a second to `CALLERS` callers.
        device_bytes: of the device's memory in use, by any program; 0 where nvidia-smi does not tell it.
        resident_bytes: of the server's process.
    """

    place: str
    rate: float
    device_bytes: int
    resident_bytes: int


@dataclass(frozen=True)
class Answers:
    """Answers of a server about a model: its description, the weights of a text, the log."""

    model: dict[str, Any]
    weights: np.ndarray
    log: str


def try_devices(
    models: Path, model: str, *, server: Sequence[str] = SERVER, on_one_core: Sequence[str] = ON_ONE_CORE
) -> tuple[list[Trial], list[Load]]:
    """Start a server for each way to choose the device, ask it, and put load on it.

    Args:
        models: a repository.
        model: the name of one in it that takes text.
        server: its command.
        on_one_core: its command, with one CPU core.
    """
    trials, loads = [], []
    on_cpu, load = _ask(on_one_core, models, model, "cpu")
    trials.append(Trial("device=cpu", _placed(on_cpu), on_cpu.model["device"] == "cpu"))
    loads.append(load)
    for device in ("cuda", "auto"):
        try:
            found, load = _ask(server, models, model, device)
        except (OSError, ValueError) as error:
            trials.append(Trial(f"device={device}", one_line(error), passed=False))
            continue
        error = float(np.abs(found.weights - on_cpu.weights).max())
        on_device = found.model["device"] == "cuda" and error <= MOST_ERROR
        trials.append(Trial(f"device={device}", f"{_placed(found)}, weights off by {error:.1e}", on_device))
        trials.append(_beside(device, found))
        loads.append(load)
    trials += [_auto_without(server, models, model), _cuda_without(server, models)]
    return trials, loads


def fail_in_mid_run(engine: Engine, content: bytes, device_bytes: int) -> Trial:
    """Run a graph that needs more than the device's memory: it must raise, and the graph must go on on the device.

    Args:
        engine: the server's, on the device.
        content: the graph that averages rows, with H weights for each query and key between its inputs and outputs.
        device_bytes: the memory of the device.
    """
    name = "more than the device's memory"
    graph = engine.open(content)
    small = random_feeds(content, Sizes(1, 8, 8))
    outputs = list(graph.outputs)
    before = graph.run(outputs, small, Run())
    length = math.isqrt(2 * device_bytes // 4)
    began = time.monotonic()
    try:
        graph.run(outputs, random_feeds(content, Sizes(1, length, length)), Run())
    except Exception as error:  # noqa: BLE001 # any type, as long as it is raised
        said = one_line(error)
    else:
        seconds = time.monotonic() - began
        return Trial(name, f"{length} positions were answered, in {seconds:.0f} s: not by the device", passed=False)
    after = graph.run(outputs, small, Run())
    same = all(np.allclose(a, b, atol=1e-5) for a, b in zip(before, after, strict=True))
    then = "the same graph then answers as before" if same else "the same graph then answers otherwise"
    return Trial(name, f"raised: {said}; {then}", same)


def _placed(found: Answers) -> str:
    nodes = ", ".join(f"{count} nodes on {device}" for device, count in sorted(found.model.get("nodes", {}).items()))
    return f"computes on {found.model['device']}: {nodes}"


def _beside(device: str, found: Answers) -> Trial:
    """Return whether the log names the nodes that the description counts beside the device."""
    counted = found.model.get("nodes", {}).get("cpu", 0)
    warned = found.log.count("nodes run on the CPU")
    return Trial(
        f"device={device}: nodes on the CPU", f"{counted} counted, {warned} warnings", bool(counted) == bool(warned)
    )


def _auto_without(server: Sequence[str], models: Path, model: str) -> Trial:
    name = "device=auto, the GPU hidden"
    try:
        found, _ = _ask(server, models, model, "auto", HIDDEN)
    except (OSError, ValueError) as error:
        return Trial(name, one_line(error), passed=False)
    reason = re.search(r"computing on the CPU.*", found.log)
    said = reason[0][:200] if reason else "the log does not say so"
    return Trial(name, f"computes on {found.model['device']}; {said}", found.model["device"] == "cpu" and bool(reason))


def _cuda_without(server: Sequence[str], models: Path) -> Trial:
    name = "device=cuda, the GPU hidden"
    try:
        with _running(server, models, "cuda", HIDDEN):
            return Trial(name, "the server started", passed=False)
    except OSError as error:
        return Trial(name, one_line(error), "device=cuda was asked for" in str(error))


def _ask(
    server: Sequence[str], models: Path, model: str, device: str, env: dict[str, str] | None = None
) -> tuple[Answers, Load]:
    with _running(server, models, device, env or {}) as (process, address, log):
        path, body = f"/v1/models/{model}:attend", json.dumps({"text": TEXT, "outputs": ["weights"]})
        with closing(http.client.HTTPConnection(address, timeout=START_SECONDS)) as connection:
            about = _call(connection, "GET", f"/v1/models/{model}")
            answer = _call(connection, "POST", path, body)
        rate = _rate(address, path, body)
        load = Load(device, rate, memory_bytes("memory.used"), _resident(process.pid))
        log.seek(0)
        return Answers(about, _weights(answer), log.read()), load


def _weights(answer: dict[str, Any]) -> np.ndarray:
    tensor = answer["results"][0]["outputs"]["weights"]
    return np.array(tensor["values"] if isinstance(tensor, dict) else tensor, np.float64)


@contextmanager
def _running(
    server: Sequence[str], models: Path, device: str, env: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[str], str, IO[str]]]:
    """Run a server until the block ends.

    Raises:
        OSError: it ended by itself; the message has its last line.
    """
    command = [*server, "--models", str(models), "--device", device, "--rest-port", "0", "--grpc-port", "0"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("ATTENTION_")}
    with (
        TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=own | env) as process,  # noqa: S603 # our own
    ):
        late = threading.Timer(START_SECONDS, process.kill)
        late.start()
        try:
            assert process.stdout is not None
            ready = re.match(r"ready rest=(\S+)", process.stdout.readline())
            if ready is None:
                process.wait()
                log.seek(0)
                raise OSError(f"the server ended with {process.returncode}: {log.read().strip().splitlines()[-1:]}")
            late.cancel()
            yield process, urlsplit(f"//{ready[1]}").netloc, log
        finally:
            late.cancel()
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(START_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _call(connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None) -> dict[str, Any]:
    connection.request(method, path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != http.HTTPStatus.OK:
        raise ValueError(f"{method} {path}: {response.status} {content[:200]!r}")
    answer: dict[str, Any] = json.loads(content)
    return answer


def _rate(address: str, path: str, body: str) -> float:
    """Return the answers a second to callers that each ask again when answered."""
    end = time.monotonic() + LOAD_SECONDS

    def ask_until_the_end(_: int) -> int:
        count = 0
        with closing(http.client.HTTPConnection(address, timeout=START_SECONDS)) as connection:
            while time.monotonic() < end:
                _call(connection, "POST", path, body)
                count += 1
        return count

    with ThreadPoolExecutor(CALLERS) as pool:
        return sum(pool.map(ask_until_the_end, range(CALLERS))) / LOAD_SECONDS


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024
