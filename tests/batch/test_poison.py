"""A row without an answer is a dead letter, and changes no answer of its neighbours."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from attention_batch.engines.client import ClientEngine
from attention_batch.errors import Refused, TooManyErrors
from attention_batch.readers.rows import FailedRow, Row
from attention_batch.retry import RetryPolicy
from attention_batch.scorer import BATCH_ROWS, Scorer, make_batches
from attention_batch.spec import ScoringSpec, resolve
from attention_client import Sequence
from serving import start_server

from tests.batch.scoring import (
    SENTENCES,
    WIDTH,
    drawn,
    events,
    exactly,
    letters_of,
    lines_of,
    rows_of,
    score,
    scored,
    summary,
    write,
)

NAN = float("nan")


def poisoned():
    """Return sequences, some of them invalid, and row -> reason for those."""
    sequences = [each.tolist() for each in drawn(100)]
    bad = {
        3: ([[NAN] * WIDTH], "must be finite, but is nan at [0, 0]"),
        10: ([[1.0] * (WIDTH - 1)], f"must be {WIDTH} wide, but has shape [1, {WIDTH - 1}]"),
        11: ([], "must not be empty, but has shape [0, "),
        12: (None, "is null; every row needs it"),
        50: ([[1.0] * WIDTH, [1.0]], "has vectors of several widths"),
        51: ([[1.0] * (WIDTH - 1) + [None]], "must be finite, but is nan at"),
        52: ([[1e300] * WIDTH], "must be finite, but is inf at [0, 0]"),
        70: ([[1e38] * WIDTH], "overflows float32"),  # only the server sees that
        99: ([None], "or a null in place of one"),
    }
    for row, (sequence, _) in bad.items():
        sequences[row] = sequence
    return sequences, {row: reason for row, (_, reason) in bad.items()}


def test_poison_in_parquet(job, client, tmp_path):
    """Each bad row is a dead letter with number, id, field and reason; each good row has its answer."""
    sequences, reasons = poisoned()
    ids = [f"id {i}" for i in range(100)]
    source = write(tmp_path / "in.parquet", {"id": ids, "query": pa.array(sequences, pa.list_(pa.list_(pa.float64())))})
    assert score(job(source, tmp_path / "out.parquet", "multi", shard_rows=40))[0] == 3
    letters = letters_of(tmp_path / "out.parquet")
    assert [letter["row"] for letter in letters] == list(reasons)
    for letter, (row, reason) in zip(letters, reasons.items(), strict=True):
        assert (letter["file"], letter["id"], letter["field"]) == (
            str(source),
            f"id {row}",
            "" if row == 70 else "query",
        )
        assert reason in letter["reason"]
    good = [row for row in range(100) if row not in reasons]
    rows = rows_of(tmp_path / "out.parquet")
    assert [row["id"] for row in rows] == [f"id {row}" for row in good]
    for row, number in zip(rows, good, strict=True):
        assert exactly(row["output"], client.attend("multi", query=np.float32(sequences[number])).output)


LATIN = b"caf\xe9"


def strings(good, bad, kind=None):
    """Return a column of strings, the last of which is not UTF-8, as a foreign writer may leave it."""
    kind = kind or pa.string()
    content = [*(each.encode() for each in good), bad]
    width = np.int64 if pa.types.is_large_string(kind) else np.int32
    offsets = np.cumsum([0, *map(len, content)]).astype(width)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(content))]
    return pa.Array.from_buffers(kind, len(content), buffers)


def dictionary(good, bad):
    return pa.DictionaryArray.from_arrays(pa.array(range(len(good) + 1), pa.int8()), strings(good, bad))


TEXTS = (SENTENCES * 2)[:5]
NAMES = [f"row {i}" for i in range(5)]
BAD_STRINGS = {
    "text": ("text", {"text": strings(TEXTS, LATIN)}),
    "large text": ("text", {"text": strings(TEXTS, LATIN, pa.large_string())}),
    "id": ("id", {"id": strings(NAMES, LATIN), "text": [*TEXTS, TEXTS[0]]}),
    "dictionary id": ("id", {"id": dictionary(NAMES, LATIN), "text": [*TEXTS, TEXTS[0]]}),
}


@pytest.mark.parametrize("name", ["in.parquet", "in.arrow"])
@pytest.mark.parametrize(("field", "table"), BAD_STRINGS.values(), ids=BAD_STRINGS)
def test_a_string_that_is_not_utf8(job, tmp_path, name, field, table):
    """A string that is not UTF-8, as a text or an id, fails its row alone; the good rows keep answers and ids."""
    source = tmp_path / name
    if name == "in.parquet":
        write(source, table)
    else:
        with pa.ipc.new_file(source, pa.table(table).schema) as writer:
            writer.write_table(pa.table(table))
    assert score(job(source, tmp_path / "out.jsonl", "multi-head"))[0] == 3
    assert [row["id"] for row in rows_of(tmp_path / "out.jsonl")] == (list(range(5)) if field == "text" else NAMES)
    (letter,) = letters_of(tmp_path / "out.jsonl")
    assert (letter["row"], letter["field"], letter["id"]) == (5, field, 5 if field == "text" else None)
    assert letter["reason"] == "is not UTF-8: unexpected end of data at byte 3"


@pytest.mark.parametrize("line", [b'{"id": "x", "text": "%s"}', b'{"id": "%s", "text": "I gave Leo my toy"}'])
def test_a_line_that_is_not_utf8(job, tmp_path, line):
    """A line of JSON with a string that is not UTF-8 fails, and the lines around it do not."""
    good = [json.dumps({"id": name, "text": text}).encode() for name, text in zip(NAMES, TEXTS, strict=True)]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join([*good[:3], line % LATIN, *good[3:]]))
    assert score(job(source, tmp_path / "out.jsonl", "multi-head"))[0] == 3
    assert [row["id"] for row in rows_of(tmp_path / "out.jsonl")] == NAMES
    (letter,) = letters_of(tmp_path / "out.jsonl")
    assert (letter["row"], letter["id"]) == (3, None)
    assert letter["reason"].startswith("the line is no JSON: ")


def test_a_file_name_that_is_not_utf8(job, tmp_path):
    """An input file with a name that the journal cannot hold is refused by that name."""
    source = tmp_path / os.fsdecode(LATIN + b".jsonl")
    source.write_text(json.dumps({"text": SENTENCES[0]}))
    with pytest.raises(Refused, match=r"caf.*: the name is not UTF-8; rename the file"):
        score(job(source, tmp_path / "out.jsonl", "multi-head"))


def test_null_vectors_of_a_fixed_width(job, tmp_path):
    """A null among fixed-size vectors is a dead letter, and shifts no further row."""
    sequences = [[[float(i)] * WIDTH] * 2 for i in range(5)]
    sequences[1] = [None, [1.0] * WIDTH]
    sequences[3] = None
    column = pa.array(sequences, pa.list_(pa.list_(pa.float32(), WIDTH)))
    source = write(tmp_path / "in.parquet", {"query": column})
    assert score(job(source, tmp_path / "out.jsonl", "multi"))[0] == 3
    assert [row["id"] for row in lines_of(tmp_path / "out.jsonl")] == [0, 2, 4]
    assert [letter["row"] for letter in letters_of(tmp_path / "out.jsonl")] == [1, 3]


def test_poison_in_json(job, tmp_path):
    """A line that is no JSON, no object, or of the wrong type is a dead letter; blank lines are skipped."""
    lines = [
        json.dumps({"id": 0, "text": SENTENCES[0]}),
        "{",
        "",
        "[1]",
        json.dumps({"id": 4}),
        json.dumps({"id": 5, "text": 7}),
        json.dumps({"id": 6, "text": "  "}),
        json.dumps({"id": 7, "text": "I gave xyzzy a toy"}),
        json.dumps({"id": 8, "text": " ".join(["cat"] * 100)}),
        b"\xff".decode("latin-1"),
        json.dumps({"id": 10, "text": SENTENCES[1]}),
    ]
    source = tmp_path / "in.jsonl"
    source.write_bytes("\n".join(lines).encode("latin-1"))
    assert score(job(source, tmp_path / "out.jsonl", "multi-head"))[0] == 3
    assert [row["id"] for row in lines_of(tmp_path / "out.jsonl")] == [0, 10]
    told = {letter["row"]: letter for letter in letters_of(tmp_path / "out.jsonl")}
    assert list(told) == [1, 3, 4, 5, 6, 7, 8, 9]
    assert told[1]["reason"].startswith("the line is no JSON: ")
    assert told[3]["reason"] == "must be an object, not list"
    assert (told[4]["field"], told[4]["reason"]) == ("text", "is null; every row needs it")
    assert told[5]["reason"] == "must be a string, not int"
    assert told[6]["reason"] == "has no words in it; send at least one"
    assert "'xyzzy' is not in this model's vocabulary" in told[7]["reason"]
    assert "100 tokens; this model reads at most" in told[8]["reason"]


def test_rows_that_fail_together(client, monkeypatch):
    """A batch is sent without all of its failing rows at once, not once for each; each has its own reason."""
    sent = []
    engine = ClientEngine(client)
    attend = client.attend_batch
    monkeypatch.setattr(
        client, "attend_batch", lambda *given, **named: sent.append(len(given[1])) or attend(*given, **named)
    )
    model = engine.model("multi-head", 0)
    outputs = resolve([{"name": "output"}], model.manifest, reads_text=True)
    texts = [f"xyzzy{i}" if i % 2 else SENTENCES[0] for i in range(BATCH_ROWS)]
    rows = [Row("in", i, i, Sequence(text=text), 1) for i, text in enumerate(texts)]
    scorer = Scorer(engine, ScoringSpec("multi-head", model.version, "", outputs), RetryPolicy(0, print))
    ((_, found),) = scorer.score(make_batches(0, rows))
    for i, result in enumerate(found):
        assert isinstance(result, FailedRow) == bool(i % 2)
        assert i % 2 == 0 or f"'xyzzy{i}'" in result.reason
    assert len(sent) <= 3, sent


def test_the_summary_of_failed_rows(job, tmp_path, capsys):
    """The summary names the file of failed rows, and the first reason of each kind with the number of its rows."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = [SENTENCES[0], "xyzzy", None, "plugh", SENTENCES[1], 5]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for _ in range(2):  # also where the run was complete before
        assert score(job(source, output, "multi-head"))[0] == 3
        last = events(capsys.readouterr().err.encode())[-1]
        assert last["errors"] == f"{output}.errors.jsonl"
        assert [(kind["row"], kind["rows"]) for kind in last["failures"]] == [(1, 2), (2, 1), (5, 1)]
        assert "'xyzzy'" in last["failures"][0]["reason"]


