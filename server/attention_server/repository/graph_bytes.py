"""The bytes of the tensors in an ONNX file, which a session of it holds in memory; read without a library for ONNX.

Fields of onnx.proto: ModelProto.graph = 7; GraphProto.node = 1, initializer = 5; NodeProto.attribute = 5;
AttributeProto.t = 5, g = 6, tensors = 10, graphs = 11; TensorProto has its elements in one of ELEMENTS.
"""

from collections.abc import Mapping

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types of protobuf
ELEMENTS = (4, 5, 7, 9, 10, 11)  # float_data, int32_data, int64_data, raw_data, double_data, uint64_data
MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": dict.fromkeys(ELEMENTS, "elements"),
}


def tensor_bytes(content: bytes) -> int:
    """Return the bytes of all tensors in an ONNX file; of elements that are not raw, the encoded bytes.

    Raises:
        ValueError: the file is no protobuf message.
    """
    try:
        return _tensor_bytes(memoryview(content), "model")
    except IndexError as error:
        raise ValueError("is no ONNX file: it ends within a field") from error


def _tensor_bytes(message: memoryview, kind: str) -> int:
    total = place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        if tag & 7 == VARINT:
            _, place = _varint(message, place)
        elif tag & 7 in (FIXED64, FIXED32):
            place += 8 if tag & 7 == FIXED64 else 4
        elif tag & 7 == LENGTH:
            size, place = _varint(message, place)
            inner = MESSAGES[kind].get(tag >> 3)
            if inner == "elements":
                total += size
            elif inner is not None:
                total += _tensor_bytes(message[place : place + size], inner)
            place += size
        else:
            raise ValueError(f"is no ONNX file: it has a field of type {tag & 7}")
    return total


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Return a number and the place behind it."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
