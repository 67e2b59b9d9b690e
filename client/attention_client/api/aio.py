"""The asyncio client: `AttentionClient` with `await`."""

import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_proto.masks import Causal
from numpy.typing import ArrayLike

from attention_client.api.recreation import AttendCall
from attention_client.errors import AttentionError, NotFound
from attention_client.inputs import Output, Sequence
from attention_client.memory import Memory
from attention_client.result import AttendResult
from attention_client.streaming.aio import AsyncStream
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


class AsyncAttentionClient:
    """`AttentionClient` for asyncio: the same arguments, results and errors; make it where the event loop runs."""

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
            grpc.aio.secure_channel(uri, credentials, channel.OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(uri, channel.OPTIONS)
        )
        stub = AttentionServiceStub(self._channel)
        self._attend: grpc.aio.UnaryUnaryMultiCallable[pb.AttendRequest, pb.AttendResponse] = self._channel.unary_unary(
            channel.method("Attend"), serialize, pb.AttendResponse.FromString
        )
        stream: grpc.aio.StreamStreamMultiCallable[pb.AttendStreamRequest, pb.AttendStreamResponse] = (
            self._channel.stream_stream(channel.method("AttendStream"), serialize, pb.AttendStreamResponse.FromString)
        )
        self._stream = lambda: stream(metadata=channel.traced(self._metadata))
        self._list: grpc.aio.UnaryUnaryMultiCallable[pb.ListModelsRequest, pb.ListModelsResponse] = stub.ListModels
        self._create: grpc.aio.UnaryUnaryMultiCallable[pb.CreateMemoryRequest, pb.Memory] = stub.CreateMemory
        self._memories: grpc.aio.UnaryUnaryMultiCallable[pb.ListMemoriesRequest, pb.ListMemoriesResponse] = (
            stub.ListMemories
        )
        self._delete: grpc.aio.UnaryUnaryMultiCallable[pb.DeleteMemoryRequest, pb.DeleteMemoryResponse] = (
            stub.DeleteMemory
        )
        self._get: grpc.aio.UnaryUnaryMultiCallable[pb.GetModelRequest, pb.Model] = stub.GetModel

    async def attend(
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
        timeout: float | None = None,  # noqa: ASYNC109  # the deadline travels to the server
    ) -> AttendResult:
        """Attend from each position of one sequence; see `AttentionClient.attend`."""
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
        results = await self.attend_batch(
            model, [sequence], outputs=outputs, version=version, token_offsets=token_offsets, timeout=timeout
        )
        return results[0]

    async def attend_batch(
        self,
        model: str,
        sequences: Iterable[Sequence | str | ArrayLike],
        *,
        outputs: Iterable[Output] = (),
        version: int = 0,
        token_offsets: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109  # the deadline travels to the server
    ) -> list[AttendResult]:
        """Attend over several sequences in one message; see `AttentionClient.attend_batch`."""
        sequences = list(sequences)
        request = attend_request(model, sequences, outputs, version, token_offsets)
        call = AttendCall(request, sequences, self._seconds(timeout))
        while True:
            try:
                return read(request, await self._ask(self._attend, call.request, call.seconds_left))
            except NotFound as error:
                for memory, creation in call.recreations(error):
                    memory.renew(await self._ask(self._create, creation, call.seconds_left))

    async def attend_many(
        self,
        model: str,
        sequences: Iterable[Sequence | str | ArrayLike] | AsyncIterable[Sequence | str | ArrayLike],
        *,
        outputs: Iterable[Output] = (),
        version: int = 0,
        token_offsets: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109  # as above
        return_exceptions: bool = False,
    ) -> AsyncIterator[AttendResult | AttentionError]:
        """Attend over any number of sequences on a stream: `async for result in client.attend_many(...)`.

        See `AttentionClient.attend_many`. Sequences may come from an asynchronous iterable; another is drawn on the
        event loop, which it must not hold up.
        """
        options = (output_specs(outputs), version, token_offsets)

        async def ask(item: Sequence | str | ArrayLike) -> AttendResult:
            (result,) = await self.attend_batch(
                model, [item], outputs=options[0], version=version, token_offsets=token_offsets, timeout=timeout
            )
            return result

        stream = AsyncStream(
            self._stream, lambda items: packed_request(model, items, *options), ask, self._seconds(timeout)
        )
        async with aclosing(stream.answers(sequences)) as answers:
            async for answer in answers:
                if isinstance(answer, AttentionError) and not return_exceptions:
                    raise answer
                yield answer

    async def create_memory(
        self,
        model: str,
        *,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        memory_text: str | None = None,
        version: int = 0,
        ttl: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # the deadline travels to the server
    ) -> Memory:
        """Have a key and value sequence projected and kept; see `AttentionClient.create_memory`."""
        request = create_memory_request(model, key, value, memory_text, version, ttl)
        return Memory(await self._ask(self._create, request, timeout), request)

    async def memories(self, model: str, *, timeout: float | None = None) -> list[Memory]:  # noqa: ASYNC109  # as above
        """Return a model's memories, newest first; see `AttentionClient.memories`."""
        answer = await self._ask(self._memories, pb.ListMemoriesRequest(model=model), timeout)
        return list(map(Memory, answer.memories))

    async def delete_memory(self, memory: Memory, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  # as above
        """Forget a memory; see `AttentionClient.delete_memory`."""
        await self._ask(self._delete, pb.DeleteMemoryRequest(model=memory.model, id=memory.id), timeout)

    async def models(self, *, timeout: float | None = None) -> list[pb.Model]:  # noqa: ASYNC109  # as above
        """Return the models served; see `AttentionClient.models`."""
        return list((await self._ask(self._list, pb.ListModelsRequest(), timeout)).models)

    async def model(self, name: str, version: int = 0, *, timeout: float | None = None) -> pb.Model:  # noqa: ASYNC109
        """Return one model with its manifest; see `AttentionClient.model`."""
        return await self._ask(self._get, pb.GetModelRequest(model=name, version=version), timeout)

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        timeout: float | None,  # noqa: ASYNC109  # the deadline travels to the server
    ) -> ResponseT:
        metadata = channel.traced(self._metadata)
        end = time.monotonic() + self._seconds(timeout)
        with translated():
            while True:
                try:
                    return await method(request, timeout=end - time.monotonic(), metadata=metadata)
                except grpc.RpcError as error:
                    if not broke_off(error):
                        raise

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout
