"""inference.GRPCInferenceService, the Open Inference Protocol: translate, call, translate."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future

import grpc
from attention_proto.inference import grpc_predict_v2_pb2 as pb
from attention_proto.inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceServicer
from google.protobuf.json_format import ParseDict

from attention_server.domain import Call, Response
from attention_server.errors import NotFound, Unimplemented
from attention_server.grpc.exchange import call_of
from attention_server.grpc.stream import Conversations, Dialect
from attention_server.service import Service
from attention_server.translate import oip, oip_models, oip_proto
from attention_server.translate.errors import message_of
from attention_server.translate.url import to_version


class InferenceServicer(GRPCInferenceServiceServicer):
    """Answers the Open Inference Protocol from the core."""

    def __init__(self, service: Service, conversations: Conversations, ready: Callable[[], bool]) -> None:
        self._service = service
        self._ready = ready
        self._conversations = conversations
        self._dialect = Dialect(self._submit, _refuse, in_order=True)

    def ServerLive(self, message: pb.ServerLiveRequest, context: grpc.ServicerContext) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, message: pb.ServerReadyRequest, context: grpc.ServicerContext) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._ready())

    def ModelReady(self, message: pb.ModelReadyRequest, context: grpc.ServicerContext) -> pb.ModelReadyResponse:
        try:
            return pb.ModelReadyResponse(ready=self._service.is_ready(message.name, _version(message.version)))
        except NotFound:  # the protocol asks whether it answers, not whether it is there
            return pb.ModelReadyResponse(ready=False)

    def ServerMetadata(
        self, message: pb.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ServerMetadataResponse:
        return ParseDict(oip_models.server(), pb.ServerMetadataResponse())

    def ModelMetadata(
        self, message: pb.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ModelMetadataResponse:
        model = self._service.model(message.name, _version(message.version))
        return ParseDict(oip_models.metadata(model), pb.ModelMetadataResponse())

    def ModelConfig(self, message: pb.ModelConfigRequest, context: grpc.ServicerContext) -> pb.ModelConfigResponse:
        model = self._service.model(message.name, _version(message.version))
        return ParseDict({"config": oip_models.config(model)}, pb.ModelConfigResponse())

    def ModelInfer(self, message: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        return oip_proto.from_answer(oip.answer(oip_proto.to_infer(message), self._service, call_of(context)))

    def ModelStreamInfer(
        self, messages: Iterator[pb.ModelInferRequest], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        return self._conversations.hold(messages, self._dialect, call_of(context), context)

    def RepositoryIndex(
        self, message: pb.RepositoryIndexRequest, context: grpc.ServicerContext
    ) -> pb.RepositoryIndexResponse:
        models = oip_models.index(self._service.index(), ready=message.ready)
        return ParseDict({"models": models}, pb.RepositoryIndexResponse())

    def RepositoryModelLoad(
        self, message: pb.RepositoryModelLoadRequest, context: grpc.ServicerContext
    ) -> pb.RepositoryModelLoadResponse:
        oip_models.check_load(message.parameters)
        self._service.load_model(message.model_name, call_of(context))
        return pb.RepositoryModelLoadResponse()

    def RepositoryModelUnload(
        self, message: pb.RepositoryModelUnloadRequest, context: grpc.ServicerContext
    ) -> pb.RepositoryModelUnloadResponse:
        oip_models.check_unload(message.parameters)
        self._service.unload_model(message.model_name, call_of(context))
        return pb.RepositoryModelUnloadResponse()

    def ModelStatistics(
        self, message: pb.ModelStatisticsRequest, context: grpc.ServicerContext
    ) -> pb.ModelStatisticsResponse:
        found = self._service.statistics(message.name, _version(message.version))
        return ParseDict(oip_models.statistics(found), pb.ModelStatisticsResponse())

    def _refuse_all(self, message: object, context: grpc.ServicerContext) -> None:
        raise Unimplemented(oip_models.NOT_OFFERED)

    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _refuse_all
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _refuse_all
    TraceSetting = LogSettings = _refuse_all

    def _submit(
        self, message: pb.ModelInferRequest, call: Call
    ) -> tuple["Future[Response]", Callable[[Response], bytes]]:
        future, write = oip.submit(oip_proto.to_infer(message), self._service, call)
        return future, lambda response: _streamed(oip_proto.from_answer(write(response)))


def _streamed(response: pb.ModelInferResponse) -> bytes:
    response.parameters["triton_final_response"].bool_param = True  # each request has one answer
    return pb.ModelStreamInferResponse(infer_response=response).SerializeToString()


def _refuse(id_: str, error: Exception, call: Call) -> bytes:  # noqa: ARG001 # it has no place for its id
    refused = pb.ModelStreamInferResponse(error_message=message_of(error), infer_response=pb.ModelInferResponse(id=id_))
    return refused.SerializeToString()


def _version(sent: str) -> int:
    return to_version(sent) if sent else 0
