"""The trial of a version in a process of its own, before the serving process opens anything of it.

The cost of a version is bounded there: a graph that never ends, or needs more memory than there is, fails alone.
The process is forked at the start, before there are threads, and forks once more for each trial.
"""

import os
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from attention_server.budget.trimmer import resident_bytes
from attention_server.inference.engine.protocol import Engine
from attention_server.inference.model import LoadedModel
from attention_server.repository.loader import RepositoryError, Tried, load
from attention_server.repository.trial_records import TrialRecords

MIB = 1024 * 1024
NO_MEMORY = ("bad_alloc", "Failed to allocate memory")  # words of C++ and of onnxruntime
FIRST_TO_KILL = "1000"  # the largest `oom_score_adj`: for want of memory the system ends the trial, not the server
GONE = "cannot be tried: the process that tries versions has ended; restart the server"

_trying = threading.Lock()  # one version is tried at a time: its memory is bounded, and its costs are timed

TryVersion = Callable[[Path, int], Tried]


class _Request(NamedTuple):
    folder: Path
    max_bytes: int
    memory: int  # bytes


class _Refusal(NamedTuple):
    reason: str
    log_reason: str


@dataclass(frozen=True, slots=True)
class Trials:
    """Tries each version in a process of its own.

    Attributes:
        seconds: the time for one version.
        memory: bytes of memory of this process and a trial together.
    """

    seconds: float
    memory: int
    _connection: "Connection[_Request, Tried | _Refusal]"

    @classmethod
    def fork(cls, try_version: TryVersion, seconds: float, memory: int) -> "Trials":
        """Fork the process that tries versions; it ends with this one.

        Args:
            try_version: loads a version's folder, of at most so many bytes; raises RepositoryError.
            seconds: the time for one version.
            memory: bytes of memory of this process and a trial together.
        """
        ours, theirs = Pipe()
        if os.fork() == 0:
            ours.close()
            try:
                _serve(theirs, try_version, seconds)
            finally:
                os._exit(0)
        theirs.close()
        return cls(seconds, memory, ours)

    def run(self, folder: Path, max_bytes: int) -> Tried:
        """Try a version.

        Raises:
            RepositoryError: the version cannot be served, or takes too long, or too much memory.
        """
        try:
            self._connection.send(_Request(folder, max_bytes, max(0, self.memory - resident_bytes())))
            found = self._connection.recv()
        except (EOFError, OSError) as error:
            raise RepositoryError(GONE) from error
        if isinstance(found, _Refusal):
            raise RepositoryError(*found)
        return found


def try_and_load(
    folder: Path, engine: Engine, max_bytes: int, trials: Trials | None, records: TrialRecords | None
) -> LoadedModel:
    """Load a version's folder, after its trial where there is one, and no record of an earlier; see `loader.load`.

    Raises:
        RepositoryError: the version cannot be served.
    """
    known = None if records is None else records.find(folder, engine.device)
    if known is not None:
        return load(folder, engine, max_bytes, known)
    with _trying:
        tried = None if trials is None else trials.run(folder, max_bytes)
        model = load(folder, engine, max_bytes, tried)
    if records is not None:
        records.keep(Tried(model.digest, model.device, model.costs))
    return model


def _serve(connection: "Connection[Tried | _Refusal, _Request]", try_version: TryVersion, seconds: float) -> None:
    """Answer requests until the serving process has ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            connection.send(_tried(connection, connection.recv(), try_version, seconds))
        except (EOFError, OSError):
            return


def _tried(
    connection: "Connection[Tried | _Refusal, _Request]", request: _Request, try_version: TryVersion, seconds: float
) -> Tried | _Refusal:
    ours, theirs = Pipe(duplex=False)
    process = os.fork()
    if process == 0:
        connection.close()
        ours.close()
        try:
            theirs.send(_outcome(request, try_version))
        finally:
            os._exit(0)
    theirs.close()
    ready = wait([ours, connection], seconds)  # the connection: its other end has gone
    try:
        if ours in ready:
            return ours.recv()  # type: ignore[no-any-return]
        return _refusal(f"takes longer than {seconds:g} s to be loaded, warmed and measured (--max-load-seconds)")
    except EOFError:
        ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        process = 0
        return _refusal(f"ended the process that tried it, {_ending(ended)}")
    finally:
        ours.close()
        if process:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "which the system killed: it needs more memory than there is"
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"


def _outcome(request: _Request, try_version: TryVersion) -> Tried | _Refusal:
    """Load a version within the bounds, in a process of its own."""
    _bound(request.memory)
    try:
        return try_version(request.folder, request.max_bytes)
    except RepositoryError as error:
        if isinstance(error.__cause__, MemoryError) or any(words in error.log_reason for words in NO_MEMORY):
            return _refusal(f"needs more than {request.memory // MIB} MiB to be loaded, warmed and measured")
        return _Refusal(str(error), error.log_reason)


def _bound(memory: int) -> None:
    """Bound the memory of this process to its present memory and so many bytes more."""
    most = _data_bytes() + memory
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/oom_score_adj").write_text(FIRST_TO_KILL)


def _refusal(reason: str) -> _Refusal:
    return _Refusal(reason, reason)


def _data_bytes() -> int:
    """Return the bytes of this process that RLIMIT_DATA bounds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (each for each in lines if each.startswith("VmData:"))
    return int(line.split()[1]) * 1024
