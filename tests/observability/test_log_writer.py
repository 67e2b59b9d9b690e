"""Log lines that cannot be written: neither a stuck reader nor a full disk stops the server, and losses are counted."""

import fcntl
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import structlog
from attention_server.telemetry.log_rates import LogRates
from attention_server.telemetry.log_writer import LogLosses, LogWriter
from serving import HANG, READY, SERVER

from tests.observability.conftest import samples

PIPE = 4096  # bytes; the least that the system gives
REASONS = ("thinned", "unread", "failed")


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """Yield the ends of a pipe that has room for nothing."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE)
    os.write(writing, bytes(PIPE))
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def test_lines_without_a_reader_are_dropped_and_counted() -> None:
    """A write returns at once; lines beyond the bound are dropped, and all others are read later, in order."""
    with full_pipe() as (reading, writing):
        writer = LogWriter(writing, max_bytes=100)
        for number in range(30):
            writer.write(f"line {number:04}\n")
        assert writer.losses == LogLosses(unread=20, failed=0)
        assert not writer.drain(0.0)
        assert os.read(reading, PIPE) == bytes(PIPE)
        assert writer.drain(HANG)
        assert os.read(reading, PIPE).decode().split("\n")[:-1] == [f"line {number:04}" for number in range(10)]


def test_lines_on_a_full_disk_are_counted() -> None:
    """A write that fails is no error."""
    file = os.open("/dev/full", os.O_WRONLY)
    writer = LogWriter(file)
    writer.write("one\n")
    writer.write("\ud800\n")  # no UTF-8, which is escaped
    assert writer.drain(HANG)
    assert writer.losses == LogLosses(unread=0, failed=2)
    os.close(file)


def test_lines_of_one_cause_are_thinned() -> None:
    """Each second so many lines of a cause are logged; another cause has its own, and answered requests have all."""
    now = [0.0]
    rates = LogRates(most=2, clock=lambda: now[0])

    def logged(log: Callable[[], object]) -> bool:
        try:
            return bool(log())
        except structlog.DropEvent:
            return False

    def event(code: str, caller: str) -> Callable[[], object]:
        return lambda: rates.process(None, "", {"event": "request", "code": code, "caller": caller})

    assert [logged(event("NOT_FOUND", str(number))) for number in range(4)] == [True, True, False, False]
    assert logged(event("UNAVAILABLE", "a"))
    assert all(logged(event("OK", "a")) for _ in range(4))
    record = logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, "Invalid HTTP request received.", (), None)
    assert [rates.filter(record) for _ in range(3)] == [True, True, False]
    assert rates.thinned == 3
    now[0] = 1.0
    assert logged(event("NOT_FOUND", "a"))


@pytest.fixture(scope="module")
def full_disk() -> Iterator[int]:
    file = os.open("/dev/full", os.O_WRONLY)
    yield file
    os.close(file)


def answers_and_stops(models: Path, stderr: int) -> dict[str, float]:
    """Start a server, ask it, and stop it; return the counts of lines that are missing."""
    command = [SERVER, "--models", models, "--rest-port", "0", "--grpc-port", "0", "--access-log", "all"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            assert process.stdout is not None
            ready = READY.fullmatch(process.stdout.readline())
            assert ready, "it did not start"
            url = f"http://{ready[1]}"
            for _ in range(80):
                assert requests.get(f"{url}/v1/models/none", timeout=HANG).status_code == 404
            found = samples(requests.get(f"{url}/metrics", timeout=HANG).text)
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG) == 0
        finally:
            process.kill()
    return {reason: found["attention_log_lines_dropped_total", frozenset({("reason", reason)})] for reason in REASONS}


def test_a_server_whose_log_has_no_reader(dot_only: Path) -> None:
    """It starts, answers, and ends at SIGTERM, though nothing reads its stderr."""
    with full_pipe() as (_, writing):
        assert answers_and_stops(dot_only, writing)["failed"] == 0


def test_a_server_whose_log_is_on_a_full_disk(dot_only: Path, full_disk: int) -> None:
    """It starts, answers and stops; the metrics count the lines."""
    assert answers_and_stops(dot_only, full_disk)["failed"] > 0
