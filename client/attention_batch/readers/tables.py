"""Columnar files as a source: the row groups of Parquet, or the record batches of Arrow."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import pyarrow as pa

from attention_batch.errors import Refused
from attention_batch.readers.columns import id_type, names_of, type_of
from attention_batch.readers.fields import Fields, check_types, check_unique, choose_columns
from attention_batch.readers.partitions import partitions
from attention_batch.readers.rows import FailedRow, Row
from attention_batch.readers.source import MOST_BYTES, InputFile, Shard


class Cursor(Protocol):
    """A reader of slices, fastest where the next slice follows the last."""

    def read(self, path: str, group: int, skipped: int, count: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield the batches of a slice. Raises Refused if the file cannot be read there."""
        ...


class Tables(Protocol):
    """A module that reads columnar files: `parquet` or `ipc`."""

    def schema(self, path: str) -> pa.Schema:
        """Return a file's schema. Raises Refused if the file has another format."""
        ...

    def slices(self, path: str, rows: int, most_bytes: int, /) -> Iterator[tuple[int, int, int, float]]:
        """Yield the slices of a file: row group, rows before it in the group, rows, and share of the file's rows."""
        ...

    def Cursor(self) -> Cursor:
        """Return a new cursor."""
        ...


class TableSource:
    """Rows of columnar files.

    Args:
        files: at least one, all of one format.
        tables: the module that reads that format.
        from_start: whether a row group can only be read from its start.
    """

    def __init__(self, files: tuple[InputFile, ...], tables: Tables, *, from_start: bool) -> None:
        self.files = files
        self.from_start = from_start
        self._tables = tables
        self.work: float | None = float(sum(file.size for file in files))
        self._cursor = tables.Cursor()

    def columns(self, chosen: Mapping[str, str]) -> tuple[dict[str, str], pa.DataType]:
        """Return the column of each field, and the type of ids; every file must have both. See `Source.columns`."""
        first = self._schema(self.files[0].path)
        columns = choose_columns(names_of(first), chosen, self.files[0].path, partitions(self.files[0].path))
        if not set(columns.values()) & set(names_of(first)):
            raise Refused(f"{self.files[0].path}: no column of the file itself is read, and so no row")
        ids = _id_type(first, columns)
        for file in self.files:
            schema = self._schema(file.path)
            names = names_of(schema)
            of_folders = partitions(file.path)
            missing = [column for column in columns.values() if column not in names and column not in of_folders]
            if missing:
                raise Refused(f"{file.path} has no column {missing[0]!r}, as {self.files[0].path} has")
            check_unique(names, columns, file.path)
            check_types(schema, {field: each for field, each in columns.items() if each in names}, file.path)
            own = _id_type(schema, columns)
            if own != ids:
                raise Refused(f"{file.path}: ids are {own}, but {ids} in the first file")
        return columns, ids

    def _schema(self, path: str) -> pa.Schema:
        schema = self._tables.schema(path)
        try:
            schema.names  # noqa: B018 # decodes these
        except UnicodeDecodeError as error:
            raise Refused(f"cannot read {path}: the name of a column is not UTF-8") from error
        return schema

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield slices of row groups."""
        before = index = 0
        for number, file in enumerate(self.files):
            first = 0
            for group, skipped, count, share in self._tables.slices(file.path, rows, MOST_BYTES):
                yield Shard(index, number, first, count, before, (group, skipped), share * file.size)
                index += 1
                first += count
            before += first

    def read(self, shard: Shard, fields: Fields) -> Iterator[Row | FailedRow]:
        """Yield a shard's rows."""
        path = self.files[shard.file].path
        first = shard.first
        constants = self._constants(path, fields)
        columns = [name for name in dict.fromkeys(fields.columns.values()) if name not in constants]
        for read in self._cursor.read(path, *shard.position, shard.rows, columns):
            batch = read
            for name, value in constants.items():
                batch = batch.append_column(name, pa.array([value] * len(batch), pa.string()))
            yield from fields.of_batch(batch, path, first, shard.before)
            first += batch.num_rows

    def _constants(self, path: str, fields: Fields) -> dict[str, str | None]:
        """Return the columns that are read of the names of folders, where the file itself has none of that name."""
        of_folders = partitions(path)
        wanted = of_folders.keys() & set(fields.columns.values())
        names = names_of(self._schema(path)) if wanted else []
        return {name: of_folders[name] for name in sorted(wanted) if name not in names}


def _id_type(schema: pa.Schema, columns: Mapping[str, str]) -> pa.DataType:
    if "id" not in columns:
        return pa.int64()
    return id_type(type_of(schema, columns["id"])) if columns["id"] in names_of(schema) else pa.string()
