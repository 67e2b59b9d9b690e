"""Metrics in Prometheus' text format: this service's, the same numbers under Triton's names, and the process's.

Labels name only models that are or were served, so that callers cannot create series.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from attention_server.budget.account import AccountState
from attention_server.contexts.store import MemoryState
from attention_server.domain.index_entry import IndexEntry
from attention_server.domain.request_record import RequestRecord
from attention_server.domain.residency import ResidencyState
from attention_server.scheduling.scheduler import SchedulerState
from attention_server.telemetry.statistics import Histogram, RequestLabels, RequestStatistics, VersionStatistics

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

SECOND = 1_000_000_000  # in nanoseconds, as times are counted
# Triton's reasons of a failure: refused before the run, cancelled by the caller, failed in the run, or anything else.
TRITON_REASONS = {
    "UNAVAILABLE": "REJECTED",
    "RESOURCE_EXHAUSTED": "REJECTED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "CANCELLED": "CANCELED",
    "INTERNAL": "BACKEND",
}
OTHER = "OTHER"

Versions = list[VersionStatistics]

_process = CollectorRegistry()
ProcessCollector(registry=_process)
GCCollector(registry=_process)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The server's state at one moment.

    Attributes:
        ready: whether every model is loaded and warmed.
        scheduler: the scheduler's slots and queue.
        memories: the store of kept memories.
        account: the account of bytes.
        versions: statistics of each version that has had a request.
        requests: statistics of ended requests by label.
        open_records: the records of requests that have not ended.
        index: every version in the repository.
        log_losses: log lines that are missing, by cause.
        residency: which versions have their graphs in memory.
    """

    ready: bool
    scheduler: SchedulerState
    memories: MemoryState
    account: AccountState
    versions: list[VersionStatistics]
    requests: dict[RequestLabels, RequestStatistics]
    open_records: list[RequestRecord]
    index: list[IndexEntry]
    log_losses: Mapping[str, int]
    residency: ResidencyState
    certificate_expires: float | None


def exposition(snapshot: Snapshot) -> bytes:
    """Return all metrics in Prometheus' text format."""
    open_records = snapshot.open_records
    known = {(each.model, each.version): each for each in snapshot.versions}
    for entry in snapshot.index:
        if entry.state == "READY":  # a version without requests has zeros
            known.setdefault((entry.name, entry.version), VersionStatistics(entry.name, entry.version))
    versions = list(known.values())
    own = [
        *_of_server(snapshot),
        *_of_models(snapshot.index),
        *_of_residency(snapshot.residency),
        *_of_requests(snapshot.requests, open_records),
        *_of_versions(versions),
    ]
    return generate_latest(_Collected(own)) + _of_triton(versions, open_records).encode() + generate_latest(_process)


