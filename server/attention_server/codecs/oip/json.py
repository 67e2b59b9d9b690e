"""The Open Inference Protocol's documents: a request read, an answer written, tensors in JSON or in bytes behind it."""

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import orjson
from attention_proto.codec import DTYPES

from attention_server.codecs.document import Json, elements, fields, integers, nested, parse, reshape, typed
from attention_server.codecs.duplicates import refuse_duplicates
from attention_server.codecs.oip.messages import InferRequest, InferResponse, OutputTensor, Parameters, RequestedOutput
from attention_server.codecs.oip.tensor import BYTES, data_type_of, from_raw, texts, to_raw
from attention_server.codecs.url import agreed, to_version
from attention_server.domain.messages import Array
from attention_server.errors import InvalidRequest

HEADER_LENGTH = "Inference-Header-Content-Length"
REQUEST_FIELDS = ("id", "model_name", "model_version", "parameters", "inputs", "outputs")
INPUT_FIELDS = ("name", "shape", "datatype", "parameters", "data")


class Body(NamedTuple):
    """A body: JSON, of this length, and tensors' bytes behind it if there are any."""

    content: bytes
    json_length: int


def to_infer(body: bytes, header_length: str | None, model: str, version: int) -> InferRequest:
    """Read a request.

    Args:
        body: JSON, and behind it the bytes of those inputs that say so.
        header_length: how long the JSON is, by its header; None for all.
        model: what the URL says; the document may repeat it, not contradict it.
        version: the same; 0 when it says nothing.

    Raises:
        InvalidRequest: the document is no JSON, a field is unknown or of the wrong type, or a tensor is none.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    content = fields(parse(body[:length]), "", REQUEST_FIELDS)
    raw = _Raw(memoryview(body)[length:])
    inputs: dict[str, Array] = {}
    for i, each in enumerate(elements(content, "inputs", "")):
        tensor = fields(each, f"inputs[{i}]", INPUT_FIELDS)
        name = _name(tensor, f"inputs[{i}]")
        if name in inputs:
            raise InvalidRequest("is sent twice", field=name[:64])
        inputs[name] = _tensor(tensor, name[:64], f"inputs[{i}]", raw)
    if raw.left:
        raise InvalidRequest(f"leaves {len(raw.left)} bytes that belong to no input", field=HEADER_LENGTH)
    sent_version = typed(content, "model_version", str, "", "")
    infer = InferRequest(
        model=agreed("model_name", model, typed(content, "model_name", str, "", "")),
        version=agreed("model_version", version, to_version(sent_version) if sent_version else 0),
        id=typed(content, "id", str, "", ""),
        inputs=inputs,
        outputs=tuple(_outputs(content)),
        parameters=parameters_of(content, ""),
    )
    refuse_duplicates(body[:length], content)
    return infer


def from_answer(answer: InferResponse, infer: InferRequest) -> Body:
    """Write an answer: each output in JSON or behind it, as the request has it."""
    binary = typed(infer.parameters, "binary_data_output", bool, False, "parameters")
    outputs, raw = [], []
    for each in answer.outputs:
        document: dict[str, Any] = {
            "name": each.name,
            "datatype": data_type_of(each.array),
            "shape": each.array.shape,
        }
        if _is_binary(each, default=binary):
            raw.append(to_raw(each.array))
            document["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            flat = each.array.ravel()
            document["data"] = flat.tolist() if flat.dtype == object else flat
        outputs.append(document)
    document = {"model_name": answer.model, "model_version": str(answer.version), "outputs": outputs}
    if answer.id:
        document["id"] = answer.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Body(b"".join((head, *raw)), len(head))


class _Raw:
    """The bytes behind the JSON, taken from the front."""

    def __init__(self, left: memoryview) -> None:
        self.left = left

    def take(self, size: int, field: str) -> bytes:
        if not 0 <= size <= len(self.left):
            raise InvalidRequest(f"says {size} bytes, but there are {len(self.left)}", field=field)
        taken, self.left = bytes(self.left[:size]), self.left[size:]
        return taken


def _length(sent: str, body: int) -> int:
    if not (sent.isascii() and sent.isdigit()) or len(sent) > len(str(body)) or int(sent) > body:
        raise InvalidRequest(
            f"must be from 0 to {body}, the length of the body, not {sent[:64]!r}", field=HEADER_LENGTH
        )
    return int(sent)


def _name(content: Json, path: str) -> str:
    name: str = typed(content, "name", str, "", path)
    if not name:
        raise InvalidRequest("say which", field=f"{path}.name")
    return name


def _tensor(content: Json, name: str, path: str, raw: _Raw) -> Array:
    data_type = typed(content, "datatype", str, "", path)
    shape = integers(content, "shape", path, minimum=0)
    parameters = fields(parameters_of(content, path), f"{path}.parameters", ("binary_data_size",))
    size = typed(parameters, "binary_data_size", int, None, f"{path}.parameters")
    if size is not None:
        if "data" in content:
            raise InvalidRequest("stands beside binary_data_size; give one of the two", field=f"{path}.data")
        return from_raw(data_type, shape, raw.take(size, f"{path}.parameters.binary_data_size"), name)
    if "data" not in content:
        raise InvalidRequest("give data, or binary_data_size and bytes behind the JSON", field=f"{path}.data")
    data = elements(content, "data", path)
    if data_type == BYTES:
        return texts(_strings(data, f"{path}.data"), shape, name)
    if data_type not in DTYPES:
        raise InvalidRequest(
            f"has data type {data_type[:64]!r}; it must be one of {', '.join((*DTYPES, BYTES))}", field=name
        )
    return reshape(nested(data, DTYPES[data_type], name), shape, name)


def _strings(data: list[Any], field: str) -> Iterator[str]:
    while any(isinstance(each, list) for each in data):
        data = list(chain.from_iterable(each if isinstance(each, list) else [each] for each in data))
    for each in data:
        if not isinstance(each, str):
            raise InvalidRequest("must hold strings only", field=field)
        yield each


def _outputs(content: Json) -> Iterator[RequestedOutput]:
    for i, each in enumerate(elements(content, "outputs", "")):
        path = f"outputs[{i}]"
        output = fields(each, path, ("name", "parameters"))
        parameters = parameters_of(output, path)
        typed(parameters, "binary_data", bool, None, f"{path}.parameters")
        yield RequestedOutput(_name(output, path), parameters)


def parameters_of(content: Json, path: str) -> Parameters:
    """Return the parameters of a document or a part of it.

    Raises:
        InvalidRequest: they are no object, or one of them is a list or an object.
    """
    sent = content.get("parameters")
    where = f"{path}.parameters" if path else "parameters"
    parameters = {} if sent is None else fields(sent, where, tuple(sent) if isinstance(sent, dict) else ())
    for name, value in parameters.items():
        if not isinstance(value, bool | int | float | str):
            raise InvalidRequest("must be a string, a number, true or false", field=f"{where}.{name[:64]}")
    return parameters


def _is_binary(output: OutputTensor, *, default: bool) -> bool:
    said = output.requested.parameters.get("binary_data") if output.requested else None
    return default if said is None else bool(said)
