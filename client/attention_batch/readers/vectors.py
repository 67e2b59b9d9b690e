"""Arrow columns of vectors as NumPy arrays, without a step of Python for each number."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[Any]


def is_vectors(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold sequences of vectors [T, D]."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return len(kind.shape) == 2
    return _is_list(kind) and _is_list(kind.value_type) and _is_number(kind.value_type.value_type)


def is_integers(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold lists of integers."""
    return _is_list(kind) and bool(pa.types.is_integer(kind.value_type))


def vectors(column: pa.Array) -> list[Array | None]:
    """View each row of a column as an array [T, D]; None where it is null.

    Accepts lists of lists, of which any may be fixed-size or large, and fixed-shape tensors. Null numbers become NaN.
    A row with a null vector, or with vectors of several widths, becomes an array of rank 1, which no reader accepts.

    Args:
        column: of a type for which `is_vectors` is true.
    """
    if isinstance(column.type, pa.FixedShapeTensorType):
        return _fixed_tensors(column)
    starts, ends = _bounds(column)
    first, last = (int(starts[0]), int(ends[-1])) if len(column) else (0, 0)
    starts, ends = starts - first, ends - first
    inner = column.values.slice(first, last - first)  # a slice of a column has all its values
    inner_starts, inner_ends = _bounds(inner)
    numbers = _numbers(inner.values)
    widths = inner_ends - inner_starts
    changes = _counts_before(widths[1:] != widths[:-1])  # from one vector to the next
    broken = _counts_before(np.asarray(inner.is_null()))
    nulls = np.asarray(column.is_null()).tolist() if column.null_count else itertools.repeat(False)
    rows: list[Array | None] = []
    for null, start, end in zip(nulls, starts.tolist(), ends.tolist(), strict=False):
        if null:
            rows.append(None)
        elif start == end:
            rows.append(np.empty((0, column.type.value_type.list_size if _is_fixed(inner.type) else 0), np.float32))
        elif changes[end - 1] > changes[start] or broken[end] > broken[start]:
            rows.append(np.empty(end - start, np.float32))
        else:
            rows.append(numbers[inner_starts[start] : inner_ends[end - 1]].reshape(end - start, -1))
    return rows


def _counts_before(flags: Array) -> Array:
    """Return the number of true flags before each position, and before the end."""
    return np.concatenate([[0], np.cumsum(flags)])


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _is_fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or _is_fixed(kind))


def _fixed_tensors(column: pa.FixedShapeTensorArray) -> list[Array | None]:
    size = int(np.prod(column.type.shape))
    storage = column.storage
    numbers = _numbers(storage.values)[storage.offset * size : (storage.offset + len(storage)) * size]
    stacked = numbers.reshape(len(storage), *column.type.shape)
    if column.type.permutation:
        stacked = stacked.transpose(0, *(axis + 1 for axis in np.argsort(column.type.permutation)))
    nulls = np.asarray(storage.is_null())
    return [None if null else tensor for null, tensor in zip(nulls.tolist(), stacked, strict=True)]


def _bounds(lists: pa.Array) -> tuple[Array, Array]:
    """Return the begin and the end of each list among the values."""
    if _is_fixed(lists.type):
        size = lists.type.list_size
        starts = (lists.offset + np.arange(len(lists), dtype=np.int64)) * size
        return starts, starts + size
    offsets = lists.offsets.to_numpy().astype(np.int64, copy=False)
    return offsets[:-1], offsets[1:]


def _numbers(values: pa.Array) -> Array:
    """View numbers as float32; float16 stays, since it is sent as it is. Null becomes NaN."""
    if values.null_count:
        values = values.cast(pa.float32()).fill_null(float("nan"))
    numbers: Array = values.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):  # a number out of range becomes infinite, which the server rejects by name
        return numbers if numbers.dtype == np.float16 else numbers.astype(np.float32, copy=False)
