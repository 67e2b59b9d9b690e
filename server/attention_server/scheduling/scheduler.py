"""A scheduler with a fixed number of compute slots, and a bounded, fair queue before them.

The scheduler is eager and has no timer: a job that arrives while a slot is free begins at once; jobs that arrive
meanwhile queue. Short jobs run in an event loop's thread while nothing else computes (see `loop_turns`), all others in
the slots' threads. A job may lend itself idle slots; see `Scheduler.map`.
"""

import asyncio
import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from attention_server.errors import Full, Stopping
from attention_server.scheduling.admission import AdmissionController, queue_full
from attention_server.scheduling.execution import Batch, LentSlotTask, cost_of, refuse, run_batches
from attention_server.scheduling.fair_queue import FairQueue, QueueLimits
from attention_server.scheduling.future import Future
from attention_server.scheduling.job import Job, QueueEntry
from attention_server.scheduling.loop_turns import SHORT_SECONDS, TURN_SECONDS, LoopTurns
from attention_server.scheduling.slots import Slots

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """The load of a scheduler.

    Attributes:
        slots: number of slots.
        running: slots that compute.
        max_queued: jobs that may be queued.
        queued: jobs in the queue.
    """

    slots: int
    running: int
    max_queued: int
    queued: int


class Scheduler:
    """Runs jobs in a fixed number of slots.

    Args:
        slots: number of jobs that run at the same time.
        limits: limits of the queue.
        clock: clock of the deadlines, in seconds.

    Attributes:
        admission: admission control under sustained overload.
    """

    def __init__(self, slots: int, limits: QueueLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.admission = AdmissionController(slots, limits.seconds, clock)
        self._max_queued = limits.count
        self._clock = clock
        self._lock = threading.Lock()
        self._drained = threading.Condition(self._lock)
        self._queue = FairQueue(limits, slots)
        self._lobby: deque[tuple[QueueEntry, Callable[[], None]]] = deque()  # bulk entries that wait for room
        self._turns = LoopTurns(self._serve_turn)
        self._slots = Slots(slots, clock, self._lock)
        self._is_closed = False

    def submit(self, job: Job[S, T], admitted: Callable[[], None] | None = None) -> "Future[T]":
        """Queue a job; return the future of its answer. A job that is cancelled or expires in the queue never runs.

        Args:
            job: the job.
            admitted: marks the job as bulk: one of many of a caller that submits the next after this call. A bulk job
                waits for room in the queue instead of being refused. `admitted` is called when the job is in the
                queue, perhaps in another thread.

        Raises:
            Full: the queue is full, or so long that the deadline would pass.
            Stopping: the scheduler is closed.
        """
        entry = QueueEntry(job, is_bulk=admitted is not None)
        shed: list[tuple[QueueEntry, Full]] = []
        with self._lock:
            if self._is_closed:
                raise Stopping("the server is stopping")
            self._queue.price(entry)
            if admitted is not None:
                self._lobby.append((entry, admitted))
            elif self._slots.free and not self._queue:
                self._queue.push(entry)
            else:
                shed = self._enqueue(entry)
            self._dispatch()
        refuse(shed)
        return entry.future

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Compute short jobs in the thread of an event loop; with several slots, only while all are idle.

        Args:
            loop: the running loop of this thread.
        """
        with self._lock:
            self._turns.attach(loop)

    def state(self) -> SchedulerState:
        """Return the current load."""
        with self._lock:
            slots = self._slots
            return SchedulerState(slots.count, slots.count - slots.free, self._max_queued, len(self._queue))

    @property
    def idle_slots(self) -> int:
        """Number of slots for which no job waits."""
        return 0 if self._queue else self._slots.free

    def map(self, function: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """Apply a function to each item from within a job: in the job's slot, and in slots that stay idle meanwhile.

        Returns:
            The results, in the order of the items.

        Raises:
            Exception: the function's, after every call that has begun has ended.
        """
        results: list[Any] = [None] * len(items)
        left = deque(range(len(items)))

        def work(may_continue: Callable[[], bool]) -> None:
            while left and may_continue():
                try:
                    index = left.popleft()
                except IndexError:  # another thread was faster
                    return
                results[index] = function(items[index])

        tasks = self._lend(len(items) - 1, lambda: work(lambda: not self._queue))
        try:
            work(lambda: True)
        finally:
            left.clear()
            begun = [task.done for task in tasks if not task.done.cancel()]
            errors = [error for done in begun if (error := done.exception()) is not None]  # waits for each
        if errors:
            raise errors[0]
        return results

    def close(self, grace: float | None = None) -> bool:
        """Refuse new jobs, finish accepted ones, and end the slots' threads.

        Args:
            grace: seconds to wait for the jobs; None for as long as it takes.

        Returns:
            Whether all jobs have finished.
        """
        with self._lock:
            self._is_closed = True
            self._turns.detach()
            lobby, self._lobby = self._lobby, deque()
            self._dispatch()
        for entry, admitted in lobby:
            refuse([(entry, Stopping("the server is stopping"))])
            admitted()
        with self._lock:
            finished = self._drained.wait_for(lambda: not self._queue and self._slots.is_idle, grace)
            if finished:
                self._slots.stop()
        if finished:
            self._slots.join()
        return finished

    # --- The methods below are called with the lock held, unless a docstring says otherwise. ---

    def _enqueue(self, entry: QueueEntry) -> list[tuple[QueueEntry, Full]]:
        """Queue an entry; return the entries shed for it, with a refusal each, to be settled without the lock.

        Raises:
            Full: there is no room, or the deadline would pass.
        """
        busy = self._slots.busy_seconds()
        shed = self._make_room(entry, busy)
        self._check_deadline(entry, busy)
        self._queue.withdraw(shed)
        self._queue.push(entry)
        message = "the queue is full, and most of what waits in it is this caller's"
        return [(each, queue_full(message, self._drain_seconds())) for each in shed]

    def _make_room(self, entry: QueueEntry, busy: float) -> list[QueueEntry]:
        """Return the entries to shed for a new one: none, or entries of callers over a fair share.

        Raises:
            Full: there is no room.
        """
        bound = self.admission.bound
        if bound < math.inf and self._queue.is_saturated(entry, busy, bound):
            self.admission.trip()
            raise queue_full("the queue is full: more was asked for than could be computed", self._drain_seconds())
        if self._queue.has_room(entry, busy):
            return []
        self._queue.withdraw_cancelled()
        if self._queue.has_room(entry, busy):
            return []
        self.admission.trip()
        shed = self._queue.sheddable(entry, busy)
        if not shed:
            raise queue_full(f"the queue is full with {len(self._queue)} requests", self._drain_seconds())
        return shed

    def _check_deadline(self, entry: QueueEntry, busy: float) -> None:
        """Check that an entry is predicted to end before its deadline.

        Raises:
            Full: its predicted end is after the deadline.
        """
        if entry.job.deadline == math.inf:
            return
        left = entry.job.deadline - self._clock()
        if left >= (busy + self._queue.seconds) / self._slots.count + entry.cost:  # even as the last entry
            return
        needed = self._queue.wait(entry, busy) + entry.cost
        if 0 < left < needed:
            raise queue_full(
                f"the answer is expected in {needed:.3g} s, after the deadline, which is in {left:.3g} s",
                self._drain_seconds(),
            )

    def _drain_seconds(self) -> float:
        """Return the predicted seconds until the queue is empty, without new arrivals."""
        return (self._slots.busy_seconds() + self._queue.seconds) / self._slots.count

    def _admit(self) -> None:
        """Move bulk entries from the lobby into the queue as far as there is room."""
        while self._lobby:
            entry, admitted = self._lobby[0]
            self._queue.price(entry)
            if not (entry.future.cancelled() or self._queue.has_room(entry, self._slots.busy_seconds())):
                return
            self._lobby.popleft()
            if not entry.future.cancelled():
                self._queue.push(entry)
            admitted()

    def _dispatch(self) -> None:
        """Admit bulk entries, and give free slots to the next entries."""
        while True:
            self._admit()
            if not (self._slots.free and self._queue):
                return
            if not self._queue.drop_cancelled_first():  # room for the lobby
                continue
            if self._is_for_loop():
                self._turns.request()
                return
            batch = self._next_batch()
            self._queue.take(batch)
            self._start(batch)

    def _next_batch(self) -> Batch:
        return self._queue.next_batch(self._slots.free - 1, self._clock())

    def _start(self, batch: Batch) -> None:
        """Start a batch in one of the slots' threads."""
        self._slots.occupy(batch[0], cost_of(batch))
        self._slots.start(functools.partial(self._serve_batch, batch))

    def _serve_batch(self, batch: Batch) -> None:
        """Compute a batch in a slot's thread, without the lock."""
        try:
            run_batches([batch], self._clock)
        finally:
            self._release(batch[0])

    def _release(self, holder: object) -> None:
        """Release a slot and dispatch; acquires the lock."""
        with self._lock:
            self._slots.release(holder)
            self._dispatch()
            if self._slots.is_idle and not self._queue:
                self._queue.reset()
                self._drained.notify_all()

    def _is_for_loop(self) -> bool:
        """Return whether the next entry is to run in the event loop."""
        return self._turns.is_attached and self._slots.is_idle and self._queue.first.job.cost <= SHORT_SECONDS

    def _serve_turn(self) -> None:
        """Compute the next entries in the event loop's thread, in one slot, without the lock."""
        batches = self._take_turn()
        if batches:
            try:
                run_batches(batches, self._clock)
            finally:
                self._release(batches[0][0])

    def _take_turn(self) -> list[Batch]:
        """Remove the batches of one turn of the event loop, and occupy one slot for all of them; acquires the lock."""
        batches: list[Batch] = []
        bound = left = TURN_SECONDS if self.admission.bound == math.inf else SHORT_SECONDS
        with self._lock:
            self._turns.begin()
            while self._queue.drop_cancelled_first() and self._is_for_loop() and self._queue.first.job.cost <= left:
                batch = self._next_batch()
                cost = cost_of(batch)
                is_long = cost > left
                if is_long and batches:
                    break  # the next turn
                self._queue.take(batch)
                self._admit()
                # A pass of many is too long for the loop; and where further slots compute anyway, it serves callers.
                if is_long or (self._queue and self._slots.count > 1):
                    self._start(batch)
                    break
                batches.append(batch)
                left -= cost
            if batches:
                self._slots.occupy(batches[0][0], bound - left)
            self._dispatch()
        return batches

    def _lend(self, count: int, work: Callable[[], None]) -> list[LentSlotTask]:
        """Start a function in as many idle slots, at most `count`; acquires the lock. Each task releases its slot."""
        with self._lock:
            idle = 0 if self._is_closed else self.idle_slots
            tasks = [LentSlotTask(work) for _ in range(min(count, idle))]
            for task in tasks:
                self._slots.occupy(task, 0.0)
                self._slots.start(functools.partial(self._serve_lent, task))
        return tasks

    def _serve_lent(self, task: LentSlotTask) -> None:
        """Run a task in a lent slot, in the slot's thread, without the lock."""
        task.run()
        self._release(task)
