"""What can go wrong, and whose fault it is.

    AttentionError
    ├── InvalidRequest      the request cannot be answered as it is; `field` says where (also a ValueError)
    ├── NotFound            no such model, version or memory (also a LookupError)
    ├── TooLarge            the message, the work or the answer is over a limit
    ├── Unavailable         nobody answers, or the server is full or stopping; `retry_after`
    ├── DeadlineExceeded    no answer in time (also a TimeoutError)
    ├── Unauthenticated     no credentials, or bad ones
    ├── PermissionDenied    the credentials do not allow it
    ├── Unimplemented       the server does not offer it
    ├── InternalError       a fault of the server
    └── NotRequested        a result was asked for what the request left out (also a KeyError and an AttributeError)

The codes are those of the contract; `CLASSES` is the one place where they become classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

_DETAILS = "grpc-status-details-bin"
_REQUEST_ID = "x-request-id"
DetailT = TypeVar("DetailT", bound=Message)


class AttentionError(Exception):
    """Any failure of a call.

    Attributes:
        message: what is wrong, and what would do.
        field: the part of the request it is about, as `inputs[0].query`; None when it is about none.
        request_id: what the server's log calls this request; None when the server did not say.
    """

    def __init__(self, message: str, *, field: str | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class InvalidRequest(AttentionError, ValueError):
    """The caller sent a tensor, text, mask, name or option that the model cannot take."""


class NotFound(AttentionError, LookupError):
    """The server has no such model, version or memory."""


class TooLarge(AttentionError):
    """The message, or the work or answer it asks for, is over a limit."""


class Unavailable(AttentionError):
    """Nobody answers at the address, or the server is full, starting or stopping; retries did not help.

    Attributes:
        retry_after: seconds after which the server wants to be asked again; None when it did not say.
    """

    retry_after: float | None = None


class DeadlineExceeded(AttentionError, TimeoutError):
    """No answer came within the timeout."""


class Unauthenticated(AttentionError):
    """The call carried no credentials, or bad ones."""


class PermissionDenied(AttentionError):
    """The credentials do not allow the call."""


class Unimplemented(AttentionError):
    """The server does not offer this."""


class InternalError(AttentionError):
    """The server failed; its log tells why under `request_id`."""


class NotRequested(AttentionError, KeyError, AttributeError):
    """The result does not hold this: it has to be among the request's `outputs`."""


CLASSES: dict[grpc.StatusCode, type[AttentionError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLarge,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,  # a server that stops cancels what reaches it in that moment
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
}


@contextmanager
def translated() -> Iterator[None]:
    """Raise a failed call, blocking or awaited, as the error of the tree above."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_call(cast("grpc.Call", error)) from error


def broke_off(error: grpc.RpcError) -> bool:
    """Return whether the line to a server broke while its answer came: gRPC repeats no call that was being answered."""
    call = cast("grpc.Call", error)
    return call.code() is grpc.StatusCode.UNAVAILABLE and "Stream removed" in (call.details() or "")


def from_call(call: grpc.Call) -> AttentionError:
    """Read a failed call's code, details and trailing metadata."""
    metadata = cast("dict[str, Any]", dict(call.trailing_metadata() or ()))
    status = Status.FromString(metadata.get(_DETAILS, b""))
    violations = _detail(status, BadRequest()).field_violations
    message = violations[0].description if violations else call.details() or call.code().name
    field = violations[0].field if violations else None
    request_id = metadata.get(_REQUEST_ID) or _detail(status, RequestInfo()).request_id or None
    kind = CLASSES.get(call.code(), AttentionError)
    if kind is InternalError and request_id is None:  # no fault of the server's, which names one: the line to it broke
        kind = Unavailable
    error = kind(message, field=field, request_id=request_id)
    if isinstance(error, Unavailable):
        error.retry_after = _detail(status, RetryInfo()).retry_delay.ToTimedelta().total_seconds() or None
    return error


def _detail(status: Status, detail: DetailT) -> DetailT:
    """Fill `detail` from the status, or leave it empty."""
    for packed in status.details:
        packed.Unpack(detail)  # does nothing when it holds another type
    return detail
