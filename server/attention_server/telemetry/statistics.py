"""What was asked since the start, what became of it, and where its time went: by version, and by method and code."""

import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from attention_server.domain.request_record import OK, RequestRecord

# Upper bounds. Of times in nanoseconds, 0.1 ms to 10 s; of lengths and of sequences in a request, their number.
TIMES = tuple(int(ms * 1e6) for ms in (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000))
LENGTHS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
TOGETHER = 32  # requests that are counted at a time
SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(slots=True)
class Histogram:
    """How often something was how large, and how much in all.

    Attributes:
        bounds: upper ones, inclusive, ascending.
        counts: of each, and of what is larger than all.
    """

    bounds: tuple[int, ...] = ()
    total: int = 0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        """How often."""
        return sum(self.counts)

    def add(self, value: int, times: int = 1) -> None:
        """Count it once more, or several times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


Times = partial(Histogram, TIMES)
Lengths = partial(Histogram, LENGTHS)


@dataclass(slots=True)
class VersionStatistics:
    """What was asked of one version. Times are in nanoseconds.

    Attributes:
        model, version: which.
        last_inference: when it was last asked, in milliseconds since 1970; 0 for never.
        success: requests for attention, and how long they took in all.
        failures: the same of those without an answer, by the name of gRPC's code; those that never ran too.
        checking, queued, computing, encoding: parts of what the answered ones took.
        sequences: of each answered request. queries, keys: the length of each of these, T and S.
    """

    model: str
    version: int
    last_inference: int = 0
    success: Histogram = field(default_factory=Histogram)
    failures: dict[str, Histogram] = field(default_factory=dict)
    checking: Histogram = field(default_factory=Histogram)
    queued: Histogram = field(default_factory=Times)
    computing: Histogram = field(default_factory=Times)
    encoding: Histogram = field(default_factory=Times)
    sequences: Histogram = field(default_factory=partial(Histogram, SEQUENCES))
    queries: Histogram = field(default_factory=Lengths)
    keys: Histogram = field(default_factory=Lengths)

    def add(self, record: RequestRecord) -> None:
        """Count a request for attention."""
        ago = time.perf_counter_ns() - record.written
        self.last_inference = max(self.last_inference, (time.time_ns() - ago) // 1_000_000)
        if record.code != OK:
            self.failures.setdefault(record.code, Histogram()).add(record.written - record.begun)
            return
        self.success.add(record.written - record.begun)
        self.checking.add(record.submitted - record.begun)
        self.queued.add(record.queued_ns)
        self.computing.add(record.compute_ns)
        self.encoding.add(record.encode_ns)
        self.sequences.add(len(record.queries))
        for lengths, counted in ((record.queries, self.queries), (record.keys, self.keys)):
            if len(lengths) == 1:
                counted.add(lengths[0])
            else:
                for length, times in Counter(lengths).items():
                    counted.add(length, times)


class RequestLabels(NamedTuple):
    """By which requests come, and to whom; model and version are empty and 0 where they are for none."""

    protocol: str
    method: str
    model: str
    version: int


@dataclass(slots=True)
class RequestStatistics:
    """What came by one way.

    Attributes:
        codes: how often a request ended with each, by the name of gRPC's.
        reasons: how often one failed for which cause.
        durations: from when it came until its answer was bytes, in nanoseconds.
        request_bytes, answer_bytes: in all.
    """

    codes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    durations: Histogram = field(default_factory=Times)
    request_bytes: int = 0
    answer_bytes: int = 0

    def add(self, record: RequestRecord) -> None:
        """Count a request."""
        self.codes[record.code] += 1
        if record.reason:
            self.reasons[record.reason] += 1
        self.durations.add(record.written - record.begun)
        self.request_bytes += record.request_bytes
        self.answer_bytes += record.answer_bytes


class Statistics:
    """Counts. A version that went and came again counts on.

    Requests are counted some at a time, and before anybody looks: no answer waits for it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uncounted: deque[RequestRecord] = deque()  # to append and to pop are one step each for the interpreter
        self._versions: dict[tuple[str, int], VersionStatistics] = {}
        self._ways: dict[RequestLabels, RequestStatistics] = {}

    def of(self, model: str, version: int) -> VersionStatistics:
        """Return a version's statistics as they are now."""
        with self._lock:
            self._count()
            return deepcopy(self._of(model, version))

    def all(self) -> tuple[list[VersionStatistics], dict[RequestLabels, RequestStatistics]]:
        """Return everything as it is now."""
        with self._lock:
            self._count()
            versions, ways = list(self._versions), list(self._ways)
        return [self.of(*key) for key in versions], {key: self._by(key) for key in ways}

    def _by(self, way: RequestLabels) -> RequestStatistics:
        with self._lock:  # for each anew: requests do not wait until all are copied
            return deepcopy(self._ways[way])

    def count(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        self._uncounted.append(record)
        if len(self._uncounted) >= TOGETHER:
            with self._lock:
                self._count()

    def _count(self) -> None:
        while self._uncounted:
            record = self._uncounted.popleft()
            key = RequestLabels(record.protocol, record.method, record.model, record.version)
            way = self._ways.get(key)
            if way is None:
                way = self._ways[key] = RequestStatistics()
            way.add(record)
            if record.sequences is not None:
                self._of(record.model, record.version).add(record)

    def _of(self, model: str, version: int) -> VersionStatistics:
        found = self._versions.get((model, version))
        if found is None:
            found = self._versions[model, version] = VersionStatistics(model, version)
        return found
