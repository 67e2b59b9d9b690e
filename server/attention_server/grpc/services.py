"""The gRPC services and methods, for any server."""

from typing import Any

from attention_proto.attention.v1 import attention_pb2
from attention_proto.inference import grpc_predict_v2_pb2
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from attention_server.auth.callers import Callers
from attention_server.grpc.attention import AttentionServicer
from attention_server.grpc.interceptor import Interceptor, Method
from attention_server.grpc.oip import InferenceServicer
from attention_server.grpc.standard import NOT_SERVING, SERVING, Health, Reflection
from attention_server.grpc.stream import StreamSessions
from attention_server.service.service import Service
from attention_server.transport.threads import Threads

ATTENTION = attention_pb2.DESCRIPTOR.services_by_name["AttentionService"]
INFERENCE = grpc_predict_v2_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"

COMPUTING = frozenset({"Attend", "CreateMemory", "ModelInfer", "Tokenize"})


class GrpcServices:
    """attention.v1, the Open Inference Protocol, grpc.health.v1 and reflection, behind one interceptor.

    Args:
        service: the core.
        callers: the known callers.
        threads: for work that would block the loop.

    Attributes:
        on_call: refuses a new call at once, or starts to answer it.
    """

    def __init__(self, service: Service, callers: Callers, threads: Threads) -> None:
        self._health = Health()
        reflection_v1 = _reflection_v1()
        services = (ATTENTION, INFERENCE, HEALTH, reflection_v1, REFLECTION)
        self._reflection = Reflection([each.full_name for each in services])
        self._sessions = StreamSessions(service.observer, threads)
        reflection = _methods(REFLECTION, self._reflection)
        methods = {
            **_methods(ATTENTION, AttentionServicer(service, self._sessions, threads)),
            **_methods(INFERENCE, InferenceServicer(service, self._sessions, threads, lambda: self._is_serving)),
            **_methods(HEALTH, self._health),
            **reflection,
            **{path.replace("v1alpha", "v1"): method for path, method in reflection.items()},
        }
        self.on_call = Interceptor(callers, service, methods, threads).on_call
        self.set_serving(False)

    def set_serving(self, is_serving: bool) -> None:
        """Tell health checks whether requests are answered."""
        self._is_serving = is_serving
        for name in ("", ATTENTION.full_name, INFERENCE.full_name):
            self._health.set(name, SERVING if is_serving else NOT_SERVING)

    def end_streams(self) -> None:
        """End all streams once their received requests are answered: the server stops."""
        self._health.end()
        self._reflection.end()
        self._sessions.end()


def _methods(service: Any, servicer: Any) -> dict[str, Method]:
    """Return a service's methods by path; the servicer has a method of each name."""
    return {
        f"/{service.full_name}/{method.name}": Method(
            method.name,
            GetMessageClass(method.input_type),
            getattr(servicer, method.name),
            is_streaming=method.server_streaming,
            computes=method.name in COMPUTING,
        )
        for method in service.methods
    }


def _reflection_v1() -> Any:
    """Return the descriptor of reflection's version 1, the library's v1alpha by another name."""
    pool = descriptor_pool.Default()
    try:
        return pool.FindServiceByName(REFLECTION_V1)
    except KeyError:
        text = text_format.MessageToString(FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb))
        pool.Add(text_format.Parse(text.replace("v1alpha", "v1"), FileDescriptorProto()))
        return pool.FindServiceByName(REFLECTION_V1)
