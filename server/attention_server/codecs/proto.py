"""attention.v1 protobuf messages to and from the domain."""

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
from attention_proto.stages import FOLDS, POOLS, REDUCES, Fold, Pool, Reduce, numbers_of
from attention_proto.text import TRUNCATES, Truncate
from google.protobuf.timestamp_pb2 import Timestamp

from attention_server.codecs.batch import expand
from attention_server.domain.limits import Limits
from attention_server.domain.messages import (
    NO_MASK,
    Ablation,
    Alignment,
    Array,
    KeySpan,
    MemoryDescription,
    MemoryRequest,
    OutputSpec,
    Prediction,
    Request,
    Response,
    Result,
    Sample,
    Sequence,
    Tokens,
    TopK,
)
from attention_server.errors import InvalidRequest, join_path

ArraySpec = tuple[str, "np.dtype[np.generic]", tuple[int, ...]]  # an output's name, type and shape

CACHED_SPEC_BYTES = 64  # longer OutputSpec messages are not cached: callers choose the content
CACHED_OUTPUTS = 4  # headers of more outputs are not cached, for the same reason
ARRAYS = frozenset({"query", "key", "value"})
IDS = frozenset({"token_ids", "memory_token_ids"})
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
TRUNCATE: dict[int, Truncate] = {number: name for name, number in numbers_of(TRUNCATES, pb.Truncate.items()).items()}
POOL: dict[int, Pool] = {number: name for name, number in numbers_of(POOLS, pb.OutputSpec.Pool.items()).items()}
FOLD: dict[int, Fold] = {number: name for name, number in numbers_of(FOLDS, pb.OutputSpec.Fold.items()).items()}


def decode_request(message: pb.AttendRequest, limits: Limits) -> Request:
    """Decode a request.

    Raises:
        TooLarge: the request has too many sequences.
        InvalidRequest: a tensor's bytes do not fill its shape, or an enumeration value is unknown.
    """
    limits.check_sequences(len(message.inputs), "inputs")  # before any tensor is decoded
    inputs: list[Sequence] = []
    for i, sequence in enumerate(message.inputs):
        inputs += _sequences(sequence, f"inputs[{i}]", limits)
        if len(inputs) > limits.sequences:
            limits.check_sequences(len(inputs), "inputs")
    return Request(
        message.model,
        message.version,
        tuple(inputs),
        tuple([_output_spec(spec, f"outputs[{i}]") for i, spec in enumerate(message.outputs)]),
        _mask(message.mask, "mask") if message.HasField("mask") else NO_MASK,
        message.token_offsets,
        tuple([Ablation(tuple(each.layers), tuple(each.heads)) for each in message.ablate]) if message.ablate else (),
        message.score_temperature if message.HasField("score_temperature") else None,
    )


def encode_response(response: Response) -> bytes:
    """Encode a response as a serialized AttendResponse."""
    return _response_parts(response).join()


def encode_stream_response(response: Response, id_: str) -> bytes:
    """Encode the response to one request of a stream as a serialized AttendStreamResponse."""
    streamed = wire.Parts(pb.AttendStreamResponse(id=id_).SerializeToString())
    streamed.add(RESPONSE, _response_parts(response))
    return streamed.join()


