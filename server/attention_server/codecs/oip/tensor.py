"""A tensor's bytes as the Open Inference Protocol has them, in gRPC's raw contents and in HTTP's binary form alike."""

import struct
from collections.abc import Iterable, Iterator

import numpy as np
from attention_proto.codec import NAMES, from_bytes

from attention_server.codecs.document import reshape
from attention_server.domain.messages import Array
from attention_server.errors import InvalidRequest

BYTES = "BYTES"
LENGTH = struct.Struct("<I")  # before each element of BYTES


def data_type_of(array: Array) -> str:
    """Return the name of an array's type."""
    return BYTES if array.dtype == object else NAMES[array.dtype]


def from_raw(data_type: str, shape: Iterable[int], data: bytes, field: str) -> Array:
    """Read a tensor; texts become an array of `str`.

    Raises:
        InvalidRequest: the type is unknown, or the bytes do not fill the shape.
    """
    dims = tuple(shape)
    if data_type == BYTES:
        return texts(_split(data, field), dims, field)
    try:
        return from_bytes(data_type, dims, data)
    except ValueError as error:
        raise InvalidRequest(str(error), field=field) from error


def to_raw(array: Array) -> bytes | memoryview:
    """Return the bytes of a tensor; of numbers as a view, where they lie in their order."""
    if array.dtype != object:
        return array.ravel().view(np.uint8).data
    return b"".join(LENGTH.pack(len(each)) + each for each in (text.encode() for text in array.ravel().tolist()))


def texts(elements: Iterable[bytes | str], shape: tuple[int, ...], field: str) -> Array:
    """Return an array of `str`.

    Raises:
        InvalidRequest: an element is no UTF-8, or they do not fill the shape.
    """
    try:
        decoded = [each if isinstance(each, str) else each.decode() for each in elements]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"must be UTF-8: {error}", field=field) from error
    return reshape(np.array(decoded, dtype=object), shape, field)


def _split(data: bytes, field: str) -> Iterator[bytes]:
    """Yield the elements of BYTES."""
    start = 0
    while start < len(data):
        end = start + LENGTH.size
        end += LENGTH.unpack(data[start:end])[0] if end <= len(data) else 0
        if end > len(data):
            raise InvalidRequest("ends within an element; each is its length in 4 bytes, and its bytes", field=field)
        yield data[start + LENGTH.size : end]
        start = end
