"""Parquet files: slices of row groups, each row group read once from its start."""

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from attention_batch.errors import Refused
from attention_batch.readers import remote
from attention_batch.readers.columns import select, type_of
from attention_batch.readers.files import table_file
from attention_batch.readers.inflation import check_inflation
from attention_batch.readers.source import InputFile

BATCH_ROWS = 1024
BATCH_BYTES = 2**22  # about; far larger batches would take fresh memory from the system each time
VALUE_BYTES = 4  # of a number as it is read, at least
MAGIC = b"PAR1"
FOOTER_END = 8  # bytes behind the footer: its size, and the magic
READ_BYTES = 2**20  # buffer; without it a row group's columns are read whole
Position = tuple[str, int, int]  # a file, a row group, and a row in it


def schema(path: str) -> pa.Schema:
    """Return a file's Arrow schema. Raises Refused if it is no Parquet file."""
    try:
        return pq.read_schema(table_file(path))
    except (OSError, pa.ArrowException) as error:
        raise Refused(f"cannot read {path} as Parquet: {error}") from error


def slices(path: str, rows: int, most_bytes: int) -> Iterator[tuple[int, int, int, float]]:
    """Yield the slices of a file: row group, rows before it in the group, rows, and share of the file's rows.

    Args:
        path: of the file.
        rows: of a slice, at most.
        most_bytes: of a slice, at most, by the row group's mean row.

    Raises:
        Refused: the file is no longer a Parquet file.
    """
    try:
        metadata = pq.read_metadata(table_file(path))
    except (OSError, pa.ArrowException) as error:
        raise Refused(f"cannot read {path} as Parquet: {error}") from error
    size_of_file = InputFile.at(path).size
    pending: tuple[int, int, int] | None = None  # the first of several small row groups, with the rows and bytes of all
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        _check_inflation(group, size_of_file, f"row group {number} of {path}")
        count, size = group.num_rows, group.num_rows * _row_bytes(group)
        if pending is not None and pending[1] + count <= rows and pending[2] + size <= most_bytes:
            pending = (pending[0], pending[1] + count, pending[2] + size)
            continue
        if pending is not None and pending[1]:
            yield pending[0], 0, pending[1], pending[1] / metadata.num_rows
        pending = (number, count, size) if count <= rows and size <= most_bytes else None
        if pending is None:
            step = max(1, min(rows, most_bytes // _row_bytes(group)))
            for skipped in range(0, count, step):
                taken = min(step, count - skipped)
                yield number, skipped, taken, taken / metadata.num_rows
    if pending is not None and pending[1]:
        yield pending[0], 0, pending[1], pending[1] / metadata.num_rows


def _check_inflation(group: pq.RowGroupMetaData, size_of_file: int, where: str) -> None:
    """Check that a row group says it becomes no more than a bounded multiple of the bytes that it has in the file.

    Raises:
        Refused: it becomes more.
    """
    columns = [group.column(number) for number in range(group.num_columns)]
    compressed = min(size_of_file, sum(max(0, column.total_compressed_size) for column in columns))
    size = max(group.total_byte_size, VALUE_BYTES * sum(column.num_values for column in columns))
    check_inflation(size, compressed, where)


class Cursor:
    """A reader of slices; where the next slice follows the last, no row is read twice."""

    def __init__(self) -> None:
        self._at: Position | None = None
        self._place = (0, 0)  # the row group, and the row in it, that comes next
        self._path = ""
        self._columns: list[str] = []
        self._opened: pq.ParquetFile | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None
        self._tensors: dict[str, pa.FixedShapeTensorType] = {}

    def read(self, path: str, group: int, skipped: int, count: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield the batches of a slice, which may go on in the row groups behind.

        Raises:
            Refused: the file cannot be read there, or was replaced by one without these rows or columns.
        """
        try:
            if self._at != (path, group, skipped) or self._columns != columns:
                self._open(path, columns)
                self._begin(group)
                for _ in self._next(skipped):
                    pass
            self._at = None  # unknown until the slice is read to its end
            yield from self._next(count)
            self._at = (path, *self._place)
        except (OSError, LookupError, pa.ArrowException) as error:
            self._opened = None
            raise Refused(f"cannot read row group {group} of {path}: {error}") from error

    def _open(self, path: str, columns: list[str]) -> None:
        """Open a file, unless it is open."""
        if self._opened is not None and (path, columns) == (self._path, self._columns):
            return
        opened = pq.ParquetFile(table_file(path), pre_buffer=False, buffer_size=READ_BYTES)
        self._tensors = {}
        kinds = {name: type_of(opened.schema_arrow, name) for name in columns}
        if any(map(pa.types.is_dictionary, kinds.values())):
            self._tensors = {name: kind for name, kind in kinds.items() if isinstance(kind, pa.FixedShapeTensorType)}
            metadata = _without_arrow_schema(path)
            opened = pq.ParquetFile(table_file(path), metadata=metadata, pre_buffer=False, buffer_size=READ_BYTES)
        self._path, self._columns, self._opened = path, columns, opened

    def _begin(self, group: int) -> None:
        """Begin with a row group."""
        opened = self._opened
        assert opened is not None
        self._place = (group, 0)
        if group >= opened.num_row_groups:
            raise LookupError("it has fewer rows than when the run began")
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // _row_bytes(opened.metadata.row_group(group))))
        # Without threads: all further cores are the engine's.
        self._batches = opened.iter_batches(rows, [group], self._columns, use_threads=False)
        self._rest = None

    def _next(self, count: int) -> Iterator[pa.RecordBatch]:
        while count:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            group, row = self._place
            if batch is None:
                self._end(group, row)
                self._begin(group + 1)
                continue
            taken = min(count, batch.num_rows)
            self._rest = batch.slice(taken) if taken < batch.num_rows else None
            count -= taken
            self._place = (group, row + taken)
            yield self._with_tensors(select(batch.slice(0, taken), self._columns))

    def _end(self, group: int, row: int) -> None:
        """Check that a row group that was read to its end has as many rows as the file says."""
        assert self._opened is not None
        expected = self._opened.metadata.row_group(group).num_rows
        if row != expected:
            raise LookupError(f"it has {row} rows, and says that these are {expected}")

    def _with_tensors(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Restore the tensor types of a file that is read without its Arrow schema."""
        for name, kind in self._tensors.items():
            tensors = pa.ExtensionArray.from_storage(kind, batch.column(name).cast(kind.storage_type))
            batch = batch.set_column(batch.schema.get_field_index(name), name, tensors)
        return batch


def _without_arrow_schema(path: str) -> pq.FileMetaData:
    """Return a file's metadata without its Arrow schema, so that a dictionary of strings is read as strings.

    Arrow checks the strings of a dictionary, and one that is not UTF-8 would make the whole row group unreadable.
    """
    with remote.opened(path) if remote.is_remote(path) else pa.OSFile(path) as file:
        end = file.size()
        file.seek(end - FOOTER_END)
        size = int.from_bytes(file.read(4), "little")
        file.seek(end - FOOTER_END - size)
        footer = file.read()
    return pq.read_metadata(io.BytesIO(MAGIC + footer.replace(b"ARROW:schema", b"UNUSED:schem")))


def _row_bytes(group: pq.RowGroupMetaData) -> int:
    size: int = group.total_byte_size // max(1, group.num_rows)
    return max(1, size)
