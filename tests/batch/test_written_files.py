"""Files as further programs write them: pandas, polars, DuckDB, datasets, Spark's folders, editors and shells."""

import base64
import gzip
import io
import json
import subprocess
import sys
import uuid

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from attention_batch.errors import Refused, TooManyErrors
from attention_batch.readers.fields import Fields
from attention_batch.readers.rows import FailedRow, Row
from attention_batch.readers.selection import open_source

from tests.batch.scoring import SENTENCES, everything, letters_of, rows_of, score, shards_done

TEXTS = [*SENTENCES, None, SENTENCES[0]]


def read(source, rows=3, **chosen):
    """Return the rows of an input in order: (id, text), or the field at fault; shards are read twice."""
    opened = open_source(str(source), io.BytesIO())
    columns, id_type = opened.columns(chosen)
    fields = Fields(columns, id_type, "none")
    found = []
    for shard in opened.shards(rows):
        once, again = ([told(row) for row in opened.read(shard, fields)] for _ in range(2))
        assert once == again
        found += once
    return found


def told(row):
    return (row.id, row.sequence.text) if isinstance(row, Row) else row.field


def expected(texts=TEXTS):
    return ["text" if text is None else (row, text) for row, text in enumerate(texts)]


@pytest.mark.parametrize("dtype", ["category", "string", "object"])
@pytest.mark.parametrize(
    "name", ["in.parquet", "in.feather", "in.csv", "in.jsonl", "in.csv.gz", "in.jsonl.gz", "in.jsonl.zst"]
)
def test_pandas(tmp_path, name, dtype):
    """Texts and categoricals of pandas are read from each format that pandas writes; a null is a failed row."""
    frame = pd.DataFrame({"text": pd.Series(TEXTS, dtype=dtype), "number": range(6)})
    path = tmp_path / name
    if ".csv" in name:
        frame.to_csv(path, index=False)
    elif ".json" in name:
        frame.to_json(path, orient="records", lines=True)
    else:
        (frame.to_parquet if name == "in.parquet" else frame.to_feather)(path)
    assert read(path) == expected()


@pytest.mark.parametrize("kind", [pl.String, pl.Categorical, pl.Enum(SENTENCES)], ids=str)
def test_polars(tmp_path, kind):
    """Views of strings, categoricals and enumerations of polars are read, and parts of structs by dotted names."""
    struct = [None if text is None else {"said": text, "by": None} for text in TEXTS]
    frame = pl.DataFrame({"text": pl.Series(TEXTS, dtype=kind), "meta": struct})
    frame.write_ipc(tmp_path / "in.arrow")
    frame.write_ipc(tmp_path / "packed.arrow", compression="zstd")
    frame.write_ipc_stream(tmp_path / "stream.arrow")
    frame.write_parquet(tmp_path / "in.parquet", row_group_size=4)
    frame.write_ndjson(tmp_path / "in.ndjson")
    for name in ("in.arrow", "packed.arrow", "stream.arrow", "in.parquet", "in.ndjson"):
        assert read(tmp_path / name) == expected()
        assert read(tmp_path / name, text="meta.said") == expected()
    with pytest.raises(Refused, match=r"it has text, meta, meta\.said, meta\.by"):
        read(tmp_path / "in.parquet", text="meta.saying")


def test_duckdb(tmp_path):
    """Files that DuckDB writes are read: enumerations, structs, ids of 128 bits, CSV and JSON."""
    texts = ", ".join(f"({row}, '{text}')" for row, text in enumerate(SENTENCES))
    table = f"(select i as id, t as text, {{'part': t}} as struct from (values {texts}) as v(i, t) order by i)"
    for name in ("in.parquet", "in.csv", "in.json", "in.json.gz", "in.tsv"):
        options = "(delimiter '\t')" if name == "in.tsv" else ""
        duckdb.sql(f"copy {table} to '{tmp_path / name}' {options}")
        numbers = [(str(row), text) for row, text in enumerate(SENTENCES)] if "sv" in name else expected(SENTENCES)
        assert read(tmp_path / name) == numbers
    assert read(tmp_path / "in.parquet", text="struct.part") == expected(SENTENCES)
    assert read(tmp_path / "in.json", text="struct.part") == expected(SENTENCES)


