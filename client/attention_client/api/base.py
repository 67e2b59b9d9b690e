"""The base of both clients: every rule of a call, as a flow that the blocking and the asyncio client drive."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc
import grpc.aio
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_proto.stages import DataType
from attention_proto.text import Truncate
from numpy.typing import ArrayLike

from attention_client.api.memories import MemoriesOfRequest
from attention_client.errors import NotFound
from attention_client.inputs import Item, Output
from attention_client.memory import Creation, Memory
from attention_client.result import Ablation, AttendResult, Tokenization
from attention_client.streaming.state import StreamPlan
from attention_client.wire import channel
from attention_client.wire.call import Call, Flow, Method, RequestT, ResponseT, call_with_retries
from attention_client.wire.request import (
    attend_request,
    create_memory_request,
    output_specs,
    packed_request,
    serialize,
    several,
    tokenize_request,
)
from attention_client.wire.response import read, read_tokens


class BaseClient:
    """The methods of the service over one channel, each with the flow that calls it.

    Args:
        channel_: blocking or of asyncio.
        timeout: seconds for a call that names none.
        token: the caller's, sent with each call.
    """

    def __init__(self, channel_: grpc.Channel | grpc.aio.Channel, timeout: float, token: str | None) -> None:
        self._timeout = timeout
        self._metadata = channel.metadata(token)
        stub = AttentionServiceStub(channel_)
        self._attend: Method[pb.AttendRequest, pb.AttendResponse] = channel_.unary_unary(
            channel.method("Attend"), serialize, pb.AttendResponse.FromString
        )
        self._attend_stream: Callable[..., Any] = channel_.stream_stream(
            channel.method("AttendStream"), serialize, pb.AttendStreamResponse.FromString
        )
        self._list_models: Method[pb.ListModelsRequest, pb.ListModelsResponse] = stub.ListModels
        self._get_model: Method[pb.GetModelRequest, pb.Model] = stub.GetModel
        self._tokenize: Method[pb.TokenizeRequest, pb.TokenizeResponse] = stub.Tokenize
        self._create_memory: Method[pb.CreateMemoryRequest, pb.Memory] = stub.CreateMemory
        self._list_memories: Method[pb.ListMemoriesRequest, pb.ListMemoriesResponse] = stub.ListMemories
        self._delete_memory: Method[pb.DeleteMemoryRequest, pb.DeleteMemoryResponse] = stub.DeleteMemory

    def _batch_flow(
        self,
        model: str,
        sequences: Iterable[Item],
        outputs: Iterable[Output],
        version: int,
        token_offsets: bool,
        timeout: float | None,
        ablate: Iterable[Ablation | Mapping[str, Any]] = (),
        score_temperature: float | None = None,
    ) -> Flow[Call, list[AttendResult]]:
        """Attend over sequences in one message; recreate lost memories and repeat the call, within the timeout."""
        sequences = list(several(sequences))
        request = attend_request(model, sequences, outputs, version, token_offsets, ablate, score_temperature)
        memories = MemoriesOfRequest(request, sequences)
        deadline = time.monotonic() + self._seconds(timeout)
        while True:
            memories.write_ids()
            try:
                response = yield from self._call(self._attend, request, deadline - time.monotonic())
                return memories.extended(read(request, response))
            except NotFound as error:
                for memory, creations in memories.recreations(error):
                    memory.renew((yield from self._recreate_flow(creations, deadline)))

    def _recreate_flow(self, creations: Iterable[Creation], deadline: float) -> Flow[Call, pb.Memory]:
        """Create a memory, and those before it that it is made of; return the last one."""
        made = pb.Memory()
        for creation in creations:
            if isinstance(creation, pb.CreateMemoryRequest):
                made = yield from self._call(self._create_memory, creation, deadline - time.monotonic())
                continue
            creation.inputs[0].memory = made.id
            response = yield from self._call(self._attend, creation, deadline - time.monotonic())
            made = response.results[0].memory
        return made

    def _stream_plan(
        self,
        model: str,
        outputs: Iterable[Output],
        version: int,
        token_offsets: bool,
        timeout: float | None,
        return_exceptions: bool,
        ablate: Iterable[Ablation | Mapping[str, Any]],
        score_temperature: float | None,
    ) -> StreamPlan:
        specs = output_specs(outputs)  # `outputs` may be an iterator, and serves many messages
        changes = (list(ablate), score_temperature)

        def send_alone(item: Item) -> Flow[Call, AttendResult]:
            (result,) = yield from self._batch_flow(model, [item], specs, version, token_offsets, timeout, *changes)
            return result

        return StreamPlan(
            build=lambda items: packed_request(model, items, specs, version, token_offsets, *changes),
            send_alone=send_alone,
            seconds=self._seconds(timeout),
            return_exceptions=return_exceptions,
        )

    def _create_memory_flow(
        self,
        model: str,
        key: ArrayLike | None,
        value: ArrayLike | None,
        memory_text: str | None,
        memory_token_ids: ArrayLike | None,
        truncate: Truncate,
        version: int,
        ttl: float | None,
        pinned: bool,
        data_type: DataType,
        timeout: float | None,
    ) -> Flow[Call, Memory]:
        source = (key, value, memory_text, memory_token_ids, truncate)
        request = create_memory_request(model, *source, version, ttl, pinned, data_type)
        return Memory((yield from self._call(self._create_memory, request, timeout)), request)

    def _tokenize_flow(
        self,
        model: str,
        texts: Iterable[str | tuple[str, str]],
        truncate: Truncate,
        memory: bool,
        version: int,
        timeout: float | None,
    ) -> Flow[Call, list[Tokenization]]:
        request = tokenize_request(model, texts, truncate, memory, version)
        return read_tokens((yield from self._call(self._tokenize, request, timeout)))

    def _memories_flow(self, model: str, timeout: float | None) -> Flow[Call, list[Memory]]:
        response = yield from self._call(self._list_memories, pb.ListMemoriesRequest(model=model), timeout)
        return [Memory(each) for each in response.memories]

    def _delete_memory_flow(self, memory: Memory, timeout: float | None) -> Flow[Call, None]:
        request = pb.DeleteMemoryRequest(model=memory.model, id=memory.id)
        yield from self._call(self._delete_memory, request, timeout)

    def _models_flow(self, timeout: float | None) -> Flow[Call, list[pb.Model]]:
        response = yield from self._call(self._list_models, pb.ListModelsRequest(), timeout)
        return list(response.models)

    def _model_flow(self, name: str, version: int, timeout: float | None) -> Flow[Call, pb.Model]:
        return self._call(self._get_model, pb.GetModelRequest(model=name, version=version), timeout)

    def _call(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout: float | None
    ) -> Flow[Call, ResponseT]:
        return call_with_retries(method, request, self._seconds(timeout), self._metadata)

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout
