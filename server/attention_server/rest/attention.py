"""The REST twin of attention.v1.AttentionService: translate, call, translate."""

import asyncio
import functools
import math
import re
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

import orjson
import structlog
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.folder import VERSION
from google.protobuf.message import DecodeError, Message
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from attention_server.callers import Caller
from attention_server.domain import Call
from attention_server.errors import (
    AttentionServiceError,
    DeadlineExceeded,
    InvalidRequest,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from attention_server.memories import Memory
from attention_server.service import Service
from attention_server.translate import json, proto
from attention_server.translate.errors import code_of, to_json
from attention_server.translate.url import agreed

JSON = "application/json"
PROTOBUF = "application/x-protobuf"
REQUEST_ID = "x-request-id"
TIMEOUT = "x-request-timeout"
PRINTABLE = re.compile(r"[\x21-\x7e]{1,128}")

log = structlog.get_logger()
M = TypeVar("M", bound=Message)
Handler = Callable[[Request], Awaitable[Response]]


def answers(handler: Handler) -> Handler:
    """Turn what a handler raises into an answer: a caller's mistake by its cause; ours goes into the log alone."""

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            response = await handler(request)
        except ClientDisconnect:
            return Response(status_code=499)
        except AttentionServiceError as error:
            response = error_response(error, request_id(request))
        except Exception as error:
            log.exception("a request failed for a fault of ours", request_id=request_id(request))
            response = error_response(error, request_id(request))
        response.headers[REQUEST_ID] = request_id(request)
        return response

    return answer


class AttentionRoutes:
    """Answers `/v1` from the core.

    Args:
        service: the core.
        pool: threads that carry a request from its bytes to its answer, so that the loop only moves bytes.
        threads: how many it has.
        max_message_bytes: the largest body.
    """

    def __init__(self, service: Service, pool: Executor, threads: int, max_message_bytes: int) -> None:
        self._service = service
        self._pool = pool
        self._idle_threads = threads
        self._max_message_bytes = max_message_bytes

    def routes(self) -> list[Route]:
        """Return the routes of `/v1`."""
        return [
            Route("/v1/models", answers(self.list_models), methods=["GET"]),
            Route("/v1/models/{model}", answers(self.get_model), methods=["GET"]),
            Route("/v1/models/{model}/versions/{version}", answers(self.get_model), methods=["GET"]),
            Route("/v1/models/{model}/memories", answers(self.create_memory), methods=["POST"]),
            Route("/v1/models/{model}/memories", answers(self.list_memories), methods=["GET"]),
            Route("/v1/models/{model}/memories/{id}", answers(self.get_memory), methods=["GET"]),
            Route("/v1/models/{model}/memories/{id}", answers(self.delete_memory), methods=["DELETE"]),
            Route("/v1/models/{model}:attend", answers(self.attend), methods=["POST"]),
            Route("/v1/models/{model}/versions/{version}:attend", answers(self.attend), methods=["POST"]),
        ]

    async def attend(self, request: Request) -> Response:
        call = call_of(request)
        model, version = request.path_params["model"], version_of(request)
        body = await self._body(request, call)
        work = self._attend_protobuf if sends_protobuf(request) else self._attend_json
        return await self._in_thread(request, call, work, body, model, version, call, wants_protobuf(request))

    async def list_models(self, request: Request) -> Response:
        models = self._service.models()
        if wants_protobuf(request):
            return _protobuf(pb.ListModelsResponse(models=models))
        return _json({"models": [json.from_model(model) for model in models]})

    async def get_model(self, request: Request) -> Response:
        model = self._service.model(request.path_params["model"], version_of(request))
        return _protobuf(model) if wants_protobuf(request) else _json(json.from_model(model))

    async def create_memory(self, request: Request) -> Response:
        call, model = call_of(request), request.path_params["model"]
        body = await self._body(request, call)
        return await self._in_thread(request, call, self._create_memory, request, body, model, call)

    async def list_memories(self, request: Request) -> Response:
        memories = self._service.memories(request.path_params["model"], call_of(request))
        if wants_protobuf(request):
            left = self._service.seconds_left
            return _protobuf(
                pb.ListMemoriesResponse(memories=[proto.from_memory(each, left(each)) for each in memories])
            )
        return _json({"memories": [json.from_memory(each, self._service.seconds_left(each)) for each in memories]})

    async def get_memory(self, request: Request) -> Response:
        model, id_ = request.path_params["model"], request.path_params["id"]
        return self._memory(request, self._service.memory(model, id_, call_of(request)))

    async def delete_memory(self, request: Request) -> Response:
        self._service.delete_memory(request.path_params["model"], request.path_params["id"], call_of(request))
        return _protobuf(pb.DeleteMemoryResponse()) if wants_protobuf(request) else _json({})

    def _create_memory(self, request: Request, body: bytes, model: str, call: Call) -> Response:
        if sends_protobuf(request):
            message = _parse(pb.CreateMemoryRequest, body)
            message.model = agreed("model", model, message.model)
            wanted = proto.to_memory_request(message)
        else:
            wanted = json.to_memory_request(body, model)
        return self._memory(request, self._service.create_memory(wanted, call))

    def _memory(self, request: Request, memory: Memory) -> Response:
        left = self._service.seconds_left(memory)
        if wants_protobuf(request):
            return _protobuf(proto.from_memory(memory, left))
        return _json(json.from_memory(memory, left))

    def _attend_json(self, body: bytes, model: str, version: int, call: Call, as_protobuf: bool) -> Response:
        domain_request, encoding = json.to_request(body, model, version, self._service.limits)
        response = self._service.attend(domain_request, call)
        if as_protobuf:
            return _protobuf(proto.from_response(response))
        return Response(json.from_response(response, encoding), media_type=JSON)

    def _attend_protobuf(self, body: bytes, model: str, version: int, call: Call, as_protobuf: bool) -> Response:
        message = _parse(pb.AttendRequest, body)
        message.model = agreed("model", model, message.model)
        message.version = agreed("version", version, message.version)
        response = self._service.attend(proto.to_request(message, self._service.limits), call)
        if as_protobuf:
            return _protobuf(proto.from_response(response))
        return Response(json.from_response(response, "json"), media_type=JSON)

    async def _in_thread(
        self, request: Request, call: Call, work: Callable[..., Response], *arguments: Any
    ) -> Response:
        """Run the rest of a request in a thread, for as long as its caller is there and has time."""
        self._check_idle()
        self._idle_threads -= 1
        answer = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        answer.add_done_callback(self._thread_is_idle)
        gone = asyncio.create_task(_disconnected(request))
        either: set[asyncio.Future[Any]] = {answer, gone}
        done, _ = await asyncio.wait(either, timeout=call.remaining(), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if answer in done:
            return answer.result()
        call.leave()
        if gone in done:
            raise ClientDisconnect
        raise DeadlineExceeded("the deadline passed while the request waited or ran")

    def _thread_is_idle(self, answer: "asyncio.Future[Response]") -> None:
        self._idle_threads += 1
        if not answer.cancelled():
            answer.exception()  # seen, where nobody waits for it any more

    async def _body(self, request: Request, call: Call) -> bytes:
        """Read the body, and no more of it than may be sent, for no longer than the caller waits."""
        self._check_length(int(request.headers.get("content-length", 0)))
        self._check_idle()
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

    def _check_idle(self) -> None:
        if not self._idle_threads:  # a pool's own queue has no bound
            raise Unavailable("more requests are here than can be answered")


async def _disconnected(request: Request) -> None:
    """Return when the caller has gone; the body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def call_of(request: Request) -> Call:
    """Return who asks and until when.

    Raises:
        InvalidRequest: the timeout is no number of seconds.
    """
    caller: Caller = request.state.caller  # the gate has set it
    name = caller.name or request.state.certificate or (request.client.host if request.client else "")
    return Call(request_id(request), name, _timeout(request), caller.rights)


def request_id(request: Request) -> str:
    """Return the caller's id for this call, or a new one, the same each time it is asked for."""
    chosen: str | None = getattr(request.state, "request_id", None)
    if chosen is None:
        sent = request.headers.get(REQUEST_ID, "")
        chosen = sent if PRINTABLE.fullmatch(sent) else uuid.uuid4().hex
        request.state.request_id = chosen
    return chosen


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
    if sent is None:
        return 0
    if not VERSION.fullmatch(sent):
        raise InvalidRequest(f"must be an integer above 0, not {sent[:64]!r}", field="version")
    return int(sent)


def sends_protobuf(request: Request) -> bool:
    """Return whether the body is a message of the contract."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == PROTOBUF


def wants_protobuf(request: Request) -> bool:
    """Return whether the answer is to be a message of the contract."""
    return PROTOBUF in request.headers.get("accept", "")


def error_response(error: Exception, request_id: str) -> Response:
    """Return an error as REST tells it."""
    response = _json(to_json(error, request_id), status=code_of(error).http)
    if isinstance(error, Unavailable):
        response.headers["retry-after"] = str(math.ceil(error.retry_after))
    if isinstance(error, Unauthenticated):
        for scheme in ("Bearer", "Basic"):  # a browser asks its user for what it sends as Basic
            response.headers.append("www-authenticate", f'{scheme} realm="attention"')
    return response


def _parse(kind: type[M], body: bytes) -> M:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise InvalidRequest(f"the body is no {kind.DESCRIPTOR.full_name}") from error


def _protobuf(message: Message) -> Response:
    return Response(message.SerializeToString(), media_type=PROTOBUF)


def _json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status_code=status, media_type=JSON)
