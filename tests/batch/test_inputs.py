"""Inputs: every format of rows gives the answers of single calls."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attention_batch.errors import Refused
from attention_batch.readers import ipc, parquet

from tests.batch.scoring import SENTENCES, WIDTH, drawn, exactly, letters_of, rows_of, score, write, write_texts

SEQUENCES = drawn(40)
EQUAL = [np.resize(each, (5, WIDTH)) for each in SEQUENCES]


def column(kind, sequences=SEQUENCES):
    return pa.array([each.tolist() for each in sequences], kind)


def tensors(sequences):
    storage = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(sequences).ravel()), 5 * WIDTH)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [5, WIDTH]), storage)


@pytest.mark.parametrize(
    ("query", "sequences"),
    [
        (column(pa.list_(pa.list_(pa.float32(), WIDTH))), SEQUENCES),
        (column(pa.list_(pa.list_(pa.float32()))), SEQUENCES),
        (column(pa.large_list(pa.large_list(pa.float64()))), SEQUENCES),
        (column(pa.list_(pa.list_(pa.float32(), WIDTH), 5), EQUAL), EQUAL),
        (column(pa.list_(pa.list_(pa.float16(), WIDTH))), [each.astype(np.float16) for each in SEQUENCES]),
        (tensors(EQUAL), EQUAL),
    ],
    ids=["list<fixed>", "list<list>", "large double", "fixed<fixed>", "half", "tensor"],
)
def test_vectors_in_parquet(job, client, tmp_path, query, sequences):
    """Each Arrow type for [T, D] is read exactly, across row groups and shards that cut row groups."""
    source = write(tmp_path / "in.parquet", {"id": range(40), "query": query}, group=17)
    assert score(job(source, tmp_path / "out.parquet", "multi", shard_rows=7))[0] == 0
    rows = rows_of(tmp_path / "out.parquet")
    assert [row["id"] for row in rows] == list(range(40))
    for row, sequence in zip(rows, sequences, strict=True):
        assert exactly(row["output"], client.attend("multi", query=sequence).output)


def test_vectors_beside_ids_of_a_dictionary(job, client, tmp_path):
    """Ids that Parquet keeps as a dictionary change nothing of the vectors beside them: lists, tensors, halves."""
    ids = pa.array([f"row {i % 3}" for i in range(40)]).dictionary_encode()
    halves = [each.astype(np.float16) for each in SEQUENCES]
    columns = {"list": SEQUENCES, "tensor": EQUAL, "half": halves}
    table = {"id": ids, "list": column(pa.list_(pa.list_(pa.float32(), WIDTH))), "tensor": tensors(EQUAL)}
    table["half"] = column(pa.list_(pa.list_(pa.float16(), WIDTH)), halves)
    source = write(tmp_path / "in.parquet", table, group=17)
    for name, sequences in columns.items():
        output = tmp_path / f"{name}.parquet"
        assert score(job(source, output, "multi", columns={"query": name}, shard_rows=7))[0] == 0
        assert pq.read_schema(output).field("id").type == ids.type
        rows = rows_of(output)
        assert [row["id"] for row in rows] == ids.to_pylist()
        for row, sequence in zip(rows, sequences, strict=True):
            assert exactly(row["output"], client.attend("multi", query=sequence).output)


def write_arrow(path, table, opener, rows, **options):
    """Write record batches of a number of rows, in the file or the stream format."""
    with opener(path, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


@pytest.mark.parametrize("name", ["in.arrow", "in.feather"])
@pytest.mark.parametrize("opener", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_vectors_in_arrow(job, client, tmp_path, name, opener, compression):
    """Arrow IPC files are read exactly, across record batches and shards that cut record batches."""
    columns = {"id": range(40), "query": column(pa.list_(pa.list_(pa.float32(), WIDTH)))}
    options = pa.ipc.IpcWriteOptions(compression=compression)
    source = write_arrow(tmp_path / name, pa.table(columns), opener, 17, options=options)
    assert score(job(source, tmp_path / "out.parquet", "multi", shard_rows=7))[0] == 0
    rows = rows_of(tmp_path / "out.parquet")
    assert [row["id"] for row in rows] == list(range(40))
    for row, sequence in zip(rows, SEQUENCES, strict=True):
        assert exactly(row["output"], client.attend("multi", query=sequence).output)


def test_texts_and_nulls_in_arrow(job, tmp_path):
    """Texts of Arrow files are scored; a null is a dead letter, and an empty record batch has no effect."""
    batch = pa.record_batch({"text": [SENTENCES[0], None, SENTENCES[1]]})
    with pa.ipc.new_file(tmp_path / "in.arrow", batch.schema) as writer:
        for part in (batch.slice(0, 0), batch.slice(0, 2), batch.slice(2)):
            writer.write_batch(part)
    assert score(job(tmp_path / "in.arrow", tmp_path / "out.jsonl", "multi-head", shard_rows=1))[0] == 3
    assert [row["id"] for row in rows_of(tmp_path / "out.jsonl")] == [0, 2]
    assert [letter["row"] for letter in letters_of(tmp_path / "out.jsonl")] == [1]


@pytest.mark.parametrize("opener", [pa.ipc.new_file, pa.ipc.new_stream])
def test_a_damaged_arrow_file(job, tmp_path, opener):
    """A truncated file, or one in no Arrow format, is refused by name; no output is written."""
    table = pa.table({"text": [SENTENCES[i % 4] for i in range(1000)]})
    source = write_arrow(tmp_path / "in.arrow", table, opener, 300)
    whole = source.read_bytes()
    for content in (b"", b"no arrow", whole[: len(whole) // 2]):
        source.write_bytes(content)
        with pytest.raises(Refused, match=r"cannot read .*in\.arrow"):
            score(job(source, tmp_path / "out.jsonl", "multi-head"))
    assert not (tmp_path / "out.jsonl").exists()


def test_vectors_in_json(job, client, tmp_path):
    """Nested lists in JSON are read as vectors."""
    source = write(tmp_path / "in.jsonl", {"query": [each.tolist() for each in SEQUENCES]})
    assert score(job(source, tmp_path / "out.jsonl", "multi"))[0] == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == list(range(40))  # without ids, rows are numbered
    assert all(
        exactly(row["output"], client.attend("multi", query=sequence).output)
        for row, sequence in zip(rows, SEQUENCES, strict=True)
    )


@pytest.mark.parametrize("name", ["in.parquet", "in.jsonl"])
def test_texts(job, client, tmp_path, name):
    """Texts give the predictions that single calls give."""
    source = write_texts(tmp_path / name, 9)
    assert score(job(source, tmp_path / "out.parquet", "multi-head", outputs=[{"name": "predictions"}]))[0] == 0
    for i, row in enumerate(rows_of(tmp_path / "out.parquet")):
        expected = client.attend("multi-head", text=SENTENCES[i % 4], outputs=["predictions"]).predictions
        assert row["id"] == f"row {i}"
        assert row["predictions"] == [
            {name: getattr(each, name) for name in row["predictions"][0]} for each in expected
        ]


def test_memory_pairs(job, client, tmp_path):
    """Rows for cross-attention have a query and a memory: key and value, or a text."""
    queries, keys, values = drawn(6, 16), drawn(6, 12, seed=1), drawn(6, 10, seed=2)
    values = [np.resize(value, (len(key), 10)) for key, value in zip(keys, values, strict=True)]
    lists = pa.list_(pa.list_(pa.float32()))
    table = {"q": column(lists, queries), "key": column(lists, keys), "value": column(lists, values)}
    source = write(tmp_path / "pairs.parquet", table)
    columns = {"query": "q", "key": "key", "value": "value"}
    assert score(job(source, tmp_path / "out.parquet", "cross", columns=columns))[0] == 0
    for row, query, key, value in zip(rows_of(tmp_path / "out.parquet"), queries, keys, values, strict=True):
        assert exactly(row["output"], client.attend("cross", query=query, key=key, value=value).output)
    texts = write(tmp_path / "texts.jsonl", {"text": ["cats and dogs"], "memory_text": ["Katzen und Hunde"]})
    job_ = job(texts, tmp_path / "out.jsonl", "text-cross", outputs=[{"name": "weights"}, {"name": "memory_tokens"}])
    assert score(job_)[0] == 0
    (row,) = rows_of(tmp_path / "out.jsonl")
    expected = client.attend("text-cross", text="cats and dogs", memory_text="Katzen und Hunde", outputs=["weights"])
    assert exactly(row["weights"], expected.weights)
    assert row["memory_tokens"] == ["Katzen", "und", "Hunde"]


def test_folders_and_patterns(job, tmp_path):
    """A folder or a pattern gives its files in the order of file names, without hidden files."""
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    (folder / "_old").mkdir()
    write(folder / "b/2.jsonl", {"id": ["b2"], "text": [SENTENCES[0]]})
    write(folder / "10.jsonl", {"id": ["10"], "text": [SENTENCES[0]]})
    write(folder / "9.jsonl", {"id": ["9"], "text": [SENTENCES[0]]})
    for hidden in (".a.jsonl", "_old/a.jsonl", "notes.txt"):
        (folder / hidden).write_text("{}")
    assert score(job(folder, tmp_path / "a.jsonl", "multi-head"))[0] == 0
    assert [row["id"] for row in rows_of(tmp_path / "a.jsonl")] == ["10", "9", "b2"]
    assert score(job(folder / "*.jsonl", tmp_path / "b.jsonl", "multi-head"))[0] == 0
    assert [row["id"] for row in rows_of(tmp_path / "b.jsonl")] == ["10", "9"]


def test_rows_are_numbered_over_all_files(job, tmp_path):
    """Without an id column, the id of a row is its number over all files."""
    for name in "ab":
        write(tmp_path / f"{name}.parquet", {"text": SENTENCES})
    assert score(job(tmp_path / "?.parquet", tmp_path / "out.jsonl", "multi-head", shard_rows=3))[0] == 0
    assert [row["id"] for row in rows_of(tmp_path / "out.jsonl")] == list(range(8))


def test_streams(job, tmp_path):
    """Standard input and standard output give the same lines as files."""
    source = write_texts(tmp_path / "in.jsonl", 70)
    outputs = [{"name": "output", "pool": "mean"}]
    assert score(job(source, tmp_path / "out.jsonl", "multi-head", outputs=outputs))[0] == 0
    status, written = score(job("-", "-", "multi-head", outputs=outputs, shard_rows=16), source.read_bytes())
    assert (status, written) == (0, (tmp_path / "out.jsonl").read_bytes())
    assert score(job("-", tmp_path / "b.jsonl", "multi-head", outputs=outputs), source.read_bytes())[0] == 0
    assert (tmp_path / "b.jsonl").read_bytes() == written


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        (
            {"sentence": ["a"]},
            {},
            "neither text nor query nor token_ids (of sentence); say which column to read: --column text=",
        ),
        ({"text": ["a"], "query": [[[1.0]]]}, {}, "both text and query"),
        ({"text": [1]}, {}, "column 'text' holds int64; text must be strings"),
        ({"query": [[1.0]]}, {}, "column 'query' holds list<"),
        ({"query": [[["a"]]]}, {}, "column 'query' holds list<"),
        ({"text": ["a"]}, {"columns": {"text": "txt"}}, "no such column; it has text"),
        ({"text": ["a"]}, {"columns": {"txt": "text"}}, "there is no field 'txt'; there are id, text,"),
    ],
)
def test_columns_that_do_not_do(job, tmp_path, table, options, said):
    """A missing or mistyped column is refused by name before the first request."""
    source = write(tmp_path / "in.parquet", table)
    with pytest.raises(Refused) as refused:
        score(job(source, tmp_path / "out.parquet", "multi-head", **options))
    assert said in str(refused.value)


def test_files_that_do_not_do(job, tmp_path):
    """A missing file, an unknown format and mixed formats are refused by name."""
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "in.csv").write_text("text\n")
    write_texts(tmp_path / "good.jsonl", 1)
    for source, said in [("none.jsonl", "no such file"), ("bad.parquet", "as Parquet"), ("*.*", "all of one form")]:
        with pytest.raises(Refused, match=said):
            score(job(tmp_path / source, tmp_path / "out.jsonl", "multi-head"))
    with pytest.raises(Refused, match="must be a file whose name ends in"):
        score(job(tmp_path / "good.jsonl", tmp_path / "out.csv", "multi-head"))


def test_a_damaged_file(job, tmp_path):
    """A damaged row group ends the run with the file's name and the row group; rows are never skipped."""
    source = write(tmp_path / "in.parquet", {"text": [SENTENCES[i % 4] * 50 + str(i) for i in range(1000)]})
    content = bytearray(source.read_bytes())
    content[100:300] = bytes(200)
    source.write_bytes(content)
    with pytest.raises(Refused, match="cannot read row group 0 of"):
        score(job(source, tmp_path / "out.parquet", "multi-head"))
    assert not (tmp_path / "out.parquet").exists()


