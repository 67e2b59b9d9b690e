"""Columns of texts as callers have them: pairs, ids of tokens, and texts that are cut."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attention_batch.errors import Refused
from attention_batch.plan import ScoringJob
from attention_client import Ablation, AttentionClient
from serving import start_server

from tests.batch.scoring import score
from tests.server import tokenizers_of_tests

LONG = "Hello world, the quick brown fox jumps over the lazy dogs."
ROWS = [
    {"text": "Fox", "text_pair": "dog", "truncate": None},
    {"text": LONG, "text_pair": None, "truncate": "left"},
    {"text": LONG, "text_pair": "dog", "truncate": "right"},
    {"text": LONG, "text_pair": None, "truncate": "none"},
    {"text": LONG, "text_pair": None, "truncate": "middle"},
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    tokenizers_of_tests.write(folder, "wordpiece")
    with start_server(folder) as running, AttentionClient(running.grpc) as client:
        yield folder, running.grpc, client


def written(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def run(texts, source, output, local=False, **options):
    folder, target, _ = texts
    where = {"engine": "local", "models": folder} if local else {"target": target}
    wanted = [{"name": "output", "pool": "mean"}, {"name": "tokens"}, {"name": "truncated_tokens"}]
    assert score(
        ScoringJob(input=str(source), output=str(output), model="wordpiece", outputs=wanted, **where, **options)
    )[0] in (
        0,
        3,
    )
    errors = output.with_name(f"{output.name}.errors.jsonl")
    failed = [json.loads(line) for line in errors.read_text().splitlines()] if errors.exists() else []
    return output, failed


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("local", [False, True])
def test_pairs_and_cuts(texts, tmp_path, suffix, local):
    """Pairs and cuts are columns, which may be null; a row that is too long, or has no such cut, fails by its field."""
    output, failed = run(texts, written(tmp_path / f"in{suffix}", ROWS), tmp_path / f"out{suffix}", local)
    rows = (
        pq.read_table(output).to_pylist()
        if suffix == ".parquet"
        else list(map(json.loads, output.read_text().splitlines()))
    )
    assert [row["id"] for row in rows] == [0, 1, 2]
    for row, sent in zip(rows, ROWS, strict=False):
        given = {name: value for name, value in sent.items() if value is not None}
        expected = texts[2].attend("wordpiece", **given)
        assert row["tokens"] == list(expected.tokens)
        assert row["truncated_tokens"] == expected.truncated_tokens
        assert row["output"] == pytest.approx(expected.output.mean(0), abs=1e-5)
    assert {(each["row"], each["field"]) for each in failed} == {(3, "text"), (4, "truncate")}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("local", [False, True])
def test_ids(texts, tmp_path, suffix, local):
    """Ids of tokens are a column; a row without any, or with one outside the vocabulary, fails by its field."""
    sent = [
        {"token_ids": [2, 10, 3]},
        {"token_ids": []},
        {"token_ids": [2, 500]},
        {"token_ids": [2, -1]},
        {"token_ids": [7]},
    ]
    output, failed = run(texts, written(tmp_path / f"in{suffix}", sent), tmp_path / f"out{suffix}", local)
    rows = (
        pq.read_table(output).to_pylist()
        if suffix == ".parquet"
        else list(map(json.loads, output.read_text().splitlines()))
    )
    assert [row["id"] for row in rows] == [0, 4]
    for row, ids in zip(rows, ([2, 10, 3], [7]), strict=True):
        assert row["output"] == pytest.approx(texts[2].attend("wordpiece", token_ids=ids).output.mean(0), abs=1e-5)
    assert {(each["row"], each["field"].partition("[")[0]) for each in failed} == {
        (row, "token_ids") for row in (1, 2, 3)
    }


@pytest.mark.parametrize("local", [False, True])
def test_options_of_all_texts(texts, tmp_path, local):
    """Texts are cut, and heads switched off, as in single calls; a row's own cut goes before; vectors cannot be cut."""
    rows = [{"text": LONG, "truncate": "right"}, {"text": LONG, "truncate": None}, {"text": "Fox", "truncate": None}]
    ablate = [Ablation(layers=["*"], heads=[0])]
    source = written(tmp_path / "in.jsonl", rows)
    output, failed = run(texts, source, tmp_path / "out.jsonl", local, truncate="left", ablate=ablate)
    assert not failed
    for row, sent in zip(map(json.loads, output.read_text().splitlines()), rows, strict=True):
        one = texts[2].attend("wordpiece", text=sent["text"], truncate=sent["truncate"] or "left", ablate=ablate)
        assert row["tokens"] == list(one.tokens)
        assert row["output"] == pytest.approx(one.output.mean(0), abs=1e-5)
    assert row["output"] != pytest.approx(texts[2].attend("wordpiece", text="Fox").output.mean(0), abs=1e-3)
    with pytest.raises(Refused, match="--truncate left: the rows have no texts"):
        run(texts, written(tmp_path / "ids.jsonl", [{"token_ids": [2]}]), tmp_path / "b.jsonl", local, truncate="left")
