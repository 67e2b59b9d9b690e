"""Columns of Arrow tables by name; `a.b` is the part `b` of the struct `a`."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from attention_batch.readers.strings import check_offsets


def names_of(schema: pa.Schema) -> list[str]:
    """Return the names of all columns, each struct's before those of its parts."""
    return [name for field in schema for name in _names(field)]


def type_of(schema: pa.Schema, name: str) -> pa.DataType:
    """Return the type of a column. Raises LookupError if there is no such column."""
    column, parts = _path(schema.names, name)
    kind = schema.field(column).type
    for part in parts:
        kind = kind.field(part).type
    return kind


def is_string(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds strings, which may be those of a dictionary."""
    if pa.types.is_dictionary(kind):
        return is_string(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def id_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of ids in the output. Arrow cannot make dictionaries of views from values."""
    if pa.types.is_dictionary(kind) and pa.types.is_string_view(kind.value_type):
        return pa.string()
    return kind


def select(batch: pa.RecordBatch, names: Sequence[str], *, checked: bool = True) -> pa.RecordBatch:
    """Return a batch of these columns. A part of a struct is null where its struct is.

    Args:
        batch: has the columns.
        names: of columns, as `names_of` returns.
        checked: whether the content of the batch is known to be inside its buffers.

    Raises:
        LookupError: there is no such column.
        pyarrow.ArrowInvalid: a list or a string is not inside its buffer.
    """
    paths = [_path(batch.schema.names, name) for name in names]
    if not checked:
        for column in dict.fromkeys(column for column, _ in paths):
            check_offsets(batch.column(column))
    arrays = [
        pc.struct_field(batch.column(column), parts) if parts else batch.column(column) for column, parts in paths
    ]
    return pa.RecordBatch.from_arrays(arrays, names=list(names))


def _names(field: pa.Field) -> list[str]:
    if not pa.types.is_struct(field.type):
        return [field.name]
    return [field.name, *(f"{field.name}.{name}" for part in field.type for name in _names(part))]


def _path(names: Sequence[str], name: str) -> tuple[str, list[str]]:
    """Return the column of a name, and the parts below it."""
    column, parts = name, list[str]()
    while column not in names:
        column, _, part = column.rpartition(".")
        if not column:
            raise LookupError(f"there is no column {name!r}")
        parts.insert(0, part)
    return column, parts
