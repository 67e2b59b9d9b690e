"""What every HTTP route needs beside its documents: body, thread, caller, and how a failure is told."""

import asyncio
import functools
import math
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from attention_server.auth.callers import Caller
from attention_server.codecs.errors import code_of, encode_json, encode_status, record_error
from attention_server.codecs.url import parse_version
from attention_server.domain.call import CallContext
from attention_server.domain.request_record import RequestRecord
from attention_server.errors import (
    AttentionServiceError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from attention_server.scheduling.admission import AdmissionController
from attention_server.transport import Threads, inflate

JSON = "application/json"
PROTOBUF = "application/x-protobuf"
TIMEOUT = "x-request-timeout"
OIP = "/v2"

log = structlog.get_logger()
Handler = Callable[[Request], Awaitable[Response]]


def answers(handler: Handler) -> Handler:
    """Turn what a handler raises into an answer: a caller's mistake by its cause; ours goes into the log alone.

    The handler is named like the RPC that does the same, and so the request is watched by that name.
    """
    name = "".join(word.capitalize() for word in handler.__name__.split("_"))

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        record_of(request).method = name
        try:
            return await handler(request)
        except ClientDisconnect:
            return error_response(Cancelled("the caller has gone"), request)
        except AttentionServiceError as error:
            return error_response(error, request)
        except Exception as error:
            log.exception("a request failed for a fault of ours", request_id=record_of(request).request_id)
            return error_response(error, request)

    return answer


class Exchange:
    """Reads bodies, and gives work a thread.

    Args:
        threads: carry a request from its bytes to its answer, so that the loop only moves bytes.
        max_message_bytes: the largest body, as it is sent and as it is when it is inflated.
        overload: what is let in while more is asked for than can be computed.
    """

    def __init__(self, threads: Threads, max_message_bytes: int, admission: AdmissionController) -> None:
        self._admission = admission
        self._threads = threads
        self._max_message_bytes = max_message_bytes

    async def answer(self, request: Request, call: CallContext, work: Callable[[bytes], Response]) -> Response:
        """Read a request's body and do the rest in a thread, for as long as its caller is there and has time.

        Raises:
            TooLarge: the body is larger than one may be.
            Full: no thread is free.
            DeadlineExceeded: the caller's time ran out.
            InvalidRequest: the body is not compressed as its header says.
        """
        body = await self._body(request, call)
        call.record.request_bytes = len(body)
        encoding = request.headers.get("content-encoding", "")
        limit = self._max_message_bytes
        return await self._in_thread(
            request, call, lambda: work(inflate(body, encoding, limit, "body", "Content-Encoding"))
        )

    async def compute(self, request: Request, call: CallContext, work: Callable[[bytes], Response]) -> Response:
        """Do what computes as `answer` does; in an overload it may be refused before its body is looked at.

        Raises:
            Full: more is asked for than can be computed.
            AttentionServiceError: as `answer`.
        """

        def in_place(body: bytes) -> Response:
            with self._admission.permit(call.caller):
                return work(body)

        return await self.answer(request, call, in_place)

    async def _in_thread(self, request: Request, call: CallContext, work: Callable[[], Response]) -> Response:
        answer = self._threads.run(work)
        gone = asyncio.create_task(_disconnected(request))
        either: set[asyncio.Future[Any]] = {answer, gone}
        done, _ = await asyncio.wait(either, timeout=call.remaining(), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if answer in done:
            return answer.result()
        call.cancel()
        if gone in done:
            raise ClientDisconnect
        raise DeadlineExceeded("the deadline passed while the request waited or ran")

    async def _body(self, request: Request, call: CallContext) -> bytes:
        """Read the body, and no more of it than may be sent, for no longer than the caller waits."""
        self._check_length(int(request.headers.get("content-length", 0)))
        self._threads.check_idle()
        try:
            async with asyncio.timeout(call.remaining()):
                return await self._read(request)
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline passed while the body was read") from error

    async def _read(self, request: Request) -> bytes:
        chunks = []
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            self._check_length(size)
            chunks.append(chunk)
        return b"".join(chunks)

    def _check_length(self, length: int) -> None:
        if length > self._max_message_bytes:
            raise TooLarge(f"the body is over {self._max_message_bytes} bytes, the largest that is read")


async def _disconnected(request: Request) -> None:
    """Return when the caller has gone; the body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def call_of(request: Request) -> CallContext:
    """Return who asks and until when.

    Raises:
        InvalidRequest: the timeout is no number of seconds.
    """
    caller: Caller = request.state.caller  # the gate has set it
    record = record_of(request)
    return CallContext(record.request_id, record.caller, _timeout(request), caller.rights, record)


def record_of(request: Request) -> RequestRecord:
    """Return what takes note of what happens to a request; the gate has set it."""
    record: RequestRecord = request.state.record
    return record


def _timeout(request: Request) -> float | None:
    sent = request.headers.get(TIMEOUT)
    if sent is None:
        return None
    try:
        seconds = float(sent)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InvalidRequest(f"must be a number of seconds above 0, not {sent[:64]!r}", field="X-Request-Timeout")
    return seconds


def version_of(request: Request) -> int:
    """Return the version that the URL names; 0 when it names none.

    Raises:
        InvalidRequest: it is no version.
    """
    sent = request.path_params.get("version")
    return 0 if sent is None else parse_version(sent)


def json_response(content: object, status: int = 200) -> Response:
    """Return a document."""
    return Response(orjson.dumps(content), status_code=status, media_type=JSON)


def wants_protobuf(request: Request) -> bool:
    """Return whether the answer is to be a message."""
    return PROTOBUF in request.headers.get("accept", "")


def error_response(error: Exception, request: Request) -> Response:
    """Return an error as the protocol of the request's path tells it; as a google.rpc.Status where that is wanted."""
    record = record_of(request)
    record_error(record, error)
    status = code_of(error).http
    if wants_protobuf(request) and not request.url.path.startswith(OIP):
        content = encode_status(error, record.request_id).SerializeToString()
        response = Response(content, status, media_type=PROTOBUF)
    else:
        response = json_response(told(request, encode_json(error, record.request_id)), status)
    if isinstance(error, Unavailable):
        response.headers["retry-after"] = str(math.ceil(error.retry_after))
    if isinstance(error, Unauthenticated):
        for scheme in ("Bearer", "Basic"):  # a browser asks its user for what it sends as Basic
            response.headers.append("www-authenticate", f'{scheme} realm="attention"')
    return response


def told(request: Request, document: dict[str, dict[str, object]]) -> dict[str, object]:
    """Return what the protocol of a request's path says of an error.

    The Open Inference Protocol has its words alone; they begin with the field at fault.
    """
    error = document["error"]
    return {"error": error["message"]} if request.url.path.startswith(OIP) else {"error": error}
