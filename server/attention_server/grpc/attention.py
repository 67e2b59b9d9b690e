"""attention.v1.AttentionService: parse a message, call the service, serialize the response."""

from collections.abc import Awaitable, Callable

from attention_proto.attention.v1 import attention_pb2 as pb

from attention_server.codecs import proto, tokenization
from attention_server.codecs.errors import encode_status
from attention_server.contexts.memory import Memory
from attention_server.domain.call import CallContext
from attention_server.domain.messages import Response
from attention_server.errors import InvalidRequest
from attention_server.grpc.interceptor import MessageStream
from attention_server.grpc.stream import StreamProtocol, StreamSessions
from attention_server.scheduling.future import Future
from attention_server.service.service import Service
from attention_server.transport.futures import wait_for
from attention_server.transport.offload import INLINE_BYTES, should_offload, submit_decoded
from attention_server.transport.threads import Threads


class AttentionServicer:
    """The servicer of attention.v1.

    Each method is the RPC of its name: it takes the request message and the call's context, returns the response
    message or its bytes, and raises an AttentionServiceError, which becomes the call's status.
    """

    def __init__(self, service: Service, sessions: StreamSessions, threads: Threads) -> None:
        self._service = service
        self._sessions = sessions
        self._threads = threads
        self._stream_protocol = StreamProtocol(self._submit, _refuse, in_order=False)

    async def Attend(self, message: pb.AttendRequest, context: CallContext) -> bytes:
        response = await wait_for(await self._begin(message, context), context)
        if response.size > INLINE_BYTES:
            context.lease.grow(response.size)
            return await self._threads.run(lambda: proto.encode_response(response))
        return proto.encode_response(response)

    async def AttendStream(self, stream: MessageStream, context: CallContext) -> None:
        await self._sessions.run(stream, self._stream_protocol, context)

    async def Tokenize(self, message: pb.TokenizeRequest, context: CallContext) -> bytes:
        service = self._service
        takes_long = should_offload(context.record.request_bytes, len(message.inputs), text=True)
        future = await self._threads.run_if(
            takes_long,
            lambda: service.submit_tokenize(tokenization.decode_proto(message, service.limits), context),
        )
        found = await wait_for(future, context)
        return await self._threads.run_if(found.takes_long, lambda: tokenization.encode_proto(found))

    def ListModels(self, message: pb.ListModelsRequest, context: CallContext) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=self._service.models())

    def GetModel(self, message: pb.GetModelRequest, context: CallContext) -> pb.Model:
        return self._service.model(message.model, message.version, words=True)

    async def CreateMemory(self, message: pb.CreateMemoryRequest, context: CallContext) -> pb.Memory:
        future = await self._threads.run_if(
            should_offload(context.record.request_bytes, 1, text=not message.HasField("key")),
            lambda: self._service.submit_memory(proto.decode_memory_request(message), context),
        )
        return self._memory(await wait_for(future, context))

    def GetMemory(self, message: pb.GetMemoryRequest, context: CallContext) -> pb.Memory:
        return self._memory(self._service.memory(message.model, message.id, context))

    def ListMemories(self, message: pb.ListMemoriesRequest, context: CallContext) -> pb.ListMemoriesResponse:
        return pb.ListMemoriesResponse(memories=map(self._memory, self._service.memories(message.model, context)))

    def DeleteMemory(self, message: pb.DeleteMemoryRequest, context: CallContext) -> pb.DeleteMemoryResponse:
        self._service.delete_memory(message.model, message.id, context)
        return pb.DeleteMemoryResponse()

    def _begin(
        self, message: pb.AttendRequest, context: CallContext, admitted: Callable[[], None] | None = None
    ) -> Awaitable["Future[Response]"]:
        service = self._service
        return submit_decoded(
            self._threads,
            context.record.request_bytes,
            len(message.inputs),
            lambda: proto.decode_request(message, service.limits),
            lambda request: service.submit(request, context, admitted),
        )

    async def _submit(
        self, message: pb.AttendStreamRequest, context: CallContext, admitted: Callable[[], None]
    ) -> tuple["Future[Response]", Callable[[Response], bytes]]:
        if not message.id:
            raise InvalidRequest("must not be empty: answers are matched by it", field="id")
        id_ = message.id
        return await self._begin(message.request, context, admitted), lambda response: proto.encode_stream_response(
            response, id_
        )

    def _memory(self, memory: Memory) -> pb.Memory:
        return proto.encode_memory(self._service.describe(memory))


def _refuse(id_: str, error: Exception, context: CallContext) -> bytes:
    return pb.AttendStreamResponse(id=id_, error=encode_status(error, context.request_id)).SerializeToString()
