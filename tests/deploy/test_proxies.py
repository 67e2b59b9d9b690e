"""Envoy, nginx and HAProxy with the shipped configurations before two replicas: a rolling restart loses no call."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
from attention_client import AttentionClient
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from serving import HANG, ROOT, Server, free_port, start_server, wait_until

from tests.messages import request_message

FOLDER = ROOT / "deploy/proxies"
ONES = np.ones((1, 2), np.float32)
ENOUGH = 10  # calls of each caller between two steps of the restart
RETRIES = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.5s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
ENVIRONMENT = {"PATH": f"{ROOT}/.venv-dev/bin:{os.environ['PATH']}:/usr/sbin"}


@dataclass
class Ports:
    """The ports of one replica."""

    rest: int = field(default_factory=free_port)
    grpc: int = field(default_factory=free_port)
    health: int = field(default_factory=free_port)

    def flags(self) -> list[object]:
        return ["--rest-port", self.rest, "--grpc-port", self.grpc, "--health-port", self.health]


@dataclass
class Proxy:
    """A proxy that runs."""

    name: str
    rest: str
    grpc: str


def configured(file: str, replicas: list[Ports], rest: int, grpc_: int) -> str:
    """Return a shipped configuration with the addresses of this test in place of its own."""
    text = (FOLDER / file).read_text()
    for number, replica in enumerate(replicas, 1):
        for port, own in ((50051, replica.grpc), (8080, replica.rest)):
            text = text.replace(f"replica-{number}:{port}", f"127.0.0.1:{own}")
            text = text.replace(
                f"address: replica-{number}, port_value: {port}", f"address: 127.0.0.1, port_value: {own}"
            )
    for port, own in ((50051, grpc_), (8080, rest)):
        for form in ("listen {}", "bind :{}", "address: 0.0.0.0, port_value: {}"):
            text = text.replace(form.format(port), form.replace(":{}", "127.0.0.1:{}").format(own))
    # HAProxy's port of health is one for all replicas; here each has its own.
    for replica in replicas:
        for port in (replica.grpc, replica.rest):
            text = re.sub(f"(server replica-.*:{port}\\b.*)", rf"\1 port {replica.health}", text)
    return text


COMMANDS: dict[str, tuple[str, Callable[[Path], list[object]]]] = {
    "nginx": ("nginx.conf", lambda file: ["nginx", "-p", file.parent, "-c", file, "-e", "stderr", "-g", "daemon off;"]),
    "haproxy": ("haproxy.cfg", lambda file: ["haproxy", "-db", "-f", file]),
    "envoy": (
        "envoy.yaml",
        lambda file: ["envoy", "--concurrency", "1", "--disable-hot-restart", "-l", "error", "-c", file],
    ),
}


@contextmanager
def proxy(name: str, replicas: list[Ports], folder: Path) -> Iterator[Proxy]:
    """Run a proxy until the block ends."""
    file, command = COMMANDS[name]
    rest, grpc_ = free_port(), free_port()
    folder.mkdir()
    (folder / file).write_text(configured(file, replicas, rest, grpc_))
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            list(map(str, command(folder / file))), stdout=output, stderr=output, env=ENVIRONMENT, cwd=folder
        )
    try:
        running = Proxy(name, f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc_}")
        wait_until(lambda: process.poll() is not None or is_ready(running))
        assert process.poll() is None, log.read_text()
        yield running
    finally:
        process.terminate()
        process.wait(HANG)
        print(name, log.read_text()[-1500:])


def is_ready(running: Proxy) -> bool:
    try:
        if requests.get(f"{running.rest}/readyz", timeout=HANG).status_code != 200:
            return False
        with grpc.insecure_channel(running.grpc) as channel:
            AttentionServiceStub(channel).Attend(request_message("dot", [{"query": ONES}]), timeout=HANG)
    except (requests.ConnectionError, grpc.RpcError):
        return False
    return True


class Caller(threading.Thread):
    """Makes calls, one after another, until it is stopped or loses one.

    Args:
        call: makes a call; takes its id.
        name: begins the ids.
    """

    def __init__(self, call: Callable[[str], object], name: str) -> None:
        super().__init__(daemon=True)
        self._call, self._name = call, name
        self.answered = 0
        self.lost: list[str] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        for number in count():
            if self.stopping.is_set() or self.lost:
                return
            try:
                self._call(f"{self._name}-{number}")
            except Exception as error:  # noqa: BLE001 # each is a lost call
                self.lost.append(f"{self._name}: {error!r}")
            self.answered += 1
            self.stopping.wait(0.05)  # leaves the processor to the replicas that start


def callers(running: Proxy, stack: ExitStack) -> list[Caller]:
    """Make a caller by the shipped client, one by gRPC's own client, and one by HTTP."""
    client = stack.enter_context(AttentionClient(running.grpc))
    # nginx cannot see that a replica which starts is still loading: gRPC's own client then needs its retries.
    options = [("grpc.service_config", RETRIES)] if running.name == "nginx" else []
    channel = stack.enter_context(grpc.insecure_channel(running.grpc, options))
    session = stack.enter_context(requests.Session())
    attend, request = AttentionServiceStub(channel).Attend, request_message("dot", [{"query": ONES}])

    def by_http(id_: str) -> None:
        response = session.post(
            f"{running.rest}/v1/models/dot:attend",
            json={"query": ONES.tolist()},
            headers={"x-request-id": id_},
            timeout=HANG,
        )
        assert response.status_code == 200, response.text

    ways = {
        "shipped": lambda _: client.attend("dot", query=ONES, timeout=HANG),
        "plain": lambda id_: attend(request, metadata=[("x-request-id", id_)], timeout=HANG),
        "http": by_http,
    }
    return [Caller(call, f"{running.name}-{way}") for way, call in ways.items()]


def go_on(loads: list[Caller]) -> None:
    """Wait until each caller has had further answers."""
    due = [each.answered + ENOUGH for each in loads]
    wait_until(
        lambda: any(each.lost for each in loads) or all(e.answered >= n for e, n in zip(loads, due, strict=True))
    )
    assert [lost for each in loads for lost in each.lost] == []


@pytest.mark.native_grpc("a stop is the same over both servers")
def test_a_rolling_restart_loses_no_call(dot_only, tmp_path):
    """Behind each proxy, no call of the shipped client, of gRPC's own client or over HTTP fails meanwhile."""
    replicas = [Ports(), Ports()]

    def start(ports: Ports) -> Iterator[Server]:
        flags = [*ports.flags(), "--stop-accepting-after", 3, "--access-log", "all"]
        return start_server(dot_only, *flags)

    with ExitStack() as stack:
        running = [stack.enter_context(ExitStack()) for _ in replicas]
        servers = [own.enter_context(start(ports)) for own, ports in zip(running, replicas, strict=True)]
        proxies = [stack.enter_context(proxy(name, replicas, tmp_path / name)) for name in COMMANDS]
        loads = [each for one in proxies for each in callers(one, stack)]
        for each in loads:
            each.start()
        go_on(loads)
        for i, ports in enumerate(replicas):
            servers[i].process.terminate()
            assert servers[i].process.wait(HANG) == 0
            running[i].close()
            go_on(loads)
            servers[i] = running[i].enter_context(start(ports))
            named = [f"request_id={name}-{way}-" for name in COMMANDS for way in ("plain", "http")]
            wait_until(lambda: any(each.lost for each in loads) or all(each in servers[i].log for each in named))  # noqa: B023 # it is called at once
            go_on(loads)
        for each in loads:
            each.stopping.set()
        for each in loads:
            each.join(HANG)
        assert [lost for each in loads for lost in each.lost] == []
