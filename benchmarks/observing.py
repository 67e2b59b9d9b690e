"""Cost of a request's record: with metrics alone, with tracing, and with a log line.

.venv/bin/python benchmarks/observing.py
"""

import timeit
from collections.abc import Callable

from attention_server.telemetry import logs, tracing
from attention_server.telemetry.observer import Observer
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from rich.console import Console

REQUESTS = 5_000


class NullExporter(SpanExporter):
    """An exporter that discards spans."""

    def export(self, spans: object) -> SpanExportResult:  # noqa: ARG002 # the SDK's
        return SpanExportResult.SUCCESS


def open_records(observer: Observer) -> Callable[[], None]:
    """Return a function that records one request, of one sequence of 32 positions, from begin to end."""

    def record() -> None:
        record = observer.begin("grpc", "Attend", {"user-agent": "benchmark"}, caller="127.0.0.1")
        record.set_target("multi-head", 1, 1)
        record.queries, record.keys = [32], [32]
        record.mark_submitted()
        record.mark_running()
        record.mark_computed()
        record.mark_settled()
        record.mark_written(100)
        record.server_timing()
        observer.end(record)

    return record


def measure(name: str, observer: Observer) -> None:
    """Print the microseconds of a request, the least of several rounds."""
    rounds = timeit.repeat(open_records(observer), number=REQUESTS, repeat=9)
    Console().print(f"{name}: {min(rounds) / REQUESTS * 1e6:.1f} us")
    observer.close()


logs.configure("info", "json")

measure("counted", Observer())
measure("counted and traced", Observer(tracing.OpenTelemetry(NullExporter())))
measure("counted and logged", Observer(access_log="all"))
