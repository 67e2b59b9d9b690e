"""The REST twin of attention.v1.AttentionService: translate, call, translate."""

import functools
from typing import TypeVar

from attention_proto.attention.v1 import attention_pb2 as pb
from google.protobuf.message import DecodeError, Message
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from attention_server.codecs import json, proto
from attention_server.codecs.url import url_or_body
from attention_server.domain.call import CallContext
from attention_server.errors import InvalidRequest
from attention_server.inference.contexts import Memory
from attention_server.rest.exchange import (
    JSON,
    PROTOBUF,
    Exchange,
    answers,
    call_of,
    json_response,
    version_of,
    wants_protobuf,
)
from attention_server.service.service import Service

M = TypeVar("M", bound=Message)


class AttentionRoutes:
    """Answers `/v1` from the core.

    Args:
        service: the core.
        exchange: reads bodies, and gives work a thread.
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

    async def attend(self, request: Request) -> Response:
        call = call_of(request)
        model, version = request.path_params["model"], version_of(request)
        attend = self._attend_protobuf if sends_protobuf(request) else self._attend_json
        work = functools.partial(attend, model=model, version=version, call=call, as_protobuf=wants_protobuf(request))
        return await self._exchange.compute(request, call, work)

    async def list_models(self, request: Request) -> Response:
        models = self._service.models()
        if wants_protobuf(request):
            return _protobuf(pb.ListModelsResponse(models=models))
        return json_response({"models": [json.encode_model(model) for model in models]})

    async def get_model(self, request: Request) -> Response:
        model = self._service.model(request.path_params["model"], version_of(request))
        return _protobuf(model) if wants_protobuf(request) else json_response(json.encode_model(model))

    async def create_memory(self, request: Request) -> Response:
        call = call_of(request)
        work = functools.partial(self._create_memory, request=request, call=call)
        return await self._exchange.compute(request, call, work)

    async def list_memories(self, request: Request) -> Response:
        memories = self._service.memories(request.path_params["model"], call_of(request))
        if wants_protobuf(request):
            left = self._service.seconds_left
            return _protobuf(
                pb.ListMemoriesResponse(memories=[proto.encode_memory(each, left(each)) for each in memories])
            )
        return json_response(
            {"memories": [json.encode_memory(each, self._service.seconds_left(each)) for each in memories]}
        )

    async def get_memory(self, request: Request) -> Response:
        model, id_ = request.path_params["model"], request.path_params["id"]
        return self._memory(request, self._service.memory(model, id_, call_of(request)))

    async def delete_memory(self, request: Request) -> Response:
        self._service.delete_memory(request.path_params["model"], request.path_params["id"], call_of(request))
        return _protobuf(pb.DeleteMemoryResponse()) if wants_protobuf(request) else json_response({})

    def _create_memory(self, body: bytes, request: Request, call: CallContext) -> Response:
        model = request.path_params["model"]
        if sends_protobuf(request):
            message = _parse(pb.CreateMemoryRequest, body)
            message.model = url_or_body("model", model, message.model)
            wanted = proto.decode_memory_request(message)
        else:
            wanted = json.decode_memory_request(body, model)
        return self._memory(request, self._service.create_memory(wanted, call))

    def _memory(self, request: Request, memory: Memory) -> Response:
        left = self._service.seconds_left(memory)
        if wants_protobuf(request):
            return _protobuf(proto.encode_memory(memory, left))
        return json_response(json.encode_memory(memory, left))

    def _attend_json(self, body: bytes, model: str, version: int, call: CallContext, as_protobuf: bool) -> Response:
        domain_request, encoding = json.decode_request(body, model, version, self._service.limits)
        response = self._service.attend(domain_request, call)
        if as_protobuf:
            return Response(proto.encode_response(response), media_type=PROTOBUF)
        return Response(json.encode_response(response, encoding), media_type=JSON)

    def _attend_protobuf(self, body: bytes, model: str, version: int, call: CallContext, as_protobuf: bool) -> Response:
        message = _parse(pb.AttendRequest, body)
        message.model = url_or_body("model", model, message.model)
        message.version = url_or_body("version", version, message.version)
        response = self._service.attend(proto.decode_request(message, self._service.limits), call)
        if as_protobuf:
            return Response(proto.encode_response(response), media_type=PROTOBUF)
        return Response(json.encode_response(response, "json"), media_type=JSON)


def sends_protobuf(request: Request) -> bool:
    """Return whether the body is a message of the contract."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == PROTOBUF


def _parse(kind: type[M], body: bytes) -> M:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise InvalidRequest(f"the body is no {kind.DESCRIPTOR.full_name}") from error


def _protobuf(message: Message) -> Response:
    return Response(message.SerializeToString(), media_type=PROTOBUF)
