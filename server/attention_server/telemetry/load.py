"""The load of the server, measured for load balancers."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from attention_server.machine import usable_cores

WINDOW = 1.0  # seconds at least, over which a rate is measured


@dataclass(frozen=True, slots=True)
class Load:
    """The load over the last second or longer.

    Attributes:
        cpu: the process's share of the time of the cores that it may use, 0 to 1.
        requests: ended requests a second.
        errors: failed requests a second.
    """

    cpu: float = 0.0
    requests: float = 0.0
    errors: float = 0.0


class LoadMeter:
    """Measures the load between two readings that are a window apart.

    Args:
        clock: seconds, `time.monotonic`.
        cpu_clock: seconds of all cores that the process has used, `time.process_time`.
        cores: that the process may use.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
        cores: int | None = None,
    ) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        self._cores = cores or usable_cores()
        self._begun, self._cpu = clock(), cpu_clock()
        self._requests = self._errors = 0
        self._load = Load()

    def count(self, *, is_error: bool) -> None:
        """Count a request that has ended."""
        self._requests += 1
        self._errors += is_error

    def load(self) -> Load:
        """Return the load of the last whole window; zeros before the first has passed."""
        now = self._clock()
        seconds = now - self._begun
        if seconds >= WINDOW:
            cpu = self._cpu_clock()
            share = min(1.0, (cpu - self._cpu) / seconds / self._cores)
            self._load = Load(share, self._requests / seconds, self._errors / seconds)
            self._begun, self._cpu = now, cpu
            self._requests = self._errors = 0
        return self._load
