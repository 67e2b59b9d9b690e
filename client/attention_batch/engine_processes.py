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
from typing import NamedTuple

from attention_batch.errors import ExitStatus, Stopped
from attention_batch.sink import Counts, part, publish
from attention_batch.source import Shard
from attention_batch.worker import Task, Worker

AHEAD = 2  # runs handed out for each worker
SECONDS_BETWEEN_WORDS = 0.25  # of a worker on how far it is
SCRATCH = "worker-"

Done = tuple[Shard, Counts]

_process: "_Process"  # in a worker's process, its own


class _Word(NamedTuple):
    """What a worker says of a shard: what its part holds, and where it lies once it is whole."""

    shard: int
    counts: Counts
    folder: Path | None = None


class _Process:
    """What lives in a worker's process."""

    def __init__(self, task: Task, folder: Path, words: "Queue[_Word]") -> None:
        self._folder = (folder / f"{SCRATCH}{os.getpid()}").absolute()
        self._folder.mkdir()
        self._worker, self._layout, self._words = Worker(task), task.layout, words
        self._next_word = 0.0

    def score(self, shard: Shard) -> None:
        with part(self._folder, shard.index, self._layout) as writer:
            self._worker.score(shard, writer, lambda counts: self._tell(shard, counts))
        self._words.put(_Word(shard.index, writer.counts, self._folder))

    def _tell(self, shard: Shard, counts: Counts) -> None:
        if time.monotonic() >= self._next_word:
            self._words.put(_Word(shard.index, counts))
            self._next_word = time.monotonic() + SECONDS_BETWEEN_WORDS


def scored(
    task: Task, runs: Iterable[list[Shard]], folder: Path, processes: int
) -> Generator[Done | Counts, None, None]:
    """Yield shards as their parts are there, in any order; and now and then what those hold that are under way.

    Args:
        task: what to do.
        runs: the pending shards; those of a run are done one behind the other.
        folder: for the parts.
        processes: how many workers.

    Raises:
        Refused: what was asked for cannot be done.
        Stopped: a worker has ended.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks, and no threads to release them
    words: Queue[_Word] = context.Queue()
    _tidy(folder)
    pool = ProcessPoolExecutor(processes, context, _begin, (task, folder, words))
    try:
        yield from _scored(pool, iter(runs), folder, words, AHEAD * processes)
    except BrokenProcessPool as error:
        raise Stopped("a worker has ended, perhaps for want of memory; the same command goes on") from error
    finally:
        for process in multiprocessing.active_children():
            process.terminate()  # what is under way is done again
        pool.shutdown(cancel_futures=True)
        _tidy(folder)


def _scored(
    pool: ProcessPoolExecutor, runs: Iterator[list[Shard]], folder: Path, words: "Queue[_Word]", ahead: int
) -> Iterator[Done | Counts]:
    futures: set[Future[None]] = set()
    pending: dict[int, Shard] = {}
    held: dict[int, Counts] = {}
    while True:
        for run in itertools.islice(runs, ahead - len(futures)):
            futures.add(pool.submit(_score, run))
            pending |= {shard.index: shard for shard in run}
        if not pending:
            return
        try:
            word = words.get(timeout=SECONDS_BETWEEN_WORDS)
        except queue.Empty:
            word = None
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


def _begin(task: Task, folder: Path, words: "Queue[_Word]") -> None:
    """Begin a worker's process. Ctrl-C is for the run to hear, and when that is gone the worker goes too."""
    global _process  # noqa: PLW0603 # the pool gives its processes nowhere else to keep it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_run, daemon=True).start()
    _process = _Process(task, folder, words)


def _score(run: list[Shard]) -> None:
    for shard in run:
        _process.score(shard)


def _end_with_run() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    wait([run.sentinel])
    os._exit(ExitStatus.STOPPED)


def _tidy(folder: Path) -> None:
    for scratch in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(scratch, ignore_errors=True)
