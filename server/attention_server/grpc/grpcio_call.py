"""One call of `grpc.aio` behind the protocol `GrpcCall`, and the handler that makes it."""

import asyncio
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
import structlog

from attention_server.budget.account import Lease
from attention_server.codecs.errors import INTERNAL, INTERNAL_MESSAGE
from attention_server.grpc.call import Buffer, Header
from attention_server.http2.errors import Cancelled, DeadlineExceeded, MessageTooLarge
from attention_server.http2.lease import CALL_BYTES, COPIES
from attention_server.http2.lifetime import CallLifetime

STATUSES = {code.value[0]: code for code in grpc.StatusCode}
OK, DETAILS = grpc.StatusCode.OK, "grpc-status-details-bin"

log = structlog.get_logger()


class PeerGone(Exception):
    """A response cannot be sent, because the peer has left."""


class GrpcioCall(CallLifetime):
    """A call of `grpc.aio` behind the protocol `GrpcCall`.

    `write` and `finish` return at once, and `grpc.aio` sends by coroutines; so responses wait in a queue, which `serve`
    sends from.

    Args:
        method: the path, `/package.Service/Method`.
        context: of grpc.aio.
        open_lease: opens the lease of a peer's address.

    Attributes:
        method, timeout, lease: as in `GrpcCall`.
    """

    headers_error: Exception | None = None  # the C core refuses oversized metadata itself

    def __init__(
        self,
        method: str,
        context: "grpc.aio.ServicerContext[bytes, bytes]",
        open_lease: Callable[[str, int], Lease],
    ) -> None:
        super().__init__()
        self.method = method
        self.timeout = context.time_remaining()
        self._context = context
        self._message_bytes: int | None = None
        self._responses: deque[tuple[bytes | None, Callable[[], None] | None]] = deque()
        self._queued = asyncio.Event()
        self._is_finished = False
        self._has_begun = False  # the response
        self._read_bytes = 0  # of the message read last
        self.lease = open_lease(self.certificate or self.host, CALL_BYTES)

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
        """Set the largest size of a request message in bytes; `read` raises MessageTooLarge for a larger one."""
        self._message_bytes = count

    async def read(self) -> Buffer | None:
        """Return the next request message; None behind the last.

        Raises:
            MessageTooLarge: it is over the limit of its method.
            Full: there is no room for it.
            Cancelled: the peer has left.
        """
        self.lease.shrink(COPIES * self._read_bytes)
        self._read_bytes = 0
        try:
            content = await self._context.read()
        except grpc.aio.BaseError as error:
            raise Cancelled("the caller has gone") from error
        if content is grpc.aio.EOF:  # type: ignore[comparison-overlap] # its types leave that out
            return None
        if self._message_bytes is not None and len(content) > self._message_bytes:
            raise MessageTooLarge(f"the message has {len(content)} bytes; {self._message_bytes} may be sent")
        hold = self.lease.grow if self._message_bytes is None else self.lease.add
        hold(COPIES * len(content))
        self._read_bytes = len(content)
        return content

    @property
    def has_more(self) -> bool:
        """False: the core hands out a further message when it is read, and not before."""
        return False

    def begin_response(self) -> None:
        """Send the response's headers, for a caller that waits for them before it sends."""
        if not (self._has_begun or self._is_finished):
            self._has_begun = True
            self._responses.append((None, None))
            self._queued.set()

    def write(self, content: bytes, on_sent: Callable[[], None] | None = None, /) -> None:
        """Send a response message; `on_sent` is called when it is on its way, as far as flow control lets it."""
        if not self._is_finished:
            self._has_begun = True
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
            self._end(
                STATUSES[status], message, ((DETAILS.encode(), b64encode(details)), *trailers) if details else trailers
            )

    async def serve(self) -> None:
        """Run the answering coroutine and send its messages, until the call has its status.

        Raises:
            asyncio.CancelledError: the peer has left, its time is over, or the server stops.
        """
        if self.task is None:  # it was refused from its headers
            return
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

    async def _send_next(self) -> None:
        await self._queued.wait()
        if not self._responses:
            self._queued.clear()
            return
        content, on_sent = self._responses.popleft()
        try:
            if content is None:
                await self._context.send_initial_metadata(())
            else:
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
        if self.task is None:
            self._call_done_callbacks()
        self._context.set_code(code)
        self._context.set_details(message)
        self._context.set_trailing_metadata(tuple(map(_metadatum, trailers)))
        self._queued.set()

    def _on_answered(self, error: BaseException | None) -> None:
        if error or not self._is_finished:
            log.error("a call ends without a status, for a fault of ours", exc_info=error)
            self.fail(INTERNAL.grpc, INTERNAL_MESSAGE)


class GrpcioHandlers(grpc.GenericRpcHandler):
    """Hands every call to one function, as raw bytes: on the wire all four kinds of methods are streams.

    Args:
        on_call: starts or fails a new call before it returns.
        open_lease: opens the lease of a peer's address.

    Attributes:
        calls: the open calls.
    """

    def __init__(self, on_call: Callable[[GrpcioCall], None], open_lease: Callable[[str, int], Lease]) -> None:
        self._on_call = on_call
        self._open_lease = open_lease
        self.calls: set[GrpcioCall] = set()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """Return the handler of a call, which answers it; called by `grpc.aio`."""
        method = handler_call_details.method

        async def behavior(_: object, context: Any) -> None:
            call = GrpcioCall(method, context, self._open_lease)
            self.calls.add(call)
            try:
                self._on_call(call)
                await call.serve()
            finally:
                self.calls.discard(call)
                call.lease.release()

        return grpc.stream_stream_rpc_method_handler(behavior)


def _metadatum(header: Header) -> tuple[str, str | bytes]:
    name, value = header
    text = name.decode()
    # Binary trailers come in base64, which grpcio writes itself.
    return text, b64decode(value) if text.endswith("-bin") else value.decode("latin-1")
