"""JSON to and from the domain. Strict: a field that nobody knows is an error, not a silence."""

import base64
import binascii
import difflib
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Literal

import numpy as np
import orjson
from attention_proto.attention.v1.attention_pb2 import Model
from attention_proto.codec import DTYPES, NAMES, from_bytes
from attention_proto.masks import UNBOUNDED, Mask
from google.protobuf import json_format

from attention_server.domain import (
    Array,
    Limits,
    MemoryRequest,
    OutputSpec,
    Request,
    Response,
    Result,
    Sequence,
    Span,
    TopK,
    join_path,
)
from attention_server.errors import InvalidRequest
from attention_server.memories import Memory
from attention_server.translate.batch import expand
from attention_server.translate.duplicates import refuse_duplicates
from attention_server.translate.url import agreed

Encoding = Literal["json", "base64"]

SEQUENCE_FIELDS = ("query", "key", "value", "text", "memory_text", "memory", "mask")
REQUEST_FIELDS = ("model", "version", "inputs", "outputs", "mask", "encoding", "token_offsets")
OUTPUT_FIELDS = ("name", "as", "heads", "rows", "reduce", "top_k", "data_type", "layers")
MASK_FIELDS = ("causal", "window", "allowed", "bias")
MEMORY_FIELDS = ("model", "version", "key", "value", "memory_text", "ttl")
LEAVES: dict[str, tuple[set[type], str]] = {
    "b": ({bool}, "true and false"),
    "i": ({int}, "integers"),
    "u": ({int}, "integers"),
    "f": ({int, float}, "numbers"),
}
TENSOR_FIELDS = ("data_type", "shape", "data", "values")

Json = Mapping[str, Any]


def to_request(body: bytes, model: str, version: int, limits: Limits) -> tuple[Request, Encoding]:
    """Read a request, and how its answer's tensors are to be written.

    Args:
        body: the JSON document.
        model: what the URL says; the document may repeat it, not contradict it.
        version: the same.
        limits: of one request.

    Raises:
        TooLarge: a batch has more sequences than a request may.
        InvalidRequest: the document is no JSON, or a field is unknown, of the wrong type, or no tensor.
    """
    content = _object(_parse(body), "", (*REQUEST_FIELDS, *SEQUENCE_FIELDS))
    outputs = _list(content, "outputs", "")
    request = Request(
        model=agreed("model", model, _typed(content, "model", str, "", "")),
        version=agreed("version", version, _typed(content, "version", int, 0, "")),
        inputs=_inputs(content, limits),
        outputs=tuple(_output_spec(each, f"outputs[{i}]") for i, each in enumerate(outputs)),
        mask=_mask(content.get("mask"), "mask") if content.get("inputs") is not None else Mask(),
        token_offsets=_typed(content, "token_offsets", bool, False, ""),
    )
    encoding = _choice(content, "encoding", ("json", "base64"), "json", "")
    refuse_duplicates(body, content)
    return request, encoding


def from_response(response: Response, encoding: Encoding) -> bytes:
    """Write a response; tensors as nested lists of numbers, or as base64 of their bytes."""
    document = {
        "model": response.model,
        "version": response.version,
        "results": [_result(result, encoding, offsets=response.token_offsets) for result in response.results],
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def to_memory_request(body: bytes, model: str) -> MemoryRequest:
    """Read a memory that is to be kept; see `to_request`."""
    content = _object(_parse(body), "", MEMORY_FIELDS)
    ttl = content.get("ttl")
    if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, int | float)):
        raise InvalidRequest(f"must be a number of seconds, not {_kind(ttl)}", field="ttl")
    request = MemoryRequest(
        model=agreed("model", model, _typed(content, "model", str, "", "")),
        version=_typed(content, "version", int, 0, ""),
        key=_tensor(content.get("key"), np.float32, "key"),
        value=_tensor(content.get("value"), np.float32, "value"),
        memory_text=_typed(content, "memory_text", str, None, ""),
        ttl=ttl,
    )
    refuse_duplicates(body, content)
    return request


def from_memory(memory: Memory, seconds_left: float) -> dict[str, Any]:
    """Write a memory: what is said of it, not what is in it."""
    expires = datetime.fromtimestamp(time.time() + seconds_left, UTC)
    content = {
        "id": memory.id,
        "model": memory.model,
        "version": memory.version,
        "length": memory.length,
        "expire_time": expires.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "size_bytes": memory.size,
    }
    return content | ({"tokens": memory.tokens.shown} if memory.tokens else {})


def from_model(model: Model) -> dict[str, Any]:
    """Write a model's description: the contract's message in its JSON form."""
    return json_format.MessageToDict(model, preserving_proto_field_name=True)


