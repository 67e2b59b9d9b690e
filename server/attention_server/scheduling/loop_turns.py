"""Turns of an event loop in which the loop's own thread computes short jobs.

Handing a short job to another thread and back takes longer than the job. But a loop that computes serves no further
caller meanwhile. So a turn is bounded: by TURN_SECONDS, or by SHORT_SECONDS under overload, when refusals are due.
"""

import asyncio
import threading
from collections.abc import Callable

# Predicted seconds: of a job that the loop may compute, and of all jobs of one turn. Reading, planning and writing for
# many callers at once takes less than half of the time that it takes between two computations, which evict its data
# from the processor's caches.
SHORT_SECONDS = 0.004
TURN_SECONDS = 0.010


class LoopTurns:
    """Requests turns of an event loop; at most one is pending. Call every method with the scheduler's lock held.

    Args:
        serve: called once in the loop's thread for each requested turn.
    """

    def __init__(self, serve: Callable[[], None]) -> None:
        self._serve = serve
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._is_pending = False

    @property
    def is_attached(self) -> bool:
        """Whether there is a loop to compute in."""
        return self._loop is not None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Attach the running loop of this thread."""
        self._loop, self._thread = loop, threading.get_ident()

    def detach(self) -> None:
        """Detach the loop, which may have ended; a turn that is pending may never come."""
        self._loop = None

    def request(self) -> None:
        """Request a turn, unless one is pending: in the loop's next iteration, when all arrivals are in the queue."""
        if self._loop is None or self._is_pending:
            return
        self._is_pending = True
        if threading.get_ident() == self._thread:
            self._loop.call_soon(self._serve)
        else:
            self._loop.call_soon_threadsafe(self._serve)

    def begin(self) -> None:
        """Begin the pending turn."""
        self._is_pending = False
