"""JSON documents as rows: columns by name, and values for the fields of a sequence."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from attention_batch.readers.rows import IDS, TEXTS

Document = Mapping[str, Any]

ANY_INTEGER = pa.decimal128(20, 0)  # the least type that holds signed and unsigned integers of 64 bits
_RANGES = {
    pa.int64(): (-(2**63), 2**63 - 1),
    pa.uint64(): (0, 2**64 - 1),
    ANY_INTEGER: (-(2**63), 2**64 - 1),
}


def names_of(document: Document) -> list[str]:
    """Return the names in a document, and `a.b` for the name `b` of the object `a`."""
    found: list[str] = []
    for name, value in document.items():
        found.append(name)
        if isinstance(value, dict):
            found += [f"{name}.{each}" for each in names_of(value)]
    return found


def value_of(document: Document, name: str) -> Any:
    """Return the value of a name, as `names_of` gives it; None where there is none."""
    if name in document:
        return document[name]
    column = name
    while column := column.rpartition(".")[0]:
        if isinstance(inner := document.get(column), dict):
            return value_of(inner, name[len(column) + 1 :])
    return None


def integer_type(ids: list[int]) -> pa.DataType:
    """Return the smallest type of `_RANGES` that holds these ids."""
    lowest, highest = min(ids, default=0), max(ids, default=0)
    return next(kind for kind, (first, last) in _RANGES.items() if first <= lowest and highest <= last)


def id_fault(id_: Any, kind: pa.DataType) -> str | None:
    """Return why a value is no id of a type; None where it is one."""
    if kind not in _RANGES:
        return None if isinstance(id_, str) else f"must be a string, as the first row's is, not {id_!r}"
    if not isinstance(id_, int) or isinstance(id_, bool):
        return f"must be an integer, as the first row's is, not {id_!r}"
    first, last = _RANGES[kind]
    return None if first <= id_ <= last else f"must be from {first} to {last}, as the first rows' are, not {id_}"


def field_value(field: str, value: Any) -> Any:
    """Return a JSON value as the value of a field.

    Raises:
        TypeError, ValueError: the field needs another value.
    """
    if value is None:
        return None
    if field in TEXTS:
        if not isinstance(value, str):
            raise TypeError(f"must be a string, not {type(value).__name__}")
        return value
    if field in IDS and isinstance(value, list) and all(type(each) is int for each in value):
        return value
    if field in IDS:
        raise TypeError("must be a list of integers")
    return _vectors(value)


def _vectors(value: Any) -> NDArray[Any]:
    if not isinstance(value, list):
        raise TypeError(f"must be a list of vectors, not {type(value).__name__}")
    if not value:
        return np.empty((0, 0), np.float32)
    if all(type(each) is list for each in value) and bool in set(map(type, chain.from_iterable(value))):
        raise TypeError("must hold numbers, not true or false")  # which NumPy would take for 1 and 0
    try:
        array = np.array(value)
    except ValueError as error:
        raise ValueError("has vectors of several widths") from error
    if array.dtype.kind not in "fiu":
        raise TypeError("must hold numbers")
    if array.ndim == 1:
        raise ValueError(f"must have shape [length, width], not {list(array.shape)}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