def test_datasets(tmp_path):
    """A folder that Hugging Face's datasets saved is read in its own order; of several splits one is to be named."""
    program = (
        "import datasets, sys; folder, *texts = sys.argv[1:];"
        "made = datasets.Dataset.from_dict({'text': texts, 'label': [0] * len(texts)});"
        "made.save_to_disk(folder + '/one', num_shards=2);"
        "datasets.DatasetDict(train=made, test=made).save_to_disk(folder + '/splits')"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path), *SENTENCES], check=True, capture_output=True)
    (tmp_path / "one" / "cache-1.arrow").write_bytes(b"left of a map")
    assert read(tmp_path / "one") == read(tmp_path / "splits/train") == expected(SENTENCES)
    with pytest.raises(Refused, match="has the splits test, train; give the folder of one"):
        read(tmp_path / "splits")


def test_spark(job, tmp_path):
    """A folder of Spark's is read in the order of its parts; files that are passed over are said."""
    for day in (1, 2):
        folder = tmp_path / f"in/day={day}"
        folder.mkdir(parents=True)
        table = pa.table({"text": SENTENCES[2 * day - 2 : 2 * day]})
        pq.write_table(table, folder / f"part-0000{day}-c000.snappy.parquet")
        (folder / f".part-0000{day}-c000.snappy.parquet.crc").write_bytes(b"crc")
    (tmp_path / "in/_SUCCESS").touch()
    said: list[str] = []
    source = open_source(str(tmp_path / "in"), io.BytesIO(), (), said.append)
    assert [file.path[-26:] for file in source.files] == [f"part-0000{day}-c000.snappy.parquet"[-26:] for day in (1, 2)]
    assert "3 files are passed over" in said[0]
    assert "_SUCCESS" in said[0]
    assert score(job(tmp_path / "in", tmp_path / "out.jsonl", "multi-head"))[0] == 0
    assert [row["id"] for row in rows_of(tmp_path / "out.jsonl")] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["part-0.parquet", "part-0.json", "part-0.csv.gz"])
def test_columns_of_folders(tmp_path, name):
    """Columns in the names of folders are read where chosen, and not otherwise; the file's own goes before."""
    for day, text in enumerate(SENTENCES[:2]):
        folder = tmp_path / f"in/text=other/day={'__HIVE_DEFAULT_PARTITION__' if day else 'Mon%3A1'}"
        folder.mkdir(parents=True)
        frame = pd.DataFrame({"text": [text]})
        if name.endswith("json"):
            frame.to_json(folder / name, orient="records", lines=True)
        else:
            (frame.to_parquet if name.endswith("parquet") else frame.to_csv)(folder / name, index=False)
    null = "id" if name.endswith(("json", "gz")) else (None, SENTENCES[1])  # of a table a null is an id
    assert read(tmp_path / "in", id="day") == [("Mon:1", SENTENCES[0]), null]
    assert read(tmp_path / "in") == expected(SENTENCES[:2])
    with pytest.raises(Refused, match="it has text, text, day"):
        read(tmp_path / "in", id="hour")


IDS = (10706345580035347604, -9223372036854775808, 9223372036854775807, 18446744073709551615, -1)


