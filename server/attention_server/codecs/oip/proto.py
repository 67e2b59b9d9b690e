"""Open Inference Protocol requests and responses in protobuf."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from attention_proto import wire
from attention_proto.codec import DTYPES
from attention_proto.inference import grpc_predict_v2_pb2 as pb

from attention_server.codecs.document import fields, reshape
from attention_server.codecs.oip.content import CONTENT_TYPE, read_content
from attention_server.codecs.oip.messages import InferRequest, InferResponse, Parameters, RequestedOutput
from attention_server.codecs.oip.tensor import BYTES, check_data_type, data_type_of, decode_raw, encode_raw, texts
from attention_server.codecs.url import parse_version
from attention_server.domain.messages import Array
from attention_server.errors import InvalidRequest

# The typed field of each data type; FP16 has none and is sent in raw contents.
CONTENTS = {
    "BOOL": "bool_contents",
    "UINT16": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    BYTES: "bytes_contents",
}
# KServe's client repeats HTTP's size of a tensor here, which raw contents tell themselves.
INPUT_PARAMETERS = ("binary_data_size", CONTENT_TYPE)
RAW = wire.tag(pb.ModelInferResponse.DESCRIPTOR.fields_by_name["raw_output_contents"])
INFER_RESPONSE = wire.tag(pb.ModelStreamInferResponse.DESCRIPTOR.fields_by_name["infer_response"])


def decode_request(message: pb.ModelInferRequest) -> InferRequest:
    """Decode a request.

    Raises:
        InvalidRequest: a tensor's contents do not fill its shape, or an input is sent twice.
    """
    raw = iter(message.raw_input_contents)
    inputs: dict[str, Array] = {}
    for i, tensor in enumerate(message.inputs):
        if tensor.name in inputs:
            raise InvalidRequest("is sent twice", field=tensor.name[:64])
        array = _tensor(tensor, raw)
        path = f"inputs[{i}].parameters"
        inputs[tensor.name] = read_content(array, fields(_parameters(tensor.parameters), path, INPUT_PARAMETERS), path)
    if next(raw, None) is not None:
        raise InvalidRequest("has more elements than there are inputs without contents", field="raw_input_contents")
    return InferRequest(
        model=message.model_name,
        version=parse_version(message.model_version) if message.model_version else 0,
        id=message.id,
        inputs=inputs,
        outputs=tuple(RequestedOutput(each.name, _parameters(each.parameters)) for each in message.outputs),
        parameters=_parameters(message.parameters),
    )


def encode_response(response: InferResponse) -> bytes:
    """Encode a response as a serialized ModelInferResponse."""
    return _response_parts(response, {}).join()


def encode_stream_response(response: InferResponse) -> bytes:
    """Encode the single response to a request of a stream as a serialized ModelStreamInferResponse."""
    streamed = wire.Parts()
    streamed.add(
        INFER_RESPONSE, _response_parts(response, {"triton_final_response": pb.InferParameter(bool_param=True)})
    )
    return streamed.join()


def _response_parts(response: InferResponse, parameters: Mapping[str, pb.InferParameter]) -> wire.Parts:
    """Encode a response in parts: each tensor is in raw contents, in the order of the outputs, and is copied once."""
    outputs = [
        pb.ModelInferResponse.InferOutputTensor(
            name=each.name, datatype=data_type_of(each.array), shape=each.array.shape
        )
        for each in response.outputs
    ]
    message = pb.ModelInferResponse(
        model_name=response.model,
        model_version=str(response.version),
        id=response.id,
        parameters={**_told(response.parameters), **parameters},
        outputs=outputs,
    )
    parts = wire.Parts(message.SerializeToString())
    for each in response.outputs:
        parts.add(RAW, encode_raw(each.array))
    return parts


def _told(parameters: Parameters) -> dict[str, pb.InferParameter]:
    """Encode the parameters of a response: texts and numbers."""
    return {
        name: pb.InferParameter(string_param=value) if isinstance(value, str) else pb.InferParameter(double_param=value)
        for name, value in parameters.items()
    }


def _tensor(tensor: pb.ModelInferRequest.InferInputTensor, raw: Iterator[bytes]) -> Array:
    field, shape = tensor.name[:64], tuple(tensor.shape)
    data_type = check_data_type(tensor.datatype, field)
    if not tensor.contents.ByteSize():
        return decode_raw(data_type, shape, next(raw, b""), field)
    if data_type not in CONTENTS:
        raise InvalidRequest(f"of type {data_type[:64]!r} cannot be sent in contents, but in raw", field=field)
    beside = [each.name for each, _ in tensor.contents.ListFields() if each.name != CONTENTS[data_type]]
    if beside:
        raise InvalidRequest(f"is {data_type}, sent in {CONTENTS[data_type]}; leave out {beside[0]}", field=field)
    contents = getattr(tensor.contents, CONTENTS[data_type])
    if data_type == BYTES:
        return texts(contents, shape, field)
    return reshape(np.array(contents, DTYPES[data_type]), shape, field)


def _parameters(parameters: Mapping[str, pb.InferParameter]) -> Parameters:
    return {name: _parameter(value, name) for name, value in parameters.items()}


def _parameter(parameter: pb.InferParameter, name: str) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise InvalidRequest("has no value", field=f"parameters.{name[:64]}")
    return getattr(parameter, kind)
