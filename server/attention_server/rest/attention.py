"""attention.v1 over REST: decode a request, submit it, encode the response."""

import functools
from typing import TypeVar

from attention_proto.attention.v1 import attention_pb2 as pb
from google.protobuf.message import DecodeError, Message
from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from attention_server.budget.account import Lease
from attention_server.codecs import json, proto
from attention_server.codecs.parsed_size import SMALL_BYTES, check_fields
from attention_server.codecs.url import url_or_body
from attention_server.contexts.memory import Memory
from attention_server.domain.call import CallContext
from attention_server.domain.messages import MemoryRequest, Response
from attention_server.errors import InvalidRequest
from attention_server.rest.exchange import (
    JSON,
    JSON_COPIES,
    PROTOBUF,
    Exchange,
    answers,
    call_of,
    json_response,
    version_of,
    wants_protobuf,
)
from attention_server.scheduling.future import Future
from attention_server.service.service import Service
from attention_server.transport.futures import wait_until_deadline
from attention_server.transport.offload import (
    INLINE_BYTES,
    INLINE_JSON_TENSOR_BYTES,
    is_large_json,
    should_offload,
    submit_decoded,
)

M = TypeVar("M", bound=Message)


class AttentionRoutes:
    """Answers `/v1`.

    Args:
        service: the core.
        exchange: reads bodies and awaits answers.
    """

    def __init__(self, service: Service, exchange: Exchange) -> None:
        self._service = service
        self._exchange = exchange

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

    async def attend(self, request: Request) -> HttpResponse:
        call = call_of(request)
        submit = self._submit_protobuf if sends_protobuf(request) else self._submit_json
        submit = functools.partial(submit, request.path_params["model"], version_of(request), call)
        as_protobuf = wants_protobuf(request)

        async def handle(body: bytes) -> HttpResponse:
            future, encoding = await submit(body)
            response = await wait_until_deadline(future, call)
            return await self._respond(response, encoding, call, as_protobuf=as_protobuf)

        return await self._exchange.compute(request, call, handle)

    async def list_models(self, request: Request) -> HttpResponse:
        models = self._service.models()
        if wants_protobuf(request):
            return _protobuf(pb.ListModelsResponse(models=models))
        return json_response({"models": [json.encode_model(model) for model in models]})

    async def get_model(self, request: Request) -> HttpResponse:
        model = self._service.model(request.path_params["model"], version_of(request), words=True)
        return _protobuf(model) if wants_protobuf(request) else json_response(json.encode_model(model))

    async def create_memory(self, request: Request) -> HttpResponse:
        call = call_of(request)
        model = request.path_params["model"]
        of_protobuf = functools.partial(_memory_request_of_protobuf, lease=call.lease)
        decode = of_protobuf if sends_protobuf(request) else json.decode_memory_request
        threads, service = self._exchange.threads, self._service

        async def submit(body: bytes) -> "Future[Memory]":
            if is_large_json(body):
                return await self._exchange.decode_large(
                    body, call.lease, lambda: service.submit_memory(decode(body, model), call)
                )
            wanted = decode(body, model)
            takes_long = should_offload(len(body), 1, text=wanted.key is None)
            return await threads.run_if(takes_long, lambda: service.submit_memory(wanted, call))

        async def handle(body: bytes) -> HttpResponse:
            return self._memory(request, await wait_until_deadline(await submit(body), call))

        return await self._exchange.compute(request, call, handle)

    async def list_memories(self, request: Request) -> HttpResponse:
        memories = self._service.memories(request.path_params["model"], call_of(request))
        described = [self._service.describe(each) for each in memories]
        if wants_protobuf(request):
            return _protobuf(pb.ListMemoriesResponse(memories=map(proto.encode_memory, described)))
        return json_response({"memories": [json.encode_memory(each) for each in described]})

    async def get_memory(self, request: Request) -> HttpResponse:
        model, id_ = request.path_params["model"], request.path_params["id"]
        return self._memory(request, self._service.memory(model, id_, call_of(request)))

    async def delete_memory(self, request: Request) -> HttpResponse:
        self._service.delete_memory(request.path_params["model"], request.path_params["id"], call_of(request))
        return _protobuf(pb.DeleteMemoryResponse()) if wants_protobuf(request) else json_response({})

    def _memory(self, request: Request, memory: Memory) -> HttpResponse:
        described = self._service.describe(memory)
        if wants_protobuf(request):
            return _protobuf(proto.encode_memory(described))
        return json_response(json.encode_memory(described))

    async def _submit_json(
        self, model: str, version: int, call: CallContext, body: bytes
    ) -> "tuple[Future[Response], json.Encoding]":
        service = self._service

        def decode_and_submit() -> "tuple[Future[Response], json.Encoding]":
            request, encoding = json.decode_request(body, model, version, service.limits)
            return service.submit(request, call), encoding

        if is_large_json(body):
            return await self._exchange.decode_large(body, call.lease, decode_and_submit)
        request, encoding = json.decode_request(body, model, version, service.limits)
        future = await submit_decoded(
            self._exchange.threads, len(body), 1, lambda: request, lambda decoded: service.submit(decoded, call)
        )
        return future, encoding

    async def _submit_protobuf(
        self, model: str, version: int, call: CallContext, body: bytes
    ) -> "tuple[Future[Response], json.Encoding]":
        service, threads = self._service, self._exchange.threads
        takes_long = len(body) > SMALL_BYTES
        message = await threads.run_if(takes_long, lambda: parse_protobuf(pb.AttendRequest, body, call.lease))
        message.model = url_or_body("model", model, message.model)
        message.version = url_or_body("version", version, message.version)
        future = await submit_decoded(
            threads,
            len(body),
            len(message.inputs),
            lambda: proto.decode_request(message, service.limits),
            lambda request: service.submit(request, call),
        )
        return future, "json"

    async def _respond(
        self, response: Response, encoding: json.Encoding, call: CallContext, *, as_protobuf: bool
    ) -> HttpResponse:
        threads = self._exchange.threads
        if response.size > INLINE_JSON_TENSOR_BYTES:
            call.lease.grow(response.size * (1 if as_protobuf else JSON_COPIES))
        if as_protobuf:
            content = await threads.run_if(response.size > INLINE_BYTES, lambda: proto.encode_response(response))
            return HttpResponse(content, media_type=PROTOBUF)
        is_large = response.size > INLINE_JSON_TENSOR_BYTES
        content = await threads.run_if(is_large, lambda: json.encode_response(response, encoding))
        return HttpResponse(content, media_type=JSON)


def sends_protobuf(request: Request) -> bool:
    """Return whether the body is a protobuf message."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == PROTOBUF


def parse_protobuf(kind: type[M], body: bytes, lease: Lease) -> M:
    """Parse the message in a body, and hold the bytes of its parsed form.

    Raises:
        InvalidRequest: the body is none.
        Full: there is no room.
        TooLarge: it has too many fields.
    """
    lease.grow(check_fields(body, kind.DESCRIPTOR))
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise InvalidRequest(f"the body is no {kind.DESCRIPTOR.full_name}") from error


def _memory_request_of_protobuf(body: bytes, model: str, lease: Lease) -> MemoryRequest:
    message = parse_protobuf(pb.CreateMemoryRequest, body, lease)
    message.model = url_or_body("model", model, message.model)
    return proto.decode_memory_request(message)


def _protobuf(message: Message) -> HttpResponse:
    return HttpResponse(message.SerializeToString(), media_type=PROTOBUF)
