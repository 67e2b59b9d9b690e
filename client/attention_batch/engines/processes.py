"""The same shards on every core of this machine: processes, for the threads of one would share an interpreter.

A worker writes a part in a folder of its own. Only the run itself gives it its place, so that a worker which outlives
its run for a moment spoils nothing.
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
from typing import TYPE_CHECKING, NamedTuple

from attention_batch.errors import ExitStatus, Stopped
from attention_batch.output.sink import Counts, part, publish
from attention_batch.readers.source import Shard

if TYPE_CHECKING:
    from attention_batch.engines.worker import Task

AHEAD = 2  # runs handed out for each worker
SECONDS_BETWEEN_WORDS = 0.25  # of a worker on how far it is
SECONDS_FOR_THE_LAST = 10.0  # words, when all runs have ended
SCRATCH = "worker-"

Done = tuple[Shard, Counts]

# In a worker's process, its own.
_process: "_Process | None" = None
_words: "Queue[_Word]"


def slots() -> int:
    """Return how many workers a machine has room for, by the server's own setting. Raises ModuleNotFoundError."""
    from attention_server.settings import Settings  # noqa: PLC0415 # the server's extra

    return Settings.model_validate({}).compute_slots


class _Word(NamedTuple):
    """What a worker says of a shard: what its part holds, and where it lies once it is whole."""

    shard: int
    counts: Counts
    folder: Path | None = None


class Workers:
    """Processes that compute; they begin at once, while the run still looks at its input and its model.

    Args:
        processes: how many.
    """

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit locks, and no threads to release them
        self._words: Queue[_Word] = context.Queue()
        self._ahead = AHEAD * processes
        self._pool = ProcessPoolExecutor(processes, context, _begin, (self._words,))
        others = set(multiprocessing.active_children())
        for _ in range(processes):
            self._pool.submit(_get_ready)  # which starts one
        self._children = set(multiprocessing.active_children()) - others

    def scored(self, task: "Task", runs: Iterable[list[Shard]], folder: Path) -> Generator[Done | Counts]:
        """Yield shards as their parts are there, in any order; and now and then what those hold that are under way.

        Args:
            task: what to do.
            runs: the pending shards; those of a run are done one behind the other.
            folder: for the parts.

        Raises:
            Refused: what was asked for cannot be done.
            Stopped: a worker has ended.
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
        """End them; what is under way is done again by a later run."""
        for process in self._children:
            process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def _scored(self, task: "Task", runs: Iterator[list[Shard]], folder: Path) -> Iterator[Done | Counts]:
        futures: set[Future[None]] = set()
        pending: dict[int, Shard] = {}
        held: dict[int, Counts] = {}
        while True:
            for run in itertools.islice(runs, self._ahead - len(futures)):
                futures.add(self._pool.submit(_score, task, folder, run))
                pending |= {shard.index: shard for shard in run}
            if not pending:
                return
            word = self._next_word(may_wait=bool(futures))
            if word is not None and word.folder is not None:
                publish(word.folder, folder, word.shard)
                held.pop(word.shard, None)
                yield pending.pop(word.shard), word.counts
            elif word is not None:
                held[word.shard] = word.counts
            yield sum(held.values(), Counts())
            for future in [future for future in futures if future.done()]:
                futures.remove(future)
                future.result()

    def _next_word(self, *, may_wait: bool) -> _Word | None:
        """Return what a worker says; None when it says nothing yet. Raises queue.Empty when nothing will come."""
        try:
            return self._words.get(timeout=SECONDS_BETWEEN_WORDS if may_wait else SECONDS_FOR_THE_LAST)
        except queue.Empty:
            if may_wait:
                return None
            raise


class _Process:
    """What lives in a worker's process, from its first run on."""

    def __init__(self, task: "Task", folder: Path) -> None:
        self._folder = (folder / f"{SCRATCH}{os.getpid()}").absolute()
        self._folder.mkdir()
        from attention_batch.engines.worker import Worker  # noqa: PLC0415 # needs the server's extra, and is slow to import

        self._worker, self._layout = Worker(task), task.layout
        self._next_word = 0.0

    def score(self, shard: Shard) -> None:
        with part(self._folder, shard.index, self._layout) as writer:
            self._worker.score(shard, writer, lambda counts: self._tell(shard, counts))
        _words.put(_Word(shard.index, writer.counts, self._folder))

    def _tell(self, shard: Shard, counts: Counts) -> None:
        if time.monotonic() >= self._next_word:
            _words.put(_Word(shard.index, counts))
            self._next_word = time.monotonic() + SECONDS_BETWEEN_WORDS


def _begin(words: "Queue[_Word]") -> None:
    """Begin a worker's process. Ctrl-C is for the run to hear, and when that is gone the worker goes too."""
    global _words  # noqa: PLW0603 # the pool gives its processes nowhere else to keep it
    _words = words
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_run, daemon=True).start()


def _score(task: "Task", folder: Path, run: list[Shard]) -> None:
    global _process  # noqa: PLW0603
    _process = _process or _Process(task, folder)
    for shard in run:
        _process.score(shard)


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
