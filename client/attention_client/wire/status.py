"""Translate the status of a failed gRPC call into an error of `attention_client.errors`."""

from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from attention_client.errors import (
    AttentionError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

_DETAILS = "grpc-status-details-bin"
_REQUEST_ID = "x-request-id"
DetailT = TypeVar("DetailT", bound=Message)

ERROR_CLASSES: dict[grpc.StatusCode, type[AttentionError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLarge,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,  # a stopping server cancels the calls that arrive at that moment
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
}


def broke_off(error: grpc.RpcError) -> bool:
    """Return whether the connection broke while the answer arrived: gRPC does not repeat such a call."""
    call = cast("grpc.Call", error)
    return call.code() is grpc.StatusCode.UNAVAILABLE and "Stream removed" in (call.details() or "")


def from_call(call: grpc.Call) -> AttentionError:
    """Build the error from a failed call's code, details and trailing metadata."""
    metadata = cast("dict[str, Any]", dict(call.trailing_metadata() or ()))
    status = Status.FromString(metadata.get(_DETAILS, b""))
    violations = _detail(status, BadRequest()).field_violations
    message = violations[0].description if violations else call.details() or call.code().name
    field = violations[0].field if violations else None
    request_id = metadata.get(_REQUEST_ID) or _detail(status, RequestInfo()).request_id or None
    kind = ERROR_CLASSES.get(call.code(), AttentionError)
    if kind is InternalError and request_id is None:  # the server names its own faults: here the connection broke
        kind = Unavailable
    error = kind(message, field=field, request_id=request_id)
    if isinstance(error, InvalidRequest):
        error.violations = tuple((each.field, each.description) for each in violations)
    if isinstance(error, Unavailable):
        error.retry_after = _detail(status, RetryInfo()).retry_delay.ToTimedelta().total_seconds() or None
    return error


def _detail(status: Status, detail: DetailT) -> DetailT:
    """Fill `detail` from the status; leave it empty where the status has none of its type."""
    for packed in status.details:
        packed.Unpack(detail)  # does nothing when it holds another type
    return detail
