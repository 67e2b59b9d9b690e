"""The server in the process of the tests, as `attention_server.app` makes it, over graphs that a test can hold up."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import serving
import uvloop
from attention_server.app import Application
from attention_server.auth.access import Access
from attention_server.auth.callers import Callers
from attention_server.auth.certificates import Certificates
from attention_server.grpc.native import NativeServer
from attention_server.inference.engine.protocol import Run
from attention_server.repository.loader import RepositoryError
from attention_server.repository.repository import Repository
from attention_server.rest.server import RestServer
from attention_server.scheduling.scheduler import Scheduler
from attention_server.service.build import Core, make_core
from attention_server.service.service import Service
from attention_server.settings import Settings
from engines import ObservedEngine
from serving import HANG

# Predicted seconds of a request that a slot's thread computes, however far its prediction is corrected; and of one that
# has a near deadline and comes after few others.
IN_A_SLOT = 0.1
SOON_IN_A_SLOT = 0.01
DEADLINES = (0.2, 2.0, 20.0)  # seconds: the first that is long enough for a request to run on this machine, now
LIMITS = {  # the same on every machine
    "max_message_mib": 256,
    "max_answer_mib": 1024,
    "max_scores_mib": 512,
    "memory_mib": 1,
    "max_queued_mib": 256,
    "max_wait": 60.0,
    "repository_poll": 3600.0,  # tests look at the folder themselves
}


@dataclass
class Gate:
    """A gate before every run of a graph: it counts runs, and a test makes it hold up or fail runs.

    Attributes:
        fault: raised by every run.
        runs: how many have begun.
        last: the run that began last.
        arrived: set when a run begins.
    """

    fault: Exception | None = None
    runs: int = 0
    last: Run | None = None
    arrived: threading.Event = field(default_factory=threading.Event)
    _opened: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._opened.set()

    def close(self) -> None:
        """Hold up the runs that begin from now on; `arrived` is set when one has begun."""
        self.arrived.clear()
        self._opened.clear()

    def open(self) -> None:
        """Let all runs pass."""
        self._opened.set()

    def reset(self) -> None:
        """Count the runs from 0."""
        self.runs = 0
        self.arrived.clear()

    def enter(self, run: Run) -> None:
        """Count a run, and wait until the gate is open."""
        self.last = run
        self.runs += 1
        self.arrived.set()
        assert self._opened.is_set() or not _is_loop(), "the loop computes it: the server needs predicted=IN_A_SLOT"
        assert self._opened.wait(HANG)
        if self.fault:
            raise self.fault


def _is_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@dataclass
class LocalServer:
    """A running server: its addresses and its parts."""

    core: Core
    application: Application
    gate: Gate
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event

    @property
    def rest(self) -> str:
        return f"127.0.0.1:{self.application.rest.port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.application.grpc.port}"

    @property
    def url(self) -> str:
        return f"http://{self.rest}"

    @property
    def rest_server(self) -> RestServer:
        return self.application.rest

    @property
    def grpc_server(self) -> NativeServer:
        assert isinstance(self.application.grpc, NativeServer)
        return self.application.grpc

    @property
    def service(self) -> Service:
        return self.core.service

    @property
    def repository(self) -> Repository:
        return self.core.repository

    @property
    def scheduler(self) -> Scheduler:
        return self.core.scheduler

    def begin_stop(self) -> None:
        """Have the server stop, and do not wait for it."""
        self.loop.call_soon_threadsafe(self.stop.set)


@contextmanager
def local_server(
    models: Path,
    *,
    load: bool = True,
    predicted: float | None = None,
    callers: Callers | None = None,
    certificates: Certificates | None = None,
    **settings: Any,
) -> Iterator[LocalServer]:
    """Run a server in a thread of this process until the block ends.

    Args:
        models: its repository.
        load: whether the repository is loaded when the block begins.
        predicted: the least seconds that the scheduler predicts for a sequence; None for the measured cost. The loop
            computes short requests: a test that closes the gate gives `IN_A_SLOT`, to hold up a slot and not the loop.
        callers, certificates: in place of those of the settings.
        settings: those of the server; one slot, and eight requests that wait, by default.
    """
    gate = Gate()
    defaults = LIMITS | {"slots": 1, "max_queued": 8, "grpc_server": (serving.GRPC_SERVER or ["auto"])[-1]}
    made = Settings(models=models, rest_port=0, grpc_port=0, **(defaults | settings))
    core = make_core(made, engine=ObservedEngine(gate.enter))
    stop = asyncio.Event()
    started: Future[Application] = Future()

    async def serve() -> None:
        try:
            application = Application(core, Access(callers or Callers(), certificates), made)
            await application.start()
        except BaseException as error:
            started.set_exception(error)
            raise
        try:
            if load:
                await application.load()
            started.set_result(application)
            await stop.wait()
        except RepositoryError as error:
            started.set_exception(error)
        finally:
            await application.stop()

    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        application = started.result(HANG)
        if predicted is not None:
            predict(core.repository, predicted)
        gate.reset()
        yield LocalServer(core, application, gate, loop, stop)
    finally:
        gate.open()
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
        core.scheduler.close()


def predict(repository: Repository, seconds: float) -> None:
    """Have at least so many seconds predicted for each sequence of the models loaded."""
    for name in repository.names():
        for version in repository.versions(name):
            with repository.lease(name, version) as model:
                model.costs.base = max(model.costs.base, seconds)
