"""Limits on log lines: at most so many a second of one cause, for any number of requests."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable

import structlog

LINES_A_SECOND = 50  # of one cause
CAUSE = ("event", "code", "reason")  # the fields of a line that callers do not write


class LogRates:
    """Counts lines by cause, and drops those beyond the limit of the current second.

    Args:
        most: lines of one cause in a second.
        clock: returns seconds.

    Attributes:
        thinned: the number of lines that were dropped.
    """

    def __init__(self, most: int = LINES_A_SECOND, clock: Callable[[], float] = time.monotonic) -> None:
        self.thinned = 0
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._second = 0
        self._counts: Counter[Hashable] = Counter()

    def admit(self, cause: Hashable) -> bool:
        """Count a line; return whether it is logged."""
        with self._lock:
            second = int(self._clock())
            if second != self._second:
                self._second = second
                self._counts.clear()
            self._counts[cause] += 1
            is_admitted = self._counts[cause] <= self._most
            self.thinned += not is_admitted
            return is_admitted

    def process(self, _: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Drop an event beyond the limit; answered requests are logged only where each line was asked for, and stay.

        Raises:
            structlog.DropEvent: the event is beyond the limit.
        """
        if event.get("code") != "OK" and not self.admit(tuple(str(event.get(name)) for name in CAUSE)):
            raise structlog.DropEvent
        return event

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record of a library is logged."""
        return self.admit((record.name, str(record.msg)))
