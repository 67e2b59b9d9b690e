"""ONNX files of one node, written without a library for ONNX.

Fields of onnx.proto: ModelProto.ir_version = 1, graph = 7, opset_import = 8; GraphProto.node = 1, name = 2, input = 11,
output = 12; NodeProto.input = 1, output = 2, op_type = 4, attribute = 5, domain = 7; AttributeProto.name = 1, f = 2,
i = 3, type = 20; ValueInfoProto.name = 1, type = 2; TypeProto.tensor_type = 1; Tensor.elem_type = 1, shape = 2;
TensorShapeProto.dim = 1; Dimension.dim_param = 2; OperatorSetIdProto.domain = 1, version = 2.
"""

import struct
from collections.abc import Mapping, Sequence

IR_VERSION, OPSET = 10, 23
FLOAT, FLOAT_ATTRIBUTE, INT_ATTRIBUTE = 1, 1, 2  # TensorProto.FLOAT; AttributeProto.FLOAT and INT


def one_node(
    operator: str, domain: str, inputs: Mapping[str, Sequence[str]], output: str, attributes: Mapping[str, float]
) -> bytes:
    """Return an ONNX file that computes one operator on float32 tensors.

    Args:
        operator: its type.
        domain: of the operator; version 1 of it.
        inputs: the names of the axes of each input, by name.
        output: the name of the only output, of any shape.
        attributes: by name; an int or a float.
    """
    node = b"".join([_field(1, name.encode()) for name in inputs])
    node += _field(2, output.encode()) + _field(4, operator.encode())
    node += b"".join([_field(5, _attribute(name, value)) for name, value in attributes.items()])
    node += _field(7, domain.encode())
    graph = _field(1, node) + _field(2, operator.encode())
    graph += b"".join([_field(11, _tensor(name, _shape(axes))) for name, axes in inputs.items()])
    graph += _field(12, _tensor(output, b""))
    opsets = [_field(8, _field(1, name.encode()) + _number(2, number)) for name, number in (("", OPSET), (domain, 1))]
    return _number(1, IR_VERSION) + _field(7, graph) + b"".join(opsets)


def _attribute(name: str, value: float) -> bytes:
    if isinstance(value, int):
        return _field(1, name.encode()) + _number(3, value) + _number(20, INT_ATTRIBUTE)
    return _field(1, name.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _number(20, FLOAT_ATTRIBUTE)


def _tensor(name: str, shape: bytes) -> bytes:
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, FLOAT) + shape))


def _shape(axes: Sequence[str]) -> bytes:
    return _field(2, b"".join([_field(1, _field(2, axis.encode())) for axis in axes]))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
