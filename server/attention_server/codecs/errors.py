"""The table from errors to status codes, and the encoding of an error for each wire format."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from attention_server.domain.request_record import OK, RequestRecord
from attention_server.errors import (
    AttentionServiceError,
    BrokenProtocol,
    Cancelled,
    DeadlineExceeded,
    Full,
    InvalidRequest,
    LimitReached,
    Loading,
    Misdirected,
    NotFound,
    PermissionDenied,
    Stopping,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

INTERNAL_MESSAGE = "internal error"
WORDS = re.compile("(?<!^)(?=[A-Z])")  # TooLarge -> too_large
# Characters: gRPC sends the message twice in its trailers, up to 12 bytes a character; clients accept 16 KiB of them.
MAX_MESSAGE = 600
MAX_OTHERS = 2000  # bytes of the further faults of a request, beside the first


class StatusCode(IntEnum):
    """The gRPC status codes in use, numbered as in google.rpc.Code."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Code:
    """The status codes of an error in gRPC and HTTP."""

    grpc: StatusCode
    http: int


CODES: dict[type[AttentionServiceError], Code] = {
    InvalidRequest: Code(StatusCode.INVALID_ARGUMENT, 400),
    NotFound: Code(StatusCode.NOT_FOUND, 404),
    TooLarge: Code(StatusCode.RESOURCE_EXHAUSTED, 413),
    Unavailable: Code(StatusCode.UNAVAILABLE, 503),
    Full: Code(StatusCode.UNAVAILABLE, 503),
    Loading: Code(StatusCode.UNAVAILABLE, 503),
    Stopping: Code(StatusCode.UNAVAILABLE, 503),
    LimitReached: Code(StatusCode.UNAVAILABLE, 429),
    DeadlineExceeded: Code(StatusCode.DEADLINE_EXCEEDED, 504),
    Cancelled: Code(StatusCode.CANCELLED, 499),
    Unauthenticated: Code(StatusCode.UNAUTHENTICATED, 401),
    PermissionDenied: Code(StatusCode.PERMISSION_DENIED, 403),
    Misdirected: Code(StatusCode.INVALID_ARGUMENT, 421),
    Unimplemented: Code(StatusCode.UNIMPLEMENTED, 501),
    BrokenProtocol: Code(StatusCode.INTERNAL, 500),
}
# Of OpenAI's API, by HTTP status.
OPENAI_TYPES: dict[object, str] = {
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}
OPENAI_CODES: dict[object, str] = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
SEQUENCE_FIELDS = re.compile(r"\.(text|token_ids)\b")
INTERNAL = Code(StatusCode.INTERNAL, 500)


STATUSES = {code.http: code.grpc.name for code in CODES.values()} | {405: StatusCode.UNIMPLEMENTED.name}


def code_of(error: Exception) -> Code:
    """Return the codes of an error; INTERNAL for any exception that is not an AttentionServiceError."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), INTERNAL)


def status_name(status: int) -> str:
    """Return the name of the gRPC code for an HTTP status."""
    if status < 400:
        return OK
    return STATUSES.get(status, (INTERNAL.grpc if status >= 500 else CODES[InvalidRequest].grpc).name)


def record_error(record: RequestRecord, error: Exception) -> None:
    """Record an error: its code, class and field, without its message, which may quote the request."""
    code = code_of(error).grpc.name
    if isinstance(error, AttentionServiceError):
        record.set_error(code, WORDS.sub("_", type(error).__name__).lower(), error.field)
    else:
        record.set_error(code, "internal")


def message_of(error: Exception) -> str:
    """Return the message for the caller; an internal error's own message stays in the log."""
    return str(error)[:MAX_MESSAGE] if isinstance(error, AttentionServiceError) else INTERNAL_MESSAGE


def encode_status(error: Exception, request_id: str) -> Status:
    """Encode an error as a google.rpc.Status with the field at fault, the retry delay and the request's id."""
    details = [RequestInfo(request_id=request_id)]
    if isinstance(error, AttentionServiceError) and error.field:
        details.append(BadRequest(field_violations=_violations(error)))
    if isinstance(error, Unavailable):
        retry_delay = Duration()
        retry_delay.FromMilliseconds(int(error.retry_after * 1000))
        details.append(RetryInfo(retry_delay=retry_delay))
    return Status(code=code_of(error).grpc, message=message_of(error), details=[_pack(each) for each in details])


def _violations(error: AttentionServiceError) -> list[BadRequest.FieldViolation]:
    """Return the fault of an error, and as many further ones as headers have room for."""
    found = [BadRequest.FieldViolation(field=error.field, description=error.message[:MAX_MESSAGE])]
    others = error.others if isinstance(error, InvalidRequest) else ()
    room = MAX_OTHERS - len(error.message.encode())
    for field, message in others:
        found.append(BadRequest.FieldViolation(field=field, description=message[:MAX_MESSAGE]))
        room -= found[-1].ByteSize()
        if room < 0:
            return found[:-1]
    return found


def encode_json(error: Exception, request_id: str) -> dict[str, dict[str, object]]:
    """Encode an error as a JSON document."""
    code = code_of(error)
    content: dict[str, object] = {
        "code": code.http,
        "status": code.grpc.name,
        "message": message_of(error),
        "request_id": request_id,
    }
    if isinstance(error, AttentionServiceError) and error.field:
        content["field"] = error.field
    return {"error": content}


def openai_error(error: Mapping[str, object]) -> dict[str, object]:
    """Return the error of `encode_json` in the form of OpenAI's API: its type and code are those of that API."""
    status = error["code"]
    field = str(error.get("field", ""))
    param = SEQUENCE_FIELDS.sub("", field)  # an element of `input` is the text or the ids, with no field around
    message = str(error["message"]).replace(f"{field}: ", f"{param}: ", 1)
    type_ = OPENAI_TYPES.get(status, "invalid_request_error")
    code = OPENAI_CODES.get(status, str(error["status"]).lower())
    return {"message": message, "type": type_, "param": param or None, "code": code}


def _pack(message: BadRequest | RetryInfo | RequestInfo) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