def test_ids_in_json_beyond_64_bits(job, tmp_path):
    """An id is an integer of 64 bits; a row with a larger one is a dead letter, and stops nothing."""
    ids = [0, 2**63 - 1, 2**64, -(2**63) - 1]
    source = write(tmp_path / "in.jsonl", {"id": ids, "text": SENTENCES[:1] * 4})
    assert score(job(source, tmp_path / "out.parquet", "multi-head"))[0] == 3
    assert [row["id"] for row in rows_of(tmp_path / "out.parquet")] == ids[:2]
    assert [letter["row"] for letter in letters_of(tmp_path / "out.parquet")] == [2, 3]


def test_vectors_in_json_that_are_none(job, tmp_path):
    """Vectors that are ragged, empty, of the wrong rank or not numeric are dead letters with the field's name."""
    good = drawn(1)[0].tolist()
    bad = ["text", [], [[]], [1.0], [[1.0], [1.0, 2.0]], [["a"]], [[None] * WIDTH], [[[1.0]]], {}]
    source = write(tmp_path / "in.jsonl", {"query": [good, *bad, good]})
    assert score(job(source, tmp_path / "out.jsonl", "multi"))[0] == 3
    assert [row["id"] for row in lines_of(tmp_path / "out.jsonl")] == [0, 10]
    letters = letters_of(tmp_path / "out.jsonl")
    assert [letter["row"] for letter in letters] == list(range(1, 10))
    assert {letter["field"] for letter in letters} == {"query"}


def test_poison_that_is_masked(job, client, tmp_path):
    """NaN at a masked position does not fail its row."""
    rng = np.random.default_rng(7)
    vectors = {"query": (2, 16), "key": (4, 12), "value": (4, 10)}
    row = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in vectors.items()}
    row["key"][3] = NAN
    table = {name: pa.array([each.tolist()], pa.list_(pa.list_(pa.float32()))) for name, each in row.items()}
    source = write(tmp_path / "in.parquet", table)
    assert score(job(source, tmp_path / "out.jsonl", "cross", causal="top_left"))[0] == 0
    assert exactly(
        lines_of(tmp_path / "out.jsonl")[0]["output"], client.attend("cross", causal="top_left", **row).output
    )
    assert score(job(source, tmp_path / "open.jsonl", "cross"))[0] == 3


def test_what_only_the_server_refuses(repository, job, tmp_path):
    """A row over a limit of the server is a dead letter, and its neighbours are answered."""
    sequences = [np.resize(drawn(1, 4)[0], (length, 4)) for length in (5, 900, 5, 600, 5, 5, 900, 5)]
    column = pa.array([each.tolist() for each in sequences], pa.list_(pa.list_(pa.float32(), 4)))
    source = write(tmp_path / "in.parquet", {"query": column})
    limits = ("--slots", 1, "--max-scores-mib", 3, "--max-answer-mib", 1, "--max-sequences", 3)
    with start_server(repository, *limits) as small:
        described = replace(job(source, tmp_path / "out.jsonl", "dot"), target=small.grpc)
        assert score(replace(described, outputs=[{"name": "weights"}]))[0] == 3
    assert [row["id"] for row in lines_of(tmp_path / "out.jsonl")] == [0, 2, 4, 5, 7]
    reasons = {letter["row"]: letter["reason"] for letter in letters_of(tmp_path / "out.jsonl")}
    assert list(reasons) == [1, 3, 6]
    assert re.search(r"\(--max-scores-mib\): 7\d\d positions fit", reasons[1])
    assert "the answer would be at least 1440000 bytes" in reasons[3]


