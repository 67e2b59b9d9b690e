"""Damaged Parquet, Arrow, JSON and CSV files: `python -m tests.trials.mutated_files --files 2000`.

The scorer's readers give rows, refuse the file in words, or name a failed row; a row that they give is the one that
pyarrow reads of the same bytes. Memory is bounded, for a file may say that it holds more than there is.
"""

import argparse
import csv
import gzip
import io
import random
import resource
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from attention_batch.errors import ScoringError
from attention_batch.readers.fields import Fields
from attention_batch.readers.rows import Row
from attention_batch.readers.selection import open_source

MEMORY = 4 * 2**30  # bytes of data that the process may have
ROWS = 40
Reader = Callable[[bytes], "pa.Table"]


def table() -> "pa.Table":
    rng = np.random.default_rng(0)
    queries = [rng.standard_normal((1 + row % 3, 2)).tolist() for row in range(ROWS)]
    columns = {
        "id": pa.array([f"id {row}" for row in range(ROWS)]),
        "query": pa.array(queries, pa.list_(pa.list_(pa.float32()))),
    }
    return pa.table(columns)


def parquet(compression: str, groups: int) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table(), buffer, row_group_size=groups, compression=compression)
    return buffer.getvalue()


def arrow(*, stream: bool, compression: str | None) -> bytes:
    buffer = io.BytesIO()
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(buffer, table().schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table(), max_chunksize=15)
    return buffer.getvalue()


def lines() -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in table().to_pylist())


def values() -> bytes:
    """Return the table as CSV."""
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(["id", "query"])
    writer.writerows([row["id"], orjson.dumps(row["query"]).decode()] for row in table().to_pylist())
    return written.getvalue().encode()


def read_arrow(content: bytes) -> "pa.Table":
    try:
        return pa.ipc.open_file(content).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(content).read_all()


FORMS: list[tuple[str, bytes, Reader | None]] = [
    (".parquet", parquet("snappy", 16), lambda content: pq.read_table(io.BytesIO(content))),
    (".parquet", parquet("none", 40), lambda content: pq.read_table(io.BytesIO(content))),
    (".arrow", arrow(stream=False, compression=None), read_arrow),
    (".arrow", arrow(stream=True, compression=None), read_arrow),
    (".arrow", arrow(stream=False, compression="lz4"), read_arrow),
    (".arrow", arrow(stream=True, compression="zstd"), read_arrow),
    (".jsonl", lines(), None),
    (".jsonl.gz", gzip.compress(lines()), None),
    (".csv", values(), None),
]


def damage(content: bytes, draw: random.Random) -> bytes:
    """Change some bytes, mostly where a format has its structure: at both ends."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        near = draw.choice((len(changed), 200, 1000))
        place = draw.randrange(max(1, min(near, len(changed))))
        place = draw.choice((place, len(changed) - 1 - place)) if near < len(changed) else place
        match draw.randrange(5):
            case 0:
                changed[place] ^= 1 << draw.randrange(8)
            case 1:
                changed[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                changed[place : place + 4] = draw.choice((b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0"))
            case 3:
                del changed[place : place + draw.choice((1, 8, 100))]
            case _:
                changed[place:place] = bytes(draw.choices(range(256), k=draw.choice((1, 8, 100))))
        if not changed:
            return b""
    return bytes(changed)


def rows_of(path: Path) -> list[tuple[int, Any, list[list[float]]]]:
    """Return the readable rows of a file: number, id and query."""
    source = open_source(str(path), io.BytesIO())
    columns, id_type = source.columns({})
    fields = Fields(columns, id_type, "none")
    found = [row for shard in source.shards(16) for row in source.read(shard, fields)]
    return [
        (row.row, row.id, np.asarray(row.sequence.query).tolist())
        for row in found
        if isinstance(row, Row) and row.sequence.query is not None
    ]


def wrong_rows(content: bytes, read: Reader, rows: list[tuple[int, Any, list[list[float]]]]) -> str:
    """Return in which row pyarrow differs; empty for none, or where pyarrow reads nothing."""
    try:
        whole = read(content)
        whole.validate(full=True)
        expected = whole.select(["id", "query"]).to_pylist()
    except (pa.ArrowException, OSError, KeyError, ValueError, OverflowError, MemoryError):
        return ""
    for number, id_, query in rows:
        known = expected[number]
        if known["id"] != id_ or not np.array_equal(np.float32(known["query"]), np.float32(query), equal_nan=True):
            return f"row {number} is {id_!r} {query}, and pyarrow reads {known}"
    return ""


def tried(content: bytes, suffix: str, read: Reader | None, folder: Path) -> str:
    """Return what is wrong with the reading of a file; otherwise `rows` or `refused`."""
    path = folder / f"in{suffix}"
    path.write_bytes(content)
    try:
        rows = rows_of(path)
    except ScoringError:
        return "refused"
    except BaseException:  # noqa: BLE001 # whatever the command would end in
        return traceback.format_exc()
    return (wrong_rows(content, read, rows) if read else "") or "rows"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    outcomes: Counter[str] = Counter()
    with TemporaryDirectory() as folder:
        for number in range(options.files):
            draw = random.Random(options.seed * 1_000_003 + number)  # no secret
            suffix, content, read = FORMS[number % len(FORMS)]
            damaged = damage(content, draw)
            outcome = tried(damaged, suffix, read, Path(folder))
            if outcome not in ("rows", "refused"):
                print(f"file {number}{suffix}: {outcome}", flush=True)
                outcome = "wrong"
            outcomes[outcome] += 1
    print(dict(outcomes))
    sys.exit(outcomes["wrong"] > 0)


if __name__ == "__main__":
    main()
