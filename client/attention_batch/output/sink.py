"""Parts: the answers and the failed rows of one shard, in two files.

A part's answers are an Arrow IPC file, or JSON lines; its failed rows are JSON lines beside it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import pyarrow as pa
from attention_client import TopK

from attention_batch.output.columns import column_array, schema
from attention_batch.output.durable import durably, sync_folder
from attention_batch.output.json_lines import dead_letter, json_line
from attention_batch.readers.rows import FailedRow, ScoredRow
from attention_batch.readers.source import Shard
from attention_batch.spec import Column

OutputFormat = Literal["parquet", "jsonl"]

OUTPUT_FORMATS: dict[str, OutputFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
BATCH_ROWS = 4096  # a record batch has at most one row above these
BATCH_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows with an answer, rows without, and query positions."""

    rows: int = 0
    failed: int = 0
    tokens: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.rows + other.rows, self.failed + other.failed, self.tokens + other.tokens)


class FinishedShard(NamedTuple):
    """A shard with a written part, and the part's counts."""

    shard: Shard
    counts: Counts


@dataclass(frozen=True)
class OutputLayout:
    """The output's format, its columns, and the type of its ids."""

    format: OutputFormat
    columns: tuple[Column, ...]
    id_type: pa.DataType


class PartWriter:
    """A writer of one part.

    Args:
        output: receives the answers.
        errors: receives the failed rows.
        layout: of the output.

    Attributes:
        counts: of the rows added so far.
    """

    def __init__(self, output: BinaryIO, errors: BinaryIO, layout: OutputLayout) -> None:
        self._output = output
        self._errors = errors
        self._columns = layout.columns
        self._schema = schema(layout.columns, layout.id_type)
        self._ipc = pa.ipc.new_file(output, self._schema) if layout.format == "parquet" else None
        self._rows: list[ScoredRow] = []
        self._bytes = 0
        self.counts = Counts()

    def add(self, results: Iterable[ScoredRow | FailedRow]) -> None:
        """Add rows, in order."""
        for result in results:
            if isinstance(result, FailedRow):
                self._errors.write(dead_letter(result))
                self.counts += Counts(failed=1)
            else:
                self.counts += Counts(rows=1, tokens=result.tokens)
                self._add(result)

    def close(self) -> None:
        """Write the rows that are still held, and the end of the file."""
        if self._ipc is not None:
            self._flush()
            self._ipc.close()

    def _add(self, row: ScoredRow) -> None:
        if self._ipc is None:
            self._output.write(json_line(row, self._columns))
            return
        self._rows.append(row)
        self._bytes += sum(map(_size, row.values))
        if len(self._rows) == BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        assert self._ipc is not None
        ids = pa.array([row.id for row in self._rows], self._schema.field("id").type)
        by_column = zip(*(row.values for row in self._rows), strict=True)
        arrays = [column_array(column, values) for column, values in zip(self._columns, by_column, strict=True)]
        self._ipc.write_batch(pa.record_batch([ids, *arrays], schema=self._schema))
        self._rows, self._bytes = [], 0


@contextmanager
def open_part(folder: Path, shard: int, layout: OutputLayout) -> Iterator[PartWriter]:
    """Write a shard's part; its files appear when the block ends, unless the block raises."""
    output, errors = part_paths(folder, shard)
    with durably(output) as output_file, durably(errors) as errors_file:
        writer = PartWriter(output_file, errors_file, layout)
        yield writer
        writer.close()


def move_part(scratch: Path, folder: Path, shard: int) -> None:
    """Move a whole part from another folder of the same disk."""
    for made, path in zip(part_paths(scratch, shard), part_paths(folder, shard), strict=True):
        made.rename(path)
    sync_folder(folder)


def write_part(folder: Path, shard: int, output: bytes, errors: bytes) -> None:
    """Write a part from the content of its two files."""
    for path, content in zip(part_paths(folder, shard), (output, errors), strict=True):
        with durably(path) as file:
            file.write(content)


def part_paths(folder: Path, shard: int) -> tuple[Path, Path]:
    """Return the paths of a part's answers and failed rows."""
    return folder / f"{shard:08d}.part", folder / f"{shard:08d}.errors"


def _size(value: Any) -> int:
    if isinstance(value, TopK):
        return int(value.indices.nbytes + value.values.nbytes)
    return int(getattr(value, "nbytes", 64))