def test_integers_of_64_bits(job, tmp_path):
    """Ids of 64 bits, with a sign or without, are kept, in each format of the output."""
    lines = "".join(json.dumps({"id": id_, "text": SENTENCES[0]}) + "\n" for id_ in IDS)
    (tmp_path / "in.jsonl").write_text(lines)
    for name in ("out.jsonl", "out.parquet"):
        assert score(job(tmp_path / "in.jsonl", tmp_path / name, "multi-head"))[0] == 0
        assert [int(row["id"]) for row in rows_of(tmp_path / name)] == list(IDS)
    (tmp_path / "unsigned.jsonl").write_text(lines.splitlines()[0])
    assert score(job(tmp_path / "unsigned.jsonl", tmp_path / "unsigned.parquet", "multi-head"))[0] == 0
    assert pq.read_schema(tmp_path / "unsigned.parquet").field("id").type == pa.uint64()


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        (pa.binary(), [b"\xff\x00", b"b"]),
        (pa.binary_view(), [b"\xff\x00", b"b"]),
        (pa.string_view(), ["a", "b"]),
        (pa.uuid(), [uuid.UUID(int=1), uuid.UUID(int=2)]),
        (pa.dictionary(pa.int32(), pa.string_view()), ["a", "b"]),
    ],
    ids=str,
)
def test_ids(job, tmp_path, kind, ids):
    """Ids keep their type in Parquet; bytes are base64 in JSON lines, also those of failed rows."""
    if pa.types.is_dictionary(kind):
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(ids, pa.string_view()))
    else:
        column = pa.array(ids, kind)
    table = pa.table({"id": column, "text": [SENTENCES[0], "xyzzy"]})
    with pa.ipc.new_file(tmp_path / "in.arrow", table.schema) as writer:
        writer.write_table(table)
    shown = [base64.b64encode(id_).decode() if isinstance(id_, bytes) else str(id_) for id_ in ids]
    for name in ("out.parquet", "out.jsonl"):
        assert score(job(tmp_path / "in.arrow", tmp_path / name, "multi-head"))[0] == 3
        assert [row["id"] for row in rows_of(tmp_path / name)] == [ids[0] if name == "out.parquet" else shown[0]]
        assert [letter["id"] for letter in letters_of(tmp_path / name)] == [shown[1]]


def test_columns_of_one_name(tmp_path):
    """A column that is there twice is refused, unless it is not read."""
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], ["text", "text", "other"])
    pq.write_table(twice, tmp_path / "in.parquet")
    with pa.ipc.new_file(tmp_path / "in.arrow", twice.schema) as writer:
        writer.write_table(twice)
    (tmp_path / "in.csv").write_text("text,text,other\na,b,c\n")
    for name in ("in.parquet", "in.arrow", "in.csv"):
        with pytest.raises(Refused, match="has 2 columns of the name 'text'"):
            read(tmp_path / name)
    for name in ("in.parquet", "in.arrow"):
        assert read(tmp_path / name, text="other") == [(0, "c")]


def test_bytes_that_no_text_has(tmp_path):
    """A byte order mark is passed over; UTF-16, an array of JSON and Feather of version 1 are refused in words."""
    line = '{"text": "I gave my cat Tater a toy"}\n'
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode())
    (tmp_path / "bom.csv").write_text("text\nI gave my cat Tater a toy\n", encoding="utf-8-sig")
    assert read(tmp_path / "bom.jsonl") == [(0, SENTENCES[0])]
    assert read(tmp_path / "bom.csv") == [(0, SENTENCES[0])]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        (tmp_path / "wide.jsonl").write_text(line, encoding=encoding)
        with pytest.raises(Refused, match="is UTF-16; text must be UTF-8: iconv"):
            read(tmp_path / "wide.jsonl")
    (tmp_path / "array.json").write_text(json.dumps([{"text": "a"}], indent=1))
    with pytest.raises(Refused, match="is a JSON array; write one object on each line: jq"):
        read(tmp_path / "array.json")
    (tmp_path / "old.feather").write_bytes(b"FEA1" + bytes(20) + b"FEA1")
    with pytest.raises(Refused, match="is Feather version 1; write it again"):
        read(tmp_path / "old.feather")


def test_lines_as_rest_has_them(tmp_path):
    """True in a vector, and a name twice in a line, are failed rows, as REST refuses both."""
    (tmp_path / "in.jsonl").write_text(
        '{"query": [[1.0, 2.0]], "note": "12:30", "tags": [1, {"a": 2}]}\n'
        '{"query": [[true, 2.0]]}\n{"query": [[1.0, 2.0]], "query": [[3.0, 4.0]]}\n'
    )
    source = open_source(str(tmp_path / "in.jsonl"), io.BytesIO())
    fields = Fields(*source.columns({}), "none")
    good, *bad = [row for shard in source.shards(9) for row in source.read(shard, fields)]
    assert isinstance(good, Row)
    assert all(isinstance(row, FailedRow) for row in bad)
    assert [row.reason for row in bad] == [
        "must hold numbers, not true or false",
        "the name 'query' stands twice in one object",
    ]


