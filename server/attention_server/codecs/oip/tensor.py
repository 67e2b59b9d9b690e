"""Tensors as bytes of the Open Inference Protocol, the same in gRPC's raw contents and HTTP's binary extension."""

import struct
from collections.abc import Iterable, Iterator

import numpy as np
from attention_proto.codec import DTYPES, NAMES, from_bytes

from attention_server.codecs.document import reshape
from attention_server.domain.messages import Array
from attention_server.errors import InvalidRequest

BYTES = "BYTES"
LENGTH = struct.Struct("<I")  # precedes each element of BYTES


def data_type_of(array: Array) -> str:
    """Return the protocol's name of an array's type."""
    return BYTES if array.dtype == object else NAMES[array.dtype]


def check_data_type(name: str, field: str) -> str:
    """Return the name of a data type.

    Raises:
        InvalidRequest: there is no such data type.
    """
    if name == BYTES or name in DTYPES:
        return name
    known = ", ".join((*DTYPES, BYTES))
    remedy = "; send array.astype('float32') as FP32" if name == "FP64" else ""  # NumPy's own type of numbers
    raise InvalidRequest(f"has data type {name[:64]!r}; it must be one of {known}{remedy}", field=field)


def decode_raw(data_type: str, shape: Iterable[int], data: bytes, field: str) -> Array:
    """Decode a tensor; BYTES become an array of `str` objects.

    Raises:
        InvalidRequest: the type is unknown, the bytes do not fill the shape, or an element is not UTF-8.
    """
    dims = tuple(shape)
    if data_type == BYTES:
        return texts(_split(data, field), dims, field)
    try:
        return from_bytes(data_type, dims, data)
    except ValueError as error:
        raise InvalidRequest(str(error), field=field) from error


def encode_raw(array: Array) -> bytes | memoryview:
    """Encode a tensor; a contiguous array of numbers is not copied."""
    if array.dtype != object:
        return array.ravel().view(np.uint8).data
    return b"".join(LENGTH.pack(len(each)) + each for each in (text.encode() for text in array.ravel().tolist()))


def texts(elements: Iterable[bytes | str], shape: tuple[int, ...], field: str) -> Array:
    """Return an array of `str` objects.

    Raises:
        InvalidRequest: an element is not UTF-8, or the elements do not fill the shape.
    """
    try:
        decoded = [each if isinstance(each, str) else each.decode() for each in elements]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"must be UTF-8: {error}", field=field) from error
    return reshape(np.array(decoded, dtype=object), shape, field)


def _split(data: bytes, field: str) -> Iterator[bytes]:
    """Yield the elements of a BYTES tensor."""
    start = 0
    while start < len(data):
        end = start + LENGTH.size
        end += LENGTH.unpack(data[start:end])[0] if end <= len(data) else 0
        if end > len(data):
            raise InvalidRequest("ends within an element; each is its length in 4 bytes, and its bytes", field=field)
        yield data[start + LENGTH.size : end]
        start = end
