"""OpenTelemetry traces: a span for each request with child spans for queue, computation and encoding.

OpenTelemetry is imported only if its environment variables ask for traces; a server without traces pays nothing.
"""

import os
import threading
import time
from importlib.metadata import version
from typing import Any, Protocol

from attention_server.domain.request_record import OK, RequestRecord

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# Codes of errors of the server; all further codes are errors of the caller.
FAULTS = ("DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNIMPLEMENTED", "UNKNOWN")
CLOSE_SECONDS = 3.0  # to wait for a collector that does not answer


class TracingError(Exception):
    """The environment asks for an exporter that is not installed or unknown."""


class Tracing(Protocol):
    """A sink of spans."""

    def begin(self, record: RequestRecord, parent: RequestRecord) -> None:
        """Begin a request's span; its parent is the stream's span, or the caller's if `parent` is the record itself."""
        ...

    def end(self, record: RequestRecord) -> None:
        """End a request's span, with attributes and child spans."""
        ...

    def trace_id(self, record: RequestRecord) -> str:
        """Return the id of a request's trace, 32 hexadecimal digits."""
        ...

    def close(self) -> None:
        """Send the remaining spans."""
        ...


def open_tracing() -> Tracing | None:
    """Return the tracing that OpenTelemetry's environment variables ask for; None without such variables.

    Raises:
        TracingError: the protocol is unknown, or its exporter is not installed.
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
    """Tracing with OpenTelemetry's SDK.

    Args:
        exporter: exports spans; called with batches in a thread of the SDK.
    """

    def __init__(self, exporter: Any) -> None:
        from opentelemetry import trace  # noqa: PLC0415 # as above
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        defaults = {"service.name": "attention-service", "service.version": version("attention-service")}
        resource = Resource(defaults).merge(
            OTELResourceDetector().detect()
        )  # the environment variables take precedence
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("attention_server")

    def begin(self, record: RequestRecord, parent: RequestRecord) -> None:
        stream = parent.span
        context = self._trace.set_span_in_context(stream) if stream else self._propagator.extract(record.trace)
        record.span = self._tracer.start_span(
            record.method or "HTTP", context, self._trace.SpanKind.SERVER, start_time=_wall_clock(record.begun)
        )

    def end(self, record: RequestRecord) -> None:
        span = record.span
        if span.is_recording():
            span.update_name(record.method or "HTTP")  # the route of an HTTP request has set it since
            span.set_attributes({name: value for name, value in _attributes(record).items() if value})
            if record.code in FAULTS:
                span.set_status(self._trace.StatusCode.ERROR, record.reason)
            context = self._trace.set_span_in_context(span)
            for name, begun, ended in _phases(record):
                child = self._tracer.start_span(name, context, start_time=_wall_clock(begun))
                child.end(_wall_clock(ended))
        span.end(_wall_clock(record.written))

    def trace_id(self, record: RequestRecord) -> str:
        return f"{record.span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        # Shutdown retries while the collector does not answer, and exceeds its own timeout.
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


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


def _phases(record: RequestRecord) -> list[tuple[str, int, int]]:
    """Return the name, start and end of each phase that a request has completed."""
    phases = (
        ("queue", record.submitted, record.running),
        ("compute", record.running, record.computed),
        ("encode", record.settled or record.computed, record.written if record.code == OK else 0),
    )
    return [(name, begun, ended) for name, begun, ended in phases if begun and ended]


def _wall_clock(moment: int) -> int:
    """Convert a time of the performance counter to nanoseconds since 1970."""
    return time.time_ns() - (time.perf_counter_ns() - moment)
