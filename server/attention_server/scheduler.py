"""Who computes when: a fixed number of compute slots, and a bounded queue before them.

Eager, without a timer: what comes while a slot is free runs at once, in the thread that brought it, so that an idle
server adds no hand-over to a request. What comes meanwhile queues, and threads of the slots take it in order.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from attention_server.errors import DeadlineExceeded, Full, Stopping

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """Something to compute, until when, and the future that holds what comes of it."""

    run: Callable[[], T]
    deadline: float
    future: "Future[T]"


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """How full a scheduler is: slots, those that compute, places in the queue, jobs in it."""

    slots: int
    running: int
    max_queued: int
    queued: int


class Scheduler:
    """Runs jobs in a number of slots.

    Args:
        slots: how many jobs run at once.
        max_queued: how many may wait.
        clock: for deadlines; `time.monotonic`.
    """

    def __init__(self, slots: int, max_queued: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_queued = max_queued
        self._clock = clock
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._queue: deque[Job[object]] = deque()
        self._slots = slots
        self._free = slots
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, name=f"slot-{i}", daemon=True) for i in range(slots)]
        for thread in self._threads:
            thread.start()

    def submit(self, run: Callable[[], T], deadline: float, *, bulk: bool = False) -> "Future[T]":
        """Run a job now or soon. A job that is cancelled or expires in the queue never runs.

        Args:
            run: the computation.
            deadline: on the clock; infinite when there is none.
            bulk: one of many of a caller who sends on while it runs: it waits for room in the queue, and leaves this
                thread free to bring the next wherever other slots could take it meanwhile.

        Raises:
            Full: the queue is.
            Stopping: the scheduler is closed.
        """
        job = Job(run, deadline, Future())
        with self._changed:
            if self._closed:
                raise Stopping("the server is stopping")
            at_once = self._free > 0 and not self._queue and not (bulk and self._slots > 1)  # nobody overtakes
            if bulk and not at_once:
                self._wait_for_room(deadline)
            if not at_once and len(self._queue) >= self._max_queued:
                self._queue = deque(waiting for waiting in self._queue if not waiting.future.cancelled())
            if at_once:
                self._free -= 1
            elif len(self._queue) >= self._max_queued:
                raise Full(f"the queue is full with {self._max_queued} requests")
            else:
                self._queue.append(job)  # type: ignore[arg-type] # a queue holds jobs of all types
                if self._free:  # it was given back while its next job was on the way
                    self._changed.notify()
        if at_once:
            self._run(job)
            self._give_back()
        return job.future

    def state(self) -> SchedulerState:
        """Return how full it is at this moment."""
        with self._changed:
            return SchedulerState(self._slots, self._slots - self._free, self._max_queued, len(self._queue))

    def close(self, grace: float | None = None) -> bool:
        """Take no more jobs, finish those taken, and end the slots' threads.

        Args:
            grace: seconds to wait for them; None for as long as it takes.

        Returns:
            Whether all are finished.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._room.notify_all()
            finished = self._changed.wait_for(lambda: not self._queue and self._free == self._slots, grace)
        for thread in self._threads if finished else ():
            thread.join()
        return finished

    def _wait_for_room(self, deadline: float) -> None:
        """Wait, with the lock, until the queue has room, the deadline passes or the scheduler closes."""
        timeout = None if deadline == math.inf else max(0.0, deadline - self._clock())
        self._room.wait_for(lambda: self._closed or len(self._queue) < self._max_queued, timeout)
        if self._closed:
            raise Stopping("the server is stopping")

    def _give_back(self) -> None:
        with self._changed:
            self._free += 1
            if self._closed:
                self._changed.notify_all()
            elif self._queue:  # to wake a thread for nothing costs the next request its turn at the interpreter
                self._changed.notify()

    def _serve(self) -> None:
        """Take jobs from the queue while there is a slot for them; one slot's thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: (self._queue and self._free) or (self._closed and not self._queue))
                if not self._queue:
                    return
                self._free -= 1
                job = self._queue.popleft()
                self._room.notify()
            self._run(job)
            del job  # while this thread waits for the next, nothing of the last one is kept
            self._give_back()

    def _run(self, job: Job[T]) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        if self._clock() >= job.deadline:
            job.future.set_exception(DeadlineExceeded("the deadline passed before the request could run"))
            return
        try:
            job.future.set_result(job.run())
        except BaseException as error:  # noqa: BLE001 # it belongs to whoever waits for the future
            job.future.set_exception(error)
