"""attention.v1.AttentionService: translate, call, translate."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future

import grpc
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceServicer

from attention_server.domain import Call, Response
from attention_server.errors import InvalidRequest
from attention_server.grpc.exchange import call_of
from attention_server.grpc.stream import Conversations, Dialect
from attention_server.memories import Memory
from attention_server.service import Service
from attention_server.translate import proto
from attention_server.translate.errors import to_status


class AttentionServicer(AttentionServiceServicer):
    """Answers attention.v1 from the core."""

    def __init__(self, service: Service, conversations: Conversations) -> None:
        self._service = service
        self._conversations = conversations
        self._dialect = Dialect(self._submit, _refuse, in_order=False)

    def Attend(self, message: pb.AttendRequest, context: grpc.ServicerContext) -> bytes:
        call = call_of(context)
        return proto.serialize(self._service.attend(proto.to_request(message, self._service.limits), call))

    def AttendStream(
        self, messages: Iterator[pb.AttendStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        return self._conversations.hold(messages, self._dialect, call_of(context), context)

    def ListModels(self, message: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=self._service.models())

    def GetModel(self, message: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.Model:
        return self._service.model(message.model, message.version)

    def CreateMemory(self, message: pb.CreateMemoryRequest, context: grpc.ServicerContext) -> pb.Memory:
        return self._memory(self._service.create_memory(proto.to_memory_request(message), call_of(context)))

    def GetMemory(self, message: pb.GetMemoryRequest, context: grpc.ServicerContext) -> pb.Memory:
        return self._memory(self._service.memory(message.model, message.id, call_of(context)))

    def ListMemories(self, message: pb.ListMemoriesRequest, context: grpc.ServicerContext) -> pb.ListMemoriesResponse:
        return pb.ListMemoriesResponse(
            memories=map(self._memory, self._service.memories(message.model, call_of(context)))
        )

    def DeleteMemory(self, message: pb.DeleteMemoryRequest, context: grpc.ServicerContext) -> pb.DeleteMemoryResponse:
        self._service.delete_memory(message.model, message.id, call_of(context))
        return pb.DeleteMemoryResponse()

    def _submit(
        self, message: pb.AttendStreamRequest, call: Call
    ) -> tuple["Future[Response]", Callable[[Response], bytes]]:
        if not message.id:
            raise InvalidRequest("must not be empty: answers are matched by it", field="id")
        request, id_ = proto.to_request(message.request, self._service.limits), message.id
        return self._service.submit(request, call), lambda response: proto.serialize_streamed(response, id_)

    def _memory(self, memory: Memory) -> pb.Memory:
        return proto.from_memory(memory, self._service.seconds_left(memory))


def _refuse(id_: str, error: Exception, call: Call) -> bytes:
    return pb.AttendStreamResponse(id=id_, error=to_status(error, call.request_id)).SerializeToString()
