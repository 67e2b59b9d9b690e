"""JSON documents to and from the domain. Decoding is strict: an unknown field is an error."""

import base64
import binascii
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Model
from attention_proto.codec import DTYPES, NAMES, from_bytes
from attention_proto.masks import UNBOUNDED, Mask
from attention_proto.stages import OPTIONS
from attention_proto.text import TRUNCATES
from google.protobuf import json_format

from attention_server.codecs.batch import expand
from attention_server.codecs.document import (
    Json,
    choice,
    each_typed,
    elements,
    fields,
    float32,
    integers,
    kind_of,
    nested,
    numbers,
    parse,
    read_ablate,
    read_option,
    reshape,
    typed,
)
from attention_server.codecs.duplicates import refuse_duplicates
from attention_server.codecs.number_lists import NumberList, for_writing, write
from attention_server.codecs.url import url_or_body
from attention_server.domain.limits import Limits
from attention_server.domain.messages import (
    NO_MASK,
    Alignment,
    Array,
    MemoryDescription,
    MemoryRequest,
    OutputSpec,
    OutputValue,
    Prediction,
    Request,
    Response,
    Result,
    Sequence,
    Span,
    Tokens,
    TopK,
)
from attention_server.errors import InvalidRequest, join_path

Encoding = Literal["json", "base64"]

TEXT_FIELDS = ("text", "text_pair", "memory_text", "token_ids", "memory_token_ids", "truncate")
SEQUENCE_FIELDS = ("query", "key", "value", *TEXT_FIELDS, "memory", "extend", "mask", "lengths")
REQUEST_FIELDS = (
    "model",
    "version",
    "inputs",
    "outputs",
    "mask",
    "encoding",
    "token_offsets",
    "ablate",
    "score_temperature",
)
OUTPUT_FIELDS = ("name", *OPTIONS)
MASK_FIELDS = ("causal", "window", "allowed", "bias", "layers")
MEMORY_FIELDS = (
    *("model", "version", "key", "value", "memory_text", "memory_token_ids", "truncate", "ttl"),
    *("pinned", "data_type", "id"),
)
TENSOR_FIELDS = ("data_type", "shape", "data", "values")


def decode_request(body: bytes, model: str, version: int, limits: Limits) -> tuple[Request, Encoding]:
    """Decode a request; return it and the encoding of the response's tensors.

    Args:
        body: the JSON document.
        model: the model in the URL; the document may repeat it.
        version: the version in the URL, or 0; the document may repeat it.
        limits: limits of one request.

    Raises:
        TooLarge: the request has too many sequences, lists or objects.
        InvalidRequest: the body is not JSON, or a field is unknown, of the wrong type, or not a valid tensor.
    """
    content = fields(parse(body), "", (*REQUEST_FIELDS, *SEQUENCE_FIELDS))
    outputs = elements(content, "outputs", "")
    request = Request(
        model=url_or_body("model", model, typed(content, "model", str, "", "")),
        version=url_or_body("version", version, typed(content, "version", int, 0, "")),
        inputs=_inputs(content, limits),
        outputs=tuple(_output_spec(each, f"outputs[{i}]") for i, each in enumerate(outputs)),
        mask=_mask(content.get("mask"), "mask") if content.get("inputs") is not None else NO_MASK,
        token_offsets=typed(content, "token_offsets", bool, False, ""),
        ablate=read_ablate(content, ""),
        score_temperature=float32(content, "score_temperature", ""),
    )
    encoding = choice(content, "encoding", ("json", "base64"), "json", "")
    refuse_duplicates(body, content)
    return request, encoding


def encode_response(response: Response, encoding: Encoding) -> bytes:
    """Encode a response; tensors as nested lists of numbers, or as base64 of their bytes."""
    document = {
        "model": response.model,
        "version": response.version,
        "results": [_result(result, encoding, offsets=response.token_offsets) for result in response.each()],
    }
    if response.ablate:
        document["ablate"] = [each._asdict() for each in response.ablate]
    if response.score_temperature is not None:
        document["score_temperature"] = response.score_temperature
    return write(document)


