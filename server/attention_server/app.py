"""The composition root: settings -> core -> ports. `service.build` composes the core.

Threads: the event loop of the main thread serves both ports. It reads, decodes, submits and encodes short requests,
and computes short jobs in between. Long jobs run in the scheduler's slot threads; decoding and encoding of large
messages runs in each port's pool. The number of slots bounds concurrent computations, whichever thread they run in.
"""

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import structlog
import uvloop
from attention_proto.allocator import give_back, keep_freed
from pydantic_settings import SettingsError

from attention_server.auth.access import Access, AccessError, open_access
from attention_server.budget.trimmer import Trimmer
from attention_server.grpc.port import PortOptions
from attention_server.grpc.server import make_grpc_server
from attention_server.http2.errors import LibraryError
from attention_server.inference.engine.protocol import DeviceError, Engine
from attention_server.machine import usable_memory
from attention_server.repository.loader import RepositoryError
from attention_server.repository.repository import Repository
from attention_server.repository.trial import Trials
from attention_server.rest.server import RestServer
from attention_server.scheduling.scheduler import Scheduler
from attention_server.service.build import Core, fork_trials, make_core
from attention_server.settings import MIB, Settings, misspelt_variables, read_settings
from attention_server.telemetry import logs
from attention_server.telemetry.observer import Observer
from attention_server.telemetry.tracing import TracingError, open_tracing
from attention_server.transport.health_listener import HealthListener

SWITCH_SECONDS = 0.001  # that a thread may compute in Python before the event loop has its turn; by default 0.005
BEAT_SECONDS = 1.0  # between two signs that the loop turns
STUCK_SECONDS = 60.0  # without a turn of the loop; a server is then not alive

log = structlog.get_logger()


async def serve(settings: Settings, engine: Engine | None = None, trials: Trials | None = None) -> None:
    """Serve until SIGTERM or SIGINT; then report not ready, and finish accepted requests within the grace.

    Args:
        settings: the settings of the server.
        engine: the engine that opens the graphs; None for onnxruntime on the device of the settings.
        trials: tries each version before it is loaded; None to load it without.

    Raises:
        OSError: an address is not available.
        DeviceError: the device of the settings is not available.
        RepositoryError: a model cannot be served.
        AccessError: tokens or certificates cannot be used.
        TracingError: traces cannot be sent as the environment asks.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    core = make_core(
        settings, Observer(open_tracing(), settings.access_log, load_reports=settings.load_reports), engine, trials
    )
    application = Application(core, open_access(settings), settings)
    stop = asyncio.ensure_future(_stop_signal().wait())
    await application.start()
    loading = asyncio.ensure_future(application.load())
    try:
        await asyncio.wait((loading, stop), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            _report_ready(application, core, settings)
        await stop
        log.info("stopping", stop_accepting_after=settings.stop_accepting_after, grace=settings.grace)
        application.set_stopping()
        await asyncio.sleep(settings.stop_accepting_after)  # until load balancers have seen the readiness
    finally:
        end = time.monotonic() + settings.grace
        finished = await application.stop()
        _end(core.scheduler, max(0.0, end - time.monotonic()), finished and loading.done())


def _report_ready(application: "Application", core: Core, settings: Settings) -> None:
    gc.collect()
    gc.freeze()  # models stay: the collector need not traverse them again
    log.info("ready", device=core.engine.device, slots=settings.compute_slots, models=core.repository.names())
    rest, grpc = (_address(settings.host, port) for port in (application.rest.port, application.grpc.port))
    logs.writer.drain()  # a supervisor that reads both has the log first
    with suppress(OSError):  # a full disk
        print(f"ready rest={rest} grpc={grpc}", flush=True)  # noqa: T201 # a supervisor may wait for this line


class Application:
    """The two ports on the core, and the thread that follows the repository.

    Args:
        core: the core that both ports call.
        access: the callers and certificates of both ports.
        settings: the settings of the core.

    Raises:
        OSError: an address is not available.
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
            allowed_hosts=settings.allowed_hosts,
        )
        options = PortOptions(
            settings.host,
            settings.grpc_port,
            requests=requests,
            max_message_bytes=settings.max_message_mib * MIB,
            max_age=settings.max_connection_age,
            grace=settings.grace,
            callers=access.callers,
            certificates=access.certificates,
        )
        self.grpc = make_grpc_server(settings.grpc_server, core.service, options)
        self.health: HealthListener | None = None
        if settings.health_port is not None:
            checks = {"/healthz": self._is_alive, "/readyz": lambda: self.rest.is_ready}
            self.health = HealthListener(settings.host, settings.health_port, checks)
        self._beat = time.monotonic()
        self._trimmer = Trimmer(core.service.account, usable_memory(), give_back, core.service.release_memory)
        self._follower = Follower(core.repository, settings.repository_poll, self._on_looked)
        self._is_stopping = False

    async def start(self) -> None:
        """Accept connections on the running loop, which also computes short requests; no model is loaded yet."""
        self.rest.start()
        await self.grpc.start()
        self._core.scheduler.attach(asyncio.get_running_loop())
        if self.health:
            self._note_beat()
            self.health.start()

    async def load(self) -> None:
        """Load the models, report ready, and follow the repository in mode `poll`.

        Raises:
            RepositoryError: a model cannot be served.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._core.repository.load)
        self._trimmer.start()
        self._set_serving()
        if self._settings.repository_mode == "poll":
            self._follower.start()

    def _note_beat(self) -> None:
        """Note that the loop turns, each second."""
        self._beat = time.monotonic()
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self._note_beat)

    def _is_alive(self) -> bool:
        return time.monotonic() - self._beat < STUCK_SECONDS

    def set_stopping(self) -> None:
        """Report not ready on both ports, and go on answering."""
        self._is_stopping = True
        self.rest.set_stopping()
        self.grpc.set_serving(False)

    def _on_looked(self) -> None:
        """Report whether there is a model, which a look at the folder may have changed."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._set_serving)

    def _set_serving(self) -> None:
        if not self._is_stopping:
            self.grpc.set_serving(self._core.service.ready)

    async def stop(self) -> bool:
        """Close both ports within the grace; return whether everything but the scheduler's jobs has ended."""
        end = time.monotonic() + self._settings.grace
        self.set_stopping()
        self._trimmer.stop()
        await asyncio.gather(self.rest.stop(), self.grpc.stop(self._settings.grace))
        if self.health:
            self.health.stop()
        finished = self._follower.stop(max(0.0, end - time.monotonic())) and self.rest.is_idle and self.grpc.is_idle
        finished = finished and self._core.repository.residency.is_idle
        self._core.service.observer.close()
        return finished


