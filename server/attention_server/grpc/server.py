"""The gRPC port.

A synchronous server, whose thread carries a request from its bytes to its answer and, when a slot is free, computes
it too: no loop stands between. What the pool must not do is fill up, or health checks would wait behind work: it has
a thread for every request that can be running or queued, for every stream of requests, and some spare. A stream of
reflection holds one, and these are few and end by themselves; a health that is watched holds none.
"""

from concurrent.futures import ThreadPoolExecutor

import grpc
from attention_proto.attention.v1 import attention_pb2
from attention_proto.attention.v1.attention_pb2_grpc import add_AttentionServiceServicer_to_server
from attention_proto.inference import grpc_predict_v2_pb2
from attention_proto.inference.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from attention_server.callers import Callers
from attention_server.certificates import Certificates, grpc_credentials
from attention_server.grpc.attention import AttentionServicer
from attention_server.grpc.gate import Gate
from attention_server.grpc.oip import InferenceServicer
from attention_server.grpc.reading import Reading
from attention_server.grpc.standard import Health, Reflection
from attention_server.grpc.stream import STREAMS, Conversations
from attention_server.service import SPARE_THREADS, Service

SERVICES = (
    attention_pb2.DESCRIPTOR.services_by_name["AttentionService"].full_name,
    grpc_predict_v2_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)

COMPUTING = frozenset({f"/{SERVICES[0]}/Attend", f"/{SERVICES[0]}/CreateMemory", f"/{SERVICES[1]}/ModelInfer"})

HANDSHAKE_MS = 10_000  # for a connection that is opened and says nothing
IDLE_MS = 300_000  # after which a connection without a call is closed; clients open another when they need one
KEEPALIVE_MS = 60_000  # between two looks at whether the peer of a connection is still there
KEEPALIVE_TIMEOUT_MS = 20_000

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class GrpcServer:
    """Serves attention.v1, the Open Inference Protocol, grpc.health.v1 and reflection.

    Args:
        service: the core.
        address: where to listen, `HOST:PORT`; port 0 picks a free one.
        requests: how many requests can be running and queued.
        max_message_bytes: the largest request.
        callers: who may call.
        certificates: of TLS; None speaks without.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(
        self,
        service: Service,
        address: str,
        *,
        requests: int,
        max_message_bytes: int,
        callers: Callers,
        certificates: Certificates | None = None,
    ) -> None:
        self._health = Health()
        threads = requests + STREAMS + SPARE_THREADS
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            interceptors=[Gate(callers, service, COMPUTING), Reading()],
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", -1),  # the core bounds an answer, with words of what would fit
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # a client may watch over a long call
                # What is more waits with its caller: of what waits here without a thread gRPC cancels some, unasked.
                ("grpc.max_concurrent_streams", threads),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
                ("grpc.max_connection_idle_ms", IDLE_MS),
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, not a partner
            ],
        )
        self._conversations = Conversations(service.observer)
        attention = AttentionServicer(service, self._conversations)
        add_AttentionServiceServicer_to_server(attention, self._server)
        inference = InferenceServicer(service, self._conversations, lambda: self._serving)
        add_GRPCInferenceServiceServicer_to_server(inference, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        listed = [*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(Reflection(listed), self._server)
        self.set_serving(False)
        try:
            self.port = (
                self._server.add_secure_port(address, grpc_credentials(certificates))
                if certificates
                else self._server.add_insecure_port(address)
            )
        except RuntimeError as error:
            raise OSError(
                f"cannot listen for gRPC on {address}: the port is taken or the address is not ours"
            ) from error

    def start(self) -> None:
        """Begin to accept."""
        self._server.start()

    def set_serving(self, serving: bool) -> None:
        """Tell health checks whether requests are answered."""
        self._serving = serving
        for name in ("", *SERVICES):
            self._health.set(name, SERVING if serving else NOT_SERVING)

    def stop(self, grace: float) -> None:
        """Accept no more, and wait for what was accepted.

        Args:
            grace: seconds after which it is cut off.
        """
        stopped = self._server.stop(grace)
        self._conversations.end()
        stopped.wait()
