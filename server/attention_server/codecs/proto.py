"""attention.v1 messages to and from the domain."""

import functools
import itertools
import math
import time
from typing import Any

import numpy as np
from attention_proto import wire
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.codec import decode, head
from attention_proto.masks import UNBOUNDED, Causal, Mask
from attention_proto.stages import POOLS, REDUCES, Pool, Reduce, numbers_of
from google.protobuf.timestamp_pb2 import Timestamp

from attention_server.codecs.batch import expand
from attention_server.domain.limits import Limits
from attention_server.domain.messages import (
    NO_MASK,
    Array,
    MemoryRequest,
    OutputSpec,
    Prediction,
    Request,
    Response,
    Result,
    Sequence,
    Tokens,
    TopK,
)
from attention_server.errors import InvalidRequest, join_path
from attention_server.inference.contexts import Memory

OutputPlan = tuple[str, "np.dtype[np.generic]", tuple[int, ...]]  # of an output: name, type, shape

SMALL = 64  # bytes of an output that is asked for, whose reading is kept
FEW = 4  # outputs of a result whose form is kept: callers choose it
ARRAYS = frozenset({"query", "key", "value"})
RESPONSE, RESULTS, OUTPUTS, TENSOR, TOP_K, INDICES, VALUES = (
    wire.tag(message.DESCRIPTOR.fields_by_name[name])
    for message, name in (
        (pb.AttendStreamResponse, "response"),
        (pb.AttendResponse, "results"),
        (pb.Result, "outputs"),
        (pb.Output, "tensor"),
        (pb.Output, "top_k"),
        (pb.TopK, "indices"),
        (pb.TopK, "values"),
    )
)
CAUSAL: dict[int, Causal] = {
    pb.Mask.CAUSAL_UNSPECIFIED: "none",
    pb.Mask.CAUSAL_NONE: "none",
    pb.Mask.CAUSAL_TOP_LEFT: "top_left",
    pb.Mask.CAUSAL_BOTTOM_RIGHT: "bottom_right",
}
REDUCE: dict[int, Reduce] = {number: name for name, number in numbers_of(REDUCES, pb.OutputSpec.Reduce.items()).items()}
POOL: dict[int, Pool] = {number: name for name, number in numbers_of(POOLS, pb.OutputSpec.Pool.items()).items()}


def to_request(message: pb.AttendRequest, limits: Limits) -> Request:
    """Read a request.

    Raises:
        TooLarge: a batch has more sequences than a request may.
        InvalidRequest: a tensor's bytes do not fill its shape, or an enumeration is unknown.
    """
    limits.check_sequences(len(message.inputs), "inputs")  # before they cost anything
    inputs: list[Sequence] = []
    for i, sequence in enumerate(message.inputs):
        inputs += _sequences(sequence, f"inputs[{i}]", limits)
        limits.check_sequences(len(inputs), "inputs")
    return Request(
        message.model,
        message.version,
        tuple(inputs),
        tuple([_output_spec(spec, f"outputs[{i}]") for i, spec in enumerate(message.outputs)]),
        _mask(message.mask, "mask") if message.HasField("mask") else NO_MASK,
        message.token_offsets,
    )


def serialize(response: Response) -> bytes:
    """Write a response, as the bytes of an AttendResponse."""
    return _parts(response).join()


def serialize_streamed(response: Response, id_: str) -> bytes:
    """Write the response to one request of a stream, as the bytes of an AttendStreamResponse."""
    streamed = wire.Parts(pb.AttendStreamResponse(id=id_).SerializeToString())
    streamed.add(RESPONSE, _parts(response))
    return streamed.join()


def to_memory_request(message: pb.CreateMemoryRequest) -> MemoryRequest:
    """Read a memory that is to be kept.

    Raises:
        InvalidRequest: a tensor's bytes do not fill its shape.
    """
    ttl = message.ttl
    return MemoryRequest(
        model=message.model,
        version=message.version,
        key=_tensor(message, "key", ""),
        value=_tensor(message, "value", ""),
        memory_text=message.memory_text if message.HasField("memory_text") else None,
        ttl=ttl.seconds + ttl.nanos / 1e9 if message.HasField("ttl") else None,
    )


def from_memory(memory: Memory, seconds_left: float) -> pb.Memory:
    """Write a memory: what is said of it, not what is in it."""
    expire_time = Timestamp()
    expire_time.FromMilliseconds(int((time.time() + seconds_left) * 1000))
    return pb.Memory(
        id=memory.id,
        model=memory.model,
        version=memory.version,
        length=memory.length,
        tokens=memory.tokens.shown if memory.tokens else (),
        expire_time=expire_time,
        size_bytes=memory.size,
    )


def _sequences(message: pb.Sequence, path: str, limits: Limits) -> list[Sequence]:
    given: dict[str, Any] = {}
    lengths: Any = ()
    for field, value in message.ListFields():  # most fields are not there: to ask for each would take longer
        name = field.name
        if name in ARRAYS:
            given[name] = _array(value, path, name)
        elif name == "mask":
            given[name] = _mask(value, join_path(path, name))
        elif name == "lengths":
            lengths = value
        else:
            given[name] = value
    return expand(Sequence(path, **given), lengths, limits)


def _tensor(message: pb.Mask | pb.CreateMemoryRequest, name: str, path: str) -> Array | None:
    return _array(getattr(message, name), path, name) if message.HasField(name) else None  # type: ignore[arg-type]


def _array(tensor: pb.Tensor, path: str, name: str) -> Array:
    try:
        return decode(tensor)
    except ValueError as error:
        raise InvalidRequest(str(error), field=join_path(path, name)) from error


