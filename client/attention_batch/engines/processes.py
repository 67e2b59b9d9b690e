"""Shards spread over worker processes of this machine, since threads would share one interpreter.

A worker writes a part in a folder of its own, and the run moves the part to its place. So a worker that outlives its
run for a moment cannot touch the parts of the next run.
"""

import itertools
import multiprocessing
import os
import queue
import shutil
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from pathlib import Path
from typing import NamedTuple

from attention_batch.engines.task import Task
from attention_batch.errors import ExitStatus, Stopped
from attention_batch.output.sink import Counts, FinishedShard, move_part, open_part
from attention_batch.readers.source import Shard

RUNS_AHEAD = 2  # runs of shards handed out for each worker
SECONDS_BETWEEN_REPORTS = 0.25  # of a worker on its part under way
SECONDS_FOR_THE_LAST = 10.0  # reports, once all runs of shards have ended
SCRATCH = "worker-"

# Of a worker's process.
_state: "_WorkerState | None" = None
_reports: "Queue[_Report]"


def slots() -> int:
    """Return the number of workers for this machine, by the server's own setting. Raises ModuleNotFoundError."""
    from attention_server.settings import Settings  # noqa: PLC0415 # the server's extra

    return Settings.model_validate({}).compute_slots


class _Report(NamedTuple):
    """A worker's report on a shard: the part's counts, and its folder once it is whole."""

    shard: int
    counts: Counts
    folder: Path | None = None


class WorkerPool:
    """A pool of worker processes. The processes start at once and import while the run reads its input.

    Args:
        processes: the number of workers.
    """

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit locks without threads that release these
        self._reports: Queue[_Report] = context.Queue()
        self._ahead = RUNS_AHEAD * processes
        self._pool = ProcessPoolExecutor(processes, context, _begin, (self._reports,))
        before = set(multiprocessing.active_children())
        for _ in range(processes):
            self._pool.submit(_get_ready)  # a submission starts a process
        self._children = set(multiprocessing.active_children()) - before

    def scored(self, task: Task, runs: Iterable[list[Shard]], folder: Path) -> Generator[FinishedShard | Counts]:
        """Yield each shard once its part exists, in any order, and now and then the sum of the parts under way.

        Args:
            task: of every worker.
            runs: runs of the pending shards; one worker scores a run in order.
            folder: for the parts.

        Raises:
            Refused: the model cannot give the requested outputs.
            Stopped: a worker ended.
        """
        _tidy(folder)
        try:
            yield from self._scored(task, iter(runs), folder)
        except (BrokenProcessPool, queue.Empty) as error:
            raise Stopped("a worker has ended, perhaps for want of memory; the same command goes on") from error
        finally:
            self.close()
            _tidy(folder)

    def close(self) -> None:
        """End the processes; a later run scores the shards under way again."""
        for process in self._children:
            process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def _scored(self, task: Task, runs: Iterator[list[Shard]], folder: Path) -> Iterator[FinishedShard | Counts]:
        futures: set[Future[None]] = set()
        pending: dict[int, Shard] = {}
        under_way: dict[int, Counts] = {}
        while True:
            for run in itertools.islice(runs, self._ahead - len(futures)):
                futures.add(self._pool.submit(_score, task, folder, run))
                pending |= {shard.index: shard for shard in run}
            if not pending:
                return
            report = self._next_report(may_wait=bool(futures))
            if report is not None and report.folder is not None:
                move_part(report.folder, folder, report.shard)
                under_way.pop(report.shard, None)
                yield FinishedShard(pending.pop(report.shard), report.counts)
            elif report is not None:
                under_way[report.shard] = report.counts
            yield sum(under_way.values(), Counts())
            for future in [future for future in futures if future.done()]:
                futures.remove(future)
                future.result()

    def _next_report(self, *, may_wait: bool) -> _Report | None:
        """Return the next report; None if there is none yet. Raises queue.Empty if no worker is left to send one."""
        try:
            return self._reports.get(timeout=SECONDS_BETWEEN_REPORTS if may_wait else SECONDS_FOR_THE_LAST)
        except queue.Empty:
            if may_wait:
                return None
            raise


class _WorkerState:
    """The state of a worker's process, from its first run of shards on."""

    def __init__(self, task: Task, folder: Path) -> None:
        self._folder = (folder / f"{SCRATCH}{os.getpid()}").absolute()
        self._folder.mkdir()
        from attention_batch.engines.worker import Worker  # noqa: PLC0415 # needs the server's extra, and is slow to import

        self._worker, self._layout = Worker(task), task.layout
        self._next_report = 0.0

    def score(self, shard: Shard) -> None:
        with open_part(self._folder, shard.index, self._layout) as writer:
            self._worker.score(shard, writer, lambda counts: self._tell(shard, counts))
        _reports.put(_Report(shard.index, writer.counts, self._folder))

    def _tell(self, shard: Shard, counts: Counts) -> None:
        if time.monotonic() >= self._next_report:
            _reports.put(_Report(shard.index, counts))
            self._next_report = time.monotonic() + SECONDS_BETWEEN_REPORTS


def _begin(reports: "Queue[_Report]") -> None:
    """Initialize a worker's process: it ignores Ctrl-C, which the run handles, and ends when the run has ended."""
    global _reports  # noqa: PLW0603 # the pool gives its processes no place to keep it
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_run, daemon=True).start()


def _score(task: Task, folder: Path, run: list[Shard]) -> None:
    global _state  # noqa: PLW0603
    _state = _state or _WorkerState(task, folder)
    for shard in run:
        _state.score(shard)


def _get_ready() -> None:
    import attention_batch.engines.worker  # noqa: F401, PLC0415


def _end_with_run() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    wait([run.sentinel])
    os._exit(ExitStatus.STOPPED)


def _tidy(folder: Path) -> None:
    for scratch in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(scratch, ignore_errors=True)
