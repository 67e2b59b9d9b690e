"""Who is next: jobs that wait, in an order that is fair between callers, and within bounds.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): a job's tag is where its caller's last one ends on a clock that
counts predicted seconds of work, or the clock's present when that is past; the least tag is next. Who sends much is
thereby behind who sends little, and nobody waits for more than their share of others' work.
"""

import math
from bisect import insort
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from attention_server.scheduling.future import Future

PATIENCE = 2  # times what it takes itself, a job may wait
REMEMBERED = 1024  # callers; beyond, those are forgotten who have nothing here, and with them whose turn it was
LEAST_COST = 1e-6  # seconds: what costs nothing would never have to share

_tag = attrgetter("tag")


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait.

    Attributes:
        count: jobs.
        seconds: that a job may have to wait, as predicted; twice what it takes itself, where that is longer.
        size: bytes that the jobs hold.
    """

    count: int
    seconds: float
    size: int

    def half(self) -> "QueueLimits":
        """Return what those may fill who can wait to be let in, so that room is left for those who cannot."""
        return QueueLimits(max(1, self.count // 2), self.seconds / 2, self.size // 2)


@dataclass(slots=True, eq=False)
class Waiting:
    """What the queue has to know of a job.

    Attributes:
        caller: whose it is.
        cost: the seconds that it will take in one slot, as predicted.
        size: the bytes that it holds: what was sent, and what the answer will have.
        future: holds what comes of it; cancelled when nobody wants it any more.
        kind: jobs of one kind may run together; None runs alone.
        most: how many sequences, of its kind.
        count: how many it has.
        bulk: whether it waited to be let in; such a job is never shed.
        tag: where it stands in the order.
    """

    caller: str
    cost: float
    size: int
    future: "Future[Any]"
    batch_key: Hashable | None = None
    max_batch: int = 1
    count: int = 1
    bulk: bool = False
    tag: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.cost = max(self.cost, LEAST_COST)


class FairQueue:
    """Jobs in a fair order. Not for several threads at once.

    Args:
        limits: what may wait.
        slots: how many jobs run at once.
    """

    def __init__(self, limits: QueueLimits, slots: int) -> None:
        self._limits = limits
        self._bulk_limits = limits.half()
        self._slots = slots
        self._jobs: list[Waiting] = []  # by tag, and of equal ones as they came
        self._clock = 0.0
        self._ends: dict[str, float] = {}  # of each caller's last job, on the clock
        self.seconds = 0.0
        self.size = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def first(self) -> Waiting:
        """What is next."""
        return self._jobs[0]

    def start(self, caller: str, cost: float) -> None:
        """Note a job that runs without having waited."""
        self._clock = self._place(caller, max(cost, LEAST_COST))

    def rest(self) -> None:
        """Nothing runs and nothing waits: all callers are equal again."""
        self._ends.clear()
        self._clock = 0.0

    def push(self, job: Waiting) -> None:
        """Let a job in."""
        job.tag = self._place(job.caller, job.cost)
        insort(self._jobs, job, key=_tag)
        self.seconds += job.cost
        self.size += job.size

    def pop(self, spare_slots: int, seconds: float = math.inf) -> list[Waiting]:
        """Take what is next, and what may run together with it. There is one, perhaps cancelled meanwhile.

        Args:
            spare_slots: how many others can run at the same time; their share is left to them.
            seconds: how long it may take; what is next is taken anyway.
        """
        first = self._jobs[0]
        taken = [first]
        if first.batch_key is not None:
            alike = [job for job in self._jobs if job.batch_key == first.batch_key]
            share = -(-len(alike) // (1 + spare_slots))
            count, cost = first.count, first.cost
            for job in alike[1:share]:
                count, cost = count + job.count, cost + job.cost
                if count > first.max_batch or cost > seconds:
                    break
                taken.append(job)
        self._remove(taken)
        self._clock = max(self._clock, first.tag)
        return taken

    def is_wanted(self) -> bool:
        """Return whether somebody still waits for what is next; what nobody does is dropped."""
        if self._jobs and self._jobs[0].future.cancelled():
            self.withdraw_cancelled()
        return bool(self._jobs)

    def withdraw_cancelled(self) -> None:
        """Drop the jobs that nobody wants any more."""
        self.withdraw([job for job in self._jobs if job.future.cancelled()])

    def has_room(self, job: Waiting, busy: float, without: Iterable[Waiting] = ()) -> bool:
        """Return whether a job may come in.

        As many as there are slots may wait however long it takes; more only while the wait is short, by itself or to
        what the job takes. And a job that is larger than all that may wait is let in alone, or it never would be.

        Args:
            job: the job.
            busy: predicted seconds of what runs.
            without: jobs as if they were gone.
        """
        limits = self._bulk_limits if job.bulk else self._limits
        count, seconds, size = len(self._jobs), self.seconds, self.size
        for each in without:
            count, seconds, size = count - 1, seconds - each.cost, size - each.size
        return (
            count < limits.count
            and (count < self._slots or (busy + seconds) / self._slots <= max(limits.seconds, PATIENCE * job.cost))
            and (not count or size + job.size <= limits.size)
        )

    def is_enough(self, job: Waiting, busy: float, bound: float) -> bool:
        """Return whether enough waits without one more job.

        It is not while a slot has nothing that waits for it, nor while the job's caller has less in here than another.
        What streams bring does not count: it can wait.

        Args:
            job: the job.
            busy: predicted seconds of what runs.
            bound: seconds that a job may have to wait; twice what it takes itself, where that is longer.
        """
        waiting = [each for each in self._jobs if not each.bulk]
        if len(waiting) < self._slots:
            return False
        queued: dict[str, float] = defaultdict(float)
        for each in waiting:
            queued[each.caller] += each.cost
        is_heavy = queued[job.caller] + job.cost >= max(queued.values())
        return is_heavy and (busy + sum(queued.values())) / self._slots > max(bound, PATIENCE * job.cost)

    def heavier(self, job: Waiting, busy: float) -> list[Waiting]:
        """Return the jobs that should make room for another: the newest of those callers who have the most in here.

        None goes for a caller who, with this job, would have as much. Empty when that makes no room.
        """
        queued: dict[str, float] = defaultdict(float)
        for each in self._jobs:
            queued[each.caller] += each.cost
        mine = queued.pop(job.caller, 0.0) + job.cost
        gone: list[Waiting] = []
        left = [each for each in self._jobs if not each.bulk and each.caller in queued]
        while left:
            newest = max(left, key=lambda each: (queued[each.caller], each.tag))
            if queued[newest.caller] <= mine:
                break
            left.remove(newest)
            gone.append(newest)
            queued[newest.caller] -= newest.cost
            if self.has_room(job, busy, gone):
                return gone
        return []

    def withdraw(self, gone: list[Waiting]) -> None:
        """Drop jobs; those of their callers that stood behind them move up, for they have cost nothing."""
        self._remove(gone)
        for job in gone:
            self._ends[job.caller] -= job.cost
            for each in self._jobs:
                if each.caller == job.caller and each.tag > job.tag:
                    each.tag -= job.cost
        self._jobs.sort(key=_tag)

    def wait(self, job: Waiting, busy: float) -> float:
        """Return the seconds that a job would wait, as predicted.

        Args:
            job: one that is not in the queue.
            busy: predicted seconds of what runs.
        """
        tag = max(self._clock, self._ends.get(job.caller, 0.0))
        return (busy + sum(each.cost for each in self._jobs if each.tag <= tag)) / self._slots

    def _place(self, caller: str, cost: float) -> float:
        """Return where a job of a caller stands, behind their others."""
        if len(self._ends) > REMEMBERED:
            self._ends = {each.caller: self._ends[each.caller] for each in self._jobs}
        tag = max(self._clock, self._ends.get(caller, 0.0))
        self._ends[caller] = tag + cost
        return tag

    def _remove(self, gone: list[Waiting]) -> None:
        for job in gone:
            self.seconds -= job.cost
            self.size -= job.size
        self.seconds = max(0.0, self.seconds)
        if len(gone) == 1 and gone[0] is self._jobs[0]:
            del self._jobs[0]
        elif gone:
            self._jobs = [job for job in self._jobs if job not in gone]