def _mask(message: pb.Mask, path: str) -> Mask:
    if message.causal not in CAUSAL:
        raise InvalidRequest(f"there is no causal mask {message.causal}", field=join_path(path, "causal"))
    window = (message.window.left, message.window.right) if message.HasField("window") else (UNBOUNDED, UNBOUNDED)
    return Mask(
        causal=CAUSAL[message.causal],
        window=window,
        allowed=_tensor(message, "allowed", path),  # type: ignore[arg-type] # its type is checked with its shape
        bias=_tensor(message, "bias", path),  # type: ignore[arg-type]
    )


def _output_spec(message: pb.OutputSpec, path: str) -> OutputSpec:
    """Read an output; the same small ones are asked for again and again."""
    written = message.SerializeToString()
    return _known_spec(written, path) if len(written) <= SMALL else _spec(message, path)


@functools.lru_cache(1024)
def _known_spec(written: bytes, path: str) -> OutputSpec:
    return _spec(pb.OutputSpec.FromString(written), path)


def _spec(message: pb.OutputSpec, path: str) -> OutputSpec:
    if message.reduce not in REDUCE:
        raise InvalidRequest(f"there is no reduction {message.reduce}", field=join_path(path, "reduce"))
    if message.pool not in POOL:
        raise InvalidRequest(f"there is no pooling {message.pool}", field=join_path(path, "pool"))
    if message.data_type not in (pb.DATA_TYPE_UNSPECIFIED, pb.DATA_TYPE_FP32, pb.DATA_TYPE_FP16):
        raise InvalidRequest("must be FP32 or FP16", field=join_path(path, "data_type"))
    return OutputSpec(
        name=message.name,
        alias=message.alias,
        heads=tuple(message.heads),
        rows=tuple(message.rows),
        reduce=REDUCE[message.reduce],
        top_k=message.top_k,
        data_type="FP16" if message.data_type == pb.DATA_TYPE_FP16 else "FP32",
        layers=tuple(message.layers),
        pool=POOL[message.pool],
    )


def _parts(response: Response) -> wire.Parts:
    """Return a response's parts: each tensor is copied once, where protobuf copies it three times."""
    parts = wire.Parts(_about(response.model, response.version))
    for result in response.results:
        words = _words(result, offsets=response.token_offsets)
        if not words and _put_arrays(result, parts):
            continue
        written = wire.Parts(words)
        for name, value in result.outputs.items():
            if isinstance(value, TopK):
                written.add(OUTPUTS, _top_k_parts(name, value))
            else:
                written.put(_output_head(name, value.dtype, value.shape), value)
        parts.add(RESULTS, written)
    return parts


def _put_arrays(result: Result, parts: wire.Parts) -> bool:
    """Add a result that has nothing but arrays, or those of a batch; return whether it is that."""
    own = int(result.batch > 1)  # dimensions of one sequence's begin there
    forms: list[OutputPlan] = []
    arrays: list[Array] = []
    for name, value in result.outputs.items():
        if isinstance(value, TopK):
            return False
        forms.append((name, value.dtype, value.shape[own:]))
        arrays.append(value)
    if not forms:
        return False
    heads = (_known_heads if len(forms) <= FEW else _heads)(tuple(forms))
    if own:
        parts.put_all(heads, arrays)
    else:
        for each in zip(heads, arrays, strict=True):
            parts.put(*each)
    return True


@functools.lru_cache(256)
def _about(model: str, version: int) -> bytes:
    return pb.AttendResponse(model=model, version=version).SerializeToString()


@functools.lru_cache(1024)
def _output_head(name: str, dtype: "np.dtype[np.generic]", shape: tuple[int, ...]) -> bytes:
    """Return the bytes of an output, a result's field, up to those of its array, which are its end."""
    tensor = head(dtype, shape)
    size = math.prod(shape) * dtype.itemsize
    output = pb.Output(name=name).SerializeToString() + TENSOR + wire.varint(len(tensor) + size) + tensor
    return OUTPUTS + wire.varint(len(output) + size) + output


def _heads(forms: tuple[OutputPlan, ...]) -> list[bytes]:
    """Return what stands before each array of a result that has nothing else."""
    heads = list(itertools.starmap(_output_head, forms))
    size = sum(
        [len(head) + math.prod(shape) * dtype.itemsize for head, (_, dtype, shape) in zip(heads, forms, strict=True)]
    )
    return [RESULTS + wire.varint(size) + heads[0], *heads[1:]]


_known_heads = functools.lru_cache(1024)(_heads)


def _top_k_parts(name: str, value: TopK) -> wire.Parts:
    parts = wire.Parts(pb.Output(name=name).SerializeToString())
    top = wire.Parts()
    for tag, array in ((INDICES, value.indices), (VALUES, value.values)):
        start = head(array.dtype, array.shape)
        top.put(tag + wire.varint(len(start) + array.nbytes) + start, array)
    parts.add(TOP_K, top)
    return parts


def _words(result: Result, *, offsets: bool) -> bytes:
    """Write all of a result but its outputs."""
    if not (result.predictions or result.tokens or result.memory_tokens):
        return b""
    message = pb.Result(predictions=map(_prediction, result.predictions or ()))
    if result.tokens:
        message.tokens.extend(result.tokens.shown)
        message.token_offsets.extend(_spans(result.tokens) if offsets else ())
    if result.memory_tokens:
        message.memory_tokens.extend(result.memory_tokens.shown)
        message.memory_token_offsets.extend(_spans(result.memory_tokens) if offsets else ())
    return message.SerializeToString()


def _prediction(each: Prediction) -> pb.Prediction:
    return pb.Prediction(name=each.name, label=each.label, probability=each.probability, row=each.row)


def _spans(tokens: Tokens) -> list[pb.Span]:
    return [pb.Span(start=start, end=end) for start, end in tokens.spans]
