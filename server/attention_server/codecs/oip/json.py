"""Open Inference Protocol requests and responses in JSON, with tensors in the JSON or in bytes after it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from attention_proto.codec import DTYPES

from attention_server.codecs.document import Json, elements, fields, integers, nested, numbers, parse, reshape, typed
from attention_server.codecs.duplicates import refuse_duplicates
from attention_server.codecs.number_lists import for_writing, write
from attention_server.codecs.oip.content import CONTENT_TYPE, read_content
from attention_server.codecs.oip.messages import InferRequest, InferResponse, OutputTensor, Parameters, RequestedOutput
from attention_server.codecs.oip.tensor import BYTES, check_data_type, data_type_of, decode_raw, encode_raw, texts
from attention_server.codecs.url import parse_version, url_or_body
from attention_server.domain.messages import Array
from attention_server.errors import InvalidRequest

HEADER_LENGTH = "Inference-Header-Content-Length"
REQUEST_FIELDS = ("id", "model_name", "model_version", "parameters", "inputs", "outputs")
INPUT_FIELDS = ("name", "shape", "datatype", "parameters", "data")


class Body(NamedTuple):
    """A body: JSON of `json_length` bytes, then the bytes of binary tensors."""

    content: bytes
    json_length: int


def decode_request(body: bytes, header_length: str | None, model: str, version: int) -> InferRequest:
    """Decode a request.

    Args:
        body: JSON, then the bytes of the inputs that have the parameter `binary_data_size`.
        header_length: the header with the length of the JSON; None if the whole body is JSON.
        model: the model in the URL; the document may repeat it.
        version: the version in the URL, or 0; the document may repeat it.

    Raises:
        TooLarge: the document has too many lists and objects.
        InvalidRequest: the body is not JSON, a field is unknown or of the wrong type, or a tensor is invalid.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    content = fields(parse(body[:length]), "", REQUEST_FIELDS)
    raw = _BinaryData(memoryview(body)[length:])
    inputs: dict[str, Array] = {}
    for i, each in enumerate(elements(content, "inputs", "")):
        tensor = fields(each, f"inputs[{i}]", INPUT_FIELDS)
        name = _name(tensor, f"inputs[{i}]")
        if name in inputs:
            raise InvalidRequest("is sent twice", field=name[:64])
        inputs[name] = _tensor(tensor, name[:64], f"inputs[{i}]", raw)
    if raw.remaining:
        raise InvalidRequest(f"leaves {len(raw.remaining)} bytes that belong to no input", field=HEADER_LENGTH)
    sent_version = typed(content, "model_version", str, "", "")
    infer = InferRequest(
        model=url_or_body("model_name", model, typed(content, "model_name", str, "", "")),
        version=url_or_body("model_version", version, parse_version(sent_version) if sent_version else 0),
        id=typed(content, "id", str, "", ""),
        inputs=inputs,
        outputs=tuple(_outputs(content)),
        parameters=parameters_of(content, ""),
    )
    refuse_duplicates(body[:length], content)
    return infer


def encode_response(response: InferResponse, infer: InferRequest) -> Body:
    """Encode a response; each output is in the JSON or in bytes after it, as the request asks."""
    binary = typed(infer.parameters, "binary_data_output", bool, False, "parameters")
    outputs, raw = [], []
    for each in response.outputs:
        document: dict[str, Any] = {
            "name": each.name,
            "datatype": data_type_of(each.array),
            "shape": each.array.shape,
        }
        if _is_binary(each, default=binary):
            raw.append(encode_raw(each.array))
            document["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            flat = each.array.ravel()
            document["data"] = flat.tolist() if flat.dtype == object else for_writing(flat)
        outputs.append(document)
    document = {"model_name": response.model, "model_version": str(response.version), "outputs": outputs}
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = response.parameters
    head = write(document)
    return Body(b"".join((head, *raw)), len(head))


class _BinaryData:
    """The bytes after the JSON, consumed from the front."""

    def __init__(self, data: memoryview) -> None:
        self.remaining = data

    def take(self, size: int, field: str) -> bytes:
        if not 0 <= size <= len(self.remaining):
            raise InvalidRequest(f"says {size} bytes, but there are {len(self.remaining)}", field=field)
        taken, self.remaining = bytes(self.remaining[:size]), self.remaining[size:]
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


def _tensor(content: Json, name: str, path: str, raw: _BinaryData) -> Array:
    parameters = fields(parameters_of(content, path), f"{path}.parameters", ("binary_data_size", CONTENT_TYPE))
    array = _array(content, parameters, name, path, raw)
    return read_content(array, parameters, f"{path}.parameters")


def _array(content: Json, parameters: Parameters, name: str, path: str, raw: _BinaryData) -> Array:
    data_type = check_data_type(typed(content, "datatype", str, "", path), name)
    shape = integers(content, "shape", path, minimum=0)
    size = typed(parameters, "binary_data_size", int, None, f"{path}.parameters")
    if size is not None:
        if "data" in content:
            raise InvalidRequest("stands beside binary_data_size; give one of the two", field=f"{path}.data")
        return decode_raw(data_type, shape, raw.take(size, f"{path}.parameters.binary_data_size"), name)
    if "data" not in content:
        raise InvalidRequest("give data, or binary_data_size and bytes behind the JSON", field=f"{path}.data")
    if data_type == BYTES:
        return texts(_strings(elements(content, "data", path), f"{path}.data"), shape, name)
    return reshape(nested(numbers(content, "data", path), DTYPES[data_type], name), shape, name)


def _strings(data: list[Any], field: str) -> Iterator[str]:
    """Yield the strings of nested lists in order."""
    open_lists = [iter(data)]
    while open_lists:
        for each in open_lists[-1]:
            if isinstance(each, list):
                open_lists.append(iter(each))
                break
            if not isinstance(each, str):
                raise InvalidRequest("must hold strings only", field=field)
            yield each
        else:
            open_lists.pop()


def _outputs(content: Json) -> Iterator[RequestedOutput]:
    for i, each in enumerate(elements(content, "outputs", "")):
        path = f"outputs[{i}]"
        output = fields(each, path, ("name", "parameters"))
        parameters = parameters_of(output, path)
        typed(parameters, "binary_data", bool, None, f"{path}.parameters")
        yield RequestedOutput(_name(output, path), parameters)


def parameters_of(content: Json, path: str) -> Parameters:
    """Return the parameters of a request, input or output, without those that are null.

    MLServer's clients write `"content_type": null`, and `headers` of a request that was received.

    Raises:
        InvalidRequest: the parameters are not an object, or a value is a list or an object.
    """
    sent = content.get("parameters")
    where = f"{path}.parameters" if path else "parameters"
    given = {} if sent is None else fields(sent, where, tuple(sent) if isinstance(sent, dict) else ())
    parameters = {name: value for name, value in given.items() if value is not None and name != "headers"}
    for name, value in parameters.items():
        if not isinstance(value, bool | int | float | str):
            raise InvalidRequest("must be a string, a number, true or false", field=f"{where}.{name[:64]}")
    return parameters


def _is_binary(output: OutputTensor, *, default: bool) -> bool:
    choice = output.requested.parameters.get("binary_data") if output.requested else None
    return default if choice is None else bool(choice)