class _Collected(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _of_server(snapshot: Snapshot) -> Iterator[Metric]:
    scheduler, memories, account = snapshot.scheduler, snapshot.memories, snapshot.account
    build = GaugeMetricFamily("attention_build_info", "The version of the service.", labels=["version"])
    build.add_metric([version("attention-service")], 1)
    yield build
    gauges = {
        "attention_ready": ("Whether every model is loaded and warmed.", int(snapshot.ready)),
        "attention_slots": ("Requests that are computed at once.", scheduler.slots),
        "attention_slots_busy": ("Requests that are being computed.", scheduler.running),
        "attention_queue_capacity": ("Requests that may wait for a slot.", scheduler.max_queued),
        "attention_queue_depth": ("Requests that wait for a slot.", scheduler.queued),
        "attention_budget_bytes": ("Bytes that requests, answers and connections may hold.", account.limit),
        "attention_budget_held_bytes": ("Bytes that they hold.", account.held),
        "attention_budget_running_bytes": ("Bytes reserved for the largest computations.", account.running),
        "attention_memory_budget_bytes": ("Bytes that memories may have together.", memories.budget),
    }
    yield from (GaugeMetricFamily(name, words, value) for name, (words, value) in gauges.items())
    idle = memories.entries - memories.held - memories.pinned
    idle_size = memories.size - memories.held_size - memories.pinned_size
    entries = GaugeMetricFamily("attention_memory_entries", "Memories that are kept, by state.", labels=["state"])
    sizes = GaugeMetricFamily("attention_memory_bytes", "Bytes of the memories, by state.", labels=["state"])
    for state, number, size in (
        ("idle", idle, idle_size),
        ("held", memories.held, memories.held_size),
        ("pinned", memories.pinned, memories.pinned_size),
    ):
        entries.add_metric([state], number)
        sizes.add_metric([state], size)
    yield from (entries, sizes)
    counters = {
        "attention_budget_refusals": ("Refusals for lack of memory.", account.refused),
        "attention_memory_hits": ("Memories that were named and kept.", memories.hits),
        "attention_memory_misses": ("Memories that were named and not kept.", memories.misses),
        "attention_memory_evictions": ("Memories forgotten to make room for others.", memories.evicted),
        "attention_memory_copied_bytes": ("Bytes of prefixes that were copied to go on behind them.", memories.copied),
        "attention_memory_expirations": ("Memories forgotten because nobody used them.", memories.expired),
    }
    yield from (CounterMetricFamily(name, words, value) for name, (words, value) in counters.items())
    if snapshot.certificate_expires is not None:
        words = "When the certificate of TLS expires, in seconds since 1970."
        yield GaugeMetricFamily("attention_certificate_expiry_timestamp_seconds", words, snapshot.certificate_expires)
    losses = CounterMetricFamily("attention_log_lines_dropped", "Log lines that are missing.", labels=["reason"])
    for reason, count in snapshot.log_losses.items():
        losses.add_metric([reason], count)
    yield losses


def _of_models(index: Iterable[IndexEntry]) -> Iterator[Metric]:
    ready = GaugeMetricFamily(
        "attention_model_ready", "Whether a version in the repository answers.", labels=["model", "version", "state"]
    )
    for entry in index:
        ready.add_metric([entry.name, str(entry.version), entry.state], int(entry.state == "READY"))
    yield ready


def _of_residency(residency: ResidencyState) -> Iterator[Metric]:
    labels = ["model", "version"]
    if residency.budget is not None:
        yield GaugeMetricFamily(
            "attention_model_budget_bytes", "Bytes that graphs in memory may have together.", residency.budget
        )
    held = GaugeMetricFamily(
        "attention_model_resident_bytes", "Bytes of a version's graphs in memory; 0 while it is evicted.", labels=labels
    )
    evictions = CounterMetricFamily(
        "attention_model_evictions", "Versions whose graphs were closed to make room.", labels=labels
    )
    reloads = CounterMetricFamily(
        "attention_model_reloads", "Evicted versions that a request loaded again.", labels=[*labels, "outcome"]
    )
    for (name, number), counts in residency.versions.items():
        values = [name, str(number)]
        held.add_metric(values, counts.bytes)
        evictions.add_metric(values, counts.evictions)
        reloads.add_metric([*values, "loaded"], counts.reloads)
        reloads.add_metric([*values, "failed"], counts.failed_reloads)
    yield from (held, evictions, reloads)


def _of_requests(
    requests: Mapping[RequestLabels, RequestStatistics], open_records: Iterable[RequestRecord]
) -> Iterator[Metric]:
    labels = list(RequestLabels._fields)
    ended = CounterMetricFamily("attention_requests", "Requests that have ended.", labels=[*labels, "code"])
    durations = HistogramMetricFamily(
        "attention_request_duration_seconds", "From when a request came until its answer was bytes.", labels=labels
    )
    received = CounterMetricFamily("attention_request_bytes", "Bytes of requests.", labels=labels)
    sent = CounterMetricFamily("attention_response_bytes", "Bytes of answers.", labels=labels)
    rejections = CounterMetricFamily(
        "attention_rejections", "Requests without an answer, by cause.", labels=["protocol", "method", "reason"]
    )
    reasons: Counter[tuple[str, str, str]] = Counter()
    for request_labels, counted in requests.items():
        values = [str(value or "") for value in request_labels]
        for code, count in counted.codes.items():
            ended.add_metric([*values, code], count)
        _add_histogram(durations, values, counted.durations, SECOND)
        received.add_metric(values, counted.request_bytes)
        sent.add_metric(values, counted.answer_bytes)
        for reason, count in counted.reasons.items():
            reasons[request_labels.protocol, request_labels.method, reason] += count
    for key, count in reasons.items():
        rejections.add_metric(key, count)
    yield from (ended, durations, received, sent, rejections)
    in_flight = GaugeMetricFamily(
        "attention_requests_in_flight", "Requests that are here.", labels=["protocol", "method"]
    )
    streams = GaugeMetricFamily("attention_streams", "Streams that are open.", labels=["method"])
    open_streams = Counter({"AttendStream": 0, "ModelStreamInfer": 0})
    open_streams.update(record.method for record in open_records if record.is_stream)
    for pair, count in Counter((each.protocol, each.method) for each in open_records if not each.is_stream).items():
        in_flight.add_metric(pair, count)
    for method, count in open_streams.items():
        streams.add_metric([method], count)
    yield from (in_flight, streams)


def _of_versions(versions: Versions) -> Iterator[Metric]:
    labels = ["model", "version"]
    histograms = {
        "attention_queue_duration_seconds": ("Waiting for a slot, of answered requests.", "queued", SECOND),
        "attention_compute_duration_seconds": ("Holding a slot, of answered requests.", "computing", SECOND),
        "attention_encode_duration_seconds": ("Writing the answer.", "encoding", SECOND),
        "attention_request_sequences": ("Sequences in an answered request.", "sequences", 1),
        "attention_query_length": ("Positions of a sequence that attend.", "queries", 1),
        "attention_key_length": ("Positions of a sequence that are attended to.", "keys", 1),
        "attention_pass_sequences": ("Sequences that ran together, of one request or several.", "pass_sequences", 1),
        "attention_pass_rows": ("Positions that attended in one pass.", "pass_rows", 1),
    }
    for name, (words, attribute, unit) in histograms.items():
        family = HistogramMetricFamily(name, words, labels=labels)
        for each in versions:
            _add_histogram(family, [each.model, str(each.version)], getattr(each, attribute), unit)
        yield family
    tokens = CounterMetricFamily("attention_tokens", "Positions that attended, of all sequences.", labels=labels)
    for each in versions:
        tokens.add_metric([each.model, str(each.version)], each.queries.total)
    yield tokens


def _add_histogram(family: HistogramMetricFamily, labels: list[str], histogram: Histogram, unit: int) -> None:
    total, buckets = 0, []
    for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound is None else str(bound / unit if unit > 1 else bound), total))
    family.add_metric(labels, buckets, histogram.total / unit)


