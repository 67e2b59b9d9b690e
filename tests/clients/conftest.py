"""Scenarios that a client in any language goes through, each checked from both ends.

A program takes a scenario and an address, and prints one line of JSON. docs/clients shows the programs.
"""

import base64
import json
import os
import re
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import requests
from attention_proto import codec
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from serving import HANG, ROOT, wait_until

from tests.local_server import IN_A_SLOT, LocalServer, local_server

HERE = Path(__file__).parent
SCENARIOS = ("unary", "stream", "large", "deadline", "cancel", "errors", "retry")
PROTO_PATH = (ROOT / "proto", Path(sysconfig.get_path("purelib")))  # googleapis' files are in the latter
NUMBERS = 30 * 2**20 // 4  # of the large request

Report = dict[str, Any]


@dataclass
class Run:
    """A program in one scenario."""

    process: subprocess.Popen[str]
    read: Callable[[str], Report]

    def report(self) -> Report:
        """End the program's input, wait for its end, and return its report."""
        output, errors = self.process.communicate(timeout=HANG)
        assert self.process.returncode == 0, errors
        return self.read(output)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, or the program has ended, which its report then tells of."""
        wait_until(lambda: condition() or self.process.poll() is not None)


@dataclass
class Program:
    """A client: its command, and how its output becomes a report.

    Attributes:
        command: the program and its arguments before the scenario and the address.
        rest: whether it speaks REST.
        read: makes the report of the output and the scenario.
    """

    command: Sequence[object]
    rest: bool = False
    read: Callable[[str, str], Report] = lambda output, _: json.loads(output)
    env: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def running(self, server: LocalServer, scenario: str) -> "Iterator[Run]":
        """Run a scenario until the block ends."""
        target = server.rest if self.rest else server.grpc
        env = os.environ | {"PROTO_PATH": os.pathsep.join(map(str, PROTO_PATH))} | dict(self.env)
        command = [*map(str, self.command), scenario, target]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(command, env=env, text=True, **pipes) as process:
            try:
                yield Run(process, lambda output: self.read(output, scenario))
            finally:
                process.kill()


@pytest.fixture(scope="module")
def server(dot_only: Path) -> Iterator[LocalServer]:
    """A server with one slot, and room for two requests that wait."""
    with local_server(dot_only, predicted=IN_A_SLOT, max_queued=2) as running:
        yield running


def go_through(program: Program, scenario: str, server: LocalServer) -> None:
    """Run a scenario of a client and check its report, and the counts of the server."""
    {"cancel": _cancel, "deadline": _deadline, "retry": _retry}.get(scenario, _at_once)(program, scenario, server)


def _at_once(program: Program, scenario: str, server: LocalServer) -> None:
    with program.running(server, scenario) as run:
        check(scenario, run.report())


def _deadline(program: Program, scenario: str, server: LocalServer) -> None:
    server.gate.close()
    try:
        _at_once(program, scenario, server)
    finally:
        server.gate.open()


def _cancel(program: Program, scenario: str, server: LocalServer) -> None:
    before = counted(server, "cancelled")
    server.gate.close()
    try:
        with program.running(server, scenario) as run:
            run.until(server.gate.arrived.is_set)
            check(scenario, run.report())
        wait_until(lambda: counted(server, "cancelled") == before + 1)
    finally:
        server.gate.open()


def _retry(program: Program, scenario: str, server: LocalServer) -> None:
    """The queue is full until the client has been refused once."""
    before = counted(server, "full")
    message = pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=codec.encode(np.ones((1, 2), np.float32)))])
    with grpc.insecure_channel(server.grpc) as channel:
        server.gate.close()
        try:
            attend = AttentionServiceStub(channel).Attend.future
            fill = [attend(message, timeout=HANG)]
            assert server.gate.arrived.wait(HANG)
            fill += [attend(message, timeout=HANG) for _ in range(2)]
            wait_until(lambda: server.scheduler.state().queued == 2)
            with program.running(server, scenario) as run:
                run.until(lambda: counted(server, "full") > before)
                server.gate.open()
                check(scenario, run.report())
        finally:
            server.gate.open()
        assert all(each.result(HANG).results for each in fill)


def counted(server: LocalServer, reason: str) -> float:
    """Return how many requests failed for a reason."""
    text = requests.get(f"{server.url}/metrics", timeout=HANG).text
    found = re.findall(rf'^attention_rejections_total\{{[^}}]*reason="{reason}"[^}}]*\}} (\S+)$', text, re.MULTILINE)
    return sum(map(float, found))


def check(scenario: str, report: Report) -> None:
    """Compare a report with the numbers that NumPy computes, or with the contract's errors."""
    match scenario:
        case "unary" | "retry":
            assert report["shape"] == [1, 3, 3]
            np.testing.assert_allclose(report["output"], dot([[1, 0], [0, 1], [1, 1]]).ravel(), atol=1e-6)
        case "stream":
            assert [place for place, _ in report["answers"]] == list(range(100))
            expected = [dot([[i, 1], [0, 1]])[0, 0] for i in range(100)]
            np.testing.assert_allclose([number for _, number in report["answers"]], expected, rtol=1e-5)
        case "large":
            assert report == {"numbers": NUMBERS, "sum": NUMBERS}
        case "deadline":
            assert report["code"] == "DEADLINE_EXCEEDED"
        case "cancel":
            assert report["code"] == "CANCELLED"
        case "errors":
            assert report["code"] == "INVALID_ARGUMENT"
            assert report["field"] in ("inputs[0].query", "query")  # as the request has it
            assert report["message"]


def dot(query: Any) -> np.ndarray:
    """Return dot-product self-attention without projections, and without a scale, as `dot` has it."""
    query = np.array(query, np.float64)
    scores = query @ query.T
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ query


def read_rest(output: str, scenario: str) -> Report:
    """Make the report of REST's answers, which curl prints as they come."""
    answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if scenario == "cancel":
        return answers[-1]
    if "error" in answers[0]:
        error = answers[0]["error"]
        return {"code": error["status"], "field": error.get("field", ""), "message": error["message"]}
    outputs = [answer["results"][0]["outputs"] for answer in answers]
    match scenario:
        case "stream":
            return {"answers": [(i, each["output"]["values"][0][0]) for i, each in enumerate(outputs)]}
        case "large":
            numbers = np.frombuffer(base64.b64decode(outputs[0]["output"]["data"]), "<f4")
            return {"numbers": numbers.size, "sum": float(numbers.sum(dtype=np.float64))}
    flat = np.array(outputs[0]["output"]["values"]).ravel()
    return {"output": flat.tolist(), "shape": outputs[0]["weights"]["shape"]}
