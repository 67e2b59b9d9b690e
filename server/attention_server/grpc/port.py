"""The gRPC port, as the application sees it: what both of its servers share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from attention_server.auth.callers import Callers
from attention_server.auth.certificates import Certificates
from attention_server.grpc.services import GrpcServices
from attention_server.grpc.stream import STREAMS
from attention_server.service.service import SPARE_THREADS, Service
from attention_server.transport.threads import Threads


@dataclass(frozen=True)
class PortOptions:
    """Where and how gRPC is served.

    Attributes:
        host, port: where to listen; port 0 picks a free one.
        requests: how many requests can be running and queued.
        max_message_bytes: the largest request.
        max_age: seconds that a connection lasts; 0 for any.
        grace: seconds that its calls have from then.
        callers: the known callers.
        certificates: of TLS; None speaks without.
    """

    host: str
    port: int
    requests: int
    max_message_bytes: int
    max_age: float
    grace: float
    callers: Callers
    certificates: Certificates | None = None

    @property
    def concurrent_calls(self) -> int:
        """The calls of one connection at a time; further ones wait at the client."""
        return self.requests + STREAMS + SPARE_THREADS


class GrpcServer(ABC):
    """Serves gRPC on the running loop.

    Args:
        service: the core.
        options: where and how to serve.

    Attributes:
        port: where it listens.

    Raises:
        OSError: the address cannot be listened on.
    """

    port: int

    def __init__(self, service: Service, options: PortOptions) -> None:
        self._threads = Threads(options.requests + SPARE_THREADS, "grpc")
        self._services = GrpcServices(service, options.callers, self._threads)

    @abstractmethod
    async def start(self) -> None:
        """Begin to accept."""

    @abstractmethod
    async def stop(self, grace: float) -> None:
        """Accept no more connections or calls, and answer all accepted calls; after `grace` seconds stop the rest."""

    def set_serving(self, is_serving: bool) -> None:
        """Set the answer to health checks: SERVING or NOT_SERVING. Call it on the loop."""
        self._services.set_serving(is_serving)

    @property
    def is_idle(self) -> bool:
        """Whether no thread of the server runs anything."""
        return self._threads.is_idle
