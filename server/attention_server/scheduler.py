"""Who computes when: a fixed number of compute slots, and a bounded queue before them that is fair between callers.

Eager, without a timer: what comes while a slot is free runs at once; what comes meanwhile queues. A request runs in the
thread that brought it, also when it had to wait: the slot goes from thread to thread, and nobody is woken to take an
answer from another's hands. Only what nobody waits for, as on a stream, runs in threads of the slots' own. A job that
is alone may lend itself the slots that nobody else wants; see `Scheduler.spread`.
"""

import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from attention_server.errors import DeadlineExceeded, Full, Stopping
from attention_server.fair_queue import FairQueue, QueueLimits, Waiting
from attention_server.overload import Overload, full

S = TypeVar("S")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
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
    """A work that waits, and the future that holds what comes of it.

    Attributes:
        turn: where the thread that brought it waits for the slot, and for what is to run in it; None where no thread
            does.
    """

    __slots__ = ("turn", "work")

    def __init__(self, work: Work[S, T], *, bulk: bool) -> None:
        super().__init__(work.caller, work.cost, work.size, Future(), work.kind, work.most, bulk)
        self.work = work
        self.turn: SimpleQueue[list[_Job[Any, Any]]] | None = None if bulk else SimpleQueue()


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

    Attributes:
        overload: what is let in while more comes than can be done.
    """

    def __init__(self, slots: int, limits: QueueLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._queue = FairQueue(limits, slots)
        self.overload = Overload(slots, limits.seconds, clock)
        self._max_queued = limits.count
        self._slots = slots
        self._free = slots
        self._ends: dict[object, float] = {}  # when what runs will have ended, as predicted
        self._ready: deque[Callable[[], None]] = deque()  # each has its slot, and waits for a thread
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, name=f"slot-{i}", daemon=True) for i in range(slots)]
        for thread in self._threads:
            thread.start()

    def run(self, work: Work[S, T], waiting: "Callable[[Future[T]], None]" = lambda _: None) -> T:
        """Run a work in this thread, now or when it is its turn. One that expires in the queue never runs.

        Args:
            work: the computation.
            waiting: called where it has to wait, with what gives it up when it is cancelled.

        Raises:
            Full: the queue is, or it is so long that the deadline would pass.
            Stopping: the scheduler is closed.
            DeadlineExceeded: the deadline passed.
            CancelledError: it was given up.
            Exception: what the work raises, or answers.
        """
        with self._lock:
            self._check_open()
            slot = self._slot_at_once(work)
            if slot is None:
                job: _Job[S, T] = _Job(work, bulk=False)
                shed = self._enqueue(job)
        if slot is not None:
            try:
                return self._answer(work)
            finally:
                self._give_back(slot)
        _refuse(shed)
        waiting(job.future)
        jobs = self._wait_for_turn(job)
        if jobs:
            self._run(jobs)
            self._give_back(jobs[0])
        # Runs that others share go on without it; and with the time the caller goes too.
        if not job.future.done() or (job.future.cancelled() and self._clock() >= work.deadline):
            raise DeadlineExceeded("the deadline passed while the request waited or ran")
        answer: T = job.future.result()
        return answer

    def submit(self, work: Work[S, T]) -> "Future[T]":
        """Run a work that is one of many of a caller who sends on meanwhile, and whose thread does not wait for it.

        It waits for room in the queue; then this thread is free to bring the next, wherever other slots could take this
        one meanwhile or could run both together. One that is cancelled or expires in the queue never runs.

        Args:
            work: the computation.

        Raises:
            Stopping: the scheduler is closed.
        """
        job = _Job(work, bulk=True)
        hands_over = self._slots > 1 or work.most > 1
        with self._lock:
            self._check_open()
            slot = None if hands_over else self._slot_at_once(work)
            if slot is None:
                self._wait_for_room(job)
                self._queue.push(job)
                self._hand_out()
                if self._queue.has_room(job, self._busy()):  # there may be room for another, too
                    self._room.notify()
        if slot is not None:
            self._run([job])
            self._give_back(slot)
        return job.future

    def state(self) -> SchedulerState:
        """Return how full it is at this moment."""
        with self._lock:
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

    def _check_open(self) -> None:
        if self._closed:
            raise Stopping("the server is stopping")

    def _slot_at_once(self, work: Work[Any, Any]) -> object | None:
        """Take a slot, with the lock, where one is free for what comes now; nobody overtakes the queue."""
        if not self._free or self._queue:
            return None
        self._queue.start(work.caller, work.cost)
        slot = object()
        self._occupy(slot, work.cost)
        return slot

    def _enqueue(self, job: _Job[Any, Any]) -> "list[tuple[Waiting, Full]]":
        """Let a job in, with the lock; return those that have to make room for it, to be refused without the lock.

        Raises:
            Full: there is no room, or the job would be late.
        """
        shed = self._make_room(job)
        self._check_deadline(job)
        self._queue.withdraw(shed)
        self._queue.push(job)
        message = "the queue is full, and most of what waits in it is this caller's"
        return [(each, full(message, self._drained())) for each in shed]

    def _wait_for_turn(self, job: _Job[Any, Any]) -> list[_Job[Any, Any]]:
        """Wait for the slot; return what is to run in it. Nothing, when another has answered it or nobody will."""
        assert job.turn is not None
        turn, deadline = job.turn, job.work.deadline
        job.future.add_done_callback(lambda _: turn.put([]))
        with suppress(Empty):
            jobs = turn.get(timeout=None if deadline == math.inf else max(0.0, deadline - self._clock()))
            if jobs or not job.future.cancelled():
                return jobs
        with self._lock:  # it may have been given the slot at the same moment: then others may count on it
            with suppress(Empty):
                while not (jobs := turn.get_nowait()):
                    pass
                return jobs
            job.future.cancel()  # no effect where it is done, or runs beside another
            return []

    def _wait_for_room(self, job: _Job[Any, Any]) -> None:
        """Wait, with the lock, until the queue has room, the deadline passes or the scheduler closes."""
        timeout = None if job.work.deadline == math.inf else max(0.0, job.work.deadline - self._clock())
        self._room.wait_for(lambda: self._closed or self._queue.has_room(job, self._busy()), timeout)
        self._check_open()

    def _make_room(self, job: _Job[Any, Any]) -> list[Waiting]:
        """Return the jobs that have to make room for another: none, or those of callers who have more than their share.

        Raises:
            Full: there is no room.
        """
        busy = self._busy()
        bound = self.overload.bound
        if bound < math.inf and self._queue.is_enough(job, busy, bound):
            self.overload.grow()
            raise full("the queue is full: more was asked for than could be computed", self._drained())
        if self._queue.has_room(job, busy):
            return []
        self._queue.withdraw_cancelled()
        if self._queue.has_room(job, busy):
            return []
        self.overload.grow()
        shed = self._queue.heavier(job, busy)
        if not shed:
            raise full(f"the queue is full with {len(self._queue)} requests", self._drained())
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
            raise full(
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
        with self._lock:
            self._free += 1
            del self._ends[holder]
            self._hand_out()
            if self._closed:
                self._changed.notify_all()
            elif self._free == self._slots:
                self._queue.rest()

    def _hand_out(self) -> None:
        """Give free slots to what is next, with the lock."""
        while self._free and self._queue:
            jobs: list[_Job[Any, Any]] = self._queue.pop(self._free - 1)  # type: ignore[assignment] # it holds no others
            if not jobs:  # nobody wanted them any more
                return
            self._occupy(jobs[0], sum(job.cost for job in jobs))
            self._room.notify()
            if jobs[0].turn is None:
                self._put(functools.partial(self._serve_jobs, jobs))
            else:
                jobs[0].turn.put(jobs)

    def _lend(self, most: int, work: Callable[[], None]) -> "list[_Errand]":
        """Give a running job the slots that nobody wants; each is given back when the errand in it ends."""
        with self._lock:
            idle = 0 if self._closed else self.idle_slots  # then its thread may have ended
            errands = [_Errand(work, Future()) for _ in range(min(most, idle))]
            for errand in errands:
                self._occupy(errand, 0.0)
                self._put(functools.partial(self._serve_errand, errand))
        return errands

    def _put(self, task: Callable[[], None]) -> None:
        """Give a task that has its slot to a thread of the slots, with the lock."""
        self._ready.append(task)
        self._changed.notify()

    def _serve(self) -> None:
        """Do what is ready; one slot's thread."""
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._ready or (self._closed and not self._queue))
                if not self._ready:
                    return
                task = self._ready.popleft()
            task()
            del task  # while this thread waits for the next, nothing of the last one is kept

    def _serve_jobs(self, jobs: list[_Job[Any, Any]]) -> None:
        self._run(jobs)
        self._give_back(jobs[0])

    def _serve_errand(self, errand: "_Errand") -> None:
        errand.run()
        self._give_back(errand)

    def _answer(self, work: Work[S, T]) -> T:
        """Run one work whose turn it is."""
        if self._clock() >= work.deadline:
            raise DeadlineExceeded("the deadline passed before the request could run")
        (answer,) = work.run([work.subject])
        if isinstance(answer, BaseException):
            raise answer
        return answer

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


def _refuse(shed: "list[tuple[Waiting, Full]]") -> None:
    for job, error in shed:
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)
