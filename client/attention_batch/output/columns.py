"""Arrow columns of the output, built without a step of Python for each number.

A tensor is nested lists, fixed-size where an axis has a known length: `[T, D]` is `list<fixed_size_list<float>[D]>`. A
tensor of a known shape may be a `fixed_shape_tensor`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from attention_client import Prediction
from numpy.typing import NDArray

from attention_batch.spec import Column

Array = NDArray[Any]
LABELLED = [("id", pa.int32()), ("label", pa.string()), ("probability", pa.float32())]
PREDICTION = pa.struct([("name", pa.string()), *LABELLED, ("row", pa.int32())])
PREDICTION_WITH_TOP = pa.struct([*PREDICTION, ("top", pa.list_(pa.struct(LABELLED)))])


def schema(columns: Sequence[Column], id_type: pa.DataType) -> pa.Schema:
    """Return the output's schema."""
    return pa.schema([pa.field("id", id_type), *(pa.field(column.name, _column_type(column)) for column in columns)])


def column_array(column: Column, values: Sequence[Any]) -> pa.Array:
    """Return the Arrow array of one column over several rows.

    Args:
        column: its kind, dimensions and dtype.
        values: one for each row, from `Column.take`.
    """
    match column.kind:
        case "tokens":
            return pa.array([list(each) for each in values], pa.list_(pa.string()))
        case "count":
            return pa.array(values, pa.int32())
        case "predictions":
            rows = [[_prediction(prediction) for prediction in each] for each in values]
            return pa.array(rows, _column_type(column))
        case "alignment":
            return pa.array(values, pa.string())
        case "top_k":
            indices = _tensors([each.indices for each in values], column, np.dtype(np.int32))
            numbers = _tensors([each.values for each in values], column, column.dtype)
            return pa.StructArray.from_arrays([indices, numbers], fields=list(_column_type(column)))
        case _:
            return _tensors(values, column, column.dtype)


def _tensors(arrays: Sequence[Array], column: Column, dtype: "np.dtype[Any]") -> pa.Array:
    """Concatenate tensors of one rank into an Arrow array with one tensor a row."""
    dims = column.dims
    flat = np.concatenate([np.ravel(array) for array in arrays]).astype(dtype, copy=False)
    if column.is_extension:
        fixed = pa.FixedSizeListArray.from_arrays(pa.array(flat), math.prod(filter(None, dims)))
        return pa.ExtensionArray.from_storage(_tensor_type(column, dtype), fixed)
    shapes = np.array([array.shape for array in arrays], np.int64)
    built = pa.array(flat)
    for axis in range(len(dims) - 1, -1, -1):
        lists = shapes[:, :axis].prod(-1)  # of this axis, in each row
        built = _lists(built, dims[axis], np.repeat(shapes[:, axis], lists))
    return built


def _prediction(prediction: Prediction) -> dict[str, Any]:
    return {**prediction._asdict(), "top": [candidate._asdict() for candidate in prediction.top]}


def _column_type(column: Column) -> pa.DataType:
    match column.kind:
        case "tokens":
            return pa.list_(pa.string())
        case "count":
            return pa.int32()
        case "alignment":
            return pa.string()
        case "predictions":
            return pa.list_(PREDICTION_WITH_TOP if column.has_top else PREDICTION)
        case "top_k":
            numbers = _tensor_type(column, column.dtype)
            return pa.struct([("indices", _tensor_type(column, np.dtype(np.int32))), ("values", numbers)])
        case _:
            return _tensor_type(column, column.dtype)


def _tensor_type(column: Column, dtype: "np.dtype[Any]") -> pa.DataType:
    kind = pa.from_numpy_dtype(dtype)
    if column.is_extension:
        return pa.fixed_shape_tensor(kind, list(column.dims))
    for size in reversed(column.dims):
        kind = pa.list_(kind) if size is None else pa.list_(kind, size)
    return kind


def _lists(values: pa.Array, size: int | None, lengths: Array) -> pa.Array:
    if size is not None:
        return pa.FixedSizeListArray.from_arrays(values, size)
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)
