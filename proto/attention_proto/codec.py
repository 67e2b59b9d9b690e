"""NumPy arrays to and from tensors of the contract: the data types, the sizes and the byte order."""

import functools
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_proto import wire
from attention_proto.attention.v1.attention_pb2 import DataType, Tensor

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT16": np.dtype("<u2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_NUMBERS = {dtype: DataType.Value(f"DATA_TYPE_{name}") for name, dtype in DTYPES.items()}
_DATA = wire.tag(Tensor.DESCRIPTOR.fields_by_name["data"])
_NAMES_OF_NUMBERS: dict[int, str] = {number: NAMES[dtype] for dtype, number in _NUMBERS.items()}

USUAL_RANK = 4  # types and sizes of shapes up to this rank are cached; a caller may send a shape of any length

if sys.byteorder != "little":
    raise ImportError("attention_proto reads and writes tensors in place, which needs a little-endian machine")


def from_bytes(data_type: str, shape: Iterable[int], data: bytes | memoryview) -> NDArray[Any]:
    """View bytes as a read-only array, without a copy.

    Args:
        data_type: a key of `DTYPES`.
        shape: the length of each dimension.
        data: exactly product(shape) elements.

    Raises:
        ValueError: the type is unknown, a dimension is negative, or the bytes do not fill the shape.
    """
    dims = tuple(shape)
    dtype, expected = (_known_form if len(dims) <= USUAL_RANK else _form)(data_type, dims)
    if len(data) != expected:
        raise ValueError(f"has shape {[*dims]} of {data_type}, which is {expected} bytes, but carries {len(data)}")
    if dtype == np.bool_:
        return np.frombuffer(data, np.uint8).astype(np.bool_).reshape(dims)  # NumPy's bool has no bytes but 0 and 1
    return np.frombuffer(data, dtype).reshape(dims)


def _form(data_type: str, dims: tuple[int, ...]) -> tuple[np.dtype[Any], int]:
    """Return the dtype and the number of bytes of an array."""
    dtype = DTYPES.get(data_type)
    if dtype is None:
        raise ValueError(f"has data type {data_type or 'UNSPECIFIED'}; it must be one of {', '.join(DTYPES)}")
    if dims and min(dims) < 0:
        raise ValueError(f"has shape {[*dims]}; no dimension may be negative")
    return dtype, math.prod(dims) * dtype.itemsize  # Python integers do not overflow


_known_form = functools.lru_cache(4096)(_form)


def decode(tensor: Tensor) -> NDArray[Any]:
    """View a tensor as a read-only array; see `from_bytes`."""
    number = tensor.data_type
    return from_bytes(_NAMES_OF_NUMBERS.get(number) or str(number or ""), tensor.shape, tensor.data)


def encode(array: NDArray[Any]) -> Tensor:
    """Copy an array into a new tensor; see `write`."""
    tensor = Tensor()
    write(array, tensor)
    return tensor


@functools.lru_cache(4096)
def head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the bytes of a serialized tensor before its elements, which are its last bytes.

    Raises:
        ValueError: the contract has no such data type.
    """
    start = Tensor(data_type=_number(dtype), shape=shape).SerializeToString()
    return start + _DATA + wire.varint(math.prod(shape) * dtype.itemsize)


def write(array: NDArray[Any], tensor: Tensor) -> None:
    """Copy an array into an empty tensor, which may be a field of a message: protobuf copies a separate tensor again.

    Raises:
        ValueError: the contract has no such data type.
    """
    tensor.data_type = _number(array.dtype)
    tensor.shape.extend(array.shape)
    tensor.data = array.tobytes()


def write_packed(arrays: Sequence[NDArray[Any]], tensor: Tensor) -> None:
    """Concatenate arrays along the first dimension into an empty tensor; all else of dtype and shape is equal.

    Raises:
        ValueError: the contract has no such data type.
    """
    first = arrays[0]
    tensor.data_type = _number(first.dtype)
    tensor.shape.extend((sum(map(len, arrays)), *first.shape[1:]))
    tensor.data = b"".join([np.ascontiguousarray(array).data for array in arrays])


def _number(dtype: np.dtype[Any]) -> "DataType.ValueType":
    number = _NUMBERS.get(dtype)
    if number is None:
        raise ValueError(f"has dtype {dtype}; it must be one of {', '.join(map(str, NAMES))}")
    return number
