"""The gRPC port: every method in one place, and the loop that serves them.

The loop that serves HTTP serves this too. It moves bytes, reads and writes messages, and lets the scheduler compute
what is short in between (`Scheduler.attach`), so that a short request changes threads nowhere on its way.
"""

import asyncio
from typing import Any

from attention_proto.attention.v1 import attention_pb2
from attention_proto.inference import grpc_predict_v2_pb2
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from attention_server.auth.callers import Callers
from attention_server.auth.certificates import Certificates, grpc_context
from attention_server.errors import Stopping
from attention_server.grpc.attention import AttentionServicer
from attention_server.grpc.interceptor import Interceptor, Method
from attention_server.grpc.offload import Offloader
from attention_server.grpc.oip import InferenceServicer
from attention_server.grpc.standard import NOT_SERVING, SERVING, Health, Reflection
from attention_server.grpc.stream import STREAMS, StreamSessions
from attention_server.http2.call import Inbound
from attention_server.http2.connection import Connection, Port
from attention_server.service.service import SPARE_THREADS, Service
from attention_server.transport import Threads, listen

ATTENTION = attention_pb2.DESCRIPTOR.services_by_name["AttentionService"]
INFERENCE = grpc_predict_v2_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

COMPUTING = frozenset({"Attend", "CreateMemory", "ModelInfer"})
INBOUND_MESSAGES = 2  # of the largest size, may be on their way in at once, all calls together
HANDSHAKE_SECONDS = 10.0  # of TLS
SHUTDOWN_SECONDS = 1.0  # of TLS


class GrpcServer:
    """Serves attention.v1, the Open Inference Protocol, grpc.health.v1 and reflection on the running loop.

    Args:
        service: the core.
        host, port: where to listen; port 0 picks a free one.
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
        host: str,
        port: int,
        *,
        requests: int,
        max_message_bytes: int,
        callers: Callers,
        certificates: Certificates | None = None,
    ) -> None:
        self._socket = listen("gRPC", host, port)
        self.port: int = self._socket.getsockname()[1]
        self._certificates = certificates
        self._threads = Threads(requests + SPARE_THREADS, "grpc")
        self._health = Health()
        self._reflection = Reflection([each.full_name for each in (ATTENTION, INFERENCE, HEALTH, REFLECTION)])
        self._conversations = StreamSessions(service.observer)
        offloader = Offloader(self._threads)
        self._methods = {
            **_methods(ATTENTION, AttentionServicer(service, self._conversations, offloader)),
            **_methods(INFERENCE, InferenceServicer(service, self._conversations, offloader, lambda: self._serving)),
            **_methods(HEALTH, self._health),
            **_methods(REFLECTION, self._reflection),
        }
        interceptor = Interceptor(callers, service, self._methods, offloader)
        self._port = Port(
            interceptor.arrive,
            max_message_bytes,
            # What is more waits with its caller.
            concurrent_calls=requests + STREAMS + SPARE_THREADS,
            inbound=Inbound(INBOUND_MESSAGES * max_message_bytes),
            threads=self._threads,
        )
        self.set_serving(False)

    async def start(self) -> None:
        """Begin to accept."""
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._port),
            sock=self._socket,
            ssl=grpc_context(self._certificates) if self._certificates else None,
            ssl_handshake_timeout=HANDSHAKE_SECONDS if self._certificates else None,
            ssl_shutdown_timeout=SHUTDOWN_SECONDS if self._certificates else None,
        )

    def set_serving(self, serving: bool) -> None:
        """Tell health checks whether requests are answered; from the loop."""
        self._serving = serving
        for name in ("", ATTENTION.full_name, INFERENCE.full_name):
            self._health.set(name, SERVING if serving else NOT_SERVING)

    async def stop(self, grace: float) -> None:
        """Accept no more, and wait for what was accepted.

        Args:
            grace: seconds after which it is cut off.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        self._listener.close()
        self._port.is_ending = True
        for connection in list(self._port.connections):
            connection.warn_of_end()
        self._health.end()
        self._reflection.end()
        self._conversations.end()
        # A connection ends by itself when all that came by it is answered, and the answers are on their way.
        while (self._port.calls or self._port.connections) and loop.time() < end:
            await _wait(self._port.ended, end - loop.time())
        for rpc in list(self._port.calls):
            rpc.stop(Stopping("the server is stopping, and its time is over"))
        for _ in range(3):  # in which they say so
            await asyncio.sleep(0)
        for connection in list(self._port.connections):
            connection.close()
        await asyncio.sleep(0)
        for connection in list(self._port.connections):
            connection.abort()
        self._threads.close()

    @property
    def is_idle(self) -> bool:
        """Whether none of its threads does anything any more."""
        return self._threads.is_idle


async def _wait(event: asyncio.Event, seconds: float) -> None:
    event.clear()
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def _methods(service: Any, servicer: Any) -> dict[str, Method]:
    """Return a service's methods by their paths: the servicer's, by their names."""
    return {
        f"/{service.full_name}/{about.name}": Method(
            about.name,
            GetMessageClass(about.input_type),
            getattr(servicer, about.name),
            converses=about.server_streaming,
            computes=about.name in COMPUTING,
        )
        for about in service.methods
    }
