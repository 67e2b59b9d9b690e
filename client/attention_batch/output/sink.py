"""What is written: a part for each shard, and at the end one file of all parts in order.

A part is Arrow's IPC format, or JSON lines; beside it lies what failed in its shard. Each file is written under another
name, synced, renamed, and its folder synced: under its own name it is whole.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from attention_client import Prediction, TopK

from attention_batch.arrow import column_array, schema
from attention_batch.readers.rows import Failed, Scored
from attention_batch.spec import Column

Form = Literal["parquet", "jsonl"]

FORMS: dict[str, Form] = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
# A record batch of a part has no more than its last row above this, and a row group of the output no more than its last
# batch.
BATCH_ROWS = 4096
BATCH_BYTES = 4 * 2**20
GROUP_ROWS = 65_536
GROUP_BYTES = 16 * 2**20
GROUP_MOST_ROWS = GROUP_ROWS + BATCH_ROWS


@dataclass(frozen=True, slots=True)
class Counts:
    """What a part holds: rows with an answer, rows without, and query positions."""

    rows: int = 0
    failed: int = 0
    tokens: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.rows + other.rows, self.failed + other.failed, self.tokens + other.tokens)


@dataclass(frozen=True)
class Layout:
    """What an output looks like: its form, its columns, and the type of its ids."""

    form: Form
    columns: tuple[Column, ...]
    id_type: pa.DataType


class PartWriter:
    """Writes the outcomes of one shard, until it is closed."""

    def __init__(self, output: BinaryIO, errors: BinaryIO, layout: Layout) -> None:
        self._output = output
        self._errors = errors
        self._columns = layout.columns
        self._schema = schema(layout.columns, layout.id_type)
        self._ipc = pa.ipc.new_file(output, self._schema) if layout.form == "parquet" else None
        self._rows: list[Scored] = []
        self._bytes = 0
        self.counts = Counts()

    def add(self, outcomes: Iterable[Scored | Failed]) -> None:
        """Write what came of some rows."""
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                self._errors.write(dead_letter(outcome))
                self.counts += Counts(failed=1)
            else:
                self.counts += Counts(rows=1, tokens=outcome.tokens)
                self._add(outcome)

    def close(self) -> None:
        """Write what is left."""
        if self._ipc is not None:
            self._flush()
            self._ipc.close()

    def _add(self, row: Scored) -> None:
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


def dead_letter(failed: Failed) -> bytes:
    """Return the line that tells of a failed row."""
    return orjson.dumps({field.name: getattr(failed, field.name) for field in fields(failed)}, default=_text) + b"\n"


def json_line(row: Scored, columns: Sequence[Column]) -> bytes:
    """Return the line of one answer: numbers with the fewest digits that give them back."""
    values = {column.name: _json_value(value) for column, value in zip(columns, row.values, strict=True)}
    return orjson.dumps({"id": row.id, **values}, default=_text, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"


@contextmanager
def durably(path: Path) -> Iterator[BinaryIO]:
    """Write a file that is there whole, and stays, or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def part(folder: Path, shard: int, layout: Layout) -> Iterator[PartWriter]:
    """Write a shard's part, and its dead letters."""
    output, errors = part_paths(folder, shard)
    with durably(output) as output_file, durably(errors) as errors_file:
        writer = PartWriter(output_file, errors_file, layout)
        yield writer
        writer.close()


def publish(scratch: Path, folder: Path, shard: int) -> None:
    """Give a part that lies whole in another folder of the same disk its place."""
    for made, path in zip(part_paths(scratch, shard), part_paths(folder, shard), strict=True):
        made.rename(path)
    sync_folder(folder)


def store(folder: Path, shard: int, output: bytes, errors: bytes) -> None:
    """Write a part that was made elsewhere."""
    for path, content in zip(part_paths(folder, shard), (output, errors), strict=True):
        with durably(path) as file:
            file.write(content)


def part_paths(folder: Path, shard: int) -> tuple[Path, Path]:
    """Return where a shard's part and its dead letters lie."""
    return folder / f"{shard:08d}.part", folder / f"{shard:08d}.errors"


def assemble(parts: Iterable[Path], output: Path, layout: Layout) -> None:
    """Write one file of all parts, in order."""
    with durably(output) as file:
        if layout.form == "parquet":
            _parquet(file, parts, schema(layout.columns, layout.id_type))
        else:
            _concatenated(file, parts)


def assemble_errors(parts: Iterable[Path], output: Path) -> None:
    """Write one dead-letter file of all parts, in order; none where nothing failed."""
    there = [part for part in parts if part.stat().st_size]
    if not there:
        output.unlink(missing_ok=True)
        return
    with durably(output) as file:
        _concatenated(file, there)


def _parquet(file: BinaryIO, parts: Iterable[Path], columns: pa.Schema) -> None:
    # Numbers of a model repeat too seldom for dictionaries; names and tokens are what zstd finds.
    with pq.ParquetWriter(file, columns, compression="zstd", compression_level=1, use_dictionary=False) as writer:
        group: list[pa.RecordBatch] = []
        for batch in _batches(parts):
            group.append(batch)
            if sum(each.num_rows for each in group) >= GROUP_ROWS or sum(each.nbytes for each in group) >= GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group), row_group_size=GROUP_MOST_ROWS)
                group = []
        if group:
            writer.write_table(pa.Table.from_batches(group), row_group_size=GROUP_MOST_ROWS)


def _batches(parts: Iterable[Path]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        with pa.OSFile(str(part)) as opened, pa.ipc.open_file(opened) as reader:
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)


def _concatenated(file: BinaryIO, parts: Iterable[Path]) -> None:
    for part in parts:
        with part.open("rb") as opened:
            shutil.copyfileobj(opened, file, 2**20)


def _size(value: Any) -> int:
    if isinstance(value, TopK):
        return int(value.indices.nbytes + value.values.nbytes)
    return int(getattr(value, "nbytes", 64))


def _json_value(value: Any) -> Any:
    if isinstance(value, TopK):
        return {"indices": value.indices, "values": value.values}
    if isinstance(value, tuple):
        return [_json_prediction(each) if isinstance(each, Prediction) else each for each in value]
    return value


def _text(id_: Any) -> str:
    """Return an id of a type that JSON has no form for."""
    return str(id_.cast(pa.string())) if isinstance(id_, pa.Scalar) else str(id_)


def _json_prediction(prediction: Prediction) -> dict[str, Any]:
    return {**prediction._asdict(), "probability": np.float32(prediction.probability)}
