"""One request, watched from its first byte to its last: metrics, statistics, logs and traces read what stands here."""

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


_random = random.Random()  # noqa: S311 # no secret: it only has to be another each time, and to ask the system takes longer


def request_id(sent: str | None) -> str:
    """Return the caller's id of a request where it is one, printable and short; else a new one."""
    return sent if sent and PRINTABLE.fullmatch(sent) else f"{_random.getrandbits(128):032x}"


@dataclass(slots=True, eq=False)
class RequestRecord:
    """What a request is, and when what happened to it: nanoseconds of one clock, 0 for what has not happened.

    Attributes:
        protocol: `grpc` or `rest`; empty where nobody counts.
        method: by the name of its RPC, also over REST; empty for an unknown path or a page.
        is_stream: whether it is a stream, whose messages are watched one by one.
        request_id: in the log, and sent back.
        trace: the W3C headers that came with it.
        span: its own, where traces are sent.
        caller: the name of the token or certificate; else the host.
        message_id: of a message on a stream, the caller's.
        model, version: served ones only, so that a caller cannot invent names.
        sequences: that attention is asked for; None where that is not what is asked.
        queries, keys: the length of each sequence, T and S.
        request_bytes, answer_bytes: messages or bodies.
        code, reason, field_at_fault: what came of it: the name of gRPC's code; of an error, its cause and place.
        begun: it came. checked: it was handed to the scheduler. running, computed: as long as it had a slot.
        settled: those were computed too that had the same turn. written: its answer was bytes.
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
        """Note whom the request is for, once that model is held."""
        self.model = model
        self.version = version
        self.sequences = sequences

    def mark_submitted(self) -> None:
        """Note that it goes to the scheduler now."""
        self.submitted = time.perf_counter_ns()

    def mark_running(self) -> None:
        """Note that it computes from now on."""
        self.running = time.perf_counter_ns()

    def mark_computed(self) -> None:
        """Note that it is computed."""
        self.computed = time.perf_counter_ns()

    def mark_settled(self) -> None:
        """Note that its answer is put together from now on."""
        self.settled = time.perf_counter_ns()

    def mark_written(self, size: int = 0) -> None:
        """Note that the answer is bytes now, and how many."""
        self.written = time.perf_counter_ns()
        self.answer_bytes += size

    def set_error(self, code: str, reason: str, field_at_fault: str = "") -> None:
        """Note why there is no answer."""
        self.code = code
        self.reason = reason
        self.field_at_fault = field_at_fault[:128]

    @property
    def queued_ns(self) -> int:
        """How long it waited for others: for a slot, and for those of its turn."""
        if not self.running:
            return 0
        return self.running - self.submitted + (self.settled - self.computed if self.settled else 0)

    @property
    def compute_ns(self) -> int:
        """How long it was computed."""
        return self.computed - self.running if self.computed else 0

    @property
    def encode_ns(self) -> int:
        """How long it took from there until the answer was bytes."""
        return self.written - (self.settled or self.computed) if self.computed and self.written else 0

    @property
    def trace_id(self) -> str:
        """Of the trace that it is part of, as its caller says; empty where they say nothing."""
        found = TRACE_ID.match(self.trace.get("traceparent", ""))
        return found[1] if found else ""

    def server_timing(self) -> str:
        """Return where the time went, in milliseconds, as the header Server-Timing has it; empty if nothing ran."""
        if not self.computed:
            return ""
        queued, computed, encoded = self.queued_ns, self.compute_ns, self.encode_ns
        return f"queue;dur={queued / 1e6:.3f}, compute;dur={computed / 1e6:.3f}, encode;dur={encoded / 1e6:.3f}"