def decode_memory_request(body: bytes, model: str) -> MemoryRequest:
    """Decode a request to keep a memory.

    Raises:
        TooLarge, InvalidRequest: as `decode_request`.
    """
    content = fields(parse(body), "", MEMORY_FIELDS)
    ttl = content.get("ttl")
    if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, int | float)):
        raise InvalidRequest(f"must be a number of seconds, not {kind_of(ttl)}", field="ttl")
    request = MemoryRequest(
        model=url_or_body("model", model, typed(content, "model", str, "", "")),
        version=typed(content, "version", int, 0, ""),
        key=_tensor(content.get("key"), np.float32, "key"),
        value=_tensor(content.get("value"), np.float32, "value"),
        memory_text=typed(content, "memory_text", str, None, ""),
        memory_token_ids=_token_ids(content, "memory_token_ids", ""),
        truncate=choice(content, "truncate", TRUNCATES, "none", ""),
        ttl=ttl,
        pinned=typed(content, "pinned", bool, False, ""),
        data_type=typed(content, "data_type", str, "FP32", ""),
        id=typed(content, "id", str, "", ""),
    )
    refuse_duplicates(body, content)
    return request


def encode_memory(memory: MemoryDescription) -> dict[str, Any]:
    """Encode the description of a kept memory."""
    expires = datetime.fromtimestamp(time.time() + memory.seconds_left, UTC)
    content = {
        "id": memory.id,
        "model": memory.model,
        "version": memory.version,
        "length": memory.length,
        "source_length": memory.source_length,
        "prefix_length": memory.prefix_length,
        "expire_time": expires.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "size_bytes": memory.size,
        "shared_bytes": memory.shared_size,
        "pinned": memory.pinned,
        "data_type": memory.data_type,
    }
    if memory.data_type != "FP32":
        content["max_storage_error"] = memory.max_storage_error
    if memory.truncated_tokens:
        content["truncated_tokens"] = memory.truncated_tokens
    return content | {"tokens": memory.tokens} if memory.tokens else content


def encode_model(model: Model) -> dict[str, Any]:
    """Encode a model's description as the contract's message in protobuf's JSON format."""
    return json_format.MessageToDict(model, preserving_proto_field_name=True)


def _inputs(content: Json, limits: Limits) -> tuple[Sequence, ...]:
    """Decode `inputs`, or the single sequence whose fields are in the request itself."""
    own = [name for name in SEQUENCE_FIELDS if content.get(name) is not None]
    if content.get("inputs") is None:
        return tuple(_sequences({name: content[name] for name in own}, "", limits)) if own else ()
    if beside := [name for name in own if name != "mask"]:
        raise InvalidRequest("stands beside inputs; put it into one of them", field=beside[0])
    sequences = elements(content, "inputs", "")
    limits.check_sequences(len(sequences), "inputs")  # before any tensor is decoded
    inputs: list[Sequence] = []
    for i, sequence in enumerate(sequences):
        inputs += _sequences(sequence, f"inputs[{i}]", limits)
        limits.check_sequences(len(inputs), "inputs")
    return tuple(inputs)


def _sequences(value: object, path: str, limits: Limits) -> list[Sequence]:
    content = fields(value, path, SEQUENCE_FIELDS)
    return expand(
        Sequence(
            path=path,
            query=_tensor(content.get("query"), np.float32, join_path(path, "query")),
            key=_tensor(content.get("key"), np.float32, join_path(path, "key")),
            value=_tensor(content.get("value"), np.float32, join_path(path, "value")),
            text=typed(content, "text", str, None, path),
            memory_text=typed(content, "memory_text", str, None, path),
            token_ids=_token_ids(content, "token_ids", path),
            memory_token_ids=_token_ids(content, "memory_token_ids", path),
            text_pair=typed(content, "text_pair", str, None, path),
            truncate=choice(content, "truncate", TRUNCATES, "none", path),
            memory=typed(content, "memory", str, "", path),
            extend=typed(content, "extend", bool, False, path),
            mask=_mask(content.get("mask"), join_path(path, "mask")),
        ),
        integers(content, "lengths", path, minimum=1),
        limits,
    )


def _token_ids(content: Json, name: str, path: str) -> Array | None:
    if content.get(name) is None:
        return None
    return nested(numbers(content, name, path), np.dtype(np.int64), join_path(path, name))


def _mask(value: object, path: str) -> Mask:
    if value is None:
        return NO_MASK
    content = fields(value, path, MASK_FIELDS)
    window = content.get("window")
    return Mask(
        causal=choice(content, "causal", ("none", "top_left", "bottom_right"), "none", path),
        window=(UNBOUNDED, UNBOUNDED) if window is None else _window(window, join_path(path, "window")),
        allowed=_tensor(content.get("allowed"), np.bool_, join_path(path, "allowed")),  # type: ignore[arg-type]
        bias=_tensor(content.get("bias"), np.float32, join_path(path, "bias")),  # type: ignore[arg-type]
        layers=tuple(each_typed(content, "layers", str, path)),
    )


