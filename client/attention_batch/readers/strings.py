"""Arrow columns of strings and ids as Python values."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_BYTES_OF = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


@dataclass(frozen=True, slots=True)
class NotUtf8:
    """A string that cannot be decoded, and the reason."""

    reason: str


def values(column: pa.Array) -> list[Any]:
    """Return each row's value; None where it is null, `NotUtf8` where it is a string that is not UTF-8.

    Arrow does not check strings when it reads a file. The column is decoded row by row only if a row is at fault.
    """
    if pa.types.is_dictionary(column.type):
        known = values(column.dictionary)
        return [None if index is None else known[index] for index in column.indices.to_pylist()]
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def check_offsets(column: pa.Array) -> None:
    """Check everything in a column but that its strings are UTF-8: Arrow does not check these when it reads a file.

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
    elif kind in _BYTES_OF:
        column.validate()
        column.view(_BYTES_OF[kind]).validate(full=True)
    elif pa.types.is_struct(kind):
        column.validate()
        for part in range(kind.num_fields):
            check_offsets(column.field(part))
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
