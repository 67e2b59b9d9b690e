"""An account of bytes with a share for each holder.

Shares follow dynamic thresholds (Choudhury and Hahne, 1998): a holder may take bytes while its own stay within SHARE
times those that remain free. Alone it may hold SHARE / (SHARE + 1) of all; the more holders there are, the less each. A
holder of much is refused before a holder of little, and a new one always finds room.
"""

import sys
import threading
from bisect import bisect_left, insort
from dataclasses import dataclass

from attention_server.errors import Full, TooLarge

SHARE = 3
UNBOUNDED = sys.maxsize


@dataclass(frozen=True, slots=True)
class AccountState:
    """The account at one moment.

    Attributes:
        limit: bytes that may be held.
        held: bytes of all leases, kept memories included.
        running: bytes that the largest computations are predicted to need, beside `held`.
        refused: refusals since the start.
    """

    limit: int
    held: int
    running: int
    refused: int


class Account:
    """The bytes of requests, answers, connections and kept memories. Thread-safe.

    Leases take constant time. To add or remove the peak of a job takes time in proportion to the jobs that wait or run.

    Args:
        limit: bytes that may be held at once.
        slots: computations at once.

    Attributes:
        lock: held by a lease while it changes its bytes.
    """

    def __init__(self, limit: int = UNBOUNDED, slots: int = 1) -> None:
        self._limit = limit
        self._slots = slots
        self.lock = threading.Lock()
        self._held = 0
        self._by_holder: dict[str, int] = {}
        self._peaks: list[int] = []  # of the jobs that wait or run, in ascending order
        self._running = 0  # the sum of the `slots` largest
        self._refused = 0

    def lease(self, holder: str, count: int = 0) -> "Lease":
        """Return a lease.

        Args:
            holder: the name of a caller, or the address of a peer.
            count: bytes that it holds in any case; see `Lease.add`.
        """
        lease = Lease(self, holder)
        if count:
            lease.add(count)
        return lease

    def hold(self, count: int, holder: str) -> "Lease":
        """Return a lease of some bytes. Raises as `Lease.grow`."""
        lease = Lease(self, holder)
        lease.grow(count)
        return lease

    @property
    def is_full(self) -> bool:
        """Whether more is held than may be, by bytes that were taken unchecked."""
        return self._held + self._running > self._limit

    @property
    def largest(self) -> int:
        """Bytes that one holder may have, where nothing else is held."""
        return self._limit // (SHARE + 1) * SHARE

    def state(self) -> AccountState:
        """Return the account at this moment."""
        with self.lock:
            return AccountState(self._limit, self._held, self._running, self._refused)

    def begin_job(self, lease: "Lease", size: int, peak: int) -> None:
        """Hold the bytes of a job, reserve its peak while it waits and runs, and add a user to its lease.

        As many of the largest peaks as there are slots are counted.

        Raises:
            Full: there is no room; nothing is held or reserved.
            TooLarge: there will never be.
        """
        with self.lock:
            self.take(lease, size)
            try:
                self._add_peak(peak)
            except Exception:
                self.give(lease, size)
                raise
            lease.users += 1

    def end_job(self, lease: "Lease", peak: int) -> None:
        """Release the peak of a job, and its use of its lease."""
        with self.lock:
            self._remove_peak(peak)
            lease.users -= 1
            if not lease.users:
                self.give(lease, lease.size)

    def take(self, lease: "Lease", count: int) -> None:
        """Count bytes of a lease, if there is room; called with the lock held.

        Raises:
            Full: there is no room, or the holder has its share.
            TooLarge: there will never be as much room.
        """
        own = self._by_holder.get(lease.holder, 0) + count
        held = self._held + count
        if own > SHARE * (self._limit - held - self._running):
            self._refused += 1
            raise _full() if lease.size + count <= self.largest else _too_large(lease.size + count, self.largest)
        self._held = held
        self._by_holder[lease.holder] = own
        lease.size += count

    def add(self, lease: "Lease", count: int) -> None:
        """Count bytes of a lease in any case; called with the lock held."""
        holder, by_holder = lease.holder, self._by_holder
        self._held += count
        by_holder[holder] = by_holder.get(holder, 0) + count
        lease.size += count

    def give(self, lease: "Lease", count: int) -> None:
        """Count bytes of a lease no more; called with the lock held."""
        holder, by_holder = lease.holder, self._by_holder
        self._held -= count
        lease.size -= count
        left = by_holder.get(holder, 0) - count
        if left > 0:
            by_holder[holder] = left
        else:
            by_holder.pop(holder, None)

    def _add_peak(self, count: int) -> None:
        peaks = self._peaks
        insort(peaks, count)
        running = sum(peaks[-self._slots :])
        if running > self._running and self._held + running > self._limit:
            del peaks[bisect_left(peaks, count)]
            self._refused += 1
            raise _full() if count <= self.largest else _too_large(count, self.largest)
        self._running = running

    def _remove_peak(self, count: int) -> None:
        peaks = self._peaks
        del peaks[bisect_left(peaks, count)]
        self._running = sum(peaks[-self._slots :])


class Lease:
    """Bytes that one request or connection holds, until each of its users has released it.

    Args:
        account: counts them.
        holder: the name of a caller, or the address of a peer.

    Attributes:
        holder: as given.
        size: bytes held.
        users: that have not released it; one at first.
    """

    __slots__ = ("_account", "holder", "size", "users")

    def __init__(self, account: Account, holder: str) -> None:
        self._account = account
        self.holder = holder
        self.size = 0
        self.users = 1

    def grow(self, count: int) -> None:
        """Hold more bytes.

        Raises:
            Full: there is no room, or the holder has its share.
            TooLarge: there will never be as much room.
        """
        account = self._account
        with account.lock:
            account.take(self, count)

    def add(self, count: int) -> None:
        """Hold more bytes in any case: the bytes are in memory already, and bounded by another rule."""
        account = self._account
        with account.lock:
            account.add(self, count)

    def shrink(self, count: int) -> None:
        """Hold fewer bytes."""
        account = self._account
        with account.lock:
            account.give(self, count)

    def settle(self, size: int) -> None:
        """Hold as many bytes, in any case."""
        account = self._account
        with account.lock:
            account.give(self, self.size - size)

    def check(self) -> None:
        """Check that the account has room.

        Raises:
            Full: more is held than may be, by bytes that were added in any case.
        """
        if self._account.is_full:
            raise _full()

    def move(self, holder: str) -> None:
        """Count the bytes as another holder's, once the caller is known."""
        if holder != self.holder:
            account = self._account
            with account.lock:
                size = self.size
                account.give(self, size)
                self.holder = holder
                account.add(self, size)

    def sibling(self) -> "Lease":
        """Return a lease of no bytes of the same holder."""
        return Lease(self._account, self.holder)

    def retain(self) -> None:
        """Add a user, such as a thread that works on the request after its caller has left."""
        with self._account.lock:
            self.users += 1

    def release(self) -> None:
        """Remove a user; the last one gives all bytes back."""
        account = self._account
        with account.lock:
            self.users -= 1
            if not self.users:
                account.give(self, self.size)


def _full() -> Full:
    return Full("the memory for requests and answers is full, or this caller holds its share of it; try again later")


def _too_large(count: int, largest: int) -> TooLarge:
    return TooLarge(
        f"the request needs {count} bytes of memory; one caller may hold {largest} (--memory-budget-mib): send less"
    )


OPEN = Account()  # without a limit