def _window(value: object, path: str) -> tuple[int, int]:
    content = fields(value, path, ("left", "right"))
    return typed(content, "left", int, UNBOUNDED, path), typed(content, "right", int, UNBOUNDED, path)


def _output_spec(value: object, path: str) -> OutputSpec:
    if isinstance(value, str):
        return OutputSpec(value)
    content = fields(value, path, OUTPUT_FIELDS)
    if "name" not in content:
        raise InvalidRequest("say which stage", field=join_path(path, "name"))
    given = {each.field: read_option(each, content, path) for name, each in OPTIONS.items() if name in content}
    return OutputSpec(typed(content, "name", str, "", path), **given)


def _tensor(value: object, dtype: type[np.generic], field: str) -> Array | None:
    """Decode nested lists, or an object with data type, shape, and base64 `data` or nested `values`."""
    if value is None:
        return None
    if isinstance(value, list | NumberList):
        return nested(value, np.dtype(dtype), field)
    content = fields(value, field, TENSOR_FIELDS)
    data_type = choice(content, "data_type", tuple(DTYPES), NAMES[np.dtype(dtype)], field)
    if ("data" in content) == ("values" in content):
        raise InvalidRequest("give data (base64) or values (numbers)", field=field)
    if "data" in content:
        return _array_from_bytes(data_type, _shape(content, field), _decode_base64(content, field), field)
    array = nested(numbers(content, "values", field), DTYPES[data_type], join_path(field, "values"))
    return array if "shape" not in content else reshape(array, _shape(content, field), field)


def _array_from_bytes(data_type: str, shape: tuple[int, ...], data: bytes, field: str) -> Array:
    try:
        return from_bytes(data_type, shape, data)
    except ValueError as error:
        raise InvalidRequest(str(error), field=field) from error


def _shape(content: Json, field: str) -> tuple[int, ...]:
    if "shape" not in content:
        raise InvalidRequest("say the length of each dimension", field=join_path(field, "shape"))
    return integers(content, "shape", field)


def _decode_base64(content: Json, field: str) -> bytes:
    try:
        return base64.b64decode(typed(content, "data", str, "", field), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"is not base64: {error}", field=join_path(field, "data")) from error


def _result(result: Result, encoding: Encoding, *, offsets: bool) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, tokens in (("tokens", result.tokens), ("memory_tokens", result.memory_tokens)):
        if tokens is not None:
            content[name] = tokens.shown
            if offsets:
                content[f"{name.removesuffix('s')}_offsets"] = [_span(span) for span in tokens.spans]
            content |= _truncated(name.replace("tokens", "truncated_tokens"), tokens)
    encode = _encode_base64 if encoding == "base64" else _encode_numbers
    content["outputs"] = {name: _output(value, encode) for name, value in result.outputs.items()}
    if result.predictions is not None:
        content["predictions"] = [_prediction(each) for each in result.predictions]
    if result.memory is not None:
        content["memory"] = encode_memory(result.memory)
    return content


def _truncated(name: str, tokens: Tokens) -> dict[str, int]:
    """Return the field with the number of tokens that were dropped; nothing where none was."""
    return {name: tokens.truncated} if tokens.truncated else {}


def _prediction(each: Prediction) -> dict[str, Any]:
    content = {"name": each.name, "label": each.label, "probability": each.probability, "id": each.id}
    content |= {} if each.row is None else {"row": each.row}
    return content | ({"top": [one._asdict() for one in each.top]} if each.top else {})


def _span(span: Span) -> dict[str, int]:
    return {"start": span.start, "end": span.end}


def _output(value: OutputValue, encode: Callable[[Array], dict[str, Any]]) -> dict[str, Any]:
    if isinstance(value, TopK):
        return {"indices": encode(value.indices), "values": encode(value.values)}
    if isinstance(value, Alignment):
        return {"links": [link._asdict() for link in value.links], "pharaoh": value.pharaoh}
    return encode(value)


def _encode_numbers(array: Array) -> dict[str, Any]:
    return {"data_type": NAMES[array.dtype], "shape": array.shape, "values": for_writing(array)}


def _encode_base64(array: Array) -> dict[str, Any]:
    return {"data_type": NAMES[array.dtype], "shape": array.shape, "data": base64.b64encode(array.tobytes()).decode()}
