"""OpenTelemetry: a span for each request, and in it one for the queue, the computation and the writing of the answer.

What this imports is imported when traces are sent, which OpenTelemetry's own variables say; else it costs nothing.
"""

import os
import threading
import time
from importlib.metadata import version
from typing import Any, Protocol

from attention_server.domain.request_record import OK, RequestRecord

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# What a server is to blame for; the rest is the caller's.
FAULTS = ("DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNIMPLEMENTED", "UNKNOWN")
SECONDS_TO_CLOSE = 3.0  # for a collector that does not answer


class TracingError(Exception):
    """Traces are to be sent as this installation cannot."""


class Tracing(Protocol):
    """Sends spans."""

    def begin(self, record: RequestRecord, within: RequestRecord) -> None:
        """Begin a request's span, in that of its stream, or in its caller's."""
        ...

    def end(self, record: RequestRecord) -> None:
        """End a request's span, and tell what happened within it."""
        ...

    def trace_id(self, record: RequestRecord) -> str:
        """Return the id of a request's trace, 32 hexadecimal digits."""
        ...

    def close(self) -> None:
        """Send what was not sent yet."""
        ...


def open_tracing() -> Tracing | None:
    """Return what sends traces where OpenTelemetry's variables say; None where they say nothing.

    Raises:
        TracingError: they name a protocol whose exporter is not installed.
    """
    named = any(os.environ.get(name) for name in ENDPOINTS)
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if not named or disabled or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    return OpenTelemetry(_exporter())


def _exporter() -> Any:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol in (None, "", "grpc"):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 # see above

        return OTLPSpanExporter()
    if protocol != "http/protobuf":
        raise TracingError(f"OTEL_EXPORTER_OTLP_PROTOCOL must be grpc or http/protobuf, not {protocol!r}")
    try:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter  # noqa: PLC0415 # as above
    except ImportError as error:
        raise TracingError("http/protobuf needs the package opentelemetry-exporter-otlp-proto-http") from error
    return trace_exporter.OTLPSpanExporter()


class OpenTelemetry:
    """Sends spans by OpenTelemetry's SDK.

    Args:
        exporter: takes them, in batches, from a thread of its own.
    """

    def __init__(self, exporter: Any) -> None:
        from opentelemetry import trace  # noqa: PLC0415 # as above
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        ours = {"service.name": "attention-service", "service.version": version("attention-service")}
        resource = Resource(ours).merge(OTELResourceDetector().detect())  # what the variables say goes before
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("attention_server")

    def begin(self, record: RequestRecord, within: RequestRecord) -> None:
        parent = self._trace.set_span_in_context(within.span) if within.span else self._propagator.extract(record.trace)
        record.span = self._tracer.start_span(
            record.method or "HTTP", parent, self._trace.SpanKind.SERVER, start_time=_on_the_wall(record.begun)
        )

    def end(self, record: RequestRecord) -> None:
        span = record.span
        if span.is_recording():
            span.update_name(record.method or "HTTP")  # of a request over HTTP it is known by its route
            span.set_attributes({name: value for name, value in _attributes(record).items() if value})
            if record.code in FAULTS:
                span.set_status(self._trace.StatusCode.ERROR, record.reason)
            within = self._trace.set_span_in_context(span)
            for name, begun, ended in _parts(record):
                part = self._tracer.start_span(name, within, start_time=_on_the_wall(begun))
                part.end(_on_the_wall(ended))
        span.end(_on_the_wall(record.written))

    def trace_id(self, record: RequestRecord) -> str:
        return f"{record.span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        # It sends what is left, and tries again where nobody answers; its own time limit is not kept.
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(SECONDS_TO_CLOSE)


def _attributes(record: RequestRecord) -> dict[str, str | int]:
    return {
        "rpc.system": "grpc" if record.protocol == "grpc" else "",
        "rpc.method": record.method,
        "attention.code": record.code,
        "attention.reason": record.reason,
        "attention.field": record.field_at_fault,
        "attention.request_id": record.request_id,
        "attention.message_id": record.message_id,
        "attention.caller": record.caller,
        "attention.model": record.model,
        "attention.version": record.version,
        "attention.sequences": record.sequences or 0,
        "attention.tokens": sum(record.queries),
        "attention.request_bytes": record.request_bytes,
        "attention.answer_bytes": record.answer_bytes,
    }


def _parts(record: RequestRecord) -> list[tuple[str, int, int]]:
    """Return what happened within a request, and when: only what was reached."""
    parts = (
        ("queue", record.submitted, record.running),
        ("compute", record.running, record.computed),
        ("encode", record.settled or record.computed, record.written if record.code == OK else 0),
    )
    return [(name, begun, ended) for name, begun, ended in parts if begun and ended]


def _on_the_wall(moment: int) -> int:
    """Return a moment of the clock that measures as nanoseconds since 1970."""
    return time.time_ns() - (time.perf_counter_ns() - moment)
