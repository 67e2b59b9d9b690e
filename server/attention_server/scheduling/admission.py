"""More is asked for than can be computed, and not as a burst: what is let in then, and for how long.

A queue takes bursts. Where more comes all the time it is always full, and all that its length gains is that every
request waits for it. So when it has been full, the door is closed for a while to all but what keeps the slots busy, and
what is refused there is not even read: a refusal must cost little where it is most of what is done. Then the door is
opened, to a shorter queue at first; if that is full too, it is closed again, for twice as long. When all who come, let
in or not, would not keep the slots busy for half of the time, it is over: bursts are what the queue is for.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from attention_server.errors import Full

LEAST, MOST = 1.0, 32.0  # seconds for which the door is closed, at first and at most
AFTERWARDS = 1 / 4  # of what a request may have to wait otherwise, for as long as it was closed
OVER = 0.5  # of the slots' time: who asks for less is no overload any more
PLACES = 2  # for each slot: one request computes, and one is read or waits
LEAST_RETRY = 0.1  # seconds: a prediction may be wrong, and who comes back at once, in vain, only adds to the load


class AdmissionController:
    """Whether there is one, and who is in.

    Args:
        slots: how many requests compute at once.
        max_wait: seconds that a request may have to wait when there is no overload.
        clock: `time.monotonic`.
    """

    def __init__(self, slots: int, max_wait: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots = slots
        self._places = PLACES * slots
        self._max_wait = max_wait
        self._clock = clock
        self._lock = threading.Lock()
        self._until = -math.inf
        self._seconds = 0.0
        # Since it was closed: when that was, who came, who was let in, and for how many seconds they were in.
        self._since, self._came, self._entered, self._taken = 0.0, 0, 0, 0.0
        self._in: Counter[str] = Counter()  # requests by caller, those too that came through an open door

    @property
    def is_closed(self) -> bool:
        """Whether who comes is let in only where there is a place."""
        return self._clock() < self._until

    @property
    def bound(self) -> float:
        """The seconds that a request may have to wait; infinite where the queue's own bound is what counts."""
        return self._max_wait * AFTERWARDS if self._clock() < self._until + self._seconds else math.inf

    def grow(self) -> None:
        """The queue is as full as it may be."""
        now = self._clock()
        if now < self._until:  # by those who were here before
            return
        self._seconds = min(MOST, 2 * self._seconds) if now < self._until + self._seconds else LEAST
        self._until = now + self._seconds
        self._since, self._came, self._entered, self._taken = now, 0, 0, 0.0

    def permit(self, caller: str) -> "Permit":
        """Return a place for a request, to be entered; see `Permit`."""
        return Permit(self, caller)

    def enter(self, caller: str) -> float:
        """Let a request in; return when that was.

        Raises:
            Full: the door is closed, all places are taken, and no other caller has more in.
        """
        with self._lock:
            now = self._clock()
            if now < self._until:
                self._came += 1
                if self._is_over(now):
                    self._until, self._seconds = -math.inf, 0.0
                elif self._in.total() >= self._places and self._in[caller] + 1 >= max(self._in.values()):
                    raise full("the queue is full: more is asked for than can be computed")
                self._entered += 1
            self._in[caller] += 1
            return now

    def leave(self, caller: str, entered: float) -> None:
        """A request that was let in has its answer."""
        with self._lock:
            self._taken += self._clock() - max(entered, self._since)
            self._in[caller] -= 1
            if not self._in[caller]:
                del self._in[caller]

    def _is_over(self, now: float) -> bool:
        """Return whether all who came since the door was closed would have left the slots idle for most of the time.

        What was refused was not read: it is taken to cost what the others did. Their time includes what they waited for
        each other, so that an overload never looks like none.
        """
        if now < self._since + LEAST / 2 or not self._entered:
            return False
        wanted = self._taken / self._entered * self._came
        return not self._in and wanted < OVER * self._slots * (now - self._since)


class Permit:
    """What a request has while it is read and answered. To enter raises Full where there is none."""

    __slots__ = ("_admission", "_caller", "_entered")

    def __init__(self, admission: AdmissionController, caller: str) -> None:
        self._admission = admission
        self._caller = caller

    def __enter__(self) -> None:
        self._entered = self._admission.enter(self._caller)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.leave(self._caller, self._entered)


def full(message: str, retry_after: float = 0.0) -> Full:
    """Return a refusal.

    Args:
        message: why.
        retry_after: seconds after which there may be room, as predicted.
    """
    error = Full(message)
    error.retry_after = max(LEAST_RETRY, retry_after)
    return error
