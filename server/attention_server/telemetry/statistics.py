"""Counts, sizes and durations of requests since the start, by model version and by method."""

import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from attention_server.domain.request_record import OK, RequestRecord

# Upper bounds of buckets: durations in nanoseconds, 0.1 ms to 10 s; lengths in positions; sequences in a request.
TIMES = tuple(int(ms * 1e6) for ms in (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000))
LENGTHS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
BATCH = 32  # requests counted at a time
MANY = 64  # values, of which equal ones are counted first
SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(slots=True)
class Histogram:
    """A histogram of integers.

    Attributes:
        bounds: inclusive upper bounds of the buckets, ascending.
        total: the sum of all values.
        counts: the number of values in each bucket; the last bucket has no bound.
    """

    bounds: tuple[int, ...] = ()
    total: int = 0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    def add(self, values: Sequence[int]) -> None:
        """Add values."""
        bounds, counts = self.bounds, self.counts
        if not bounds:
            counts[0] += len(values)
        elif len(values) > MANY:  # lengths of many sequences are few different ones
            for value, times in Counter(values).items():
                counts[bisect_left(bounds, value)] += times
        else:
            for value in values:
                counts[bisect_left(bounds, value)] += 1
        self.total += sum(values)


Times = partial(Histogram, TIMES)
Lengths = partial(Histogram, LENGTHS)


@dataclass(slots=True)
class VersionStatistics:
    """Statistics of the requests for attention to one model version. Durations are in nanoseconds.

    Attributes:
        model: the model's name.
        version: the version's number.
        last_inference: the end of the last request in milliseconds since 1970; 0 for none.
        success: durations of answered requests.
        failures: durations of failed requests by the name of the gRPC code, refused ones included.
        checking: time from the start of an answered request to its submission.
        queued: time in the queue of answered requests.
        computing: time in a slot of answered requests.
        encoding: time to encode the answers.
        sequences: sequences in each answered request.
        queries: lengths T of all sequences.
        keys: lengths S of all sequences.
        pass_sequences: sequences in each pass through the model.
        pass_rows: query rows in each.
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
    pass_sequences: Histogram = field(default_factory=partial(Histogram, SEQUENCES))
    pass_rows: Histogram = field(default_factory=Lengths)

    def add(self, records: Sequence[RequestRecord]) -> None:
        """Count requests."""
        ago = time.perf_counter_ns() - max([record.written for record in records])
        self.last_inference = max(self.last_inference, (time.time_ns() - ago) // 1_000_000)
        passes = [each for record in records for each in record.passes]
        self.pass_sequences.add([sequences for sequences, _ in passes])
        self.pass_rows.add([rows for _, rows in passes])
        answered = [record for record in records if record.code == OK]
        if len(answered) < len(records):
            for record in records:
                if record.code != OK:
                    self.failures.setdefault(record.code, Histogram()).add([record.written - record.begun])
        self.success.add([record.written - record.begun for record in answered])
        self.checking.add([record.submitted - record.begun for record in answered])
        durations = [record.durations() for record in answered]
        for place, histogram in enumerate((self.queued, self.computing, self.encoding)):
            histogram.add([each[place] for each in durations])
        self.sequences.add([len(record.queries) for record in answered])
        self.queries.add([length for record in answered for length in record.queries])
        self.keys.add([length for record in answered for length in record.keys])


class RequestLabels(NamedTuple):
    """The labels that requests are counted by; model is empty and version 0 for requests without a model."""

    protocol: str
    method: str
    model: str
    version: int


@dataclass(slots=True)
class RequestStatistics:
    """Statistics of the requests with the same labels.

    Attributes:
        codes: the number of requests by the name of the gRPC code.
        reasons: the number of failed requests by reason.
        durations: time from the start of a request to its encoded answer, in nanoseconds.
        request_bytes: the total size of requests.
        answer_bytes: the total size of answers.
    """

    codes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    durations: Histogram = field(default_factory=Times)
    request_bytes: int = 0
    answer_bytes: int = 0

    def add(self, records: Sequence[RequestRecord]) -> None:
        """Count requests."""
        self.codes.update([record.code for record in records])
        self.reasons.update([record.reason for record in records if record.reason])
        self.durations.add([record.written - record.begun for record in records])
        self.request_bytes += sum([record.request_bytes for record in records])
        self.answer_bytes += sum([record.answer_bytes for record in records])


class Statistics:
    """Statistics of all requests. A version that is unloaded and loaded again keeps its counts.

    Ended requests are counted in batches, and before each reading, so that counting delays no answer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uncounted: deque[RequestRecord] = deque()  # appending and popping are atomic in CPython
        self._versions: dict[tuple[str, int], VersionStatistics] = {}
        self._requests: dict[RequestLabels, RequestStatistics] = {}

    def of(self, model: str, version: int) -> VersionStatistics:
        """Return a copy of a version's statistics."""
        with self._lock:
            self._count()
            return deepcopy(self._of(model, version))

    def all(self) -> tuple[list[VersionStatistics], dict[RequestLabels, RequestStatistics]]:
        """Return copies of the statistics of every version and of every set of labels."""
        with self._lock:
            self._count()
            versions, labels = list(self._versions), list(self._requests)
        return [self.of(*key) for key in versions], {key: self._by(key) for key in labels}

    def _by(self, labels: RequestLabels) -> RequestStatistics:
        with self._lock:  # one lock for each copy, so that requests do not wait for all copies
            return deepcopy(self._requests[labels])

    def count(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        self._uncounted.append(record)
        if len(self._uncounted) >= BATCH:
            with self._lock:
                self._count()

    def _count(self) -> None:
        by_labels: dict[RequestLabels, list[RequestRecord]] = {}
        while self._uncounted:
            record = self._uncounted.popleft()
            key = RequestLabels(record.protocol, record.method, record.model, record.version)
            by_labels.setdefault(key, []).append(record)
        for labels, records in by_labels.items():
            counted = self._requests.get(labels)
            if counted is None:
                counted = self._requests[labels] = RequestStatistics()
            counted.add(records)
            of_attention = [record for record in records if record.sequences is not None]
            if of_attention:
                self._of(labels.model, labels.version).add(of_attention)

    def _of(self, model: str, version: int) -> VersionStatistics:
        found = self._versions.get((model, version))
        if found is None:
            found = self._versions[model, version] = VersionStatistics(model, version)
        return found
