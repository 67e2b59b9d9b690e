"""The observer of requests: counts, traces and logs each one."""

import math
import threading
import time
from collections.abc import Mapping
from typing import Literal

import structlog

from attention_server.domain.request_record import OK, REQUEST_ID, TRACE_HEADERS, RequestRecord, request_id
from attention_server.telemetry.load import LoadMeter
from attention_server.telemetry.statistics import Statistics
from attention_server.telemetry.tracing import Tracing

OVERLOADED = "full"  # the reason of `errors.Full`
AccessLog = Literal["none", "errors", "all"]

log = structlog.get_logger()


class Observer:
    """Makes the record of each request, and counts, traces and logs it at its end.

    Args:
        tracing: sends spans; None for no traces.
        access_log: the requests that get a line in the log: none, failed ones or all.
        load_reports: whether answers have a report of the load beside them.

    Attributes:
        statistics: of all requests.
        meter: measures the load for the reports; None without reports.
    """

    def __init__(
        self, tracing: Tracing | None = None, access_log: AccessLog = "errors", *, load_reports: bool = False
    ) -> None:
        self.statistics = Statistics()
        self.meter = LoadMeter() if load_reports else None
        self._tracing = tracing
        self._access_log = access_log
        self._refused_lock = threading.Lock()
        self._refused = 0  # since the last line in the log
        self._refused_logged_at = -math.inf
        self._open: set[RequestRecord] = set()  # adding, discarding and copying are atomic in CPython

    def begin(
        self, protocol: str, method: str, headers: Mapping[str, str], *, is_stream: bool = False, caller: str = ""
    ) -> RequestRecord:
        """Return the record of a new request.

        Args:
            protocol: `grpc` or `rest`.
            method: the RPC's name; empty if it is not known yet.
            headers: headers or metadata by lower-case names.
            is_stream: whether each message gets a record of its own.
            caller: the caller's name or host, as far as it is known.
        """
        trace = {name: headers[name] for name in TRACE_HEADERS if name in headers} if headers else {}
        record = RequestRecord(protocol, method, is_stream, request_id(headers.get(REQUEST_ID)), trace, caller=caller)
        return self._begin(record, record)

    def message(self, stream: RequestRecord, id_: str, size: int) -> RequestRecord:
        """Return the record of a stream's message, which counts as a request; `size` is its length in bytes."""
        record = RequestRecord(
            stream.protocol,
            stream.method,
            request_id=stream.request_id,
            trace=stream.trace,
            caller=stream.caller,
            message_id=id_[:128],
            request_bytes=size,
        )
        return self._begin(record, stream)

    def end(self, record: RequestRecord) -> None:
        """Count, trace and log a request that has ended; a stream itself is counted only if it failed."""
        self._open.discard(record)
        if not record.written:
            record.mark_written()
        if not record.is_stream or record.code != OK:
            self.statistics.count(record)
            if self.meter:
                self.meter.count(is_error=record.code != OK)
        if self._tracing:
            self._tracing.end(record)
        if self._access_log == "errors" and record.reason == OVERLOADED:
            self._log_overload()
        elif self._access_log == "all" or (self._access_log == "errors" and record.code != OK):
            self._log(record)

    def open_records(self) -> list[RequestRecord]:
        """Return the records of requests that have not ended."""
        return list(self._open)

    def close(self) -> None:
        """Send the remaining spans."""
        if self._tracing:
            self._tracing.close()

    def _begin(self, record: RequestRecord, parent: RequestRecord) -> RequestRecord:
        if self._tracing:
            self._tracing.begin(record, parent)
        self._open.add(record)
        return record

    def _log_overload(self) -> None:
        """Log the number of refused requests once a second: a line for each would add to the overload."""
        with self._refused_lock:
            self._refused += 1
            now = time.monotonic()
            if now < self._refused_logged_at + 1:
                return
            refused, self._refused, self._refused_logged_at = self._refused, 0, now
        log.warning("more is asked for than can be computed", refused=refused)

    def _log(self, record: RequestRecord) -> None:
        fields = {
            "request_id": record.request_id,
            "trace_id": self._tracing.trace_id(record) if self._tracing else record.trace_id,
            "id": record.message_id,
            "caller": record.caller,
            "protocol": record.protocol,
            "method": record.method,
            "model": record.model,
            "version": record.version,
            "sequences": record.sequences,
            "tokens": sum(record.queries),
            "request_bytes": record.request_bytes,
            "answer_bytes": record.answer_bytes,
            "reason": record.reason,
            "field": record.field_at_fault,
        }
        durations = record.written - record.begun, *record.durations()
        times = dict(zip(("duration_ms", "queue_ms", "compute_ms", "encode_ms"), durations, strict=True))
        known = {name: value for name, value in fields.items() if value}
        log.info("request", code=record.code, **known, **{name: round(ns / 1e6, 3) for name, ns in times.items() if ns})