def _parse(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error


def _inputs(content: Json, limits: Limits) -> tuple[Sequence, ...]:
    """Read `inputs`, or the one sequence whose fields stand in the request itself."""
    own = [name for name in SEQUENCE_FIELDS if content.get(name) is not None]
    if content.get("inputs") is None:
        return tuple(_sequences({name: content[name] for name in own}, "", limits)) if own else ()
    if beside := [name for name in own if name != "mask"]:
        raise InvalidRequest("stands beside inputs; put it into one of them", field=beside[0])
    sequences = _list(content, "inputs", "")
    return tuple(each for i, sequence in enumerate(sequences) for each in _sequences(sequence, f"inputs[{i}]", limits))


def _sequences(value: object, path: str, limits: Limits) -> list[Sequence]:
    content = _object(value, path, SEQUENCE_FIELDS)
    return expand(
        Sequence(
            path=path,
            query=_tensor(content.get("query"), np.float32, join_path(path, "query")),
            key=_tensor(content.get("key"), np.float32, join_path(path, "key")),
            value=_tensor(content.get("value"), np.float32, join_path(path, "value")),
            text=_typed(content, "text", str, None, path),
            memory_text=_typed(content, "memory_text", str, None, path),
            memory=_typed(content, "memory", str, "", path),
            mask=_mask(content.get("mask"), join_path(path, "mask")),
        ),
        limits,
    )


def _mask(value: object, path: str) -> Mask:
    if value is None:
        return Mask()
    content = _object(value, path, MASK_FIELDS)
    window = content.get("window")
    return Mask(
        causal=_choice(content, "causal", ("none", "top_left", "bottom_right"), "none", path),
        window=(UNBOUNDED, UNBOUNDED) if window is None else _window(window, join_path(path, "window")),
        allowed=_tensor(content.get("allowed"), np.bool_, join_path(path, "allowed")),  # type: ignore[arg-type]
        bias=_tensor(content.get("bias"), np.float32, join_path(path, "bias")),  # type: ignore[arg-type]
    )


def _window(value: object, path: str) -> tuple[int, int]:
    content = _object(value, path, ("left", "right"))
    return _typed(content, "left", int, UNBOUNDED, path), _typed(content, "right", int, UNBOUNDED, path)


def _output_spec(value: object, path: str) -> OutputSpec:
    if isinstance(value, str):
        return OutputSpec(value)
    content = _object(value, path, OUTPUT_FIELDS)
    if "name" not in content:
        raise InvalidRequest("say which stage", field=join_path(path, "name"))
    return OutputSpec(
        name=_typed(content, "name", str, "", path),
        alias=_typed(content, "as", str, "", path),
        heads=_numbers(content, "heads", path, minimum=0),
        rows=_numbers(content, "rows", path),
        reduce=_choice(content, "reduce", ("none", "mean", "max"), "none", path),
        top_k=_at_least_zero(_typed(content, "top_k", int, 0, path), join_path(path, "top_k")),
        data_type=_choice(content, "data_type", ("FP32", "FP16"), "FP32", path),
        layers=tuple(_each(content, "layers", str, path)),
    )


def _tensor(value: object, dtype: type[np.generic], field: str) -> Array | None:
    """Read nested lists, or an object with the data type, the shape and the elements."""
    if value is None:
        return None
    if isinstance(value, list):
        return _nested(value, np.dtype(dtype), field)
    content = _object(value, field, TENSOR_FIELDS)
    data_type = _choice(content, "data_type", tuple(DTYPES), NAMES[np.dtype(dtype)], field)
    if ("data" in content) == ("values" in content):
        raise InvalidRequest("give data (base64) or values (numbers)", field=field)
    if "data" in content:
        return _view(data_type, _shape(content, field), _base64(content, field), field)
    array = _nested(_list(content, "values", field), DTYPES[data_type], join_path(field, "values"))
    return array if "shape" not in content else _reshape(array, _shape(content, field), field)


def _nested(value: list[Any], dtype: "np.dtype[Any]", field: str) -> Array:
    """Make an array of nested lists of numbers."""
    kinds, wanted = LEAVES[dtype.kind]
    if not _leaf_types(value) <= kinds:
        raise InvalidRequest(f"must hold {wanted} only, in nested lists of equal lengths", field=field)
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused by its place
            return np.asarray(value, np.float64 if float in kinds else None).astype(dtype)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest("must be nested lists of equal lengths, of numbers that fit", field=field) from error


def _leaf_types(value: list[Any]) -> set[type]:
    """Return the types of what the lists hold; NumPy would take true for 1 and "1" for 1.0 without a word."""
    types = set(map(type, value))
    while list in types:
        value = list(chain.from_iterable(each for each in value if type(each) is list))
        types = (types - {list}) | set(map(type, value))
    return types


def _view(data_type: str, shape: tuple[int, ...], data: bytes, field: str) -> Array:
    try:
        return from_bytes(data_type, shape, data)
    except ValueError as error:
        raise InvalidRequest(str(error), field=field) from error


def _reshape(array: Array, shape: tuple[int, ...], field: str) -> Array:
    try:
        if min(shape, default=0) < 0:
            raise ValueError  # noqa: TRY301 # NumPy would read -1 as "whatever fits"
        return array.reshape(shape)
    except ValueError as error:
        raise InvalidRequest(f"has shape {list(shape)}, but {array.size} values", field=field) from error


def _shape(content: Json, field: str) -> tuple[int, ...]:
    if "shape" not in content:
        raise InvalidRequest("say the length of each dimension", field=join_path(field, "shape"))
    return _numbers(content, "shape", field)


def _base64(content: Json, field: str) -> bytes:
    try:
        return base64.b64decode(_typed(content, "data", str, "", field), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"is not base64: {error}", field=join_path(field, "data")) from error


def _object(value: object, path: str, known: tuple[str, ...]) -> Json:
    if not isinstance(value, dict):
        raise InvalidRequest(f"must be an object, not {_kind(value)}", field=path)
    for name in value:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there is {', '.join(known)}"
            raise InvalidRequest(f"there is no such field{hint}", field=join_path(path, name[:64]))
    return value


def _typed(content: Json, name: str, kind: type, default: Any, path: str) -> Any:
    value = content.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        expected = {bool: "true or false", int: "an integer", str: "a string", list: "a list"}[kind]
        raise InvalidRequest(f"must be {expected}, not {_kind(value)}", field=join_path(path, name))
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        raise InvalidRequest(f"{value} is out of range", field=join_path(path, name))
    return value


def _choice(content: Json, name: str, choices: tuple[str, ...], default: str, path: str) -> Any:
    value = _typed(content, name, str, default, path)
    if value not in choices:
        raise InvalidRequest(f"must be one of {', '.join(choices)}, not {value[:64]!r}", field=join_path(path, name))
    return value


def _list(content: Json, name: str, path: str) -> list[Any]:
    return _typed(content, name, list, [], path)  # type: ignore[no-any-return]


def _each(content: Json, name: str, kind: type, path: str) -> list[Any]:
    values = _list(content, name, path)
    for i, value in enumerate(values):
        if value is None:
            raise InvalidRequest("must not be null", field=join_path(path, f"{name}[{i}]"))
    return [_typed({f"{name}[{i}]": value}, f"{name}[{i}]", kind, None, path) for i, value in enumerate(values)]


def _numbers(content: Json, name: str, path: str, minimum: int = -(2**31)) -> tuple[int, ...]:
    values = _each(content, name, int, path)
    for i, value in enumerate(values):
        if value < minimum:
            least = "" if minimum < 0 else f", at least {minimum}"
            raise InvalidRequest(f"must be an integer{least}", field=join_path(path, f"{name}[{i}]"))
    return tuple(values)


def _at_least_zero(value: int, field: str) -> int:
    if value < 0:
        raise InvalidRequest(f"must be 0 or above, not {value}", field=field)
    return value


def _kind(value: object) -> str:
    kinds: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return kinds.get(type(value), "a number")


def _result(result: Result, encoding: Encoding, *, offsets: bool) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, tokens in (("tokens", result.tokens), ("memory_tokens", result.memory_tokens)):
        if tokens is not None:
            content[name] = tokens.shown
            if offsets:
                content[f"{name.removesuffix('s')}_offsets"] = [_span(span) for span in tokens.spans]
    write = _written_as_base64 if encoding == "base64" else _written_as_numbers
    content["outputs"] = {name: _output(value, write) for name, value in result.outputs.items()}
    if result.predictions is not None:
        content["predictions"] = [
            {"name": each.name, "label": each.label, "probability": each.probability}
            | ({} if each.row is None else {"row": each.row})
            for each in result.predictions
        ]
    return content


def _span(span: Span) -> dict[str, int]:
    return {"start": span.start, "end": span.end}


def _output(value: Array | TopK, write: Callable[[Array], dict[str, Any]]) -> dict[str, Any]:
    if isinstance(value, TopK):
        return {"indices": write(value.indices), "values": write(value.values)}
    return write(value)


def _written_as_numbers(array: Array) -> dict[str, Any]:
    return {"data_type": NAMES[array.dtype], "shape": array.shape, "values": np.ascontiguousarray(array)}


def _written_as_base64(array: Array) -> dict[str, Any]:
    return {"data_type": NAMES[array.dtype], "shape": array.shape, "data": base64.b64encode(array.tobytes()).decode()}