def main(engine: Engine | None = None) -> None:
    """Run the server as the command line says; the command `attention-server`.

    Args:
        engine: the engine that opens the graphs; None for onnxruntime on the device of the settings.
    """
    try:
        settings = read_settings()
    except SettingsError as error:
        sys.exit(f"attention-server: {error}")
    logs.configure(settings.log_level, settings.log_format)
    for name, meant in misspelt_variables(os.environ).items():
        log.warning("there is no such variable", name=name, meant=meant)
    keep_freed()
    trials = fork_trials(settings) if engine is None else None
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, engine, trials))
    except RepositoryError as error:
        sys.exit(f"attention-server: {error.log_reason}")
    except (OSError, AccessError, DeviceError, LibraryError, TracingError) as error:
        sys.exit(f"attention-server: {error}")


class Follower:
    """A thread that polls the repository's folder.

    Args:
        repository: the repository.
        seconds: seconds between two polls.
        looked: is called after each poll.
    """

    def __init__(self, repository: Repository, seconds: float, looked: Callable[[], None]) -> None:
        self._repository = repository
        self._looked = looked
        self._seconds = seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="repository", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, grace: float) -> bool:
        """Stop polling; return whether the last poll has ended within the grace, in seconds."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(grace)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        while not self._stopping.wait(self._seconds):
            try:
                self._repository.poll()
                self._looked()
            except Exception:  # a bug in one poll must not end the polling
                log.exception("the repository could not be followed; at the next look it is tried again")


def _end(scheduler: Scheduler, grace: float, finished: bool) -> None:
    """Wait for running jobs, `grace` seconds at most; then end the process, which a running job would keep alive."""
    if not scheduler.close(grace) or not finished:
        log.warning("cut off what still ran after the grace")
        logs.writer.drain()
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
