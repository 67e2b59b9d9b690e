"""An error of the service, read from any transport, and the expectation of one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import requests
from google.rpc.error_details_pb2 import BadRequest, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

# The table of errors: gRPC's code, HTTP's status.
HTTP = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 413,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
}


@dataclass
class Refused(Exception):
    """A request was answered with an error.

    Attributes:
        code: the name of gRPC's code.
        http: HTTP's status; over gRPC the status of the code in the table.
        field: the path of the field at fault, as the transport names it.
        message: the words.
        request_id: the id that came with the error.
        retry_after: seconds.
    """

    code: str
    http: int
    field: str
    message: str
    request_id: str = ""
    retry_after: float | None = None

    def __str__(self) -> str:
        return f"{self.code} {self.http} at {self.field!r}: {self.message}"


def refused_by_grpc(error: Any) -> Refused:
    """Read a call's error, its details included."""
    refused = Refused(error.code().name, HTTP.get(error.code().name, 0), "", error.details())
    refused.request_id = dict(error.trailing_metadata() or ()).get("x-request-id", "")
    status = rpc_status.from_call(error)
    read_details(status.details if status else (), refused)
    return refused


def refused_by_protobuf(response: requests.Response) -> Refused:
    """Read an error answer that is a google.rpc.Status."""
    status = Status.FromString(response.content)
    code = next(each.name for each in grpc.StatusCode if each.value[0] == status.code)
    refused = Refused(code, response.status_code, "", status.message, response.headers["x-request-id"])
    read_details(status.details, refused)
    return refused


def read_details(details: Any, refused: Refused) -> None:
    """Read the details of an error: the field, the id, the time to retry."""
    for packed in details:
        for kind in (BadRequest, RequestInfo, RetryInfo):
            detail = kind()
            if not packed.Unpack(detail):
                continue
            if isinstance(detail, BadRequest):
                refused.field = detail.field_violations[0].field
            elif isinstance(detail, RequestInfo):
                assert detail.request_id == refused.request_id
            else:
                refused.retry_after = detail.retry_delay.ToTimedelta().total_seconds()


def refused_by_http(response: requests.Response) -> Refused:
    """Read an error answer; it must be one in form."""
    if response.headers["content-type"] == "application/x-protobuf":
        return refused_by_protobuf(response)
    assert response.headers["content-type"] == "application/json", response.text
    error = response.json()["error"]
    assert error.keys() <= {"code", "status", "message", "request_id", "field"}
    assert error["code"] == response.status_code
    retry_after = response.headers.get("retry-after")
    refused = Refused(
        error["status"],
        response.status_code,
        error.get("field", ""),
        error["message"],
        error["request_id"],
        None if retry_after is None else float(retry_after),
    )
    assert refused.http == HTTP.get(refused.code) or refused.http == 405, refused
    return refused


@contextmanager
def refused(code: str, field: str | None = None, *words: str) -> Iterator[Any]:
    """Expect a refusal with this code, at this field, and with these words in its message."""
    with pytest.raises(Refused) as caught:
        yield caught
    error = caught.value
    assert error.code == code, error
    if field is not None:
        assert error.field == field, error
    for word in words:
        assert word in error.message, error
