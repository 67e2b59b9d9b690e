"""A bounded queue that is fair between callers.

Start-time fair queueing (Goyal, Vin and Cheng, 1996). An entry's tag is its start time on a virtual clock that counts
predicted seconds of work: the end of its caller's last entry, or the clock's present if that is later. The entry with
the least tag is next. So a caller with many requests queues behind callers with few, and no caller waits for more than
its share of the work of all callers.
"""

import math
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from operator import attrgetter

from attention_server.scheduling.job import MIN_COST, QueueEntry

PATIENCE = 2  # an entry may wait for this many times its own cost
PASS_BYTES = 16 * 2**20  # that a pass of several entries may need beside
MAX_CALLERS = 1024  # callers with a kept tag; beyond, callers without entries in the queue are forgotten

_tag = attrgetter("tag")


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The limits of a queue.

    Attributes:
        count: entries.
        seconds: predicted wait of an entry, or PATIENCE times its cost if that is longer.
        size: bytes that all entries hold.
    """

    count: int
    seconds: float
    size: int

    def half(self) -> "QueueLimits":
        """Return the limits of bulk entries, which leave room for entries that cannot wait in a lobby."""
        return QueueLimits(max(1, self.count // 2), self.seconds / 2, self.size // 2)


class FairQueue:
    """Queue entries in a fair order. Not thread-safe.

    Args:
        limits: limits of the queue.
        slots: number of jobs that run at the same time.

    Attributes:
        seconds: predicted cost of all entries.
        size: bytes that all entries hold.
    """

    def __init__(self, limits: QueueLimits, slots: int) -> None:
        self._limits = limits
        self._bulk_limits = limits.half()
        self._slots = slots
        self._entries: list[QueueEntry] = []  # by tag; among equal tags by arrival
        self._clock = 0.0
        self._ends: dict[str, float] = {}  # virtual end of each caller's last entry
        self._waiting: Counter[Hashable] = Counter()  # entries by the key of their pass
        self.seconds = 0.0
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first(self) -> QueueEntry:
        """The next entry."""
        return self._entries[0]

    def reset(self) -> None:
        """Reset the virtual clock of an empty queue: all callers are equal again."""
        self._ends.clear()
        self._clock = 0.0

    def push(self, entry: QueueEntry) -> None:
        """Add an entry; check `has_room` before."""
        entry.tag = self._next_tag(entry.caller, entry.cost)
        if entry.share is not None:
            self._waiting[entry.share.key] += 1
        insort(self._entries, entry, key=_tag)
        self.seconds += entry.cost
        self.size += entry.size

    def next_batch(self, spare_slots: int, now: float) -> list[QueueEntry]:
        """Return the next entry, and those that share a pass with it, in their order. The queue must not be empty.

        A pass ends, as predicted, before the deadline of each of its entries, unless the first entry alone does not.

        Args:
            spare_slots: further free slots; a share of the entries of this pass is left to them.
            now: the time on the clock of the deadlines.
        """
        first = self._entries[0]
        batch = [first]
        if first.share is None or self._waiting[first.share.key] == 1:
            return batch
        alike = [entry for entry in self._entries if entry.share is not None and entry.share.key == first.share.key]
        rows = seconds = size = 0.0
        deadline = math.inf
        for entry in alike[: -(-len(alike) // (1 + spare_slots))]:
            share = entry.share
            assert share is not None  # they are alike
            if entry is not first and (entry.future.cancelled() or entry.job.deadline <= now):
                batch.append(entry)  # it ends, and does not run
                continue
            rows, seconds, size = rows + share.rows, seconds + share.cost, size + share.bytes
            deadline = min(deadline, entry.job.deadline)
            if entry is first:
                continue
            is_full = rows > first.share.max_rows or size > max(PASS_BYTES, first.share.bytes)
            if is_full or now + seconds > deadline:
                break
            batch.append(entry)
        return batch

    def take(self, batch: list[QueueEntry]) -> None:
        """Remove the next batch, which runs."""
        self._remove(batch)
        self._clock = max(self._clock, batch[0].tag)

    def price(self, entry: QueueEntry) -> None:
        """Set the cost of an entry that is not in the queue: less where one waits that it can share a pass with."""
        if entry.share is not None and self._waiting[entry.share.key]:
            entry.cost = max(entry.share.cost, MIN_COST)

    def drop_cancelled_first(self) -> bool:
        """Withdraw all cancelled entries if the next entry is cancelled; return whether the queue has an entry."""
        if self._entries and self._entries[0].future.cancelled():
            self.withdraw_cancelled()
        return bool(self._entries)

    def withdraw_cancelled(self) -> None:
        """Withdraw all cancelled entries."""
        self.withdraw([entry for entry in self._entries if entry.future.cancelled()])

    def has_room(self, entry: QueueEntry, busy: float, without: Iterable[QueueEntry] = ()) -> bool:
        """Return whether the limits admit one more entry.

        As many entries as slots may wait for any time. Further ones need a short predicted wait: within the limit, or
        within PATIENCE times the entry's cost. An entry over the limit of bytes is admitted into an empty queue.

        Args:
            entry: the new entry.
            busy: predicted seconds of running jobs.
            without: entries to leave out of account.
        """
        limits = self._bulk_limits if entry.is_bulk else self._limits
        count, seconds, size = len(self._entries), self.seconds, self.size
        for each in without:
            count, seconds, size = count - 1, seconds - each.cost, size - each.size
        return (
            count < limits.count
            and (count < self._slots or (busy + seconds) / self._slots <= max(limits.seconds, PATIENCE * entry.cost))
            and (not count or size + entry.size <= limits.size)
        )

    def is_saturated(self, entry: QueueEntry, busy: float, bound: float) -> bool:
        """Return whether the queue is long enough without one more entry, by a bound below the limits.

        Bulk entries do not count. Never saturated are a queue with fewer entries than slots, and one in which another
        caller has more work than the new entry's caller.

        Args:
            entry: the new entry.
            busy: predicted seconds of running jobs.
            bound: bound on the predicted wait; PATIENCE times the entry's cost if that is longer.
        """
        waiting = [each for each in self._entries if not each.is_bulk]
        if len(waiting) < self._slots:
            return False
        queued: dict[str, float] = defaultdict(float)
        for each in waiting:
            queued[each.caller] += each.cost
        is_heaviest = queued[entry.caller] + entry.cost >= max(queued.values())
        return is_heaviest and (busy + sum(queued.values())) / self._slots > max(bound, PATIENCE * entry.cost)

    def sheddable(self, entry: QueueEntry, busy: float) -> list[QueueEntry]:
        """Return the entries to shed for a new one: the newest entries of the callers with the most queued work.

        Shedding stops at callers with no more work than the new entry's caller. Returns an empty list where shedding
        makes too little room.
        """
        queued: dict[str, float] = defaultdict(float)
        for each in self._entries:
            queued[each.caller] += each.cost
        own = queued.pop(entry.caller, 0.0) + entry.cost
        shed: list[QueueEntry] = []
        left = [each for each in self._entries if not each.is_bulk and each.caller in queued]
        while left:
            newest = max(left, key=lambda each: (queued[each.caller], each.tag))
            if queued[newest.caller] <= own:
                break
            left.remove(newest)
            shed.append(newest)
            queued[newest.caller] -= newest.cost
            if self.has_room(entry, busy, shed):
                return shed
        return []

    def withdraw(self, entries: list[QueueEntry]) -> None:
        """Remove entries that did not run; later entries of the same callers move up by the removed costs."""
        self._remove(entries)
        for entry in entries:
            self._ends[entry.caller] -= entry.cost
            for each in self._entries:
                if each.caller == entry.caller and each.tag > entry.tag:
                    each.tag -= entry.cost
        self._entries.sort(key=_tag)

    def wait(self, entry: QueueEntry, busy: float) -> float:
        """Return the predicted wait of an entry that is not in the queue, in seconds.

        Args:
            entry: the entry.
            busy: predicted seconds of running jobs.
        """
        tag = max(self._clock, self._ends.get(entry.caller, 0.0))
        return (busy + sum(each.cost for each in self._entries if each.tag <= tag)) / self._slots

    def _next_tag(self, caller: str, cost: float) -> float:
        """Return the tag of a caller's next entry, and move the caller's virtual end."""
        if len(self._ends) > MAX_CALLERS:
            self._ends = {each.caller: self._ends[each.caller] for each in self._entries}
        tag = max(self._clock, self._ends.get(caller, 0.0))
        self._ends[caller] = tag + cost
        return tag

    def _remove(self, entries: list[QueueEntry]) -> None:
        for entry in entries:
            self.seconds -= entry.cost
            self.size -= entry.size
            if entry.share is not None:
                self._waiting[entry.share.key] -= 1
                if not self._waiting[entry.share.key]:
                    del self._waiting[entry.share.key]
        self.seconds = max(0.0, self.seconds)
        if len(entries) == 1 and entries[0] is self._entries[0]:
            del self._entries[0]
        elif entries:
            self._entries = [entry for entry in self._entries if entry not in entries]
