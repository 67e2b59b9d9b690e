"""Time of each step of a gRPC call in the server, for one caller.

    .venv-dev/bin/python benchmarks/timeline.py [LENGTH]

Serves the block of `make bench` (which exports it) on core 0 and requests its output from core 1, 2,000 times. The
server's methods are wrapped; the timing adds some 15 us a call. Prints medians.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from attention_server import app
from attention_server.grpc import interceptor
from attention_server.http2 import call as http2_call
from attention_server.http2 import connection
from attention_server.inference.engine import onnxruntime
from attention_server.scheduling import scheduler
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build/bench"
STEPS = {
    ("read", "received"): "from bytes to a call",
    ("received", "begun"): "to the call's task",
    ("begun", "queued"): "reading, checking and planning the message",
    ("taken", "graph"): "to the first graph",
    ("graph", "graph done"): "a graph (each)",
    ("graph done", "graph"): "between two graphs",
    ("graph done", "computed"): "to the result",
    ("computed", "finished"): "encoding of the answer",
    ("finished", "flush"): "metrics",
    ("flush", "flushed"): "from bytes to the socket",
}

marks: list[tuple[str, int]] = []
calls: list[list[tuple[str, int]]] = []


def mark(owner: Any, method: str, before: str = "", after: str = "") -> None:
    """Wrap a method or function so that its begin and end are recorded as marks."""
    wrapped = getattr(owner, method)

    def timed(*args: Any, **options: Any) -> Any:
        if before == "read":
            marks.clear()
        if before:
            marks.append((before, time.perf_counter_ns()))
        found = wrapped(*args, **options)
        if after:
            marks.append((after, time.perf_counter_ns()))
        if after == "flushed" and any(name == "finished" for name, _ in marks):
            calls.append(list(marks))
        return found

    setattr(owner, method, timed)


def ask(target: str, length: str) -> None:
    """Run the caller in its own process on the other core, report, and exit."""
    load = {
        "target": target,
        "reference": str(BUILD / "reference.npz"),
        "lengths": length,
        "mode": "unary",
        "concurrency": 1,
        "seconds": 3,
    }
    command = ["taskset", "-c", "1", sys.executable, "-m", "benchmarks.serving.clients.attention", json.dumps(load)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603 # our own
    measured = json.loads(done.stdout.splitlines()[-1])
    report(measured["p50"])
    os._exit(0)


def report(caller: float) -> None:
    """Print the medians."""
    taken = defaultdict(list)
    for call in calls[200:]:
        for (before, begin), (after, end) in itertools.pairwise(call):
            taken[before, after].append((end - begin) / 1e3)
        taken["", ""].append((call[-1][1] - call[0][1]) / 1e3)
    say = Console(highlight=False).print
    for step, name in STEPS.items():
        if step in taken:
            say(f"{name:40} {statistics.median(taken[step]):7.0f} us")
    say(f"{'in the server':40} {statistics.median(taken['', '']):7.0f} us")
    say(f"{'by the caller, p50':40} {caller * 1e3:7.0f} us")


def main() -> None:
    """Serve in this thread; run the caller and the report from another."""
    os.sched_setaffinity(0, {0})
    length = sys.argv[1] if sys.argv[1:] else "32"
    mark(connection.Connection, "buffer_updated", "read", "received")
    mark(interceptor._Observation, "__init__", "begun")  # noqa: SLF001 # wrapped for timing
    mark(scheduler.Scheduler, "submit", "queued")
    mark(scheduler, "run_batches", "taken", "computed")
    mark(onnxruntime.OnnxGraph, "run", "graph", "graph done")
    mark(http2_call.Call, "finish", after="finished")
    mark(connection.Connection, "_flush", "flush", "flushed")
    ready, written = os.pipe()
    stdout = os.dup(1)
    os.dup2(written, 1)

    def follow() -> None:
        target = os.read(ready, 1000).decode().split("grpc=")[1].strip()
        os.dup2(stdout, 1)
        ask(target, length)

    threading.Thread(target=follow).start()
    sys.argv = ["attention-server", "--models", str(BUILD / "models"), "--rest-port", "0", "--grpc-port", "0"]
    sys.argv += ["--slots", "1", "--log-level", "warning"]
    app.main()


if __name__ == "__main__":
    main()
