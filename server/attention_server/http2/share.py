"""A peer's share of the event loop, in time and in frames that carry nothing."""

import time
from collections.abc import Callable
from typing import Protocol

SLICE_LEAST, SLICE_MOST = 1024, 16 * 1024  # bytes that are processed at once; few where calls begin
MANY_CALLS = 4  # in a slice
READ_LEAST, READ_MOST = 16 * 1024, 256 * 1024  # bytes that are read of a connection at once
QUICK_SECONDS, SLOW_SECONDS = 0.001, 0.002  # after a quicker read the next is twice as large, after a slower one half


class RateLimit:
    """A token bucket.

    Args:
        burst: events at once.
        per_second: further events.
    """

    __slots__ = ("_burst", "_per_second", "_seen", "_tokens")

    def __init__(self, burst: int, per_second: int) -> None:
        self._burst, self._per_second = burst, per_second
        self._tokens = float(burst)
        self._seen = time.monotonic()

    def allows(self) -> bool:
        """Count an event, and return whether it is within the limit."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._seen) * self._per_second) - 1
        self._seen = now
        return self._tokens >= 0


class ReadShare:
    """How much is read of a connection at once: few bytes of a slow one, so that all connections have a turn.

    Attributes:
        size: bytes of the next read.
        slice: bytes of it that are processed at once.
    """

    __slots__ = ("size", "slice")

    def __init__(self) -> None:
        self.size = READ_LEAST
        self.slice = SLICE_LEAST

    def learn_slice(self, calls: int) -> None:
        """Record how many calls a slice has begun: where there are many, the next is small, since each takes long."""
        self.slice = SLICE_LEAST if calls >= MANY_CALLS else min(SLICE_MOST, 2 * self.slice)

    def shrink(self) -> None:
        """Read less: not all was processed in one turn."""
        self.size = max(READ_LEAST // 4, self.size // 2)

    def learn(self, count: int, seconds: float) -> bool:
        """Record the time of a read; return whether the other connections have a turn before the next.

        Args:
            count: bytes that were read.
            seconds: that the bytes took.
        """
        if seconds > SLOW_SECONDS:
            self.shrink()
            return True
        if seconds < QUICK_SECONDS and count == self.size:
            self.size = min(READ_MOST, 2 * self.size)
        return False


class Turns(Protocol):
    """The turns of the event loop that the addresses of peers share."""

    def take(self, host: str, /) -> bool:
        """Count a read, and return whether it may be processed now."""

    def add(self, host: str, /) -> None:
        """Count a read that is processed in any case."""

    def add_seconds(self, host: str, seconds: float, /) -> None:
        """Count the time of a read."""

    def add_call(self, host: str, /) -> None:
        """Count a call that has begun."""

    def is_over(self, host: str, /) -> bool:
        """Return whether further bytes wait for the next turn."""

    def wait(self, host: str, work: Callable[[], object], /) -> None:
        """Call back in a later turn."""


class OpenTurns:
    """Turns without a bound."""

    def take(self, host: str, /) -> bool:
        """Return True."""
        return True

    def add(self, host: str, /) -> None:
        """Count nothing."""

    def add_seconds(self, host: str, seconds: float, /) -> None:
        """Count nothing."""

    def add_call(self, host: str, /) -> None:
        """Count nothing."""

    def is_over(self, host: str, /) -> bool:
        """Return False."""
        return False

    def wait(self, host: str, work: Callable[[], object], /) -> None:
        """Call at once; never needed."""
        work()
