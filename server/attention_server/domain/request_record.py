"""The record of one request, from its first byte to its last: the data of metrics, statistics, logs and traces."""

import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

OK = "OK"
REQUEST_ID = "x-request-id"
SERVER_TIMING = "server-timing"
TRACE_HEADERS = ("traceparent", "tracestate")
PRINTABLE = re.compile(r"[\x21-\x7e]{1,128}")
TRACE_ID = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-|$)")


_random = random.Random()  # noqa: S311 # ids have to differ and are no secret; the system's source is slower


def request_id(sent: str | None) -> str:
    """Return the id that a caller sent if it is printable and at most 128 characters long; else a new one."""
    return sent if sent and PRINTABLE.fullmatch(sent) else f"{_random.getrandbits(128):032x}"


@dataclass(slots=True, eq=False)
class RequestRecord:
    """The record of one request. Times are nanoseconds of `time.perf_counter_ns`; 0 for an event that did not happen.

    Attributes:
        protocol: `grpc` or `rest`; empty for a request that is not counted.
        method: name of the RPC, also over REST; empty for an unknown path or a page.
        is_stream: whether the request is a stream; each message has a record of its own.
        request_id: id in the log and in the answer's headers.
        trace: the caller's W3C trace headers.
        span: span of the request, where traces are sent.
        caller: name of the token or certificate; else the host.
        message_id: the caller's id of a message on a stream.
        model: name of the model, once the model is leased, so that callers cannot invent label values.
        version: version of the model; likewise.
        sequences: number of sequences; None unless attention is requested.
        queries: T of each sequence.
        keys: S of each sequence.
        passes: sequences and query rows of each pass that was begun for it, those of further requests included.
        request_bytes: bytes of the message or body.
        answer_bytes: bytes of the answer.
        code: name of gRPC's status code.
        reason: cause of an error; empty without one.
        field_at_fault: path of the field at fault; empty without one.
        begun: arrival.
        submitted: hand-over to the scheduler.
        running: begin of the computation in a slot.
        computed: end of the computation.
        settled: end of the computations of the same turn of the event loop.
        written: end of the encoding of the answer.
    """

    protocol: str = ""
    method: str = ""
    is_stream: bool = False
    request_id: str = ""
    trace: dict[str, str] = field(default_factory=dict)
    span: Any = None
    caller: str = ""
    message_id: str = ""
    model: str = ""
    version: int = 0
    sequences: int | None = None
    queries: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    passes: list[tuple[int, int]] = field(default_factory=list)
    request_bytes: int = 0
    answer_bytes: int = 0
    code: str = OK
    reason: str = ""
    field_at_fault: str = ""
    begun: int = field(default_factory=time.perf_counter_ns)
    submitted: int = 0
    running: int = 0
    computed: int = 0
    settled: int = 0
    written: int = 0

    def set_target(self, model: str, version: int, sequences: int | None = None) -> None:
        """Set the leased model version, and the number of sequences of an attention request."""
        self.model = model
        self.version = version
        self.sequences = sequences

    def mark_submitted(self) -> None:
        """Set the time of the hand-over to the scheduler."""
        self.submitted = time.perf_counter_ns()

    def mark_running(self) -> None:
        """Set the time at which the computation begins."""
        self.running = time.perf_counter_ns()

    def mark_computed(self) -> None:
        """Set the time at which the computation ends."""
        self.computed = time.perf_counter_ns()

    def mark_settled(self) -> None:
        """Set the time at which the computations of the same turn have ended."""
        self.settled = time.perf_counter_ns()

    def mark_written(self, size: int = 0) -> None:
        """Set the time at which the answer is encoded, and add its bytes."""
        self.written = time.perf_counter_ns()
        self.answer_bytes += size

    def set_error(self, code: str, reason: str, field_at_fault: str = "") -> None:
        """Set the status code, cause and field of an error."""
        self.code = code
        self.reason = reason
        self.field_at_fault = field_at_fault[:128]

    def durations(self) -> tuple[int, int, int]:
        """Return the nanoseconds in the queue, of the computation, and of the encoding; 0 for what did not happen.

        The first has the wait for further jobs of the same turn, the last begins behind it.
        """
        running, computed = self.running, self.computed
        if not running:
            return 0, 0, 0
        if not computed:
            return running - self.submitted, 0, 0
        settled = self.settled or computed
        written = self.written
        return running - self.submitted + settled - computed, computed - running, written - settled if written else 0

    @property
    def trace_id(self) -> str:
        """Trace id of the caller's `traceparent`; empty without a valid one."""
        found = TRACE_ID.match(self.trace.get("traceparent", ""))
        return found[1] if found else ""

    def server_timing(self) -> str:
        """Return the value of the header Server-Timing, in milliseconds; empty where nothing was computed."""
        if not self.computed:
            return ""
        queued, computed, encoded = self.durations()
        return f"queue;dur={queued / 1e6:.3f}, compute;dur={computed / 1e6:.3f}, encode;dur={encoded / 1e6:.3f}"
