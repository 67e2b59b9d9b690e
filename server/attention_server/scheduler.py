"""Who computes when: a fixed number of compute slots, and a bounded queue before them that is fair between callers.

Eager, without a timer: what comes while a slot is free runs at once, in the thread that brought it, so that an idle
server adds no hand-over to a request. What comes meanwhile queues, and threads of the slots take it in order. A job
that is alone may lend itself the slots that nobody else wants; see `Scheduler.spread`.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from attention_server.errors import DeadlineExceeded, Full, Stopping
from attention_server.fair_queue import FairQueue, QueueLimits, Waiting

S = TypeVar("S")
T = TypeVar("T")

LEAST_RETRY = 0.1  # seconds: a prediction may be wrong, and who comes back at once, in vain, only adds to the load


@dataclass(frozen=True, slots=True)
class Work(Generic[S, T]):
    """Something to compute.

    Attributes:
        subject: what it is about.
        run: computes the answers, or errors, of one or more subjects; what it raises is of all of them.
        deadline: on the clock; infinite when there is none.
        caller: whose it is; callers share the slots evenly.
        cost: the seconds that it will take in one slot, as predicted.
        size: the bytes that it holds while it waits, and that its answer will have.
        kind: works of one kind may run together; None runs alone.
        most: how many of its kind may run together.
    """

    subject: S
    run: Callable[[Sequence[S]], Sequence[T | Exception]]
    deadline: float = math.inf
    caller: str = ""
    cost: float = 0.0
    size: int = 0
    kind: Hashable | None = None
    most: int = 1


class _Job(Waiting, Generic[S, T]):
    """A work, and the future that holds what comes of it."""

    __slots__ = ("work",)

    def __init__(self, work: Work[S, T], *, bulk: bool) -> None:
        super().__init__(work.caller, work.cost, work.size, Future(), work.kind, work.most, bulk)
        self.work = work


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
        limits: what may wait.
        clock: for deadlines; `time.monotonic`.
    """

    def __init__(self, slots: int, limits: QueueLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._queue = FairQueue(limits, slots)
        self._max_queued = limits.count
        self._slots = slots
        self._free = slots
        self._ends: dict[object, float] = {}  # when what runs will have ended, as predicted
        self._errands: deque[_Errand] = deque()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, name=f"slot-{i}", daemon=True) for i in range(slots)]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Work[S, T], *, bulk: bool = False) -> "Future[T]":
        """Run a work now or soon. One that is cancelled or expires in the queue never runs.

        Args:
            work: the computation.
            bulk: one of many of a caller who sends on while it runs: it waits for room in the queue, and leaves this
                thread free to bring the next wherever other slots could take it meanwhile, or could run both together.

        Raises:
            Full: the queue is, or it is so long that the deadline would pass.
            Stopping: the scheduler is closed.
        """
        job = _Job(work, bulk=bulk)
        shed: list[Waiting] = []
        with self._changed:
            if self._closed:
                raise Stopping("the server is stopping")
            hands_over = bulk and (self._slots > 1 or work.most > 1)
            at_once = self._free > 0 and not self._queue and not hands_over  # nobody overtakes
            if at_once:
                self._queue.start(job)
                self._occupy(job, job.cost)
            else:
                shed = self._enqueue(job)
                retry_after = self._drained() if shed else 0.0
        if at_once:
            self._run([job])
            self._give_back(job)
        for each in shed:
            if each.future.set_running_or_notify_cancel():
                message = "the queue is full, and most of what waits in it is this caller's"
                each.future.set_exception(_full(message, retry_after))
        return job.future

    def state(self) -> SchedulerState:
        """Return how full it is at this moment."""
        with self._changed:
            return SchedulerState(self._slots, self._slots - self._free, self._max_queued, len(self._queue))

    @property
    def idle_slots(self) -> int:
        """How many slots nobody wants at this moment."""
        return 0 if self._queue else self._free

    def spread(self, each: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """Do something with each item, from within a job: in its own slot, and in others while nobody else wants them.

        Raises:
            Exception: what `each` raises, when all that had begun has ended.
        """
        results: list[Any] = [None] * len(items)
        left = deque(range(len(items)))

        def work(wanted: Callable[[], bool]) -> None:
            while left and wanted():
                try:
                    index = left.popleft()
                except IndexError:  # another was quicker
                    return
                results[index] = each(items[index])

        errands = self._lend(len(items) - 1, lambda: work(lambda: not self._queue))
        try:
            work(lambda: True)
        finally:
            left.clear()
            for errand in errands:
                if not errand.done.cancel():
                    errand.done.result()
        return results

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

    def _enqueue(self, job: _Job[Any, Any]) -> list[Waiting]:
        """Let a job in, with the lock; return those that have to make room for it, to be refused without the lock."""
        shed: list[Waiting] = []
        if job.bulk:
            self._wait_for_room(job)
        else:
            shed = self._make_room(job)
            self._check_deadline(job)
            self._queue.withdraw(shed)
        self._queue.push(job)
        if self._free:  # it was given back while its next job was on the way
            self._changed.notify()
        if job.bulk and self._queue.has_room(job, self._busy()):  # there may be room for another, too
            self._room.notify()
        return shed

    def _wait_for_room(self, job: _Job[Any, Any]) -> None:
        """Wait, with the lock, until the queue has room, the deadline passes or the scheduler closes."""
        timeout = None if job.work.deadline == math.inf else max(0.0, job.work.deadline - self._clock())
        self._room.wait_for(lambda: self._closed or self._queue.has_room(job, self._busy()), timeout)
        if self._closed:
            raise Stopping("the server is stopping")

    def _make_room(self, job: _Job[Any, Any]) -> list[Waiting]:
        """Return the jobs that have to make room for another: none, or those of callers who have more than their share.

        Raises:
            Full: there is no room.
        """
        busy = self._busy()
        if self._queue.has_room(job, busy):
            return []
        self._queue.withdraw_cancelled()
        if self._queue.has_room(job, busy):
            return []
        shed = self._queue.heavier(job, busy)
        if not shed:
            raise _full(f"the queue is full with {len(self._queue)} requests", self._drained())
        return shed

    def _check_deadline(self, job: _Job[Any, Any]) -> None:
        """Refuse what would be late.

        Raises:
            Full: the deadline would pass before the job's end, as predicted.
        """
        if job.work.deadline == math.inf:
            return
        needed = self._queue.wait(job, self._busy()) + job.cost
        left = job.work.deadline - self._clock()
        if 0 < left < needed:
            raise _full(
                f"the answer is expected in {needed:.3g} s, after the deadline, which is in {left:.3g} s",
                self._drained(),
            )

    def _busy(self) -> float:
        """Return the predicted seconds that what runs will still take, all slots together."""
        now = self._clock()
        return sum(max(0.0, end - now) for end in self._ends.values())

    def _drained(self) -> float:
        """Return the seconds until nothing waits any more, as predicted, if nothing else came."""
        return (self._busy() + self._queue.seconds) / self._slots

    def _occupy(self, holder: object, cost: float) -> None:
        self._free -= 1
        self._ends[holder] = self._clock() + cost

    def _give_back(self, holder: object) -> None:
        with self._changed:
            self._free += 1
            del self._ends[holder]
            if self._closed:
                self._changed.notify_all()
            elif self._queue:  # to wake a thread for nothing costs the next request its turn at the interpreter
                self._changed.notify()
            elif self._free == self._slots:
                self._queue.rest()

    def _lend(self, most: int, work: Callable[[], None]) -> "list[_Errand]":
        """Give a running job the slots that nobody wants; each is given back when the errand in it ends."""
        with self._changed:
            idle = 0 if self._closed else self.idle_slots  # then its thread may have ended
            errands = [_Errand(work, Future()) for _ in range(min(most, idle))]
            for errand in errands:
                self._occupy(errand, 0.0)
            self._errands += errands
            self._changed.notify(len(errands))
        return errands

    def _serve(self) -> None:
        """Take errands, and jobs from the queue while there is a slot for them; one slot's thread."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._errands or (self._queue and self._free) or (self._closed and not self._queue)
                )
                if self._errands:
                    errand, jobs = self._errands.popleft(), []
                elif self._queue:
                    errand, jobs = None, self._take()
                else:
                    return
            holder = errand or jobs[0]
            if errand:
                errand.run()
            else:
                self._run(jobs)
            jobs = []  # while this thread waits for the next, nothing of the last ones is kept
            self._give_back(holder)
            del errand, holder

    def _take(self) -> list[_Job[Any, Any]]:
        """Take what is next, with the lock."""
        jobs: list[_Job[Any, Any]] = self._queue.pop(self._free - 1)  # type: ignore[assignment] # it holds no others
        self._occupy(jobs[0], sum(job.cost for job in jobs))
        self._room.notify()
        return jobs

    def _run(self, jobs: list[_Job[Any, Any]]) -> None:
        begun = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        now = self._clock()
        for job in begun:
            if now >= job.work.deadline:
                job.future.set_exception(DeadlineExceeded("the deadline passed before the request could run"))
        wanted = [job for job in begun if now < job.work.deadline]
        if not wanted:
            return
        try:
            answers = wanted[0].work.run([job.work.subject for job in wanted])
        except BaseException as error:  # noqa: BLE001 # it belongs to whoever waits for the future
            answers = [error] * len(wanted)
        for job, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, BaseException):
                job.future.set_exception(answer)
            else:
                job.future.set_result(answer)


@dataclass(frozen=True, slots=True, eq=False)
class _Errand:
    """A part of a running job, in a slot that it was lent."""

    work: Callable[[], None]
    done: "Future[None]"

    def run(self) -> None:
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001 # it belongs to the job
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


def _full(message: str, retry_after: float) -> Full:
    error = Full(message)
    error.retry_after = max(LEAST_RETRY, retry_after)
    return error
