"""Parameters, headers and responses that the operations of the REST API share."""

from collections.abc import Mapping
from typing import Any

from openapi_document.schema import BINARY, NUMBER, STRING, Schema, integer, ref

Json = dict[str, Any]

TIMING = "The time of each step, in milliseconds: `queue;dur=0.021, compute;dur=0.934, encode;dur=0.110`."
STATUS = BINARY | {"description": "A google.rpc.Status, with the details that gRPC has."}


def _parameter(name: str, where: str, schema: Schema, words: str = "") -> Json:
    start: Json = {"name": name, "in": where} | ({"required": True} if where == "path" else {})
    return start | {"schema": schema} | ({"description": words} if words else {})


PARAMETERS: dict[str, Json] = {
    "model": _parameter("model", "path", STRING),
    "version": _parameter("version", "path", integer(1, maximum=999_999_999)),
    "id": _parameter("id", "path", STRING),
    "timeout": _parameter(
        "X-Request-Timeout",
        "header",
        NUMBER | {"exclusiveMinimum": True, "minimum": 0},
        "The seconds that the caller waits.",
    ),
    "requestId": _parameter(
        "X-Request-Id",
        "header",
        STRING | {"pattern": "^[!-~]{1,128}$"},
        "The id of the request, in the log and in the answer; chosen by the server when absent.",
    ),
    "headerLength": _parameter(
        "Inference-Header-Content-Length",
        "header",
        integer(0),
        "The length of the JSON, in bytes, when the bytes of tensors follow it.",
    ),
    "contentEncoding": _parameter("Content-Encoding", "header", ref("ContentEncoding")),
}
HEADERS: dict[str, Json] = {
    "RequestId": {"schema": STRING},
    "ServerTiming": {"description": TIMING, "schema": STRING},
}
REQUEST_ID: Json = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}
SERVER_TIMING: Json = {"Server-Timing": {"$ref": "#/components/headers/ServerTiming"}}


def media_types(schema: Schema, other: Mapping[str, Schema] | None = None) -> Json:
    """Return the content of a body in JSON, and in further media types."""
    return {kind: {"schema": each} for kind, each in {"application/json": schema, **(other or {})}.items()}


def _error(words: str) -> Json:
    return {
        "description": words,
        "content": media_types(ref("ErrorResponse"), {"application/x-protobuf": STATUS}),
        "headers": REQUEST_ID,
    }


def _inference_error(words: str) -> Json:
    return {"description": words, "content": media_types(ref("InferenceError")), "headers": REQUEST_ID}


def _openai_error(words: str) -> Json:
    return {"description": words, "content": media_types(ref("OpenAIErrorResponse")), "headers": REQUEST_ID}


RESPONSES: dict[str, Json] = {
    "InvalidRequest": _error("The model cannot take the request; `field` is the path of the field at fault."),
    "Unauthenticated": _error(
        "No credentials, or unknown ones: `Authorization: Bearer TOKEN`, or a client certificate."
    ),
    "PermissionDenied": _error("The caller lacks the right to this, or the page that asks is of another site."),
    "NotFound": _error("There is no such model, version or memory."),
    "TooLarge": _error("The body, or the answer that it asks for, is over a limit; the message says which."),
    "Misdirected": _error("The Host header does not name this server: on a loopback address only loopback names do."),
    "LimitReached": _error("The caller is over its limit of requests; try again after Retry-After seconds."),
    "Internal": _error("An internal error; the log of the server has the cause."),
    "Unavailable": _error("Full, loading or stopping; try again after Retry-After seconds."),
    "DeadlineExceeded": _error("The deadline passed."),
    "OpenAIInvalidRequest": _openai_error("The model cannot take the request, or has no embedding."),
    "OpenAIUnauthenticated": _openai_error("No credentials, or unknown ones."),
    "OpenAIPermissionDenied": _openai_error("The caller lacks the right to this, or asks from another site."),
    "OpenAINotFound": _openai_error("There is no such model or version."),
    "OpenAITooLarge": _openai_error("The request, or its answer, is over a limit."),
    "OpenAIMisdirected": _openai_error("The Host header does not name this server."),
    "OpenAILimitReached": _openai_error("The caller is over its limit of requests."),
    "OpenAIInternal": _openai_error("An internal error; the log of the server has the cause."),
    "OpenAIUnavailable": _openai_error("Full, loading or stopping; try again after Retry-After seconds."),
    "OpenAIDeadlineExceeded": _openai_error("The deadline passed."),
    "InferenceInvalidRequest": _inference_error(
        "The model cannot take the request; the message begins with the field at fault."
    ),
    "InferenceUnauthenticated": _inference_error("No credentials, or unknown ones."),
    "InferencePermissionDenied": _inference_error("The caller lacks the right to this, or asks from another site."),
    "InferenceNotFound": _inference_error("There is no such model or version."),
    "InferenceTooLarge": _inference_error("The request, or its answer, is over a limit."),
    "InferenceMisdirected": _inference_error("The Host header does not name this server."),
    "InferenceLimitReached": _inference_error("The caller is over its limit of requests."),
    "InferenceCancelled": _inference_error("The caller has gone."),
    "InferenceInternal": _inference_error("An internal error; the log of the server has the cause."),
    "InferenceNotOffered": _inference_error("Not offered in this repository mode."),
    "InferenceUnavailable": _inference_error("Full, loading or stopping."),
    "InferenceDeadlineExceeded": _inference_error("The deadline passed."),
}
NAMES = {
    400: "InvalidRequest",
    401: "Unauthenticated",
    403: "PermissionDenied",
    404: "NotFound",
    413: "TooLarge",
    421: "Misdirected",
    429: "LimitReached",
    499: "Cancelled",
    500: "Internal",
    501: "NotOffered",
    503: "Unavailable",
    504: "DeadlineExceeded",
}
PREFIXES = {"inference": "Inference", "embeddings": "OpenAI"}  # of the responses of a tag, in its protocol's form


def usual_response(tag: str, code: int) -> Json:
    """Return a reference to the response of an error code, in the form of a tag's protocol."""
    prefix = PREFIXES.get(tag, "")
    return {"$ref": f"#/components/responses/{prefix}{NAMES[code]}"}