def test_optional_names_of_later_lines(tmp_path):
    """A name that a row may lack is read also where the first row lacks it."""
    (tmp_path / "in.jsonl").write_text(
        '{"text": "a"}\n{"text": "b", "text_pair": "c"}\n{"text": "d", "more": {"p": "e"}}\n'
    )
    source = open_source(str(tmp_path / "in.jsonl"), io.BytesIO())
    fields = Fields(*source.columns({"prefix": "more.p"}), "none")
    rows = [row for shard in source.shards(9) for row in source.read(shard, fields)]
    assert [row.sequence.text_pair for row in rows] == [None, "c", None]
    assert [row.prefix for row in rows] == [None, None, "e"]


def test_csv(tmp_path):
    """Values in quotes may have commas, quotes and lines; rows of another length, and Latin-1, are failed rows."""
    content = 'n,text,"a,b"\n1,"I said ""no"",\nLeo\u2028said yes",\n2,b\n\n3,"c",x\n4,dLATIN,y\n5,"",z\n'
    (tmp_path / "in.csv").write_bytes(content.encode().replace(b"LATIN", b"\xff"))
    assert read(tmp_path / "in.csv", rows=2, id="n") == [
        ("1", 'I said "no",\nLeo\u2028said yes'),
        "",
        ("3", "c"),
        "",
        "text",
    ]
    (tmp_path / "v.csv").write_text('id,query\na,"[[1, 2]]"\nb,"[[1, 2], [3]]"\nc,1 2\n')
    source = open_source(str(tmp_path / "v.csv"), io.BytesIO())
    fields = Fields(*source.columns({}), "none")
    good, *bad = [row for shard in source.shards(9) for row in source.read(shard, fields)]
    assert good.sequence.query.tolist() == [[1.0, 2.0]]
    assert [row.field for row in bad] == ["query", "query"]


def test_compressed_lines(tmp_path):
    """Several members of gzip, or frames of zstd, are one text; a truncated file is refused by its name."""
    parts = [f'{{"text": "{text}"}}\n'.encode() for text in SENTENCES]
    for name, packed in (("in.jsonl.gz", gzip.compress), ("in.ndjson.zst", zstandard.compress)):
        path = tmp_path / name
        path.write_bytes(packed(parts[0]) + packed(b"".join(parts[1:])))
        assert read(path) == expected(SENTENCES)
        path.write_bytes(path.read_bytes()[:-6])
        with pytest.raises(Refused, match=f"cannot read .*{name}: Truncated"):
            read(path)
        path.write_bytes(b"plain")
        with pytest.raises(Refused, match=f"cannot read .*{name}"):
            read(path)
    (tmp_path / "in.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(Refused, match="of text also with"):
        read(tmp_path / "in.parquet.gz")


@pytest.mark.parametrize("name", ["in.csv", "in.tsv.gz", "in.jsonl.zst", "in.parquet", "in.arrow"])
def test_resuming(job, tmp_path, name):
    """A run that stopped in a file of any kind goes on to the bytes of an undisturbed one."""
    texts = [None if i == 40 else "xyzzy" if i == 50 else SENTENCES[i % 4] for i in range(90)]
    frame = pd.DataFrame({"text": pd.Series(texts, dtype="category")})
    path = tmp_path / name
    if name.endswith("parquet"):
        frame.to_parquet(path, row_group_size=35)
    elif name.endswith("arrow"):
        pl.from_pandas(frame).write_ipc(path)
    elif ".json" in name:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
    options = {"shard_rows": 9, "columns": {"text": "text"}}
    assert score(job(path, tmp_path / "whole.jsonl", "multi-head", **options))[0] == 3
    with pytest.raises(TooManyErrors):
        score(job(path, tmp_path / "out.jsonl", "multi-head", max_errors=0, **options))
    assert 3 <= shards_done(tmp_path / "out.jsonl") <= 6
    assert score(job(path, tmp_path / "out.jsonl", "multi-head", **options))[0] == 3
    assert everything(tmp_path / "out.jsonl") == everything(tmp_path / "whole.jsonl")
