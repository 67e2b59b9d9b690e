"""The fields of a sequence: the column of each in the input, and rows from Arrow batches or JSON documents."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from attention_client import Sequence
from attention_proto.masks import Causal
from attention_proto.text import TRUNCATES, Truncate

from attention_batch.errors import Refused
from attention_batch.readers.columns import is_string, type_of
from attention_batch.readers.documents import field_value, id_fault, value_of
from attention_batch.readers.rows import CHOSEN, FIELDS, IDS, OPTIONAL, SOURCES, TEXTS, VECTORS, FailedRow, Row
from attention_batch.readers.strings import NotUtf8, values
from attention_batch.readers.vectors import is_integers, is_vectors, vectors


@dataclass(frozen=True)
class Fields:
    """A reader of rows from Arrow batches and JSON documents.

    Attributes:
        columns: field -> the input's column, for the fields that are read.
        id_type: Arrow type of ids.
        causal: the causal mask of every sequence.
        truncate: of texts in a row that says nothing of it.
    """

    columns: Mapping[str, str]
    id_type: pa.DataType
    causal: Causal
    truncate: Truncate = "none"

    @property
    def reads_text(self) -> bool:
        """Whether the rows are texts, or ids of tokens."""
        return "text" in self.columns or "token_ids" in self.columns

    def of_batch(self, batch: pa.RecordBatch, file: str, first: int, before: int) -> Iterator[Row | FailedRow]:
        """Yield the rows of an Arrow batch.

        Args:
            batch: has the columns that are read.
            file: the file's name.
            first: the number of its first row in the file.
            before: number of rows of the files before; without an id column, a row's id is its number over all files.
        """
        ids = self._ids(batch, before + first)
        parts = {field: self._parts(batch, field) for field in self.columns if field != "id"}
        for i in range(batch.num_rows):
            yield self._row(file, first + i, ids[i], {field: column[i] for field, column in parts.items()})

    def of_document(
        self, document: Any, file: str, row: int, before: int, *, of_strings: bool = False
    ) -> Row | FailedRow:
        """Return the row of a JSON document.

        Args:
            document: an object, if the row is readable.
            file: the file's name.
            row: the row's number in the file.
            before: as in `of_batch`.
            of_strings: whether all values are strings, of which vectors, and ids of tokens, are JSON.
        """
        if not isinstance(document, dict):
            return FailedRow(file, row, None, "", f"must be an object, not {type(document).__name__}")
        id_ = value_of(document, self.columns["id"]) if "id" in self.columns else before + row
        if reason := id_fault(id_, self.id_type):
            return FailedRow(file, row, id_, "id", reason)
        parts: dict[str, Any] = {}
        for field, column in self.columns.items():
            if field == "id":
                continue
            try:
                value = value_of(document, column)
                if of_strings and value is not None and field not in TEXTS:
                    value = orjson.loads(value)
                parts[field] = field_value(field, value)
            except (TypeError, ValueError) as error:
                return FailedRow(file, row, id_, field, str(error))
        return self._row(file, row, id_, parts)

    def _ids(self, batch: pa.RecordBatch, first: int) -> list[Any]:
        if "id" not in self.columns:
            return list(range(first, first + batch.num_rows))
        ids = batch.column(self.columns["id"])
        # Python's times have no nanoseconds, so ids of time stay Arrow scalars.
        return list(ids) if pa.types.is_temporal(ids.type) else values(ids)

    def _parts(self, batch: pa.RecordBatch, field: str) -> list[Any]:
        column = batch.column(self.columns[field])
        return vectors(column) if field in VECTORS else values(column)

    def _row(self, file: str, row: int, id_: Any, parts: Mapping[str, Any]) -> Row | FailedRow:
        if isinstance(id_, NotUtf8):
            return FailedRow(file, row, None, "id", id_.reason)
        given: dict[str, Any] = {}
        size = 0
        for field, value in parts.items():
            if value is None and field in OPTIONAL:
                continue
            try:
                given[field], own_size = _checked(field, value)
            except ValueError as error:
                return FailedRow(file, row, id_, field, str(error))
            size += own_size
        prefix = given.pop("prefix", None)
        if self.truncate != "none":
            given.setdefault("truncate", self.truncate)
        return Row(file, row, id_, Sequence(**given, causal=self.causal), size, prefix)


def choose_columns(
    names: Collection[str], chosen: Mapping[str, str], where: str, of_folders: Collection[str] = ()
) -> dict[str, str]:
    """Return field -> column: the columns that the user chose, and those that have a field's name.

    Args:
        names: of the input's columns.
        chosen: field -> column, as the user chose.
        where: the input's name, for errors.
        of_folders: names of columns that stand in the names of folders, read only where chosen.

    Raises:
        Refused: a chosen column does not exist, or is there twice, or the input has not exactly one of text, query and
            token_ids.
    """
    for field, column in chosen.items():
        if field not in FIELDS:
            raise Refused(f"--column: there is no field {field!r}; there are {', '.join(FIELDS)}")
        if column not in names and column not in of_folders:
            known = ", ".join([*names, *of_folders])
            raise Refused(f"--column {field}={column}: {where} has no such column; it has {known}")
    source = set(SOURCES) & chosen.keys()
    # An input may have several sources; a chosen one then excludes all columns that were not chosen.
    own = [field for field in FIELDS if field in names and field not in CHOSEN and (not source or field == "id")]
    columns = {field: field for field in own} | dict(chosen)
    found = [field for field in SOURCES if field in columns]
    if len(found) != 1:
        have = f"both {' and '.join(found)}" if found else "neither text nor query nor token_ids"
        raise Refused(f"{where} has {have} (of {', '.join(names)}); say which column to read: --column text=COLUMN")
    check_unique(names, columns, where)
    return {field: columns[field] for field in FIELDS if field in columns}


def check_unique(names: Collection[str], columns: Mapping[str, str], where: str) -> None:
    """Check that each column that is read is the only one of its name.

    Raises:
        Refused: it is not.
    """
    counts = Counter(names)
    for column in columns.values():
        if counts[column] > 1:
            raise Refused(f"{where} has {counts[column]} columns of the name {column!r}; give each a name of its own")


def check_types(schema: pa.Schema, columns: Mapping[str, str], where: str) -> None:
    """Check that each Arrow column has the type that its field needs.

    Raises:
        Refused: a column has another type.
    """
    for field, column in columns.items():
        kind = type_of(schema, column)
        if field == "id" and (pa.types.is_nested(kind) or isinstance(kind, pa.FixedShapeTensorType)):
            raise Refused(f"{where}: column {column!r} holds {kind}; an id is one value")
        if pa.types.is_null(kind) and field in OPTIONAL:
            continue
        if field in TEXTS and not is_string(kind):
            raise Refused(f"{where}: column {column!r} holds {kind}; {field} must be strings")
        if field in IDS and not is_integers(kind):
            raise Refused(f"{where}: column {column!r} holds {kind}; {field} must be lists of integers")
        if field in VECTORS and not is_vectors(kind):
            raise Refused(
                f"{where}: column {column!r} holds {kind}; {field} must be lists of vectors, or tensors [T, D]"
            )


def _checked(field: str, value: Any) -> tuple[Any, int]:
    """Return the value of a field, as a sequence has it, and its size.

    Raises:
        ValueError: there is none, or none that a sequence can have.
    """
    if value is None:
        raise ValueError("is null; every row needs it")
    if isinstance(value, NotUtf8):
        raise ValueError(value.reason)  # noqa: TRY004 # of the content, not of the type
    if field in TEXTS:
        if field == "truncate" and value not in TRUNCATES:
            raise ValueError(f"must be one of {', '.join(TRUNCATES)}, not {value[:64]!r}")
        return value, len(value)
    if field in IDS:
        ids = np.array(value)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError("must be a list of integers, at least one")
        return ids, ids.nbytes
    if value.ndim < 2:
        raise ValueError("has vectors of several widths, or a null in place of one")
    return value, value.nbytes
