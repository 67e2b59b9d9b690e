"""The output file, assembled from the parts in order."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from attention_batch.output.columns import schema
from attention_batch.output.durable import durably
from attention_batch.output.sink import BATCH_ROWS, OutputLayout

GROUP_ROWS = 65_536  # a row group has at most one batch of a part above these
GROUP_BYTES = 16 * 2**20
GROUP_MOST_ROWS = GROUP_ROWS + BATCH_ROWS


def assemble(parts: Iterable[Path], output: Path, layout: OutputLayout) -> None:
    """Write one file of all parts, in order."""
    with durably(output) as file:
        if layout.format == "parquet":
            _parquet(file, parts, schema(layout.columns, layout.id_type))
        else:
            _concatenated(file, parts)


def assemble_errors(parts: Iterable[Path], output: Path) -> None:
    """Write one dead-letter file of all parts, in order; remove it where no row failed."""
    there = [part for part in parts if part.stat().st_size]
    if not there:
        output.unlink(missing_ok=True)
        return
    with durably(output) as file:
        _concatenated(file, there)


def _parquet(file: BinaryIO, parts: Iterable[Path], columns: pa.Schema) -> None:
    # Without dictionaries: a model's numbers seldom repeat. zstd shortens names and tokens.
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
