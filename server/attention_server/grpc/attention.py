"""attention.v1.AttentionService: translate, call, translate."""

import functools
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote

import grpc
import structlog
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceServicer
from grpc_status import rpc_status

from attention_server.callers import Caller
from attention_server.domain import Call
from attention_server.errors import AttentionServiceError, Unavailable
from attention_server.grpc.stream import Conversations
from attention_server.memories import Memory
from attention_server.service import Service
from attention_server.translate import proto
from attention_server.translate.errors import to_status

REQUEST_ID = "x-request-id"

log = structlog.get_logger()

M = TypeVar("M")
Method = Callable[[Any, M, grpc.ServicerContext], Any]


def answers(method: Method[M]) -> Method[M]:
    """Turn what a method raises into a status: a caller's mistake by its cause; ours goes into the log alone."""

    @functools.wraps(method)
    def answer(servicer: Any, message: M, context: grpc.ServicerContext) -> Any:
        with _statuses(context):
            return method(servicer, message, context)

    return answer


def streams(method: Method[M]) -> Method[M]:
    """Do what `answers` does, for a method whose answers are many: it may raise before and between them."""

    @functools.wraps(method)
    def answer(servicer: Any, messages: M, context: grpc.ServicerContext) -> Iterator[Any]:
        with _statuses(context):
            yield from method(servicer, messages, context)

    return answer


@contextmanager
def _statuses(context: grpc.ServicerContext) -> Iterator[None]:
    context.set_trailing_metadata(((REQUEST_ID, request_id(context)),))
    try:
        yield
    except AttentionServiceError as error:
        abort(context, error)
    except Exception as error:
        log.exception("a request failed for a fault of ours", request_id=request_id(context))
        abort(context, error)


@dataclass(frozen=True)
class _Status(grpc.Status):
    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


class AttentionServicer(AttentionServiceServicer):
    """Answers attention.v1 from the core."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.conversations = Conversations(service)

    @answers
    def Attend(self, message: pb.AttendRequest, context: grpc.ServicerContext) -> pb.AttendResponse:
        call = call_of(context)
        return proto.from_response(self._service.attend(proto.to_request(message, self._service.limits), call))

    @streams
    def AttendStream(
        self, messages: Iterator[pb.AttendStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.AttendStreamResponse]:
        return self.conversations.hold(messages, call_of(context), context)

    @answers
    def ListModels(self, message: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=self._service.models())

    @answers
    def GetModel(self, message: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.Model:
        return self._service.model(message.model, message.version)

    @answers
    def CreateMemory(self, message: pb.CreateMemoryRequest, context: grpc.ServicerContext) -> pb.Memory:
        return self._memory(self._service.create_memory(proto.to_memory_request(message), call_of(context)))

    @answers
    def GetMemory(self, message: pb.GetMemoryRequest, context: grpc.ServicerContext) -> pb.Memory:
        return self._memory(self._service.memory(message.model, message.id, call_of(context)))

    @answers
    def ListMemories(self, message: pb.ListMemoriesRequest, context: grpc.ServicerContext) -> pb.ListMemoriesResponse:
        return pb.ListMemoriesResponse(
            memories=map(self._memory, self._service.memories(message.model, call_of(context)))
        )

    @answers
    def DeleteMemory(self, message: pb.DeleteMemoryRequest, context: grpc.ServicerContext) -> pb.DeleteMemoryResponse:
        self._service.delete_memory(message.model, message.id, call_of(context))
        return pb.DeleteMemoryResponse()

    def _memory(self, memory: Memory) -> pb.Memory:
        return proto.from_memory(memory, self._service.seconds_left(memory))


def call_of(context: grpc.ServicerContext) -> Call:
    """Return who asks, until when, and whether they still do."""
    caller: Caller = context.attention_caller  # type: ignore[attr-defined] # the gate has set it
    call = Call(request_id(context), caller.name or peer_of(context), context.time_remaining(), caller.rights)
    if not context.add_callback(call.leave):
        call.leave()
    return call


def peer_of(context: grpc.ServicerContext) -> str:
    """Return the name in the peer's certificate, where TLS asked for one; else its host, without the port."""
    names: Any = context.auth_context().get("x509_common_name")
    if names:
        return str(names[0], errors="replace")
    host = unquote(context.peer().partition(":")[2].rpartition(":")[0])  # of ipv4:10.0.0.7:4711, ipv6:%5B::1%5D:4711
    return host.strip("[]") or context.peer()


def request_id(context: grpc.ServicerContext) -> str:
    """Return the caller's id for this call, or a new one, the same each time it is asked for."""
    chosen: str | None = getattr(context, "attention_request_id", None)
    if chosen is None:
        sent = dict(context.invocation_metadata()).get(REQUEST_ID, "")
        chosen = sent[:128] if isinstance(sent, str) and sent else uuid.uuid4().hex
        context.attention_request_id = chosen  # type: ignore[attr-defined]
    return chosen


def abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """End a call with what an error says of itself."""
    chosen = request_id(context)
    status = rpc_status.to_status(to_status(error, chosen))
    metadata = [*status.trailing_metadata, (REQUEST_ID, chosen)]  # the status replaces what was set before it
    if isinstance(error, Unavailable):
        metadata.append(("grpc-retry-pushback-ms", str(int(error.retry_after * 1000))))  # what gRPC's own retries obey
    context.abort_with_status(_Status(status.code, status.details, tuple(metadata)))
    raise AssertionError("abort_with_status raises")