def decode_memory_request(message: pb.CreateMemoryRequest) -> MemoryRequest:
    """Decode a request to keep a memory.

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
        memory_token_ids=np.array(message.memory_token_ids, np.int64) if message.memory_token_ids else None,
        truncate=decode_truncate(message.truncate, ""),
        ttl=ttl.seconds + ttl.nanos / 1e9 if message.HasField("ttl") else None,
        pinned=message.pinned,
        data_type=_storage_type(message.data_type),
        id=message.id,
    )


def _storage_type(value: "pb.DataType.ValueType") -> str:
    """Return the name of a number format; FP32 where none is given."""
    if value == pb.DATA_TYPE_UNSPECIFIED:
        return "FP32"
    if value not in pb.DataType.values():
        raise InvalidRequest(f"there is no data type {value}", field="data_type")
    return pb.DataType.Name(value).removeprefix("DATA_TYPE_")


def decode_truncate(value: int, path: str) -> Truncate:
    """Decode the end at which a text is cut.

    Raises:
        InvalidRequest: there is no such truncation.
    """
    if value not in TRUNCATE:
        raise InvalidRequest(f"there is no truncation {value}", field=join_path(path, "truncate"))
    return TRUNCATE[value]


def encode_memory(memory: MemoryDescription) -> pb.Memory:
    """Encode the description of a kept memory."""
    expire_time = Timestamp()
    expire_time.FromMilliseconds(int((time.time() + memory.seconds_left) * 1000))
    return pb.Memory(
        id=memory.id,
        model=memory.model,
        version=memory.version,
        length=memory.length,
        source_length=memory.source_length,
        prefix_length=memory.prefix_length,
        tokens=memory.tokens,
        expire_time=expire_time,
        size_bytes=memory.size,
        truncated_tokens=memory.truncated_tokens,
        pinned=memory.pinned,
        data_type=pb.DataType.Value(f"DATA_TYPE_{memory.data_type}"),
        max_storage_error=memory.max_storage_error,
        shared_bytes=memory.shared_size,
    )


def _sequences(message: pb.Sequence, path: str, limits: Limits) -> list[Sequence]:
    given: dict[str, Any] = {}
    lengths: Any = ()
    for field, value in message.ListFields():  # most fields are absent: HasField for each would take longer
        name = field.name
        if name in ARRAYS:
            given[name] = _array(value, path, name)
        elif name in IDS:
            given[name] = np.array(value, np.int64)
        elif name == "truncate":
            given[name] = decode_truncate(value, path)
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
        layers=tuple(message.layers),
    )


def _output_spec(message: pb.OutputSpec, path: str) -> OutputSpec:
    """Decode an output; small ones are cached, since requests repeat them."""
    encoded = message.SerializeToString()
    return _cached_spec(encoded, path) if len(encoded) <= CACHED_SPEC_BYTES else _spec(message, path)


@functools.lru_cache(1024)
def _cached_spec(encoded: bytes, path: str) -> OutputSpec:
    return _spec(pb.OutputSpec.FromString(encoded), path)


def _spec(message: pb.OutputSpec, path: str) -> OutputSpec:
    if message.reduce not in REDUCE:
        raise InvalidRequest(f"there is no reduction {message.reduce}", field=join_path(path, "reduce"))
    if message.pool not in POOL:
        raise InvalidRequest(f"there is no pooling {message.pool}", field=join_path(path, "pool"))
    if message.fold not in FOLD:
        raise InvalidRequest(f"there is no fold {message.fold}", field=join_path(path, "fold"))
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
        pairs=tuple(message.pairs),
        top=message.top,
        sample=_sample(message.sample) if message.HasField("sample") else None,
        spans=tuple([KeySpan(each.name, each.begin, each.end, each.characters) for each in message.spans]),
        fold=FOLD[message.fold],
        baseline=message.baseline,
    )


def _sample(message: pb.Sample) -> Sample:
    """Decode a sample; an absent field has its default."""
    return Sample(**{field.name: value for field, value in message.ListFields()})


def _response_parts(response: Response) -> wire.Parts:
    """Encode a response in parts, so that each tensor is copied once; protobuf would copy it three times."""
    parts = wire.Parts(_response_header(response.model, response.version) + _changes(response))
    for result in response.results:
        text = _text_fields(result, offsets=response.token_offsets)
        if not text and _put_arrays(result, parts):
            continue
        encoded = wire.Parts(text)
        for name, value in result.outputs.items():
            if isinstance(value, TopK):
                encoded.add(OUTPUTS, _top_k_parts(name, value))
            elif isinstance(value, Alignment):
                encoded.add(OUTPUTS, _alignment(name, value))
            else:
                encoded.put(_output_header(name, value.dtype, value.shape), value)
        parts.add(RESULTS, encoded)
    return parts


def _changes(response: Response) -> bytes:
    """Encode the request's changes of sites."""
    if not response.ablate and response.score_temperature is None:
        return b""
    told = [pb.Ablation(layers=each.layers, heads=each.heads) for each in response.ablate]
    return pb.AttendResponse(ablate=told, score_temperature=response.score_temperature).SerializeToString()


