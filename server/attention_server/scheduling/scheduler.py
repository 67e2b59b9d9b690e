"""Who computes when: a fixed number of compute slots, and a bounded queue before them that is fair between callers.

Eager, without a timer: what comes while a slot is free runs at once; what comes meanwhile queues. Nobody is woken to
take an answer from another's hands, where that can be spared: what a thread brings and waits for runs in that thread,
also when it had to wait; what a loop brings runs in the loop's own thread when it is short and nothing else computes
(`Scheduler.attach`), else in threads of the slots' own. A job that is alone may lend itself the slots that nobody else
wants; see `Scheduler.spread`.
"""

import asyncio
import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from attention_server.errors import DeadlineExceeded, Full, Stopping, Unavailable
from attention_server.scheduling.admission import AdmissionController, full
from attention_server.scheduling.fair_queue import FairQueue, QueueLimits, Waiting
from attention_server.scheduling.future import Future

S = TypeVar("S")
T = TypeVar("T")

# Seconds, as predicted: a job that a loop may compute, and all of one turn, in which it does nothing else. To read,
# plan and write for many at once takes less than half of what it takes between two computations, which leave nothing of
# it in the processor's caches.
SHORT = 0.004
TURN = 0.010


@dataclass(slots=True, eq=False)
class Job(Generic[S, T]):
    """Something to compute.

    Attributes:
        subject: what it is about.
        run: computes one or more subjects, and returns what gives their answers, or errors; what one of the two raises
            is of all of them.
        deadline: on the clock; infinite when there is none.
        caller: whose it is; callers share the slots evenly.
        cost: the seconds that it will take in one slot, as predicted.
        size: the bytes that it holds while it waits, and that its answer will have.
        kind: works of one kind may run together; None runs alone.
        most: how many sequences may run together of its kind.
        count: how many it has.
    """

    payload: S
    run: Callable[[Sequence[S]], Callable[[], Sequence[T | Exception]]]
    deadline: float = math.inf
    caller: str = ""
    cost: float = 0.0
    size: int = 0
    batch_key: Hashable | None = None
    max_batch: int = 1
    count: int = 1


