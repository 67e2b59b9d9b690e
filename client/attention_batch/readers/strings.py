"""Arrow columns of strings and ids as Python values."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class NotUtf8:
    """A string that cannot be decoded, and the reason."""

    reason: str


def values(column: pa.Array) -> list[Any]:
    """Return each row's value; None where it is null, `NotUtf8` where it is a string that is not UTF-8.

    Arrow does not check strings when it reads a file. The column is decoded row by row only if a row is at fault.
    """
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return NotUtf8(f"is not UTF-8: {error.reason} at byte {error.start}")
