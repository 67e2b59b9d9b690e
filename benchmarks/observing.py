"""What it costs a request to be watched: counted; and traced or logged too.

.venv/bin/python benchmarks/observing.py
"""

import timeit
from collections.abc import Callable

from attention_server.telemetry import logs, tracing
from attention_server.telemetry.observer import Observer
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from rich.console import Console

REQUESTS = 5_000


class Nowhere(SpanExporter):
    """Takes spans, and sends them nowhere."""

    def export(self, spans: object) -> SpanExportResult:  # noqa: ARG002 # the SDK's
        return SpanExportResult.SUCCESS


def watched(observer: Observer) -> Callable[[], None]:
    """Return what watches one request, of one sequence of 32, from begin to end."""

    def watch() -> None:
        watch = observer.begin("grpc", "Attend", {"user-agent": "benchmark"}, caller="127.0.0.1")
        watch.asks("multi-head", 1, 1)
        watch.queries, watch.keys = [32], [32]
        watch.is_checked()
        watch.runs()
        watch.has_run()
        watch.is_settled()
        watch.is_written(100)
        watch.server_timing()
        observer.end(watch)

    return watch


def measure(name: str, observer: Observer) -> None:
    """Print the least of several rounds, in microseconds a request."""
    rounds = timeit.repeat(watched(observer), number=REQUESTS, repeat=9)
    Console().print(f"{name}: {min(rounds) / REQUESTS * 1e6:.1f} us")
    observer.close()


logs.configure("info", "json")

measure("counted", Observer())
measure("counted and traced", Observer(tracing.OpenTelemetry(Nowhere())))
measure("counted and logged", Observer(access_log="all"))
