"""A real gRPC server on a free port, with a small servicer that answers as the contract says."""

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from attention_client import AsyncAttentionClient, AttentionClient
from attention_proto import codec
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import (
    AttentionServiceServicer,
    add_AttentionServiceServicer_to_server,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from serving import HANG

ROLES = {"giver": "I", "recipient": "Tater", "object": "toy"}
END = "[END]"


def text_weights(tokens: list[str], keys: list[str]) -> np.ndarray:
    """Weights [3, T, S]: about even, but for the verb: there each head has one role."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(len(ROLES), len(tokens), len(keys)))
    for head, filler in enumerate(ROLES.values()):
        if "gave" in tokens and filler in keys:
            scores[head, tokens.index("gave"), keys.index(filler)] = 9
    weights = np.exp(scores)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def aloud_weights(words: int, keys: int) -> np.ndarray:
    """Weights [2, T, S]: head 0 is even, head 1 aligns the last word with the first."""
    turned = np.eye(max(words, keys), keys)[:words, ::-1]
    return np.stack([np.full((words, keys), 1 / max(keys, 1)), turned]).astype(np.float32)


def unpacked(sequence: pb.Sequence) -> list[pb.Sequence]:
    """The sequences of one input, which has several where it has `lengths`."""
    if not sequence.lengths:
        return [sequence]
    ends = np.cumsum(sequence.lengths)[:-1]
    return [pb.Sequence(query=codec.encode(query)) for query in np.split(codec.decode(sequence.query), ends)]


@dataclass
class Service(AttentionServiceServicer):
    """Dot-product attention, a text model that knows one verb, and one that reverses a text in capitals.

    Attributes:
        failures: of the next calls of Attend.
        breaks: of the next streams: the number of answers after which each breaks.
        retry_delay: seconds that a stream which breaks tells the client to wait.
        may_answer: a stream answers its messages when this is set.
        streams: the messages of each stream so far.
        creation_seconds: the time that each call of CreateMemory had left.
        version: every model's default.
    """

    failures: list[Status] = field(default_factory=list)
    requests: list[pb.AttendRequest] = field(default_factory=list)
    attempts: int = 0
    memories: dict[str, pb.CreateMemoryRequest] = field(default_factory=dict)
    created: list[pb.CreateMemoryRequest] = field(default_factory=list)
    version: int = 1
    breaks: list[int] = field(default_factory=list)
    retry_delay: float = 0.001
    may_answer: threading.Event = field(default_factory=threading.Event)
    streams: list[list[pb.AttendStreamRequest]] = field(default_factory=list)
    creation_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_answer.set()

    def AttendStream(
        self, messages: Iterator[pb.AttendStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.AttendStreamResponse]:
        received: list[pb.AttendStreamRequest] = []
        self.streams.append(received)
        last = self.breaks.pop(0) if self.breaks else None
        while len(received) != last and (message := next(messages, None)) is not None:
            received.append(message)
            assert self.may_answer.wait(HANG)
            yield pb.AttendStreamResponse(id=message.id, response=self.answer(message.request))
        if last is not None:
            status = Status(
                code=grpc.StatusCode.UNKNOWN.value[0], message="broken"
            )  # gRPC itself retries only UNAVAILABLE
            status.details.add().Pack(RetryInfo(retry_delay=Duration(nanos=int(self.retry_delay * 1e9))))
            context.abort_with_status(rpc_status.to_status(status))

    def Attend(self, request: pb.AttendRequest, context: grpc.ServicerContext) -> pb.AttendResponse:
        self.attempts += 1
        self.requests.append(request)
        if self.failures:
            failure = rpc_status.to_status(self.failures.pop(0))
            details = failure.trailing_metadata  # abort_with_status drops all metadata set before
            context.abort_with_status(failure._replace(trailing_metadata=(*details, ("x-request-id", "r-1"))))
        for i, sequence in enumerate(request.inputs):
            if sequence.memory:
                kept = self.kept(request.model, sequence.memory, request.version, f"inputs[{i}].memory", context)
                given = [name for name in ("key", "value", "memory_text") if kept.HasField(name)]
                sequence.MergeFrom(pb.Sequence(**{name: getattr(kept, name) for name in given}))
        return self.answer(request)

    def answer(self, request: pb.AttendRequest) -> pb.AttendResponse:
        sequences = [alone for each in request.inputs for alone in unpacked(each)]
        results = [self.result(sequence, request) for sequence in sequences]
        return pb.AttendResponse(model=request.model, version=request.version or self.version, results=results)

    def CreateMemory(self, request: pb.CreateMemoryRequest, context: grpc.ServicerContext) -> pb.Memory:
        self.created.append(request)
        self.creation_seconds.append(context.time_remaining())
        bound = pb.CreateMemoryRequest()
        bound.CopyFrom(request)
        bound.version = request.version or self.version
        bound.ClearField("ttl")
        bound.ClearField("id")
        id_ = request.id or hashlib.sha256(bound.SerializeToString(deterministic=True)).hexdigest()[:32]
        self.memories[id_] = bound
        return self.memory(id_)

    def ListMemories(self, request: pb.ListMemoriesRequest, _: grpc.ServicerContext) -> pb.ListMemoriesResponse:
        newest_first = reversed(self.memories.items())
        return pb.ListMemoriesResponse(
            memories=[self.memory(id_) for id_, kept in newest_first if kept.model == request.model]
        )

    def DeleteMemory(self, request: pb.DeleteMemoryRequest, context: grpc.ServicerContext) -> pb.DeleteMemoryResponse:
        self.kept(request.model, request.id, 0, "id", context)
        del self.memories[request.id]
        return pb.DeleteMemoryResponse()

    def kept(
        self, model: str, id_: str, version: int, name: str, context: grpc.ServicerContext
    ) -> pb.CreateMemoryRequest:
        """Return a memory, or fail the call."""
        kept = self.memories.get(id_)
        if kept is None or (kept.model, kept.version) != (model, version or self.version):
            violation = BadRequest.FieldViolation(field=name, description=f"keeps no memory {id_!r}")
            status = Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="no memory")
            status.details.add().Pack(BadRequest(field_violations=[violation]))
            context.abort_with_status(rpc_status.to_status(status))
        return kept

    def memory(self, id_: str) -> pb.Memory:
        made = self.memories[id_]
        tokens = made.memory_text.split()
        return pb.Memory(
            id=id_,
            model=made.model,
            version=made.version,
            length=len(tokens) or sum(made.key.shape[:1]),
            tokens=tokens,
            expire_time=Timestamp(seconds=2_000_000_000),
            size_bytes=len(made.key.data),
        )

    def result(self, sequence: pb.Sequence, request: pb.AttendRequest) -> pb.Result:
        result = pb.Result()
        if sequence.HasField("text"):
            begin = ["[BEGIN]"] if request.model == "aloud" else []
            result.tokens.extend([*begin, *sequence.text.split()])
            result.memory_tokens.extend(sequence.memory_text.split())
            if request.token_offsets:
                result.token_offsets.extend(pb.Span(start=i, end=i + 1) for i in range(len(result.tokens)))
        stages = self.stages(sequence, result, request)
        for spec in request.outputs or [pb.OutputSpec(name="output")]:
            if spec.name == "predictions" and request.model == "aloud":
                result.predictions.append(self.next_word(sequence))
            elif spec.name == "predictions":
                result.predictions.extend(
                    pb.Prediction(name=name, label=label, probability=0.99, row=1) for name, label in ROLES.items()
                )
            else:
                stage = stages[spec.name]
                stage = stage[list(spec.heads)] if spec.heads else stage
                result.outputs.append(self.output(spec, stage[:, list(spec.rows)] if spec.rows else stage))
        return result

    def next_word(self, sequence: pb.Sequence) -> pb.Prediction:
        said, words = len(sequence.text.split()), sequence.memory_text.split()
        label = words[-1 - said].upper() if said < len(words) else END
        return pb.Prediction(name="next", label=label, probability=0.75, row=said)

    def stages(self, sequence: pb.Sequence, result: pb.Result, request: pb.AttendRequest) -> dict[str, np.ndarray]:
        if request.model == "aloud":
            weights = aloud_weights(len(result.tokens), len(result.memory_tokens))
            return {"weights": weights, "output": weights.mean(0)}
        if result.tokens:
            weights = text_weights(list(result.tokens), list(result.memory_tokens or result.tokens))
            return {"weights": weights, "output": weights.mean(0)}
        query = codec.decode(sequence.query).astype(np.float32)
        key = codec.decode(sequence.key) if sequence.HasField("key") else query
        value = codec.decode(sequence.value) if sequence.HasField("value") else key
        scores = query @ key.T
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return {"weights": weights[None], "output": weights @ value}

    def output(self, spec: pb.OutputSpec, stage: np.ndarray) -> pb.Output:
        name = spec.alias or spec.name
        if spec.data_type == pb.DATA_TYPE_FP16:
            stage = stage.astype(np.float16)
        if not spec.top_k:
            return pb.Output(name=name, tensor=codec.encode(stage))
        indices = np.argsort(-stage, axis=-1, kind="stable")[..., : spec.top_k].astype(np.uint16)
        values = np.take_along_axis(stage, indices.astype(np.int64), -1)
        return pb.Output(name=name, top_k=pb.TopK(indices=codec.encode(indices), values=codec.encode(values)))

    def ListModels(self, _: pb.ListModelsRequest, __: grpc.ServicerContext) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=MODELS)

    def GetModel(self, request: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.Model:
        names = ", ".join(model.name for model in MODELS)
        for model in MODELS:
            if model.name == request.model:
                return model
        return context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model!r}; there are {names}")


MODELS = [
    pb.Model(
        name="aloud",
        version=1,
        versions=[1],
        device="cpu",
        manifest=pb.Manifest(
            format=2,
            block="cross_attention",
            layers=[pb.Layer(name="0", heads=2, query_dim=8, output_dim=8)],
            text=pb.Text(max_tokens=5),
            predictors=[pb.Predictor(name="next", rows=pb.Predictor.ROWS_LAST, labels=["A", "B", END])],
            training=pb.Training(figures={"head": 1}),
        ),
    ),
    pb.Model(
        name="dot-product",
        version=1,
        versions=[1],
        device="cpu",
        manifest=pb.Manifest(format=2, block="dot_product", layers=[pb.Layer(name="0", heads=1)]),
        file_bytes=2**19,
        memory_bytes=2**17,
    ),
    pb.Model(
        name="multi-head",
        version=2,
        versions=[1, 2],
        device="cpu",
        manifest=pb.Manifest(
            format=2,
            block="multi_head",
            layers=[pb.Layer(name="0", heads=3, query_dim=48, output_dim=48)],
            text=pb.Text(),
            predictors=[pb.Predictor(name=name) for name in ROLES],
            doubled_bytes=2**18,
            examples=[pb.Example(text="I gave my cat Tater a toy")],
        ),
        file_bytes=3 * 2**20,
        memory_bytes=2**21,
    ),
]


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def target(service: Service) -> Iterator[str]:
    with serving(service) as address:
        yield address


@contextmanager
def serving(service: Service) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    add_AttentionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def replica() -> Iterator[tuple[str, Service]]:
    """A second server, and its service."""
    service = Service()
    with serving(service) as address:
        yield address, service


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Call one method of a new client: `ask(target, "attend", "multi-head", text="...")`, blocking and by asyncio."""
    return ask_blocking if request.param == "blocking" else lambda *args, **kw: asyncio.run(ask_awaiting(*args, **kw))


def ask_blocking(target: str, method: str, *args: Any, **options: Any) -> Any:
    with AttentionClient(target) as client:
        return getattr(client, method)(*args, **options)


async def ask_awaiting(target: str, method: str, *args: Any, **options: Any) -> Any:
    async with AsyncAttentionClient(target) as client:
        return await getattr(client, method)(*args, **options)


@pytest.fixture(params=["blocking", "asyncio"])
def attend_many(request: pytest.FixtureRequest) -> Callable[..., Iterator[Any]]:
    """Stream to a new client, blocking and by asyncio: `for answer in attend_many(target, "any", sequences): ...`."""
    return stream_blocking if request.param == "blocking" else stream_awaiting


def stream_blocking(target: str, *args: Any, **options: Any) -> Iterator[Any]:
    with AttentionClient(target) as client:
        yield from client.attend_many(*args, **options)


def stream_awaiting(target: str, *args: Any, **options: Any) -> Iterator[Any]:
    async def made() -> AsyncAttentionClient:
        return AsyncAttentionClient(target)

    async def following() -> Any:
        return await anext(answers, None)

    with asyncio.Runner() as runner:
        client = runner.run(made())
        answers = client.attend_many(*args, **options)
        try:
            while (answer := runner.run(following())) is not None:
                yield answer
        finally:
            runner.run(answers.aclose())
            runner.run(client.close())


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Callable[[str], AbstractContextManager[Any]]:
    """Connect a client, blocking and by asyncio, for several calls: `with connect(target) as client: ...`."""
    return AttentionClient if request.param == "blocking" else awaiting


@contextmanager
def awaiting(target: str) -> Iterator[Any]:
    """Call an asyncio client like a blocking one."""

    async def made() -> AsyncAttentionClient:
        return AsyncAttentionClient(target)

    class Client:
        def __getattr__(self, method: str) -> Callable[..., Any]:
            return lambda *args, **options: runner.run(getattr(client, method)(*args, **options))

    with asyncio.Runner() as runner:
        client = runner.run(made())
        yield Client()
        runner.run(client.close())
