"""The standard services, health and reflection, with bounds on the streams that a caller may leave open."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from attention_server.domain.call import CallContext
from attention_server.errors import Cancelled, NotFound, Stopping, Unavailable
from attention_server.grpc.interceptor import MessageStream
from attention_server.http2.call import Call

WATCHES = 256  # of health at once, which need no credentials
REFLECTIONS = 8  # at once
REFLECTION_SECONDS = 60.0  # after which one is ended, for idle ones would keep others out

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


class Places:
    """A number of places, for streams that stay."""

    def __init__(self, count: int, what: str) -> None:
        self._count = count
        self._what = what
        self._taken = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have a place meanwhile.

        Raises:
            Unavailable: none is free.
        """
        if self._taken >= self._count:
            raise Unavailable(f"{self._count} {self._what} are open, as many as may be")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class Health:
    """grpc.health.v1."""

    def __init__(self) -> None:
        self._places = Places(WATCHES, "watches of health")
        self._statuses: dict[str, int] = {}
        self._changed: set[asyncio.Event] = set()  # of those who watch
        self._ended = False

    def set(self, service: str, status: int) -> None:
        """Say how a service is, to those who watch it too."""
        self._statuses[service] = status
        self._tell()

    def end(self) -> None:
        """Watch no more: the server stops."""
        self._ended = True
        self._tell()

    def Check(self, message: HealthCheckRequest, call: CallContext) -> HealthCheckResponse:
        status = self._statuses.get(message.service)
        if status is None:
            raise NotFound(f"there is no service {message.service[:256]!r}")
        return HealthCheckResponse(status=status)

    def List(self, message: Any, call: CallContext) -> Any:
        statuses = {name: HealthCheckResponse(status=status) for name, status in self._statuses.items()}
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined] # newer than its types

    async def Watch(self, stream: MessageStream, call: CallContext) -> None:
        found = await stream.one()
        changed = asyncio.Event()
        with self._places.taken():
            self._changed.add(changed)
            try:
                told = None
                while not self._ended:
                    status = self._statuses.get(found.service, SERVICE_UNKNOWN)
                    if status != told:
                        stream.rpc.send(HealthCheckResponse(status=status).SerializeToString())
                        told = status
                    await changed.wait()
                    changed.clear()
            finally:
                self._changed.discard(changed)
        raise Stopping("the server is stopping")

    def _tell(self) -> None:
        for changed in self._changed:
            changed.set()


class Reflection:
    """grpc.reflection.v1alpha: what gRPC's own servicer answers."""

    def __init__(self, services: list[str]) -> None:
        self._places = Places(REFLECTIONS, "streams of reflection")
        self._services = services
        self._open: set[Call] = set()

    @cached_property
    def _servicer(self) -> Any:
        from grpc_reflection.v1alpha import reflection  # noqa: PLC0415 # it brings all of gRPC, for who asks alone

        return reflection.ReflectionServicer(self._services)

    def end(self) -> None:
        """End the streams: the server stops."""
        for rpc in list(self._open):
            rpc.stop(Stopping("the server is stopping"))

    async def ServerReflectionInfo(self, stream: MessageStream, call: CallContext) -> None:
        with self._places.taken():
            self._open.add(stream.rpc)
            try:
                async with asyncio.timeout(REFLECTION_SECONDS):
                    while (found := await stream.next()) is not None:
                        for answer in self._servicer.ServerReflectionInfo(iter([found[0]]), None):
                            stream.rpc.send(answer.SerializeToString())
            except TimeoutError as error:
                raise Cancelled(f"a stream of reflection ends after {REFLECTION_SECONDS:g} s") from error
            finally:
                self._open.discard(stream.rpc)
