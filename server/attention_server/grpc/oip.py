"""inference.GRPCInferenceService, the Open Inference Protocol: parse a message, call the service, serialize."""

import functools
from collections.abc import Callable

from attention_proto.inference import grpc_predict_v2_pb2 as pb
from google.protobuf.json_format import ParseDict

from attention_server.codecs.errors import message_of
from attention_server.codecs.oip import mapping, rules
from attention_server.codecs.oip import models as oip_models
from attention_server.codecs.oip import proto as oip_proto
from attention_server.codecs.oip.messages import InferResponse
from attention_server.codecs.oip.tensor import BYTES
from attention_server.codecs.url import parse_version
from attention_server.domain.call import CallContext
from attention_server.domain.messages import Response
from attention_server.errors import NotFound, Unimplemented
from attention_server.grpc.interceptor import MessageStream
from attention_server.grpc.stream import StreamProtocol, StreamSessions
from attention_server.scheduling.future import Future
from attention_server.service.service import Service
from attention_server.transport.futures import wait_until_deadline
from attention_server.transport.offload import INLINE_BYTES, should_offload
from attention_server.transport.threads import Threads


class InferenceServicer:
    """The servicer of the Open Inference Protocol.

    Each method is the RPC of its name: it takes the request message and the call's context, returns the response
    message or its bytes, and raises an AttentionServiceError, which becomes the call's status.
    """

    def __init__(self, service: Service, sessions: StreamSessions, threads: Threads, ready: Callable[[], bool]) -> None:
        self._service = service
        self._threads = threads
        self._ready = ready
        self._sessions = sessions
        self._stream_protocol = StreamProtocol(self._submit, _refuse, in_order=True)

    def ServerLive(self, message: pb.ServerLiveRequest, context: CallContext) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, message: pb.ServerReadyRequest, context: CallContext) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, message: pb.ModelReadyRequest, context: CallContext) -> pb.ModelReadyResponse:
        name, version = message.name, _version(message.version)
        try:  # in mode explicit the folder is read
            ready = await self._threads.run(lambda: self._service.is_ready(name, version))
            return pb.ModelReadyResponse(ready=ready)
        except NotFound:  # the protocol has no error for a missing model
            return pb.ModelReadyResponse(ready=False)

    def ServerMetadata(self, message: pb.ServerMetadataRequest, context: CallContext) -> pb.ServerMetadataResponse:
        return ParseDict(oip_models.server(), pb.ServerMetadataResponse())

    def ModelMetadata(self, message: pb.ModelMetadataRequest, context: CallContext) -> pb.ModelMetadataResponse:
        model = self._service.model(message.name, _version(message.version))
        return ParseDict(oip_models.metadata(model), pb.ModelMetadataResponse())

    def ModelConfig(self, message: pb.ModelConfigRequest, context: CallContext) -> pb.ModelConfigResponse:
        model = self._service.model(message.name, _version(message.version))
        return ParseDict({"config": oip_models.config(model)}, pb.ModelConfigResponse())

    async def ModelInfer(self, message: pb.ModelInferRequest, context: CallContext) -> bytes:
        future, answer = await self._begin(message, context, None)
        response = await wait_until_deadline(future, context)
        if response.size > INLINE_BYTES:
            context.lease.grow(response.size)
        return await self._threads.run_if(
            response.size > INLINE_BYTES, lambda: oip_proto.encode_response(answer(response))
        )

    async def ModelStreamInfer(self, stream: MessageStream, context: CallContext) -> None:
        await self._sessions.run(stream, self._stream_protocol, context)

    async def RepositoryIndex(
        self, message: pb.RepositoryIndexRequest, context: CallContext
    ) -> pb.RepositoryIndexResponse:
        entries = await self._threads.run(self._service.index)  # in mode explicit the folder is read
        models = oip_models.index(entries, ready=message.ready)
        return ParseDict({"models": models}, pb.RepositoryIndexResponse())

    async def RepositoryModelLoad(
        self, message: pb.RepositoryModelLoadRequest, context: CallContext
    ) -> pb.RepositoryModelLoadResponse:
        oip_models.check_load(message.parameters)
        await self._threads.run(lambda: self._service.load_model(message.model_name, context))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, message: pb.RepositoryModelUnloadRequest, context: CallContext
    ) -> pb.RepositoryModelUnloadResponse:
        oip_models.check_unload(message.parameters)
        await self._threads.run(lambda: self._service.unload_model(message.model_name, context))
        return pb.RepositoryModelUnloadResponse()

    def ModelStatistics(self, message: pb.ModelStatisticsRequest, context: CallContext) -> pb.ModelStatisticsResponse:
        found = self._service.statistics(message.name, _version(message.version))
        return ParseDict(oip_models.statistics(found), pb.ModelStatisticsResponse())

    def _refuse_all(self, message: object, context: CallContext) -> None:
        raise Unimplemented(oip_models.NOT_OFFERED)

    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _refuse_all
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _refuse_all
    TraceSetting = LogSettings = _refuse_all

    async def _submit(
        self, message: pb.ModelInferRequest, context: CallContext, admitted: Callable[[], None]
    ) -> tuple["Future[Response]", Callable[[Response], bytes]]:
        future, answer = await self._begin(message, context, admitted)
        return future, lambda response: oip_proto.encode_stream_response(answer(response))

    async def _begin(
        self, message: pb.ModelInferRequest, context: CallContext, admitted: Callable[[], None] | None
    ) -> tuple["Future[Response]", Callable[[Response], InferResponse]]:
        limits = self._service.limits

        def begin() -> "tuple[Future[Response], Callable[[Response], InferResponse]]":
            infer = oip_proto.decode_request(message)
            request = mapping.to_domain(infer, limits)
            context.shorten_deadline(rules.timeout(infer.parameters))
            with rules.protocol_field_names():
                future = self._service.submit(request, context, admitted)
            return future, functools.partial(mapping.from_domain, infer=infer, limits=limits)

        sequences = max([each.shape[0] for each in message.inputs if each.shape], default=1)
        text = any(each.datatype == BYTES for each in message.inputs)
        is_large = should_offload(context.record.request_bytes, sequences, text=text)
        return await self._threads.run(begin) if is_large else begin()


def _refuse(id_: str, error: Exception, context: CallContext) -> bytes:  # noqa: ARG001 # the message has no field for the id of the request
    refused = pb.ModelStreamInferResponse(error_message=message_of(error), infer_response=pb.ModelInferResponse(id=id_))
    return refused.SerializeToString()


def _version(sent: str) -> int:
    return parse_version(sent) if sent else 0