def test_most_errors(job, server, tmp_path):
    """With --max-errors a run that loses more rows stops with status 5 and leaves no output."""
    source = write(tmp_path / "in.jsonl", {"text": [SENTENCES[0], "", "", SENTENCES[1]]})
    with pytest.raises(TooManyErrors, match="2 rows failed, more than --max-errors 1"):
        score(job(source, tmp_path / "out.jsonl", "multi-head", max_errors=1))
    assert not (tmp_path / "out.jsonl").exists()
    arguments = (source, tmp_path / "out.jsonl", "--model", "multi-head", "--target", server.grpc)
    done = scored(*arguments, "--max-errors", 1)
    assert (done.returncode, summary(done)["status"]) == (5, "stopped")
    done = scored(*arguments, "--max-errors", 2)
    assert done.returncode == 3
    assert (summary(done)["rows"], summary(done)["failed"]) == (2, 2)


def test_the_errors_of_earlier_runs_count(job, tmp_path):
    """A resumed or complete run counts the failed rows of the earlier runs."""
    source = write(tmp_path / "in.jsonl", {"id": [1, 2, 3], "text": ["no such words", "nor these", SENTENCES[0]]})
    assert score(job(source, tmp_path / "out.jsonl", "multi-head", shard_rows=1))[0] == 3
    with pytest.raises(TooManyErrors, match="2 rows failed, more than --max-errors 1"):
        score(job(source, tmp_path / "out.jsonl", "multi-head", shard_rows=1, max_errors=1))
