"""Admission control under sustained overload: a circuit breaker with exponential back-off.

A queue absorbs bursts. Under sustained overload it is always full, and its length only adds latency to every request.
So a full queue trips the breaker: for a while only a few requests per slot hold a permit, and the rest is refused
before its messages are parsed (over gRPC: received), since refusals must cost little when these are
most of the load. Then the breaker closes again, with a shorter queue; if that fills too, the breaker trips for twice as
long. Shedding ends early when arrivals, refused ones included, would keep the slots busy for less than half of the
time: the queue absorbs such bursts.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from attention_server.errors import Full

MIN_SHED_SECONDS, MAX_SHED_SECONDS = 1.0, 32.0  # the first back-off, and the longest
RECOVERY_QUEUE = 1 / 4  # share of the queue's length after shedding, for as long as the back-off was
MIN_LOAD = 0.5  # share of the slots' time: arrivals below it are no overload
PERMITS_PER_SLOT = 2  # one request computes; one is read or waits
MIN_RETRY_SECONDS = 0.1  # predictions may be wrong, and a retry that comes too early adds to the load


class AdmissionController:
    """Decides which requests are admitted while the server is overloaded.

    Args:
        slots: number of jobs that run at the same time.
        max_wait: limit of the predicted wait in the queue, in seconds.
        clock: clock in seconds.
    """

    def __init__(self, slots: int, max_wait: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots = slots
        self._permits = PERMITS_PER_SLOT * slots
        self._max_wait = max_wait
        self._clock = clock
        self._lock = threading.Lock()
        self._shed_until = -math.inf
        self._backoff = 0.0
        # Since the breaker tripped: its time, the arrivals, the admitted, and the seconds for which those held permits.
        self._tripped_at, self._arrived, self._admitted, self._held_seconds = 0.0, 0, 0, 0.0
        self._holders: Counter[str] = Counter()  # permits by caller, those from before the trip included

    @property
    def is_shedding(self) -> bool:
        """Whether requests without a permit are refused."""
        return self._clock() < self._shed_until

    @property
    def bound(self) -> float:
        """Bound on the predicted wait in the queue, in seconds; infinite where the queue's own limit applies."""
        return self._max_wait * RECOVERY_QUEUE if self._clock() < self._shed_until + self._backoff else math.inf

    def trip(self) -> None:
        """Trip the breaker: the queue is full. No effect while the breaker is open."""
        with self._lock:
            now = self._clock()
            if now < self._shed_until:  # the request was admitted before the trip
                return
            recovering = now < self._shed_until + self._backoff
            self._backoff = min(MAX_SHED_SECONDS, 2 * self._backoff) if recovering else MIN_SHED_SECONDS
            self._shed_until = now + self._backoff
            self._tripped_at, self._arrived, self._admitted, self._held_seconds = now, 0, 0, 0.0

    def acquire(self, caller: str) -> "Permit":
        """Acquire a permit for a request.

        Raises:
            Full: the breaker is open, all permits are held, and each further caller holds fewer.
        """
        with self._lock:
            now = self._clock()
            if now < self._shed_until:
                self._arrived += 1
                if self._is_over(now):
                    self._shed_until, self._backoff = -math.inf, 0.0
                elif self._holders.total() >= self._permits and self._holders[caller] + 1 >= max(
                    self._holders.values()
                ):
                    raise queue_full("the queue is full: more is asked for than can be computed")
                self._admitted += 1
            self._holders[caller] = self._holders.get(caller, 0) + 1  # += of an absent key is slow
            return Permit(self, caller, now)

    def release(self, caller: str, acquired_at: float) -> None:
        """Release a permit; called by `Permit.release`."""
        with self._lock:
            self._held_seconds += self._clock() - max(acquired_at, self._tripped_at)
            left = self._holders[caller] - 1
            if left:
                self._holders[caller] = left
            else:
                del self._holders[caller]

    def _is_over(self, now: float) -> bool:
        """Return whether all arrivals since the trip would have left the slots idle for most of the time.

        Refused requests were not read: each is assumed to take as long as an admitted one. That time includes waits of
        requests for each other, so an overload is never mistaken for a burst.
        """
        if now < self._tripped_at + MIN_SHED_SECONDS / 2 or not self._admitted:
            return False
        wanted = self._held_seconds / self._admitted * self._arrived
        return not self._holders and wanted < MIN_LOAD * self._slots * (now - self._tripped_at)


class Permit:
    """The permit of one request, held while the request is read and answered. Released once, or by a `with` block."""

    __slots__ = ("_acquired_at", "_admission", "_caller")

    def __init__(self, admission: AdmissionController, caller: str, acquired_at: float) -> None:
        self._admission = admission
        self._caller = caller
        self._acquired_at = acquired_at

    def release(self) -> None:
        """Release the permit."""
        self._admission.release(self._caller, self._acquired_at)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def queue_full(message: str, retry_after: float = 0.0) -> Full:
    """Return the error of a request that the queue has no room for.

    Args:
        message: the reason.
        retry_after: predicted seconds until there is room.
    """
    error = Full(message)
    error.retry_after = max(MIN_RETRY_SECONDS, retry_after)
    return error
