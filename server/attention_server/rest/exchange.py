"""The exchange of every HTTP route: body, call context, deadline, disconnection, and error responses."""

import asyncio
import functools
import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

import orjson
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from attention_server.auth.callers import Caller
from attention_server.budget.account import Lease
from attention_server.codecs.errors import code_of, encode_json, encode_status, openai_error, record_error
from attention_server.codecs.url import parse_version
from attention_server.domain.call import CallContext
from attention_server.domain.request_record import RequestRecord
from attention_server.errors import (
    AttentionServiceError,
    Cancelled,
    DeadlineExceeded,
    Full,
    InvalidRequest,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from attention_server.scheduling.admission import AdmissionController
from attention_server.transport.futures import LATE
from attention_server.transport.inflate import inflate
from attention_server.transport.offload import INLINE_BYTES, parsed_json_bytes
from attention_server.transport.threads import Threads

JSON = "application/json"
PROTOBUF = "application/x-protobuf"
COPIES = 2  # of a body: its chunks and the whole
JSON_COPIES = 4  # of tensors that are written as JSON: their numbers as text
INFLATING = 2  # bodies at once
DECODING = 2  # long JSON documents at once: threads that compute take turns, and the event loop waits for its own
LONG_DOCUMENT = 2**20  # bytes
SMALL_BODY = 64 * 1024  # bytes of a body that has no tensors or texts, and is parsed on the event loop
REQUEST_BYTES = 16 * 1024  # that a request takes beside its body and answer
TIMEOUT = "x-request-timeout"
OIP = "/v2"
EMBEDDINGS = "/v1/embeddings"

log = structlog.get_logger()
T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


def answers(handler: Handler) -> Handler:
    """Wrap a handler: exceptions become error responses; unexpected ones are logged, with no text sent.

    The handler has the name of its RPC, under which the request is recorded.
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
    """Reads bodies, and answers requests on the event loop while the callers are connected.

    Args:
        threads: for long work.
        max_message_bytes: limit on a body, as sent and inflated.
        admission: admission control under sustained overload.

    Attributes:
        threads: for long work.
    """

    def __init__(self, threads: Threads, max_message_bytes: int, admission: AdmissionController) -> None:
        self._admission = admission
        self.threads = threads
        self._max_message_bytes = max_message_bytes
        self._inflating = asyncio.Semaphore(INFLATING)
        self._decoding = asyncio.Semaphore(DECODING)

    async def answer(
        self, request: Request, call: CallContext, handle: Callable[[bytes], Awaitable[Response]]
    ) -> Response:
        """Read a request's body, which is small, and answer the request.

        Args:
            request: the request.
            call: its context; cancelled when the caller disconnects or the deadline passes.
            handle: answers a body.

        Raises:
            TooLarge: the body is over SMALL_BODY.
            InvalidRequest: the body is not compressed as its header says.
            ClientDisconnect: the caller disconnected.
            DeadlineExceeded: the deadline passed.
            Exception: that of `handle`.
        """
        body = await self._read(request, call, SMALL_BODY)
        return await self._while_connected(request, call, body, handle, SMALL_BODY)

    async def decode_large(self, body: bytes, lease: Lease, decode: Callable[[], T]) -> T:
        """Decode a large JSON document in a thread; its parsed form is held meanwhile.

        Raises:
            Full: there is no thread or no room.
            Exception: that of `decode`.
        """

        def decode_held() -> T:
            parsed = lease.sibling()
            try:
                parsed.grow(parsed_json_bytes(body))
                return decode()
            finally:
                parsed.release()

        if len(body) <= LONG_DOCUMENT:
            return await self.threads.run(decode_held)
        await self._decoding.acquire()
        try:
            decoded = self.threads.run(decode_held, on_done=self._decoding.release)
        except Full:
            self._decoding.release()
            raise
        return await decoded

    async def compute(
        self, request: Request, call: CallContext, handle: Callable[[bytes], Awaitable[Response]]
    ) -> Response:
        """Read a request's body and answer the request under a permit of admission control.

        Raises:
            Full: the server is overloaded; refused before the body is parsed.
            Exception: as `answer`.
        """
        body = await self._read(request, call, self._max_message_bytes)
        with self._admission.acquire(call.caller):
            return await self._while_connected(request, call, body, handle, self._max_message_bytes)

    async def _while_connected(
        self,
        request: Request,
        call: CallContext,
        body: bytes,
        handle: Callable[[bytes], Awaitable[Response]],
        most: int,
    ) -> Response:
        encoding = request.headers.get("content-encoding", "")
        try:
            async with asyncio.timeout(call.remaining()) as limit:
                with _CancelOnDisconnect(request):
                    if encoding:
                        body = await self._inflate(body, encoding, call.lease, most)
                    return await handle(body)
        except BaseException as error:
            call.cancel()
            if isinstance(error, TimeoutError) and limit.expired():
                raise DeadlineExceeded(LATE) from error
            raise

    async def _inflate(self, body: bytes, encoding: str, lease: Lease, most: int) -> bytes:
        """Inflate a body in a thread; its pieces and the whole are held, then the whole alone."""
        async with self._inflating:
            inflated = await self.threads.run(
                lambda: inflate(
                    body, encoding, most, "body", "Content-Encoding", lambda count: lease.grow(COPIES * count)
                )
            )
        lease.settle(REQUEST_BYTES + len(inflated))
        return inflated

    async def _read(self, request: Request, call: CallContext, most: int) -> bytes:
        """Read the body, within the limit and the deadline."""
        length = int(request.headers.get("content-length", 0))
        _check_length(length, most)
        if length > INLINE_BYTES:
            self.threads.check_idle()  # a large body needs a thread: refuse it unread
        try:
            async with asyncio.timeout(call.remaining()):
                body = await self._read_chunks(request, call.lease, most)
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline passed while the body was read") from error
        call.record.request_bytes = len(body)
        return body

    async def _read_chunks(self, request: Request, lease: Lease, most: int) -> bytes:
        chunks = []
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            _check_length(size, most)
            lease.grow(COPIES * len(chunk))
            chunks.append(chunk)
        body = await self.threads.run_if(size > INLINE_BYTES, lambda: b"".join(chunks))
        lease.shrink((COPIES - 1) * size)  # the chunks are gone when this returns
        return body


def _check_length(length: int, most: int) -> None:
    if length > most:
        raise TooLarge(f"the body is over {most} bytes, the largest that is read")


class _CancelOnDisconnect:
    """Cancels the block's task when the caller disconnects, and raises ClientDisconnect from the block."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._is_disconnected = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watch = asyncio.create_task(self._cancel_on_disconnect())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.cancel()
        if self._is_disconnected:
            self._task.uncancel()
            if isinstance(error, asyncio.CancelledError):
                raise ClientDisconnect from error

    async def _cancel_on_disconnect(self) -> None:
        while (await self._receive())[
            "type"
        ] != "http.disconnect":  # the body has been read: no further message follows
            pass
        self._is_disconnected = True
        self._task.cancel()


def call_of(request: Request) -> CallContext:
    """Return the context of a request's call.

    Raises:
        InvalidRequest: the timeout is no number of seconds.
    """
    caller: Caller = request.state.caller  # set by the middleware
    record = record_of(request)
    owner = caller.name or request.state.certificate or ""
    lease = request.state.lease
    return CallContext(record.request_id, record.caller, _timeout(request), caller.rights, record, owner, lease)


def record_of(request: Request) -> RequestRecord:
    """Return the record of a request, which the middleware has set."""
    record: RequestRecord = request.state.record
    return record


def _timeout(request: Request) -> float | None:
    sent = request.headers.get(TIMEOUT)
    if sent is None:
        return None
    try:
        seconds = math.nan if "_" in sent else float(sent)  # Python reads 1_0 as 10
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InvalidRequest(f"must be a number of seconds above 0, not {sent[:64]!r}", field="X-Request-Timeout")
    return seconds


def version_of(request: Request) -> int:
    """Return the version in the URL; 0 without one.

    Raises:
        InvalidRequest: the version is no number.
    """
    sent = request.path_params.get("version")
    return 0 if sent is None else parse_version(sent)


def json_response(content: object, status: int = 200) -> Response:
    """Return a JSON response."""
    return Response(orjson.dumps(content), status_code=status, media_type=JSON)


def wants_protobuf(request: Request) -> bool:
    """Return whether the caller accepts a protobuf message."""
    return PROTOBUF in request.headers.get("accept", "")


def error_response(error: Exception, request: Request) -> Response:
    """Return an error response in the form of the path's protocol, or as a google.rpc.Status where that is accepted."""
    record = record_of(request)
    record_error(record, error)
    status = code_of(error).http
    if wants_protobuf(request) and not request.url.path.startswith((OIP, EMBEDDINGS)):
        content = encode_status(error, record.request_id).SerializeToString()
        response = Response(content, status, media_type=PROTOBUF)
    else:
        response = json_response(error_document(request, encode_json(error, record.request_id)), status)
    if isinstance(error, Unavailable):
        response.headers["retry-after"] = str(math.ceil(error.retry_after))
    if isinstance(error, Unauthenticated):
        for scheme in ("Bearer", "Basic"):  # a browser asks its user for Basic credentials
            response.headers.append("www-authenticate", f'{scheme} realm="attention"')
    return response


def error_document(request: Request, document: dict[str, dict[str, object]]) -> dict[str, object]:
    """Return the error document of a path's protocol: the Open Inference Protocol has the message alone."""
    error = document["error"]
    if request.url.path.startswith(OIP):
        return {"error": error["message"]}
    return {"error": openai_error(error) if request.url.path == EMBEDDINGS else error}