class QueueEntry(Waiting, Generic[S, T]):
    """A work that waits, and the future that holds what comes of it.

    Attributes:
        handed: where the thread that brought it is handed the slot, with what is to run in it; None where no thread
            waits.
    """

    __slots__ = ("handed", "work")

    def __init__(self, work: Job[S, T], *, waits: bool = False, bulk: bool = False) -> None:
        super().__init__(work.caller, work.cost, work.size, Future(), work.batch_key, work.max_batch, work.count, bulk)
        self.work = work
        self.handed: SimpleQueue[list[QueueEntry[Any, Any]]] | None = SimpleQueue() if waits else None


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
        self._lobby: deque[tuple[QueueEntry[Any, Any], Callable[[], None]]] = deque()  # they wait to be let in
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._loop_comes = False  # to take a job
        self._queue = FairQueue(limits, slots)
        self.admission = AdmissionController(slots, limits.seconds, clock)
        self._max_queued = limits.count
        self._slots = slots
        self._free = slots
        self._ends: dict[object, float] = {}  # when what runs will have ended, as predicted
        self._ready: deque[Callable[[], None]] = deque()  # each has its slot, and waits for a thread
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, name=f"slot-{i}", daemon=True) for i in range(slots)]
        for thread in self._threads:
            thread.start()

    def run(self, work: Job[S, T], waiting: "Callable[[Future[T]], None]" = lambda _: None) -> T:
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
                job: QueueEntry[S, T] = QueueEntry(work, waits=True)
                shed = self._enqueue(job)
        if slot is not None:
            try:
                return self._answer(work)
            finally:
                self._give_back(slot)
        _refuse(shed)
        waiting(job.future)
        jobs = self._wait_for_slot(job)
        if jobs:
            self._run([jobs])
            self._give_back(jobs[0])
        # Runs that others share go on without it; and with the time the caller goes too.
        if not job.future.done() or (job.future.cancelled() and self._clock() >= work.deadline):
            raise DeadlineExceeded("the deadline passed while the request waited or ran")
        answer: T = job.future.result()
        return answer

    def submit(self, work: Job[S, T], admitted: Callable[[], None] | None = None) -> "Future[T]":
        """Run a work while this thread goes on. One that is cancelled or expires in the queue never runs.

        Args:
            work: the computation.
            admitted: called when it is let into the queue, perhaps by another thread, where it can wait for that: such
                a work is one of many of a caller who sends no more meanwhile, and is refused nothing. Without, it is
                let in now or refused.

        Raises:
            Full: as `run`.
            Stopping: the scheduler is closed.
        """
        job = QueueEntry(work, bulk=admitted is not None)
        shed: list[tuple[Waiting, Full]] = []
        with self._lock:
            self._check_open()
            if admitted is not None:
                self._lobby.append((job, admitted))
            elif self._free and not self._queue:
                self._queue.push(job)
            else:
                shed = self._enqueue(job)
            self._hand_out()
        _refuse(shed)
        return job.future

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have a loop compute, in its own thread, what is short and waited for by no thread.

        A hand-over to another thread and back takes longer than such a job. But a loop that computes answers nobody
        else: so it computes for a short time in each turn, for a shorter one while there is somebody to refuse, and
        where there are several slots only while nothing else computes.

        Args:
            loop: the running one, of this thread.
        """
        self._loop, self._loop_thread = loop, threading.get_ident()

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
            self._loop = None  # it may have ended
            lobby, self._lobby = self._lobby, deque()
            self._hand_out()
            self._changed.notify_all()
        for job, admitted in lobby:
            _refuse([(job, Stopping("the server is stopping"))])
            admitted()
        with self._changed:
            finished = self._changed.wait_for(lambda: not self._queue and self._free == self._slots, grace)
        for thread in self._threads if finished else ():
            thread.join()
        return finished

    def _check_open(self) -> None:
        if self._closed:
            raise Stopping("the server is stopping")

    def _slot_at_once(self, work: Job[Any, Any]) -> object | None:
        """Take a slot, with the lock, where one is free for what comes now; nobody overtakes the queue."""
        if not self._free or self._queue:
            return None
        self._queue.start(work.caller, work.cost)
        slot = object()
        self._occupy(slot, work.cost)
        return slot

    def _enqueue(self, job: QueueEntry[Any, Any]) -> "list[tuple[Waiting, Full]]":
        """Let a job in, with the lock; return those that have to make room for it, to be refused without the lock.

        Raises:
            Full: there is no room, or the job would be late.
        """
        busy = self._busy()
        shed = self._make_room(job, busy)
        self._check_deadline(job, busy)
        self._queue.withdraw(shed)
        self._queue.push(job)
        message = "the queue is full, and most of what waits in it is this caller's"
        return [(each, full(message, self._drained())) for each in shed]

    def _wait_for_slot(self, job: QueueEntry[Any, Any]) -> list[QueueEntry[Any, Any]]:
        """Wait for the slot; return what is to run in it. Nothing, when another has answered it or nobody will."""
        assert job.handed is not None
        handed, deadline = job.handed, job.work.deadline
        job.future.add_done_callback(lambda _: handed.put([]))
        with suppress(Empty):
            jobs = handed.get(timeout=None if deadline == math.inf else max(0.0, deadline - self._clock()))
            if jobs or not job.future.cancelled():
                return jobs
        with self._lock:  # it may have been given the slot at the same moment: then others may count on it
            with suppress(Empty):
                while not (jobs := handed.get_nowait()):
                    pass
                return jobs
            job.future.cancel()  # no effect where it is done, or runs beside another
            return []

    def _let_in(self) -> None:
        """Let those in who wait for room, with the lock, as far as there is some."""
        while self._lobby:
            job, admitted = self._lobby[0]
            if not (job.future.cancelled() or self._queue.has_room(job, self._busy())):
                return
            self._lobby.popleft()
            if not job.future.cancelled():
                self._queue.push(job)
            admitted()

    def _make_room(self, job: QueueEntry[Any, Any], busy: float) -> list[Waiting]:
        """Return the jobs that have to make room for another: none, or those of callers who have more than their share.

        Raises:
            Full: there is no room.
        """
        bound = self.admission.bound
        if bound < math.inf and self._queue.is_enough(job, busy, bound):
            self.admission.grow()
            raise full("the queue is full: more was asked for than could be computed", self._drained())
        if self._queue.has_room(job, busy):
            return []
        self._queue.withdraw_cancelled()
        if self._queue.has_room(job, busy):
            return []
        self.admission.grow()
        shed = self._queue.heavier(job, busy)
        if not shed:
            raise full(f"the queue is full with {len(self._queue)} requests", self._drained())
        return shed

    def _check_deadline(self, job: QueueEntry[Any, Any], busy: float) -> None:
        """Refuse what would be late.

        Raises:
            Full: the deadline would pass before the job's end, as predicted.
        """
        if job.work.deadline == math.inf:
            return
        left = job.work.deadline - self._clock()
        if left >= (busy + self._queue.seconds) / self._slots + job.cost:  # even behind all others
            return
        needed = self._queue.wait(job, busy) + job.cost
        if 0 < left < needed:
            raise full(
                f"the answer is expected in {needed:.3g} s, after the deadline, which is in {left:.3g} s",
                self._drained(),
            )

    def _busy(self) -> float:
        """Return the predicted seconds that what runs will still take, all slots together."""
        if not self._ends:
            return 0.0
        now = self._clock()
        return sum([max(0.0, end - now) for end in self._ends.values()])

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
            elif self._free == self._slots and not self._queue:
                self._queue.rest()

    def _hand_out(self) -> None:
        """Let in who waits for room, and give free slots to what is next, with the lock."""
        while True:
            self._let_in()
            if not (self._free and self._queue):
                return
            if not self._queue.is_wanted():  # what was given up has made room
                continue
            if self._is_for_loop():
                self._call_loop()
                return
            self._begin(self._pop())

    def _begin(self, jobs: list[QueueEntry[Any, Any]]) -> None:
        """Give jobs a slot, in the thread that waits for it or in one of the slots', with the lock."""
        self._occupy(jobs[0], sum(job.cost for job in jobs))
        handed = jobs[0].handed
        if handed is not None:
            handed.put(jobs)
        else:
            self._put(functools.partial(self._serve_jobs, jobs))

    def _pop(self, seconds: float = math.inf) -> list[QueueEntry[Any, Any]]:
        """Take what is next, with the lock; of what may run together so much as takes no longer."""
        return self._queue.pop(self._free - 1, seconds)  # type: ignore[return-value] # it holds no others

    def _is_for_loop(self) -> bool:
        """Return whether what is next is to be computed by the loop, with the lock."""
        first: QueueEntry[Any, Any] = self._queue.first  # type: ignore[assignment] # it holds no others
        is_short = first.handed is None and first.cost <= SHORT
        return is_short and self._loop is not None and self._free == self._slots

    def _call_loop(self) -> None:
        """Have the loop take what is next, with the lock: in its next turn, when all that has come is in the queue."""
        if self._loop is None or self._loop_comes:
            return
        self._loop_comes = True
        if threading.get_ident() == self._loop_thread:
            self._loop.call_soon(self._serve_loop)
        else:
            self._loop.call_soon_threadsafe(self._serve_loop)

    def _serve_loop(self) -> None:
        """Compute what is next in the loop's thread, in one slot."""
        turn = self._take_turn()
        if turn:
            try:
                self._run(turn)
            finally:
                self._give_back(turn[0][0])

    def _take_turn(self) -> "list[list[QueueEntry[Any, Any]]]":
        """Take what the loop is to compute in this turn, with one slot for all of it."""
        turn: list[list[QueueEntry[Any, Any]]] = []
        max_batch = left = TURN if self.admission.bound == math.inf else SHORT
        with self._lock:
            self._loop_comes = False
            while self._queue.is_wanted() and self._is_for_loop() and self._queue.first.cost <= left:
                jobs = self._pop(left)
                self._let_in()
                if self._queue and self._slots > 1:  # other slots compute anyway: the loop had better answer
                    self._begin(jobs)
                    break
                turn.append(jobs)
                left -= sum([job.cost for job in jobs])
            if turn:
                self._occupy(turn[0][0], max_batch - left)
            self._hand_out()
        return turn

    def _lend(self, max_batch: int, work: Callable[[], None]) -> "list[_LentSlotTask]":
        """Give a running job the slots that nobody wants; each is given back when the errand in it ends."""
        with self._lock:
            idle = 0 if self._closed else self.idle_slots  # then its thread may have ended
            errands = [_LentSlotTask(work, Future()) for _ in range(min(max_batch, idle))]
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

    def _serve_jobs(self, jobs: list[QueueEntry[Any, Any]]) -> None:
        try:
            self._run([jobs])
        finally:
            self._give_back(jobs[0])

    def _serve_errand(self, errand: "_LentSlotTask") -> None:
        errand.run()
        self._give_back(errand)

    def _answer(self, work: Job[S, T]) -> T:
        """Run one work whose turn it is."""
        if self._clock() >= work.deadline:
            raise DeadlineExceeded("the deadline passed before the request could run")
        (answer,) = work.run([work.payload])()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _run(self, turn: "Sequence[list[QueueEntry[Any, Any]]]") -> None:
        """Compute jobs, those of a list together, and when all are computed tell what came of them."""
        for jobs, answers in [self._compute(jobs) for jobs in turn]:
            _tell(jobs, answers)

    def _compute(
        self, jobs: list[QueueEntry[Any, Any]]
    ) -> "tuple[list[QueueEntry[Any, Any]], Callable[[], Sequence[Any]]]":
        """Compute jobs together; return those that were, and what gives their answers."""
        begun = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        now = self._clock()
        wanted = [job for job in begun if now < job.work.deadline]
        if len(wanted) < len(begun):
            for job in begun:
                if now >= job.work.deadline:
                    job.future.set_exception(DeadlineExceeded("the deadline passed before the request could run"))
        if not wanted:
            return [], tuple
        try:
            return wanted, wanted[0].work.run([job.work.payload for job in wanted])
        except BaseException as error:  # noqa: BLE001 # it belongs to whoever waits for the future
            return wanted, functools.partial(list, [error] * len(wanted))  # no local: its trace has this frame


@dataclass(frozen=True, slots=True, eq=False)
class _LentSlotTask:
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


def _refuse(shed: "Sequence[tuple[Waiting, Unavailable]]") -> None:
    for job, error in shed:
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)


def _tell(jobs: "Sequence[QueueEntry[Any, Any]]", answers: Callable[[], Sequence[Any]]) -> None:
    """Tell those who wait for jobs what came of them."""
    try:
        found = answers()
    except BaseException as error:  # noqa: BLE001 # as where they are computed
        _settle(jobs, [error] * len(jobs))
    else:
        _settle(jobs, found)


def _settle(jobs: "Sequence[QueueEntry[Any, Any]]", answers: Sequence[Any]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if isinstance(answer, BaseException):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
