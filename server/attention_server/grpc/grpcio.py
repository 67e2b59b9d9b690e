"""The gRPC port on gRPC's own asyncio server, `grpc.aio`: the same interceptor and services as on `http2`.

It needs no system library, so the service runs wherever pip installs. Inside gRPC's C core a call changes threads
several times; the native server saves that. Messages over the limit and oversized metadata are refused by the
C core in its own words, before a call reaches the interceptor.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
import structlog

from attention_server.auth.callers import Callers
from attention_server.auth.certificates import Certificates
from attention_server.codecs.errors import INTERNAL, INTERNAL_MESSAGE
from attention_server.errors import Stopping
from attention_server.grpc.call import Buffer, Header
from attention_server.grpc.services import GrpcServices
from attention_server.grpc.stream import STREAMS
from attention_server.http2.errors import Cancelled, DeadlineExceeded, MessageTooLarge, ServerStopping
from attention_server.http2.limits import HEADER_BYTES, Timeouts
from attention_server.service.service import SPARE_THREADS, Service
from attention_server.transport import Threads

STOP_SECONDS = 1.0  # for calls that were told to stop to end with a status

STATUSES = {code.value[0]: code for code in grpc.StatusCode}
OK, DETAILS = grpc.StatusCode.OK, "grpc-status-details-bin"

log = structlog.get_logger()


class PeerGone(Exception):
    """A response cannot be sent, because the peer has left."""


class GrpcioServer:
    """Serves gRPC on the running loop by `grpc.aio`.

    Args:
        service: the core.
        host, port: where to listen; port 0 picks a free one.
        requests: how many requests can be running and queued.
        max_message_bytes: the largest request.
        callers: the known callers.
        certificates: of TLS; None speaks without.

    Attributes:
        port: where it listens.

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
        self._threads = Threads(requests + SPARE_THREADS, "grpc")
        self._services = GrpcServices(service, callers, self._threads)
        self._calls: set[GrpcioCall] = set()
        self._server = grpc.aio.server(options=_options(requests, max_message_bytes))
        self._server.add_generic_rpc_handlers((_Handlers(self._serve),))
        self.port = self._listen(host, port, certificates)

    async def start(self) -> None:
        """Begin to accept."""
        await self._server.start()

    def set_serving(self, is_serving: bool) -> None:
        """Tell health checks whether requests are answered; from the loop."""
        self._services.set_serving(is_serving)

    async def stop(self, grace: float) -> None:
        """Accept no more calls, and wait for accepted ones.

        Args:
            grace: seconds after which the rest is cut off.
        """
        stopped = asyncio.ensure_future(self._server.stop(grace + STOP_SECONDS))
        self._services.end_streams()
        await asyncio.wait([stopped], timeout=grace)
        for call in list(self._calls):
            call.stop(Stopping("the server is stopping, and its time is over"))
        await stopped
        answering = [call.task for call in self._calls if call.task]
        if answering:  # gRPC cancels its handlers, and does not wait for them
            await asyncio.wait(answering, timeout=STOP_SECONDS)
        self._threads.close()

    @property
    def is_idle(self) -> bool:
        """Whether no thread of the server runs anything."""
        return self._threads.is_idle

    def _listen(self, host: str, port: int, certificates: Certificates | None) -> int:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if certificates is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, _credentials(certificates))
        except RuntimeError as error:
            raise OSError(f"cannot listen for gRPC on {host}:{port}") from error

    async def _serve(self, method: str, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        call = GrpcioCall(method, context)
        self._calls.add(call)
        try:
            self._services.on_call(call)
            await call.serve()
        finally:
            self._calls.discard(call)


class GrpcioCall:
    """A call of `grpc.aio` behind the protocol `GrpcCall`.

    `write` and `finish` return at once, and `grpc.aio` sends by coroutines; so responses wait in a queue, which `serve`
    sends from.

    Args:
        method: the path, `/package.Service/Method`.
        context: of grpc.aio.

    Attributes:
        method, timeout: as in `GrpcCall`.
        task: runs the coroutine that answers; None before it is started.
    """

    headers_error: Exception | None = None  # the C core refuses oversized metadata itself

    def __init__(self, method: str, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        self.method = method
        self.timeout = context.time_remaining()
        self._context = context
        self._message_bytes: int | None = None
        self._answer: Coroutine[Any, Any, None] | None = None
        self.task: asyncio.Task[None] | None = None
        self._responses: deque[tuple[bytes, Callable[[], None] | None]] = deque()
        self._queued = asyncio.Event()
        self._is_finished = False
        self._has_run = False  # the task
        self._stop_reason: Exception | None = None
        self._done_callbacks: list[Callable[[], None]] = []

    @cached_property
    def headers(self) -> Mapping[bytes, bytes]:
        """The request's metadata, by name in lower case."""
        sent = self._context.invocation_metadata() or ()
        return {name.encode(): value if isinstance(value, bytes) else value.encode("latin-1") for name, value in sent}

    @property
    def host(self) -> str:
        """The peer's address, without the port."""
        address = unquote(self._context.peer()).partition(":")[2]  # `ipv4:127.0.0.1:5000`, `ipv6:[::1]:5000`
        return address.rpartition(":")[0].strip("[]")

    @property
    def certificate(self) -> str:
        """The common name in the peer's certificate; empty without one."""
        names = self._context.auth_context().get("x509_common_name", ())
        return next((name.decode() for name in names), "")

    def limit_message(self, count: int, /) -> None:
        """Refuse request messages of more bytes."""
        self._message_bytes = count

    def start(self, answer: Coroutine[Any, Any, None], /) -> None:
        """Run a coroutine that answers the call; it is cancelled when the peer leaves or its time is over."""
        self._answer = answer

    def stop(self, reason: Exception, /) -> None:
        """Cancel the coroutine; `stop_reason` tells it why."""
        if not self.task or self.task.done() or self._stop_reason:
            return
        if not self._has_run:  # a task that is cancelled before its first step could not finish the call
            asyncio.get_running_loop().call_soon(self.stop, reason)
            return
        self._stop_reason = reason
        self.task.cancel()

    def stop_reason(self) -> Exception:
        """Return why the coroutine was cancelled."""
        return self._stop_reason or ServerStopping("the server is stopping")

    def add_done_callback(self, callback: Callable[[], None], /) -> None:
        """Call back once, when the call is answered or stopped."""
        self._done_callbacks.append(callback)

    def done(self) -> None:
        """Call the callbacks."""
        callbacks, self._done_callbacks = self._done_callbacks, []
        for callback in callbacks:
            callback()

    async def read(self) -> Buffer | None:
        """Return the next request message; None behind the last.

        Raises:
            MessageTooLarge: it is over the limit of its method.
            Cancelled: the peer has left.
        """
        try:
            content = await self._context.read()
        except grpc.aio.BaseError as error:
            raise Cancelled("the caller has gone") from error
        if content is grpc.aio.EOF:  # type: ignore[comparison-overlap] # its types leave that out
            return None
        if self._message_bytes is not None and len(content) > self._message_bytes:
            raise MessageTooLarge(f"the message has {len(content)} bytes; {self._message_bytes} may be sent")
        return content

    def write(self, content: bytes, on_sent: Callable[[], None] | None = None, /) -> None:
        """Send a response message; `on_sent` is called when it is on its way, as far as flow control lets it."""
        if not self._is_finished:
            self._responses.append((content, on_sent))
            self._queued.set()

    def finish(self, trailers: Sequence[Header], content: bytes | None = None, /) -> None:
        """End the call with the status OK, after a last response message."""
        if self._is_finished:
            return
        if content is not None:
            self.write(content)
        self._end(OK, "", trailers)

    def fail(self, status: int, message: str, details: bytes = b"", trailers: Sequence[Header] = (), /) -> None:
        """End the call with an error; `details` is a serialized google.rpc.Status."""
        if not self._is_finished:
            self._end(STATUSES[status], message, ((DETAILS.encode(), details), *trailers) if details else trailers)

    async def serve(self) -> None:
        """Run the answering coroutine and send its messages, until the call has its status.

        Raises:
            asyncio.CancelledError: the peer has left, its time is over, or the server stops.
        """
        if self._answer is None:  # it was refused from its headers
            return
        self.task = asyncio.ensure_future(self._run(self._answer))
        self.task.add_done_callback(self._on_task_done)
        try:
            while not self._is_finished or self._responses:
                await self._send_next()
        except PeerGone:  # sending failed, since the peer left
            pass
        finally:
            if not self.task.done():
                if not self._is_finished:
                    self.stop(self._reason_of_core())
                await asyncio.wait([self.task])

    async def _run(self, answer: Coroutine[Any, Any, None]) -> None:
        self._has_run = True
        await answer

    async def _send_next(self) -> None:
        await self._queued.wait()
        if not self._responses:
            self._queued.clear()
            return
        content, on_sent = self._responses.popleft()
        try:
            await self._context.write(content)
        except grpc.aio.BaseError as error:
            raise PeerGone from error
        if on_sent:
            on_sent()
        if not self._responses and not self._is_finished:
            self._queued.clear()

    def _reason_of_core(self) -> Exception:
        remaining = self._context.time_remaining()
        if remaining is not None and remaining <= 0:
            return DeadlineExceeded("the deadline passed before the request could be answered")
        return Cancelled("the caller has gone")

    def _end(self, code: grpc.StatusCode, message: str, trailers: Sequence[Header]) -> None:
        self._is_finished = True
        self._context.set_code(code)
        self._context.set_details(message)
        self._context.set_trailing_metadata(tuple(map(_metadatum, trailers)))
        self._queued.set()

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        self.done()
        error = None if task.cancelled() else task.exception()
        if error or not self._is_finished:
            log.error("a call ends without a status, for a fault of ours", exc_info=error)
            self.fail(INTERNAL.grpc, INTERNAL_MESSAGE)


class _Handlers(grpc.GenericRpcHandler):
    """Hands every call to one function, as raw bytes: on the wire all four kinds of methods are streams."""

    def __init__(self, serve: Callable[[str, Any], Coroutine[Any, Any, None]]) -> None:
        self._serve = serve

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        method = handler_call_details.method

        async def behavior(_: object, context: Any) -> None:
            await self._serve(method, context)

        return grpc.stream_stream_rpc_method_handler(behavior)


def _options(requests: int, max_message_bytes: int) -> list[tuple[str, int]]:
    timeouts = Timeouts()
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", requests + STREAMS + SPARE_THREADS),
        ("grpc.max_metadata_size", HEADER_BYTES),
        ("grpc.absolute_max_metadata_size", HEADER_BYTES),
        ("grpc.max_connection_idle_ms", int(timeouts.idle * 1000)),
        ("grpc.keepalive_time_ms", int(timeouts.quiet * 1000)),
        ("grpc.so_reuseport", 0),  # a second server on the port is an error, and does not share it
    ]


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    def current() -> grpc.ServerCertificateConfiguration:
        files = certificates.current().files
        return grpc.ssl_server_certificate_configuration([(files.key, files.chain)], files.authorities)

    return grpc.dynamic_ssl_server_credentials(current(), current, certificates.mutual)


def _metadatum(header: Header) -> tuple[str, str | bytes]:
    name, value = header
    text = name.decode()
    return text, value if text.endswith("-bin") else value.decode("latin-1")