def write_table(path, rows, name="id"):
    """Write one row group, or one record batch, of integers."""
    table = pa.table({name: range(rows)})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with (pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream)(path, table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize(
    ("tables", "name"),
    [(parquet, "in.parquet"), (ipc, "in.arrow"), (ipc, "in.feather")],
    ids=["parquet", "file", "stream"],
)
def test_a_file_that_is_replaced_during_a_run(tmp_path, tables, name):
    """A slice of rows, a row group or a column that a file no longer has is refused by the file's name."""
    path = tmp_path / name
    write_table(path, 30)
    first, *_, last = [each[:3] for each in tables.slices(str(path), 10, 2**20)]
    assert [batch.num_rows for batch in tables.Cursor().read(str(path), *last, ["id"])] == [10]
    write_table(path, 25)
    missing_group = (1, 0, 10)
    for group, skipped, count, column in [(*last, "id"), (*missing_group, "id"), (*first, "text")]:
        with pytest.raises(Refused, match=rf"cannot read (row group|record batch) {group} of .*{name}"):
            list(tables.Cursor().read(str(path), group, skipped, count, [column]))
    with pytest.raises(Refused, match="fewer rows than when the run began"):
        list(tables.Cursor().read(str(path), *last, ["id"]))
    path.write_text("no table")
    with pytest.raises(Refused, match=f"cannot read .*{name}"):
        list(tables.slices(str(path), 10, 2**20))


def test_an_empty_row_group_before_a_large_one(tmp_path):
    """A row group without rows is no slice, whether it stands before a large row group, a small one, or at the end."""
    path, empty = tmp_path / "in.parquet", pa.table({"id": pa.array([], pa.int64())})
    with pq.ParquetWriter(path, empty.schema) as writer:
        for rows in (0, 15, 0, 3, 0):
            writer.write_table(pa.table({"id": pa.array(range(rows), pa.int64())}))
    assert pq.read_metadata(path).num_row_groups == 5
    slices = [each[:3] for each in parquet.slices(str(path), 10, 2**20)]
    assert slices == [(1, 0, 10), (1, 10, 5), (2, 0, 3)]
    cursor = parquet.Cursor()
    read = [batch for each in slices for batch in cursor.read(str(path), *each, ["id"])]
    assert pa.Table.from_batches(read)["id"].to_pylist() == [*range(15), *range(3)]


def test_an_empty_file_is_scored(job, tmp_path):
    """An input without rows gives an output without rows."""
    source = write(tmp_path / "in.parquet", {"text": pa.array([], pa.string())})
    assert score(job(source, tmp_path / "out.parquet", "multi-head"))[0] == 0
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_ids_keep_their_type(job, tmp_path):
    """Ids of Parquet keep the type of the column; ids of JSON lines have the type of the first one."""
    ids = pa.array([2**60, 1], pa.uint64())
    source = write(tmp_path / "in.parquet", {"key": ids, "text": SENTENCES[:2]})
    columns = {"id": "key", "text": "text"}
    assert score(job(source, tmp_path / "out.parquet", "multi-head", columns=columns))[0] == 0
    assert pq.read_table(tmp_path / "out.parquet")["id"].combine_chunks() == ids
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": id_, "text": SENTENCES[0]}) + "\n" for id_ in (7, "x", True, None, 2**70, -1))
    )
    assert score(job(tmp_path / "in.jsonl", tmp_path / "ids.parquet", "multi-head"))[0] == 3
    assert [row["id"] for row in rows_of(tmp_path / "ids.parquet")] == [7, -1]
    assert {letter["field"] for letter in letters_of(tmp_path / "ids.parquet")} == {"id"}


