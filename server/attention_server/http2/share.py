"""A peer's share of the event loop, in time and in frames that carry nothing."""

import time

READ_LEAST, READ_MOST = 16 * 1024, 256 * 1024  # bytes that are read of a connection at once
QUICK_SECONDS, SLOW_SECONDS = 0.0005, 0.002  # after a quicker read the next is twice as large, after a slower one half


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
    """

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = READ_LEAST

    def learn(self, count: int, seconds: float) -> bool:
        """Record the time of a read; return whether the other connections have a turn before the next.

        Args:
            count: bytes that were read.
            seconds: that the bytes took.
        """
        if seconds > SLOW_SECONDS:
            self.size = max(READ_LEAST // 4, self.size // 2)
            return True
        if seconds < QUICK_SECONDS and count == self.size:
            self.size = min(READ_MOST, 2 * self.size)
        return False
