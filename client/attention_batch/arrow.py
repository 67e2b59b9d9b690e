"""Ragged tensors to and from Arrow, without a step of Python for each number.

A tensor whose dimensions are all known is a `fixed_shape_tensor`; one that differs from row to row is nested lists, of
which those of a known length are fixed-size: `[T, D]` is `list<fixed_size_list<float>[D]>`.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from attention_batch.spec import Column, Dims

Array = NDArray[Any]
PREDICTION = pa.struct(
    [("name", pa.string()), ("label", pa.string()), ("probability", pa.float32()), ("row", pa.int32())]
)


def schema(columns: Sequence[Column], id_type: pa.DataType) -> pa.Schema:
    """Return the output's schema."""
    return pa.schema([pa.field("id", id_type), *(pa.field(column.name, _column_type(column)) for column in columns)])


def column_array(column: Column, values: Sequence[Any]) -> pa.Array:
    """Return one column of several rows."""
    match column.kind:
        case "tokens":
            return pa.array([list(each) for each in values], pa.list_(pa.string()))
        case "predictions":
            rows = [[prediction._asdict() for prediction in each] for each in values]
            return pa.array(rows, pa.list_(PREDICTION))
        case "top_k":
            indices = tensors([each.indices for each in values], column.dims, np.dtype(np.int32))
            numbers = tensors([each.values for each in values], column.dims, column.dtype)
            return pa.StructArray.from_arrays([indices, numbers], fields=list(_column_type(column)))
        case _:
            return tensors(values, column.dims, column.dtype)


def tensors(arrays: Sequence[Array], dims: Dims, dtype: "np.dtype[Any]") -> pa.Array:
    """Lay several tensors of one rank behind each other."""
    flat = np.concatenate([np.ravel(array) for array in arrays]).astype(dtype, copy=False)
    if None not in dims:
        fixed = pa.FixedSizeListArray.from_arrays(pa.array(flat), math.prod(filter(None, dims)))
        return pa.ExtensionArray.from_storage(_tensor_type(dims, dtype), fixed)
    shapes = np.array([array.shape for array in arrays], np.int64)
    built = pa.array(flat)
    for axis in range(len(dims) - 1, -1, -1):
        lists = shapes[:, :axis].prod(-1)  # of this axis, in each row
        built = _lists(built, dims[axis], np.repeat(shapes[:, axis], lists))
    return built


def vectors(column: pa.Array) -> list[Array | None]:
    """View each row of a column as an array [length, width]; None where it is null.

    Takes lists of lists, of which any may be fixed-size or large, and fixed-shape tensors. Null numbers are NaN. A row
    with a null vector, or with vectors of several widths, comes as an array of rank 1, which nobody takes.

    Args:
        column: of a type that `is_vectors` knows.
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
    changes = _before(widths[1:] != widths[:-1])  # from one vector to the next
    broken = _before(np.asarray(inner.is_null()))
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


def _before(found: Array) -> Array:
    """Return how many are true before each position, and before the end."""
    return np.concatenate([[0], np.cumsum(found)])


def is_vectors(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold sequences of vectors."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return len(kind.shape) == 2
    return _is_list(kind) and _is_list(kind.value_type) and _is_number(kind.value_type.value_type)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _is_fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or _is_fixed(kind))


def _column_type(column: Column) -> pa.DataType:
    match column.kind:
        case "tokens":
            return pa.list_(pa.string())
        case "predictions":
            return pa.list_(PREDICTION)
        case "top_k":
            numbers = _tensor_type(column.dims, column.dtype)
            return pa.struct([("indices", _tensor_type(column.dims, np.dtype(np.int32))), ("values", numbers)])
        case _:
            return _tensor_type(column.dims, column.dtype)


def _tensor_type(dims: Dims, dtype: "np.dtype[Any]") -> pa.DataType:
    kind = pa.from_numpy_dtype(dtype)
    if None not in dims:
        return pa.fixed_shape_tensor(kind, list(dims))
    for size in reversed(dims):
        kind = pa.list_(kind) if size is None else pa.list_(kind, size)
    return kind


def _lists(values: pa.Array, size: int | None, lengths: Array) -> pa.Array:
    if size is not None:
        return pa.FixedSizeListArray.from_arrays(values, size)
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


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
    """Return where each list begins and ends among the values."""
    if _is_fixed(lists.type):
        size = lists.type.list_size
        starts = (lists.offset + np.arange(len(lists), dtype=np.int64)) * size
        return starts, starts + size
    offsets = lists.offsets.to_numpy().astype(np.int64, copy=False)
    return offsets[:-1], offsets[1:]


def _numbers(values: pa.Array) -> Array:
    """View numbers as float32 (float16 stays, as it is sent); null is NaN."""
    if values.null_count:
        values = values.cast(pa.float32()).fill_null(float("nan"))
    numbers: Array = values.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
        return numbers if numbers.dtype == np.float16 else numbers.astype(np.float32, copy=False)
