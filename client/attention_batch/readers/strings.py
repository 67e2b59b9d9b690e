"""Arrow columns of strings and ids as Python values."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


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


def check_offsets(column: pa.Array) -> None:
    """Check everything in a column but that its strings are UTF-8: Arrow reads what a file says without a look.

    Raises:
        pyarrow.ArrowInvalid: a list or a string is not inside its buffer.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        check_offsets(column.storage)
    elif pa.types.is_dictionary(kind):
        column.validate()
        check_offsets(column.dictionary)
        column.indices.validate(full=True)
        _check_indices(column)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column.validate()
        column.view(pa.binary() if pa.types.is_string(kind) else pa.large_binary()).validate(full=True)
    else:
        column.validate(full=True)


def _check_indices(column: pa.DictionaryArray) -> None:
    largest, smallest = pc.max(column.indices).as_py(), pc.min(column.indices).as_py()
    if largest is not None and not 0 <= smallest <= largest < len(column.dictionary):
        raise pa.ArrowInvalid(f"a dictionary of {len(column.dictionary)} values has no value {largest} or {smallest}")


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return NotUtf8(f"is not UTF-8: {error.reason} at byte {error.start}")
