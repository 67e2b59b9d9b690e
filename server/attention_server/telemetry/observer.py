"""Sees each request begin and end: what is counted, traced and logged of it begins here."""

import math
import threading
import time
from collections.abc import Mapping
from typing import Literal

import structlog

from attention_server.domain.request_record import OK, REQUEST_ID, TRACE_HEADERS, Watch, request_id
from attention_server.telemetry.statistics import Statistics
from attention_server.telemetry.tracing import Tracing

OVERLOADED = "full"  # the reason of `errors.Full`
AccessLog = Literal["none", "errors", "all"]

log = structlog.get_logger()


class Observer:
    """Watches requests.

    Args:
        tracing: sends traces; None sends none.
        access_log: which requests have a line in the log when they end.
    """

    def __init__(self, tracing: Tracing | None = None, access_log: AccessLog = "errors") -> None:
        self.statistics = Statistics()
        self._tracing = tracing
        self._access_log = access_log
        self._overload = threading.Lock()
        self._refused = 0  # for want of room, and not told yet
        self._told = -math.inf  # when that was
        self._open: set[Watch] = set()  # to add, to discard and to copy are one step each for the interpreter

    def begin(
        self, protocol: str, method: str, headers: Mapping[str, str], *, is_stream: bool = False, caller: str = ""
    ) -> Watch:
        """Watch a request that has come.

        Args:
            protocol: `grpc` or `rest`.
            method: the RPC's name; empty where it is not known yet.
            headers: or metadata, by their names in small letters.
            is_stream: whether its messages are watched one by one.
            caller: as far as it is known.
        """
        trace = {name: headers[name] for name in TRACE_HEADERS if name in headers}
        watch = Watch(protocol, method, is_stream, request_id(headers.get(REQUEST_ID)), trace, caller=caller)
        return self._begun(watch, watch)

    def message(self, stream: Watch, id_: str, size: int) -> Watch:
        """Watch a message of a stream, a request of its own, with the caller's id for it and its bytes."""
        watch = Watch(
            stream.protocol,
            stream.method,
            request_id=stream.request_id,
            trace=stream.trace,
            caller=stream.caller,
            message_id=id_[:128],
            request_bytes=size,
        )
        return self._begun(watch, stream)

    def end(self, watch: Watch) -> None:
        """Count, trace and log a request that has ended. A stream is counted where it failed: else its messages are."""
        self._open.discard(watch)
        if not watch.written:
            watch.is_written()
        if not watch.is_stream or watch.code != OK:
            self.statistics.count(watch)
        if self._tracing:
            self._tracing.end(watch)
        if self._access_log == "errors" and watch.reason == OVERLOADED:
            self._log_overload()
        elif self._access_log == "all" or (self._access_log == "errors" and watch.code != OK):
            self._log(watch)

    def watched(self) -> list[Watch]:
        """Return the requests that have not ended."""
        return list(self._open)

    def close(self) -> None:
        """Send the traces that were not sent yet."""
        if self._tracing:
            self._tracing.close()

    def _begun(self, watch: Watch, within: Watch) -> Watch:
        if self._tracing:
            self._tracing.begin(watch, within)
        self._open.add(watch)
        return watch

    def _log_overload(self) -> None:
        """Say every second how many were refused since: a line for each would be more work where there is too much."""
        with self._overload:
            self._refused += 1
            now = time.monotonic()
            if now < self._told + 1:
                return
            refused, self._refused, self._told = self._refused, 0, now
        log.warning("more is asked for than can be computed", refused=refused)

    def _log(self, watch: Watch) -> None:
        fields = {
            "request_id": watch.request_id,
            "trace_id": self._tracing.trace_id(watch) if self._tracing else watch.trace_id,
            "id": watch.message_id,
            "caller": watch.caller,
            "protocol": watch.protocol,
            "method": watch.method,
            "model": watch.model,
            "version": watch.version,
            "sequences": watch.sequences,
            "tokens": sum(watch.queries),
            "request_bytes": watch.request_bytes,
            "answer_bytes": watch.answer_bytes,
            "reason": watch.reason,
            "field": watch.field_at_fault,
        }
        times = {
            "duration_ms": watch.written - watch.begun,
            "queue_ms": watch.queued_ns,
            "compute_ms": watch.compute_ns,
            "encode_ms": watch.encode_ns,
        }
        known = {name: value for name, value in fields.items() if value}
        log.info("request", code=watch.code, **known, **{name: round(ns / 1e6, 3) for name, ns in times.items() if ns})
