"""The composition root: settings -> core -> listeners. Nothing else wires, but `core` what is behind them.

Who runs where, decided once: the main thread's loop serves both ports. Over gRPC it carries a request from its bytes to
its answer, and computes what is short in between; what takes longer the scheduler's slots compute, in threads of their
own. Over HTTP one thread of a pool carries a request. What onnxruntime computes is bounded by the slots, whichever
thread it is in.
"""

import asyncio
import gc
import os
import signal
import sys
import threading
import time

import structlog
import uvloop
from attention_proto.allocator import keep_freed
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from attention_server.auth.access import Access, AccessError, open_access
from attention_server.grpc.server import make_grpc_server
from attention_server.http2.errors import LibraryError
from attention_server.inference.engine.protocol import DeviceError, Engine
from attention_server.repository.loader import RepositoryError
from attention_server.repository.repository import Repository
from attention_server.rest.server import RestServer
from attention_server.scheduling.scheduler import Scheduler
from attention_server.service.build import Core, make_core
from attention_server.settings import MIB, Settings
from attention_server.telemetry import logs
from attention_server.telemetry.observer import Observer
from attention_server.telemetry.tracing import TracingError, open_tracing

log = structlog.get_logger()


async def serve(settings: Settings, engine: Engine | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then say so, go on for a while, and finish what was accepted within the grace.

    Args:
        settings: of the server.
        engine: opens the graphs; None for onnxruntime on the device of the settings.

    Raises:
        OSError: an address cannot be listened on.
        DeviceError: the device asked for is not there.
        RepositoryError: a model cannot be served.
        AccessError: tokens or certificates cannot be used.
        TracingError: traces cannot be sent as the environment asks.
    """
    core = make_core(settings, Observer(open_tracing(), settings.access_log), engine)
    application = Application(core, open_access(settings), settings)
    stop = _stop_signal()
    await application.start()
    try:
        await application.load()
        gc.collect()
        gc.freeze()  # what is here stays: it is not to be looked through again and again
        log.info("ready", device=core.engine.device, slots=settings.compute_slots, models=core.repository.names())
        ports = (application.rest.port, application.grpc.port)
        rest_address, grpc_address = (_address(settings.host, port) for port in ports)
        print(f"ready rest={rest_address} grpc={grpc_address}", flush=True)  # noqa: T201 # what starts us waits for it
        await stop.wait()
        log.info("stopping", stop_accepting_after=settings.stop_accepting_after, grace=settings.grace)
        application.set_stopping()
        await asyncio.sleep(settings.stop_accepting_after)  # for those who balance over several to look elsewhere
    finally:
        end = time.monotonic() + settings.grace
        finished = await application.stop()
        _end(core.scheduler, max(0.0, end - time.monotonic()), finished)


class Application:
    """The two ports on the core, and the thread that follows the repository.

    Args:
        core: what the ports are opened for.
        access: the callers and certificates of both ports.
        settings: those that the core was made with.

    Raises:
        OSError: an address cannot be listened on.
    """

    def __init__(self, core: Core, access: Access, settings: Settings) -> None:
        requests = settings.compute_slots + settings.max_queued
        self._core = core
        self._settings = settings
        self.rest = RestServer(
            core.service,
            settings.host,
            settings.rest_port,
            requests=requests,
            max_message_bytes=settings.max_message_mib * MIB,
            grace=settings.grace,
            callers=access.callers,
            certificates=access.certificates,
        )
        self.grpc = make_grpc_server(
            settings.grpc_server,
            core.service,
            settings.host,
            settings.grpc_port,
            requests=requests,
            max_message_bytes=settings.max_message_mib * MIB,
            callers=access.callers,
            certificates=access.certificates,
        )
        self._follower = Follower(core.repository, settings.repository_poll)

    async def start(self) -> None:
        """Accept connections on the running loop, which also computes short requests; no model is loaded yet."""
        self.rest.start()
        await self.grpc.start()
        self._core.scheduler.attach(asyncio.get_running_loop())

    async def load(self) -> None:
        """Load the models, report ready, and follow the repository in mode `poll`.

        Raises:
            RepositoryError: a model cannot be served.
        """
        await asyncio.to_thread(self._core.repository.load)
        self.grpc.set_serving(True)
        if self._settings.repository_mode == "poll":
            self._follower.start()

    def set_stopping(self) -> None:
        """Report not ready on both ports, and go on answering."""
        self.rest.set_stopping()
        self.grpc.set_serving(False)

    async def stop(self) -> bool:
        """Close both ports within the grace; return whether everything but the scheduler's jobs has ended."""
        end = time.monotonic() + self._settings.grace
        self.set_stopping()
        await asyncio.gather(self.rest.stop(), self.grpc.stop(self._settings.grace))
        finished = self._follower.stop(max(0.0, end - time.monotonic())) and self.rest.is_idle and self.grpc.is_idle
        self._core.service.observer.close()
        return finished


def main(engine: Engine | None = None) -> None:
    """Run the server as the command line says; the command `attention-server`.

    Args:
        engine: opens the graphs; None for onnxruntime on the device of the settings.
    """
    try:
        settings = CliApp.run(Settings)
    except (ValidationError, SettingsError) as error:
        sys.exit(f"attention-server: {error}")
    logs.configure(settings.log_level, settings.log_format)
    keep_freed()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, engine))
    except (OSError, AccessError, DeviceError, LibraryError, RepositoryError, TracingError) as error:
        sys.exit(f"attention-server: {error}")


class Follower:
    """A thread that follows the folder of models.

    Args:
        repository: looks at it.
        seconds: between two looks.
    """

    def __init__(self, repository: Repository, seconds: float) -> None:
        self._repository = repository
        self._seconds = seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="repository", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, grace: float) -> bool:
        """Look no more; return whether the last look has ended within the grace."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(grace)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        while not self._stopping.wait(self._seconds):
            try:
                self._repository.poll()
            except Exception:  # a fault of ours in one look is not to be the last of all looks
                log.exception("the repository could not be followed; at the next look it is tried again")


def _end(scheduler: Scheduler, grace: float, finished: bool) -> None:
    """Wait for the computations. One that outlasts the grace would hold the process for ever: it ends with it."""
    if not scheduler.close(grace) or not finished:
        log.warning("cut off what still ran after the grace")
        sys.stderr.flush()
        os._exit(0)


def _stop_signal() -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        stop.set()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        log.info("signal received", signal=number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


if __name__ == "__main__":
    main()
