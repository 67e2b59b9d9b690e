"""The blocking client."""

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_proto.masks import Causal
from numpy.typing import ArrayLike

from attention_client.api.recreation import AttendCall
from attention_client.errors import AttentionError, NotFound
from attention_client.inputs import Output, Sequence
from attention_client.memory import Memory
from attention_client.result import AttendResult
from attention_client.streaming.blocking import Stream
from attention_client.wire import channel
from attention_client.wire.request import (
    attend_request,
    create_memory_request,
    output_specs,
    packed_request,
    serialize,
)
from attention_client.wire.response import read
from attention_client.wire.status import broke_off, translated

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class AttentionClient:
    """Calls one Attention Service, or several replicas of one; use it as a context manager, from any thread.

    Every call has a deadline, and is repeated when the service is unavailable, whatever its size. A failed call raises
    an error of `attention_client.errors`.

    Args:
        target: `HOST:PORT`, where calls are balanced over all addresses the name resolves to, or several IPv4 addresses
            `A:PORT,B:PORT`.
        timeout: seconds within which a call has to be answered, its repetitions included.
        token: who calls, where the server asks for it. Without `credentials` it travels in the clear.
        credentials: of TLS, as `grpc.ssl_channel_credentials()` makes them; None speaks without TLS.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        timeout: float = 30.0,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._timeout = timeout
        self._metadata = channel.metadata(token)
        uri = channel.uri(target)
        self._channel = (
            grpc.secure_channel(uri, credentials, channel.OPTIONS)
            if credentials
            else grpc.insecure_channel(uri, channel.OPTIONS)
        )
        stub = AttentionServiceStub(self._channel)
        self._attend: grpc.UnaryUnaryMultiCallable[pb.AttendRequest, pb.AttendResponse] = self._channel.unary_unary(
            channel.method("Attend"), serialize, pb.AttendResponse.FromString
        )
        stream: grpc.StreamStreamMultiCallable[pb.AttendStreamRequest, pb.AttendStreamResponse] = (
            self._channel.stream_stream(channel.method("AttendStream"), serialize, pb.AttendStreamResponse.FromString)
        )
        self._stream = lambda messages: stream(messages, metadata=channel.traced(self._metadata))
        self._list: grpc.UnaryUnaryMultiCallable[pb.ListModelsRequest, pb.ListModelsResponse] = stub.ListModels
        self._create: grpc.UnaryUnaryMultiCallable[pb.CreateMemoryRequest, pb.Memory] = stub.CreateMemory
        self._memories: grpc.UnaryUnaryMultiCallable[pb.ListMemoriesRequest, pb.ListMemoriesResponse] = (
            stub.ListMemories
        )
        self._delete: grpc.UnaryUnaryMultiCallable[pb.DeleteMemoryRequest, pb.DeleteMemoryResponse] = stub.DeleteMemory
        self._get: grpc.UnaryUnaryMultiCallable[pb.GetModelRequest, pb.Model] = stub.GetModel

    def attend(
        self,
        model: str,
        *,
        query: ArrayLike | None = None,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        text: str | None = None,
        memory_text: str | None = None,
        memory: Memory | str | None = None,
        causal: Causal = "none",
        window: tuple[int, int] | None = None,
        allowed: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        outputs: Iterable[Output] = (),
        version: int = 0,
        token_offsets: bool = False,
        timeout: float | None = None,
    ) -> AttendResult:
        """Attend from each position of one sequence.

        Args:
            model: its name.
            query: [T, query width], float32 or float16; other numbers are sent as float32. Or `text`.
            key: [S, key width]; the query when absent, but for a cross-attention model, which needs a memory.
            value: [S, value width]; the key when absent.
            text: the query as text, for a text model.
            memory_text: the memory as text, for a text model that attends to a second sequence; in place of `key`.
            memory: a memory that the server keeps, as `create_memory` returned it, or its id; in place of `key`. A
                `Memory` is created again when the server has it no longer, for the version that this call asks for,
                and the call then repeated; an id alone raises NotFound.
            causal: `top_left` or `bottom_right` hides the future, lined up at the first or the last position.
            window: (left, right), the farthest keys a query may attend to, inclusive; -1 is unbounded.
            allowed: bool, broadcastable to [H, T, S]; true = may attend.
            bias: broadcastable to [H, T, S], added to the scores; -inf hides a key.
            outputs: what to send back: names, `OutputSpec`s or dicts of them. Empty: `output`, and `predictions` where
                the model has a head.
            version: of the model; 0 is its default.
            token_offsets: whether to say where each token stands in its text.
            timeout: seconds, in place of the client's.

        Raises:
            InvalidRequest: the model cannot take it; `field` says where.
            NotFound: there is no such model, version or memory.
            TooLarge: a limit of the server.
            Unavailable: nobody answered, or the server is full or stopping.
            DeadlineExceeded: no answer in time.
        """
        sequence = Sequence(
            query=query,
            key=key,
            value=value,
            text=text,
            memory_text=memory_text,
            memory=memory,
            causal=causal,
            window=window,
            allowed=allowed,
            bias=bias,
        )
        return self.attend_batch(
            model, [sequence], outputs=outputs, version=version, token_offsets=token_offsets, timeout=timeout
        )[0]

    def attend_batch(
        self,
        model: str,
        sequences: Iterable[Sequence | str | ArrayLike],
        *,
        outputs: Iterable[Output] = (),
        version: int = 0,
        token_offsets: bool = False,
        timeout: float | None = None,
    ) -> list[AttendResult]:
        """Attend over several sequences, of any lengths, in one message; return a result for each, in order.

        Args:
            model: its name.
            sequences: each a `Sequence`, a text, or a query [T, query width].
            outputs: what to send back for each, as in `attend`.
            version: of the model; 0 is its default.
            token_offsets: whether to say where each token stands in its text.
            timeout: seconds, in place of the client's.

        Raises:
            AttentionError: as for `attend`; one bad sequence fails the call.
        """
        sequences = list(sequences)
        request = attend_request(model, sequences, outputs, version, token_offsets)
        call = AttendCall(request, sequences, self._seconds(timeout))
        while True:
            try:
                return read(request, self._ask(self._attend, call.request, call.seconds_left))
            except NotFound as error:
                for memory, creation in call.recreations(error):
                    memory.renew(self._ask(self._create, creation, call.seconds_left))

    def attend_many(
        self,
        model: str,
        sequences: Iterable[Sequence | str | ArrayLike],
        *,
        outputs: Iterable[Output] = (),
        version: int = 0,
        token_offsets: bool = False,
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> Iterator[AttendResult | AttentionError]:
        """Attend over any number of sequences, of any lengths, on a stream; yield a result for each, in order.

        Sequences are drawn from another thread, as there is room: messages in flight are bounded by count and bytes. A
        stream that breaks is opened anew and goes on where it stood.

        Args:
            model: its name.
            sequences: each a `Sequence`, a text, or a query [T, query width].
            outputs: what to send back for each, as in `attend`.
            version: of the model; 0 is its default.
            token_offsets: whether to say where each token stands in its text.
            timeout: seconds to wait for the next answer, in place of the client's.
            return_exceptions: whether a bad sequence yields its error in its place; else it is raised, and the rest is
                given up.

        Raises:
            AttentionError: as for `attend`.
        """
        options = (output_specs(outputs), version, token_offsets)
        stream = Stream(
            self._stream,
            lambda items: packed_request(model, items, *options),
            lambda item: self.attend_batch(
                model, [item], outputs=options[0], version=version, token_offsets=token_offsets, timeout=timeout
            )[0],
            self._seconds(timeout),
        )
        for answer in stream.answers(sequences):
            if isinstance(answer, AttentionError) and not return_exceptions:
                raise answer
            yield answer

    def create_memory(
        self,
        model: str,
        *,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        memory_text: str | None = None,
        version: int = 0,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> Memory:
        """Have a key and value sequence projected and kept, for any number of later queries to attend to.

        A memory lives in the one server that answers. Where calls are balanced over several, a call that names it and
        reaches another creates it there too, so that in the end each has it.

        Args:
            model: its name.
            key: [S, key width]. Or `memory_text`.
            value: [S, value width]; the key when absent.
            memory_text: the sequence as text, for a text model; in place of `key`.
            version: of the model; 0 is its default.
            ttl: seconds to keep it after its last use; the server's choice when absent.
            timeout: seconds, in place of the client's.

        Raises:
            InvalidRequest: the model cannot take it; `field` says where.
            NotFound: there is no such model or version.
            TooLarge: it alone is larger than all memories together may be.
            AttentionError: as for `attend`.
        """
        request = create_memory_request(model, key, value, memory_text, version, ttl)
        return Memory(self._ask(self._create, request, timeout), request)

    def memories(self, model: str, *, timeout: float | None = None) -> list[Memory]:
        """Return a model's memories, newest first, of the one server that answers. Raises NotFound."""
        return list(map(Memory, self._ask(self._memories, pb.ListMemoriesRequest(model=model), timeout).memories))

    def delete_memory(self, memory: Memory, *, timeout: float | None = None) -> None:
        """Forget a memory, in the one server that answers. Raises NotFound when that has it no longer."""
        self._ask(self._delete, pb.DeleteMemoryRequest(model=memory.model, id=memory.id), timeout)

    def models(self, *, timeout: float | None = None) -> list[pb.Model]:
        """Return the models served, each at its default version, by name; a Model is as the contract describes it."""
        return list(self._ask(self._list, pb.ListModelsRequest(), timeout).models)

    def model(self, name: str, version: int = 0, *, timeout: float | None = None) -> pb.Model:
        """Return one model with its manifest. Raises NotFound."""
        return self._ask(self._get, pb.GetModelRequest(model=name, version=version), timeout)

    def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self, method: "grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]", request: RequestT, timeout: float | None
    ) -> ResponseT:
        end = time.monotonic() + self._seconds(timeout)
        with translated():
            while True:
                try:
                    return method(request, timeout=end - time.monotonic(), metadata=channel.traced(self._metadata))
                except grpc.RpcError as error:
                    if not broke_off(error):
                        raise

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout
