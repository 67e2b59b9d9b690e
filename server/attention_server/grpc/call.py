"""One gRPC call, as interceptor and services see it: the seam between services and server."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from attention_server import errors
from attention_server.budget.account import Lease
from attention_server.errors import AttentionServiceError
from attention_server.http2.errors import (
    BrokenProtocol,
    CallError,
    Cancelled,
    ConnectionRetired,
    DeadlineExceeded,
    HeadersTooLarge,
    InvalidMessage,
    MessageTooLarge,
    ServerStopping,
    Stalled,
    UnknownEncoding,
)

Buffer = bytes | memoryview
Header = tuple[bytes, bytes]

SERVICE_ERRORS: dict[type[CallError], type[AttentionServiceError]] = {
    InvalidMessage: errors.InvalidRequest,
    BrokenProtocol: errors.BrokenProtocol,
    UnknownEncoding: errors.Unimplemented,
    MessageTooLarge: errors.TooLarge,
    HeadersTooLarge: errors.TooLarge,
    DeadlineExceeded: errors.DeadlineExceeded,
    Stalled: errors.Cancelled,
    Cancelled: errors.Cancelled,
    ConnectionRetired: errors.Unavailable,
    ServerStopping: errors.Stopping,
}


class GrpcCall(Protocol):
    """One call of gRPC. `http2.Call` is one; a call of another server is adapted to this.

    All methods are called on the loop. Headers are text: binary ones (`-bin`) are passed as the server has them,
    encoded or not. Binary trailers are given in base64. The exceptions of `read` and
    `stop_reason` are the service's errors, or those of `http2.errors`; `service_error` translates the latter.
    """

    @property
    def lease(self) -> Lease:
        """The bytes that the call holds: its headers, the message read last and those behind, and its answer.

        Released when the call is over, the answer included.
        """

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """The request's metadata, by name in lower case."""

    @property
    def headers_error(self) -> Exception | None:
        """The error where headers over the limit were dropped; None otherwise."""

    @property
    def method(self) -> str:
        """The path, `/package.Service/Method`."""

    @property
    def host(self) -> str:
        """The peer's address, without the port."""

    @property
    def certificate(self) -> str:
        """The name in the peer's certificate; empty without one."""

    @property
    def timeout(self) -> float | None:
        """Seconds that the caller waits, from the call's begin; None without a limit."""

    def limit_message(self, count: int, /) -> None:
        """Set the largest size of a request message in bytes, before one is read; `read` raises for a larger one."""

    def start(self, answer: Coroutine[Any, Any, None], /, *, must_run: bool = False) -> None:
        """Run a coroutine that answers the call; it is cancelled at the timeout, and when the peer leaves.

        Unless it `must_run`, it is not begun for a caller that has left before its first step.
        """

    def stop(self, reason: Exception, /) -> None:
        """Cancel the coroutine, which reads the reason in `stop_reason`. No effect on an ended or stopped call."""

    def stop_reason(self) -> Exception:
        """Return why the coroutine was cancelled."""

    def add_done_callback(self, callback: Callable[[], None], /) -> None:
        """Call back once, when the call is answered or stopped; a call that was never started, when it is failed."""

    async def read(self) -> Buffer | None:
        """Return the next request message; None behind the last."""

    @property
    def has_more(self) -> bool:
        """Whether a further message has come already."""

    def begin_response(self) -> None:
        """Send the response's headers, for a caller that waits for them before it sends."""

    def write(self, content: bytes, on_sent: Callable[[], None] | None = None, /) -> None:
        """Send a response message; `on_sent` is called when it is on its way, as far as flow control lets it."""

    def finish(self, trailers: Sequence[Header], content: bytes | None = None, /) -> None:
        """End the call with the status OK, after a last response message."""

    def fail(self, status: int, message: str, details: bytes = b"", trailers: Sequence[Header] = (), /) -> None:
        """End the call with an error; `details` is a serialized google.rpc.Status."""


def service_error(error: Exception) -> Exception:
    """Return the service's error for one of `http2.errors`; any further exception unchanged."""
    if not isinstance(error, CallError):
        return error
    return SERVICE_ERRORS[type(error)](error.message, field=error.field)
