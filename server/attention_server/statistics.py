"""What was asked of each version since the start, what became of it, and where its time went."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(slots=True)
class Duration:
    """How often something was done, and how many nanoseconds it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count it once more."""
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class VersionStatistics:
    """The statistics of one version.

    Attributes:
        model, version: which.
        last_inference: when it was last asked, in milliseconds since 1970; 0 for never.
        sequences: answered.
        success, fail: requests, and how long they took in all; those that were refused before they ran failed.
        checking, queued, computing: parts of what the answered ones took.
    """

    model: str
    version: int
    last_inference: int = 0
    sequences: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    checking: Duration = field(default_factory=Duration)
    queued: Duration = field(default_factory=Duration)
    computing: Duration = field(default_factory=Duration)


class Statistics:
    """Counts by version. A version that went and came again counts on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: dict[tuple[str, int], VersionStatistics] = {}

    def of(self, model: str, version: int) -> VersionStatistics:
        """Return a version's statistics as they are now."""
        with self._lock:
            now = self._of(model, version)
            parts = ("success", "fail", "checking", "queued", "computing")
            return replace(now, **{name: replace(getattr(now, name)) for name in parts})

    @contextmanager
    def watch(self, model: str, version: int, sequences: int) -> Iterator["Watch"]:
        """Watch a request until it is handed over, and count it as failed if it is refused before."""
        watch = Watch(self, model, version, sequences)
        try:
            yield watch
        except Exception:
            self.count(watch, succeeded=False)
            raise

    def count(self, watch: "Watch", *, succeeded: bool) -> None:
        """Count a request that has ended."""
        now = time.perf_counter_ns()
        with self._lock:
            version = self._of(watch.model, watch.version)
            version.last_inference = time.time_ns() // 1_000_000
            if not succeeded:
                version.fail.add(now - watch.begun)
                return
            version.sequences += watch.sequences
            version.success.add(now - watch.begun)
            version.checking.add(watch.checked - watch.begun)
            version.queued.add(watch.running - watch.checked)
            version.computing.add(watch.computed - watch.running)

    def _of(self, model: str, version: int) -> VersionStatistics:
        return self._versions.setdefault((model, version), VersionStatistics(model, version))


class Watch:
    """One request: when it came, was checked, began to run, and had run, in nanoseconds of one clock."""

    def __init__(self, statistics: Statistics, model: str, version: int, sequences: int) -> None:
        self._statistics = statistics
        self.model = model
        self.version = version
        self.sequences = sequences
        self.begun = self.checked = self.running = self.computed = time.perf_counter_ns()

    def is_checked(self) -> None:
        """It goes to the scheduler now."""
        self.checked = time.perf_counter_ns()

    def runs(self) -> None:
        """It computes from now on."""
        self.running = time.perf_counter_ns()

    def has_run(self) -> None:
        """It is computed."""
        self.computed = time.perf_counter_ns()

    def end(self, future: "Future[Any]") -> None:
        """Count what came of it."""
        self._statistics.count(self, succeeded=not future.cancelled() and future.exception() is None)
