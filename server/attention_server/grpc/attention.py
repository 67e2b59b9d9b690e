"""attention.v1.AttentionService: translate, call, translate."""

from collections.abc import Callable

from attention_proto.attention.v1 import attention_pb2 as pb

from attention_server.codecs import proto
from attention_server.codecs.errors import to_status
from attention_server.domain.call import CallContext
from attention_server.domain.messages import Response
from attention_server.errors import InvalidRequest
from attention_server.grpc.exchange import answered
from attention_server.grpc.interceptor import MessageStream
from attention_server.grpc.offload import Offloader
from attention_server.grpc.stream import StreamProtocol, StreamSessions
from attention_server.inference.contexts import Memory
from attention_server.scheduling.future import Future
from attention_server.service.service import Service


class AttentionServicer:
    """Answers attention.v1 from the core."""

    def __init__(self, service: Service, conversations: StreamSessions, offloader: Offloader) -> None:
        self._service = service
        self._conversations = conversations
        self._offloader = offloader
        self._dialect = StreamProtocol(self._submit, _refuse, in_order=False)

    async def Attend(self, message: pb.AttendRequest, call: CallContext) -> bytes:
        response = await answered(await self._begin(message, call), call)
        return await self._offloader.to_write(lambda: proto.serialize(response), response.size)

    async def AttendStream(self, stream: MessageStream, call: CallContext) -> None:
        await self._conversations.hold(stream, self._dialect, call)

    def ListModels(self, message: pb.ListModelsRequest, call: CallContext) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=self._service.models())

    def GetModel(self, message: pb.GetModelRequest, call: CallContext) -> pb.Model:
        return self._service.model(message.model, message.version)

    async def CreateMemory(self, message: pb.CreateMemoryRequest, call: CallContext) -> pb.Memory:
        return await self._offloader.run(
            lambda: self._memory(self._service.create_memory(proto.to_memory_request(message), call))
        )

    def GetMemory(self, message: pb.GetMemoryRequest, call: CallContext) -> pb.Memory:
        return self._memory(self._service.memory(message.model, message.id, call))

    def ListMemories(self, message: pb.ListMemoriesRequest, call: CallContext) -> pb.ListMemoriesResponse:
        return pb.ListMemoriesResponse(memories=map(self._memory, self._service.memories(message.model, call)))

    def DeleteMemory(self, message: pb.DeleteMemoryRequest, call: CallContext) -> pb.DeleteMemoryResponse:
        self._service.delete_memory(message.model, message.id, call)
        return pb.DeleteMemoryResponse()

    async def _begin(
        self, message: pb.AttendRequest, call: CallContext, admitted: Callable[[], None] | None = None
    ) -> "Future[Response]":
        service, offloader = self._service, self._offloader
        inputs, size = message.inputs, call.record.request_bytes
        text = bool([each for each in inputs if each.text or each.memory_text])
        if offloader.should_offload(size, len(inputs), text=text):
            return await offloader.run(
                lambda: service.submit(proto.to_request(message, service.limits), call, admitted)
            )
        request = proto.to_request(message, service.limits)
        if offloader.should_offload(size, len(request.inputs)):  # each of them stood for several
            return await offloader.run(lambda: service.submit(request, call, admitted))
        return service.submit(request, call, admitted)

    async def _submit(
        self, message: pb.AttendStreamRequest, call: CallContext, admitted: Callable[[], None]
    ) -> tuple["Future[Response]", Callable[[Response], bytes]]:
        if not message.id:
            raise InvalidRequest("must not be empty: answers are matched by it", field="id")
        id_ = message.id
        return await self._begin(message.request, call, admitted), lambda response: proto.serialize_streamed(
            response, id_
        )

    def _memory(self, memory: Memory) -> pb.Memory:
        return proto.from_memory(memory, self._service.seconds_left(memory))


def _refuse(id_: str, error: Exception, call: CallContext) -> bytes:
    return pb.AttendStreamResponse(id=id_, error=to_status(error, call.request_id)).SerializeToString()
