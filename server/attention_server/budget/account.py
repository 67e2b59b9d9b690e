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
    """

    def __init__(self, limit: int = UNBOUNDED, slots: int = 1) -> None:
        self._limit = limit
        self._slots = slots
        self._lock = threading.Lock()
        self._held = 0
        self._by_holder: dict[str, int] = {}
        self._peaks: list[int] = []  # of the jobs that wait or run, in ascending order
        self._running = 0  # the sum of the `slots` largest
        self._refused = 0

    def lease(self, holder: str) -> "Lease":
        """Return a lease of no bytes.

        Args:
            holder: the name of a caller, or the address of a peer.
        """
        return Lease(self, holder)

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
        with self._lock:
            return AccountState(self._limit, self._held, self._running, self._refused)

    def add_peak(self, count: int) -> None:
        """Reserve the peak of a job's memory while it runs. As many of the largest jobs as there are slots are counted.

        Raises:
            Full: there is no room.
        """
        with self._lock:
            insort(self._peaks, count)
            running = sum(self._peaks[-self._slots :])
            if running > self._running and self._held + running > self._limit:
                self._remove_peak(count)
                self._refused += 1
                raise _full() if count <= self.largest else _too_large(count, self.largest)
            self._running = running

    def remove_peak(self, count: int) -> None:
        """Release a job's reservation."""
        with self._lock:
            self._remove_peak(count)
            self._running = sum(self._peaks[-self._slots :])

    def take(self, lease: "Lease", count: int, *, is_checked: bool) -> None:
        """Count bytes of a lease; called by the lease."""
        holder = lease.holder
        with self._lock:
            own = self._by_holder.get(holder, 0) + count
            if is_checked and own > SHARE * (self._limit - self._held - self._running - count):
                self._refused += 1
                raise _full() if lease.size + count <= self.largest else _too_large(lease.size + count, self.largest)
            self._held += count
            self._by_holder[holder] = own
            lease.size += count

    def give(self, lease: "Lease", count: int) -> None:
        """Count bytes of a lease no more; called by the lease."""
        with self._lock:
            self._give(lease, count)

    def change_users(self, lease: "Lease", by: int) -> None:
        """Add or remove users of a lease, and release its bytes with the last one; called by the lease."""
        with self._lock:
            lease.users += by
            if not lease.users:
                self._give(lease, lease.size)

    def move(self, lease: "Lease", holder: str) -> None:
        """Count the bytes of a lease as another holder's; called by the lease."""
        with self._lock:
            size = lease.size
            self._give(lease, size)
            lease.holder = holder
            lease.size = size
            self._held += size
            self._by_holder[holder] = self._by_holder.get(holder, 0) + size

    def _give(self, lease: "Lease", count: int) -> None:
        self._held -= count
        lease.size -= count
        left = self._by_holder.get(lease.holder, 0) - count
        if left > 0:
            self._by_holder[lease.holder] = left
        else:
            self._by_holder.pop(lease.holder, None)

    def _remove_peak(self, count: int) -> None:
        del self._peaks[bisect_left(self._peaks, count)]


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
        self._account.take(self, count, is_checked=True)

    def add(self, count: int) -> None:
        """Hold more bytes in any case: the bytes are in memory already, and bounded by another rule."""
        self._account.take(self, count, is_checked=False)

    def shrink(self, count: int) -> None:
        """Hold fewer bytes."""
        self._account.give(self, count)

    def settle(self, size: int) -> None:
        """Hold as many bytes, in any case."""
        if size > self.size:
            self.add(size - self.size)
        else:
            self.shrink(self.size - size)

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
            self._account.move(self, holder)

    def sibling(self) -> "Lease":
        """Return a lease of no bytes of the same holder."""
        return Lease(self._account, self.holder)

    def retain(self) -> None:
        """Add a user, such as a thread that works on the request after its caller has left."""
        self._account.change_users(self, 1)

    def release(self) -> None:
        """Remove a user; the last one gives all bytes back."""
        self._account.change_users(self, -1)


def _full() -> Full:
    return Full("the memory for requests and answers is full, or this caller holds its share of it; try again later")


def _too_large(count: int, largest: int) -> TooLarge:
    return TooLarge(
        f"the request needs {count} bytes of memory; one caller may hold {largest} (--memory-budget-mib): send less"
    )


OPEN = Account()  # without a limit