@pytest.mark.parametrize(
    "kind",
    [pa.timestamp("ns", "UTC"), pa.time64("ns"), pa.duration("ns"), pa.date32(), pa.dictionary(pa.int8(), pa.string())],
    ids=str,
)
def test_ids_of_any_type(job, tmp_path, kind):
    """An id of any type is kept, to the nanosecond; in JSON lines an id of a type that JSON lacks is a string."""
    ids = (
        pa.array(["a", "b"]).dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else pa.array([3, 5], kind)
    )
    source = write(tmp_path / "in.parquet", {"id": ids, "text": SENTENCES[:2]})
    assert score(job(source, tmp_path / "out.parquet", "multi-head"))[0] == 0
    assert pq.read_table(tmp_path / "out.parquet")["id"].equals(pq.read_table(source)["id"])
    assert score(job(source, tmp_path / "out.jsonl", "multi-head"))[0] == 0
    assert len({row["id"] for row in rows_of(tmp_path / "out.jsonl")}) == 2


def test_an_id_is_one_value(job, tmp_path):
    """A column of lists or tensors is refused as an id."""
    source = write(tmp_path / "in.parquet", {"id": [[1], [2]], "text": SENTENCES[:2]})
    with pytest.raises(Refused, match=r"column 'id' holds list<.*; an id is one value"):
        score(job(source, tmp_path / "out.parquet", "multi-head"))