def _put_arrays(result: Result, parts: wire.Parts) -> bool:
    """Add the result of a sequence or batch if all its outputs are arrays; return whether it was added."""
    first = int(result.batch > 1)  # the first dimension after the batch's
    specs: list[ArraySpec] = []
    arrays: list[Array] = []
    for name, value in result.outputs.items():
        if not isinstance(value, np.ndarray):
            return False
        specs.append((name, value.dtype, value.shape[first:]))
        arrays.append(value)
    if not specs:
        return False
    headers = (_cached_headers if len(specs) <= CACHED_OUTPUTS else _array_headers)(tuple(specs))
    if first:
        parts.put_all(headers, arrays)
    else:
        for each in zip(headers, arrays, strict=True):
            parts.put(*each)
    return True


@functools.lru_cache(256)
def _response_header(model: str, version: int) -> bytes:
    return pb.AttendResponse(model=model, version=version).SerializeToString()


@functools.lru_cache(1024)
def _output_header(name: str, dtype: "np.dtype[np.generic]", shape: tuple[int, ...]) -> bytes:
    """Return the encoded field `outputs` of a result up to its array's bytes, which end it."""
    tensor = head(dtype, shape)
    size = math.prod(shape) * dtype.itemsize
    output = pb.Output(name=name).SerializeToString() + TENSOR + wire.varint(len(tensor) + size) + tensor
    return OUTPUTS + wire.varint(len(output) + size) + output


def _array_headers(specs: tuple[ArraySpec, ...]) -> list[bytes]:
    """Return the encoded bytes before each array of a result that consists of arrays."""
    headers = list(itertools.starmap(_output_header, specs))
    sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in specs]
    size = sum(map(len, headers)) + sum(sizes)
    return [RESULTS + wire.varint(size) + headers[0], *headers[1:]]


_cached_headers = functools.lru_cache(1024)(_array_headers)


def _top_k_parts(name: str, value: TopK) -> wire.Parts:
    parts = wire.Parts(pb.Output(name=name).SerializeToString())
    top = wire.Parts()
    for tag, array in ((INDICES, value.indices), (VALUES, value.values)):
        start = head(array.dtype, array.shape)
        top.put(tag + wire.varint(len(start) + array.nbytes) + start, array)
    parts.add(TOP_K, top)
    return parts


def _alignment(name: str, value: Alignment) -> bytes:
    links = [pb.Link(source=link.source, target=link.target) for link in value.links]
    return pb.Output(name=name, alignment=pb.Alignment(links=links, pharaoh=value.pharaoh)).SerializeToString()


def _text_fields(result: Result, *, offsets: bool) -> bytes:
    """Encode the tokens, predictions and memory of a result."""
    if not (result.predictions or result.tokens or result.memory_tokens or result.memory):
        return b""
    message = pb.Result(predictions=map(_prediction, result.predictions or ()))
    if result.tokens:
        message.tokens.extend(result.tokens.shown)
        message.token_offsets.extend(_spans(result.tokens) if offsets else ())
        message.truncated_tokens = result.tokens.truncated
    if result.memory_tokens:
        message.memory_tokens.extend(result.memory_tokens.shown)
        message.memory_token_offsets.extend(_spans(result.memory_tokens) if offsets else ())
        message.memory_truncated_tokens = result.memory_tokens.truncated
    if result.memory:
        message.memory.CopyFrom(encode_memory(result.memory))
    return message.SerializeToString()


def _prediction(each: Prediction) -> pb.Prediction:
    top = [pb.Candidate(id=one.id, label=one.label, probability=one.probability) for one in each.top]
    return pb.Prediction(
        name=each.name, label=each.label, probability=each.probability, row=each.row, id=each.id, top=top
    )


def _spans(tokens: Tokens) -> list[pb.Span]:
    return [pb.Span(start=start, end=end) for start, end in tokens.spans]
