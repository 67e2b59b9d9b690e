"""The server in the tests' own process, put together as `app.py` does, over graphs that a test can hold up or break."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from attention_server.auth.callers import Callers
from attention_server.auth.certificates import Certificates
from attention_server.domain.limits import Limits
from attention_server.grpc.native import NativeServer
from attention_server.inference.contexts import MemoryStore
from attention_server.inference.engine import Engine, Run
from attention_server.repository.repository import Policy, Repository
from attention_server.rest.server import RestServer
from attention_server.scheduling.fair_queue import QueueLimits
from attention_server.scheduling.scheduler import Scheduler
from attention_server.service.service import Service

MIB = 2**20


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition that no event tells of; after so many seconds, fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        threading.Event().wait(0.001)  # lets the other threads run


@dataclass
class Gate:
    """What every run of a graph passes; open, and counting, until a test closes or breaks it."""

    fault: Exception | None = None
    runs: int = 0
    last: Run | None = None
    arrived: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.opened.set()

    def close(self) -> None:
        """Hold up the runs that come from now on; `arrived` is set when one is there."""
        self.arrived.clear()
        self.opened.clear()

    def open(self) -> None:
        self.opened.set()

    def pass_through(self) -> None:
        self.runs += 1
        self.arrived.set()
        assert self.opened.wait(60)
        if self.fault:
            raise self.fault


class GatedGraph:
    """A real graph, behind a gate."""

    def __init__(self, graph, gate: Gate) -> None:
        self._graph, self._gate = graph, gate
        self.inputs, self.outputs = graph.inputs, graph.outputs

    def run(self, outputs, feeds, run):
        self._gate.last = run
        self._gate.pass_through()
        return self._graph.run(outputs, feeds, run)


class GatedEngine(Engine):
    """A real engine whose graphs stand behind one gate."""

    def __init__(self, gate: Gate) -> None:
        super().__init__("cpu", threads=1)
        self._gate = gate

    def open(self, content):
        return GatedGraph(super().open(content), self._gate)


@dataclass
class Composed:
    """A running server: where it listens, and its parts."""

    rest: str
    grpc: str
    gate: Gate
    service: Service
    repository: Repository
    scheduler: Scheduler
    grpc_server: NativeServer
    rest_server: RestServer
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event

    @property
    def url(self) -> str:
        return f"http://{self.rest}"


NONE = Policy()


@contextmanager
def composed(
    models: Path,
    *,
    slots: int = 1,
    max_queued: int = 8,
    load: bool = True,
    message_mib: int = 256,
    answer_mib: int = 1024,
    policy: Policy = NONE,
    callers: Callers | None = None,
    certificates: Certificates | None = None,
) -> Iterator[Composed]:
    """Run a server in threads of this process until the block ends.

    Its loop computes nothing, unlike the process's: a test that holds up a graph holds up a slot, and not the loop.
    """
    gate = Gate()
    callers = callers or Callers()
    memories = MemoryStore(MIB)
    repository = Repository(models, GatedEngine(gate), memories, policy)
    scheduler = Scheduler(slots, QueueLimits(max_queued, 60.0, 256 * MIB))
    service = Service(repository, scheduler, memories, Limits(1024, 512 * MIB, answer_mib * MIB, 600.0))
    requests = slots + max_queued
    rest = RestServer(
        service,
        "127.0.0.1",
        0,
        requests=requests,
        max_message_bytes=message_mib * MIB,
        grace=30,
        callers=callers,
        certificates=certificates,
    )
    grpc = NativeServer(
        service,
        "127.0.0.1",
        0,
        requests=requests,
        max_message_bytes=message_mib * MIB,
        callers=callers,
        certificates=certificates,
    )
    loop = uvloop.new_event_loop()  # as the process has
    stop = asyncio.Event()

    async def serve() -> None:
        rest.start()
        await grpc.start()
        started.set()
        await stop.wait()
        await asyncio.gather(rest.stop(), grpc.stop(30))

    started = threading.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(30)
    try:
        if load:
            repository.load()
            loop.call_soon_threadsafe(grpc.set_serving, True)
        gate.runs = 0
        gate.arrived.clear()
        addresses = (f"127.0.0.1:{port}" for port in (rest.port, grpc.port))
        yield Composed(*addresses, gate, service, repository, scheduler, grpc, rest, loop, stop)
    finally:
        gate.open()
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
        scheduler.close()