@pytest.mark.parametrize("restart", [False, True])
def test_what_a_run_writes_is_never_its_input(job, tmp_path, restart):
    """An input that is the run's own output, or its dead letters, is refused and stays, even with --restart."""
    source = write_texts(tmp_path / "a.jsonl", 3)
    before = source.read_bytes()
    with pytest.raises(Refused, match="name another output"):
        score(job(source, source, "multi-head", restart=restart))
    letters = source.rename(tmp_path / "x.jsonl.errors.jsonl")
    with pytest.raises(Refused, match="name another output"):
        score(job(letters, tmp_path / "x.jsonl", "multi-head", restart=restart))
    assert letters.read_bytes() == before


@pytest.mark.parametrize("pattern", ["", "*.jsonl"])
def test_an_output_among_its_inputs(job, tmp_path, pattern):
    """A folder or pattern that matches the output is read without it, so a repeated command has no more to do."""
    write_texts(tmp_path / "a.jsonl", 3)
    write(tmp_path / "b.jsonl", {"id": ["bad"], "text": ["no such words"]})
    source, output = tmp_path / pattern, tmp_path / "out.jsonl"
    assert score(job(source, output, "multi-head"))[0] == 3
    written = output.read_bytes()
    assert score(job(source, output, "multi-head"))[0] == 3
    assert output.read_bytes() == written


def test_standard_input_replaces_nothing_unasked(job, tmp_path):
    """A run from standard input replaces a complete output only with --restart."""
    source, output = write_texts(tmp_path / "a.jsonl", 3), tmp_path / "out.jsonl"
    assert score(job(source, output, "multi-head"))[0] == 0
    written = output.read_bytes()
    with pytest.raises(Refused, match="--restart replaces it"):
        score(job("-", output, "multi-head"), source.read_bytes())
    assert output.read_bytes() == written
    assert score(job("-", output, "multi-head", restart=True), source.read_bytes())[0] == 0
