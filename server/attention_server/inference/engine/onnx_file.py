"""ONNX files of a few nodes, written without a library for ONNX.

Fields of onnx.proto: ModelProto.ir_version = 1, graph = 7, opset_import = 8; GraphProto.node = 1, name = 2, input = 11,
output = 12; NodeProto.input = 1, output = 2, op_type = 4, attribute = 5, domain = 7; AttributeProto.name = 1, f = 2,
i = 3, type = 20; ValueInfoProto.name = 1, type = 2; TypeProto.tensor_type = 1; Tensor.elem_type = 1, shape = 2;
TensorShapeProto.dim = 1; Dimension.dim_param = 2; OperatorSetIdProto.domain = 1, version = 2.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

IR_VERSION = 10
VERSIONS = {"": 23, "com.microsoft": 1}  # of the domains of operators
FLOAT, FLOAT_ATTRIBUTE, INT_ATTRIBUTE = 1, 1, 2  # TensorProto.FLOAT; AttributeProto.FLOAT and INT


class Node(NamedTuple):
    """A node of a graph.

    Attributes:
        operator: its type.
        inputs, outputs: names of tensors.
        attributes: by name; an int or a float.
        domain: of the operator.
    """

    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, float] = {}
    domain: str = ""


def onnx_file(name: str, nodes: Sequence[Node], inputs: Mapping[str, Sequence[str]], output: str) -> bytes:
    """Return an ONNX file that computes some nodes on float32 tensors.

    Args:
        name: of the graph.
        nodes: in the order in which they run.
        inputs: the names of the axes of each input, by name.
        output: the name of the only output, of any shape.
    """
    graph = b"".join([_field(1, _node(node)) for node in nodes]) + _field(2, name.encode())
    graph += b"".join([_field(11, _tensor(input_name, _shape(axes))) for input_name, axes in inputs.items()])
    graph += _field(12, _tensor(output, b""))
    opsets = [_field(8, _field(1, domain.encode()) + _number(2, version)) for domain, version in VERSIONS.items()]
    return _number(1, IR_VERSION) + _field(7, graph) + b"".join(opsets)


def _node(node: Node) -> bytes:
    content = b"".join([_field(1, name.encode()) for name in node.inputs])
    content += b"".join([_field(2, name.encode()) for name in node.outputs])
    content += _field(4, node.operator.encode())
    content += b"".join([_field(5, _attribute(name, value)) for name, value in node.attributes.items()])
    return content + _field(7, node.domain.encode())


def _attribute(name: str, value: float) -> bytes:
    if isinstance(value, int):  # a negative one in two's complement
        return _field(1, name.encode()) + _number(3, value % 2**64) + _number(20, INT_ATTRIBUTE)
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
