"""Files that nobody would write: damaged ones, lists that inflate, and row groups of one row."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attention_batch.errors import Refused
from attention_batch.readers import inflation
from attention_batch.readers.fields import Fields
from attention_batch.readers.rows import Row
from attention_batch.readers.selection import open_source
from serving import HANG, ROOT


def test_damaged_files() -> None:
    """Of 200 damaged files none ends in a traceback, or gives a row that pyarrow reads otherwise."""
    command = [sys.executable, "-m", "tests.trials.mutated_files", "--files", "200"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'rows': " in done.stdout
    assert "'refused': " in done.stdout


def test_lists_that_inflate(tmp_path, monkeypatch) -> None:
    """A small Parquet file that becomes far more than its bytes is refused before it is read."""
    monkeypatch.setattr(inflation, "INFLATED_BYTES", 2**20)
    count = 1_000_000
    zeros = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int8)), pa.array([0.0], pa.float32()))
    column = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), zeros)
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"token_ids": column}), path)
    assert path.stat().st_size < 20_000
    with pytest.raises(Refused, match=r"row group 0 of .* becomes 4000000 bytes of \d+, which is too much"):
        list(open_source(str(path), sys.stdin.buffer).shards(64))


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("opener", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("packed", ["record batch 1", "the dictionaries"])
def test_buffers_that_inflate(tmp_path, monkeypatch, compression, opener, packed) -> None:
    """A small Arrow file with buffers, or dictionaries, that become far more is refused before it is decompressed."""
    monkeypatch.setattr(inflation, "INFLATED_BYTES", 2**20)
    path = tmp_path / "in.arrow"

    def write(size: int) -> None:
        texts = pa.array(["a" * size if packed == "the dictionaries" else "a"])
        text = pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), texts)
        batches = [pa.record_batch({"text": text, "other": ["b" * each]}) for each in (9, size)]
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with opener(path, batches[0].schema, options=options) as writer:
            for batch in batches:
                writer.write_batch(batch)

    write(2**18)
    assert [shard.rows for shard in open_source(str(path), sys.stdin.buffer).shards(64)] == [1, 1]
    write(2**25)
    assert path.stat().st_size < 2**19
    with pytest.raises(Refused, match=rf"{packed} of .* becomes \d+ bytes of \d+, which is too much"):
        list(open_source(str(path), sys.stdin.buffer).shards(64))


def test_row_groups_of_one_row(tmp_path) -> None:
    """Small row groups are read together: 2,000 of one row make few shards, which have every row once, in order."""
    path = tmp_path / "in.parquet"
    queries = [[[float(row), -float(row)]] for row in range(2000)]
    table = pa.table({"id": range(2000), "query": pa.array(queries, pa.list_(pa.list_(pa.float32())))})
    pq.write_table(table, path, row_group_size=1)
    source = open_source(str(path), sys.stdin.buffer)
    columns, id_type = source.columns({})
    shards = list(source.shards(512))
    assert [(shard.first, shard.rows) for shard in shards] == [(0, 512), (512, 512), (1024, 512), (1536, 464)]
    for shard in reversed(shards):
        rows = list(source.read(shard, Fields(columns, id_type, "none")))
        assert all(isinstance(row, Row) for row in rows)
        expected = range(shard.first, shard.first + shard.rows)
        assert [(row.row, row.id) for row in rows] == [(number, number) for number in expected]
        assert [row.sequence.query.tolist() for row in rows] == [queries[number] for number in expected]