def _of_triton(versions: Versions, open_records: Iterable[RequestRecord]) -> str:
    """Return metrics under Triton's names; its counters have no suffix `_total`, which the library would add."""
    pending = Counter(
        (record.model, record.version) for record in open_records if record.submitted and not record.running
    )
    metrics: dict[str, tuple[str, str, Callable[[VersionStatistics], int]]] = {
        "request_success": ("counter", "Requests answered", lambda each: each.success.count),
        "count": ("counter", "Sequences answered", lambda each: each.sequences.total),
        "exec_count": ("counter", "Computations", lambda each: each.success.count),
        "request_duration_us": ("counter", "Microseconds from begin to end", lambda each: each.success.total // 1000),
        "queue_duration_us": ("counter", "Microseconds in the queue", lambda each: each.queued.total // 1000),
        "compute_input_duration_us": ("counter", "Microseconds of checking", lambda each: each.checking.total // 1000),
        "compute_infer_duration_us": (
            "counter",
            "Microseconds of computing",
            lambda each: each.computing.total // 1000,
        ),
        "compute_output_duration_us": ("counter", "Microseconds of writing", lambda each: each.encoding.total // 1000),
        "pending_request_count": ("gauge", "Requests that wait", lambda each: pending[each.model, each.version]),
    }
    lines = []
    for name, (kind, words, value) in metrics.items():
        lines += _header_lines(name, kind, words)
        lines += [
            f'nv_inference_{name}{{model="{each.model}",version="{each.version}"}} {value(each)}' for each in versions
        ]
    lines += _header_lines("request_failure", "counter", "Requests without an answer")
    for each in versions:
        failures = Counter(dict.fromkeys((*TRITON_REASONS.values(), OTHER), 0))
        for code, failed in each.failures.items():
            failures[TRITON_REASONS.get(code, OTHER)] += failed.count
        lines += [
            f'nv_inference_request_failure{{model="{each.model}",reason="{reason}",version="{each.version}"}} {count}'
            for reason, count in failures.items()
        ]
    return "".join(f"{line}\n" for line in lines)


def _header_lines(name: str, kind: str, words: str) -> list[str]:
    return [f"# HELP nv_inference_{name} {words}.", f"# TYPE nv_inference_{name} {kind}"]
