"""Arrow IPC files (`.arrow`, `.feather`), in the file or the stream format: slices of record batches.

The files are mapped into memory, so vectors go from the page cache to the model without a copy.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from attention_batch.errors import Refused
from attention_batch.readers import remote
from attention_batch.readers.columns import select
from attention_batch.readers.inflation import check_arrow

OLD_FEATHER = b"FEA1"
Reader = Any  # pa.ipc.RecordBatchFileReader or RecordBatchStreamReader: pyarrow is untyped


def schema(path: str) -> pa.Schema:
    """Return a file's schema. Raises Refused if it is no Arrow file."""
    try:
        return _open(path).schema
    except (OSError, pa.ArrowException) as error:
        raise Refused(f"cannot read {path} as Arrow's IPC format: {error}") from error


def slices(path: str, rows: int, most_bytes: int) -> Iterator[tuple[int, int, int, float]]:
    """Yield the slices of a file: record batch, rows before it in the batch, rows, and share of the file's rows.

    Args:
        path: of the file.
        rows: of a slice, at most.
        most_bytes: of a slice, at most, by the record batch's mean row.
    """
    try:
        # `nbytes` would read offsets, which nothing has checked.
        counts = [(batch.num_rows, batch.get_total_buffer_size()) for batch in _batches(_checked(path))]
    except (OSError, pa.ArrowException) as error:
        raise Refused(f"cannot read {path}: {error}") from error
    total = sum(count for count, _ in counts)
    for number, (count, size) in enumerate(counts):
        step = max(1, min(rows, most_bytes // max(1, size // max(1, count))))
        for skipped in range(0, count, step):
            taken = min(step, count - skipped)
            yield number, skipped, taken, taken / total


class Cursor:
    """A reader of slices; keeps its current record batch, which may have been decompressed."""

    def __init__(self) -> None:
        self._path = ""
        self._reader: Reader = None
        self._batch: tuple[int, pa.RecordBatch] = (-1, None)

    def read(self, path: str, number: int, skipped: int, count: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield the batch of a slice.

        Raises:
            Refused: the file cannot be read there, or was replaced by one without these rows or columns.
        """
        try:
            if path != self._path or number < self._batch[0]:
                self._path, self._reader, self._batch = path, _checked(path), (-1, None)
            yield _slice(self._at(number, columns), skipped, count)
        except (OSError, LookupError, StopIteration, ValueError, pa.ArrowException) as error:
            self._path = ""
            raise Refused(f"cannot read record batch {number} of {path}: {error}") from error

    def _at(self, number: int, columns: list[str]) -> pa.RecordBatch:
        at, batch = self._batch
        if isinstance(self._reader, pa.ipc.RecordBatchFileReader) and at != number:
            at, batch = number, self._reader.get_batch(number)
        while at < number:
            at, batch = at + 1, self._reader.read_next_batch()
        if batch is not self._batch[1]:
            batch = select(batch, columns, checked=False)
        self._batch = at, batch
        return batch


def _slice(batch: pa.RecordBatch, skipped: int, count: int) -> pa.RecordBatch:
    if batch.num_rows < skipped + count:  # Arrow's own `slice` would be short
        raise LookupError("it has fewer rows than when the run began")
    return batch.slice(skipped, count)


def _checked(path: str) -> Reader:
    """Open a file with compressed buffers that become no more than a bounded multiple. Raises Refused otherwise."""
    _open(path)
    with pa.memory_map(path) as mapped:
        check_arrow(mapped.read_buffer(), path)
    return _open(path)


def _open(path: str) -> Reader:
    if remote.is_remote(path):
        raise Refused(f"{path}: Arrow files are mapped into memory; copy this one here, or write Parquet")
    mapped = pa.memory_map(path)
    if mapped.read(len(OLD_FEATHER)) == OLD_FEATHER:
        raise Refused(f"{path} is Feather version 1; write it again: pyarrow.feather.write_feather(table, OUT)")
    mapped.seek(0)
    try:
        return pa.ipc.open_file(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        return pa.ipc.open_stream(mapped)


def _batches(reader: Reader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        yield from reader
