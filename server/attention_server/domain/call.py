"""The context of one call: caller, rights, deadline and cancellation."""

import math
import time
from dataclasses import InitVar, dataclass, field
from typing import Literal, Protocol

from attention_server.budget.account import OPEN, Lease
from attention_server.domain.limits import MAX_SECONDS
from attention_server.domain.request_record import RequestRecord
from attention_server.errors import Cancelled, DeadlineExceeded, PermissionDenied

Right = Literal["attend", "repository"]


class CancellableFuture(Protocol):
    """A future whose job can be cancelled before the job begins."""

    def cancel(self) -> bool:
        """Cancel the job unless it has begun; return whether the job is cancelled."""
        ...


class SharedRun(Protocol):
    """A running computation with one or more callers."""

    def drop_caller(self) -> None:
        """Remove one caller; a computation without callers ends."""


@dataclass(slots=True)
class CancelFlag:
    """Whether a caller has cancelled or disconnected; shared by all messages of a stream."""

    is_set: bool = False


@dataclass(slots=True)
class CallContext:
    """The context of one call.

    Attributes:
        request_id: id in the log and in the answer's headers.
        caller: name of the token or certificate; else the host.
        timeout: seconds from now until the deadline; None, or more than MAX_SECONDS, means no deadline.
        rights: rights of the caller; empty by default, so that a transport that sets none permits nothing.
        record: the record of the request, for metrics, traces and the log.
        owner: name of the token or certificate, to which memories belong; empty without credentials.
        lease: the bytes that the request holds, its answer included.
        deadline: on the clock of `time.monotonic`; infinite for none.
    """

    request_id: str
    caller: str = ""
    timeout: InitVar[float | None] = None
    rights: frozenset[Right] = frozenset()
    record: RequestRecord = field(default_factory=RequestRecord)
    owner: str = ""
    lease: Lease = field(default_factory=lambda: OPEN.lease(""))
    deadline: float = field(init=False)
    _cancel_flag: CancelFlag = field(default_factory=CancelFlag, init=False)
    _future: CancellableFuture | None = field(default=None, init=False)
    _runs: set[SharedRun] = field(default_factory=set, init=False)

    def __post_init__(self, timeout: float | None) -> None:
        self.deadline = math.inf if timeout is None or timeout > MAX_SECONDS else time.monotonic() + timeout

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller has cancelled or disconnected."""
        return self._cancel_flag.is_set

    @property
    def is_expired(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self.deadline

    def remaining(self) -> float | None:
        """Return the seconds until the deadline; None without one."""
        return None if self.deadline == math.inf else max(0.0, self.deadline - time.monotonic())

    def shorten_deadline(self, seconds: float | None) -> None:
        """Move the deadline to at most `seconds` from now; None leaves the deadline."""
        if seconds is not None:
            self.deadline = min(self.deadline, time.monotonic() + seconds)

    def for_message(self, record: RequestRecord) -> "CallContext":
        """Return the context of one message of this call's stream, with the stream's deadline and cancellation."""
        lease = self.lease.sibling()
        message = CallContext(self.request_id, self.caller, None, self.rights, record, self.owner, lease)
        message.deadline, message._cancel_flag = self.deadline, self._cancel_flag
        message._future, message._runs = self._future, self._runs
        return message

    def require(self, right: Right) -> None:
        """Check that the caller has a right.

        Raises:
            PermissionDenied: the caller lacks the right.
        """
        if right not in self.rights:
            raise PermissionDenied(f"this needs the right {right!r}, which {self.caller} has not")

    def raise_if_ended(self) -> None:
        """Raise if the deadline has passed or the caller has cancelled.

        Raises:
            DeadlineExceeded: the deadline has passed; checked first, since clients cancel at the deadline.
            Cancelled: the caller has cancelled or disconnected.
        """
        if self.is_expired:
            raise DeadlineExceeded("the deadline passed before the request could be answered")
        if self.is_cancelled:
            raise Cancelled("the caller has gone")

    def attach(self, future: CancellableFuture) -> None:
        """Attach the future of the call's job: cancelling the call cancels a job that has not begun."""
        self._future = future
        if self.is_cancelled:
            future.cancel()

    def detach(self) -> None:
        """Detach the future, so that its result is freed while the answer is sent."""
        self._future = None

    def cancel(self) -> None:
        """Cancel the call: its job if that has not begun, and its share of every run. No effect after the end."""
        self._cancel_flag.is_set = True
        future = self._future
        if future is not None:
            future.cancel()
        for run in list(self._runs):
            self._drop(run)

    def add_run(self, run: SharedRun) -> None:
        """Add a run that has begun for this call: cancelling the call drops the run's caller."""
        self._runs.add(run)
        if self.is_cancelled:
            self._drop(run)

    def remove_run(self, run: SharedRun) -> None:
        """Remove a run that has ended."""
        self._runs.discard(run)

    def _drop(self, run: SharedRun) -> None:
        try:
            self._runs.remove(run)
        except KeyError:  # removed meanwhile, by its end or by another thread
            return
        run.drop_caller()
