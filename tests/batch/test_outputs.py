"""Outputs: every output spec, pooled and whole, in Arrow's types and in JSON."""

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attention_batch.errors import Refused
from attention_batch.output import assembly, sink
from attention_batch.readers.rows import ScoredRow
from attention_batch.spec import Column, parse
from attention_client import OutputSpec

from tests.batch.scoring import (
    SENTENCES,
    drawn,
    exactly,
    lines_of,
    rows_of,
    score,
    write,
    write_texts,
    write_vectors,
)

FLOAT = pa.float32()


def pooled(name, pool):
    return OutputSpec(name, pool=pool)


def weights_type(kind=FLOAT, heads=3):
    return pa.list_(pa.list_(pa.list_(kind)), heads)


CASES = {
    "whole": ("output", pa.list_(pa.list_(FLOAT, 20)), lambda ask: ask("output").output),
    "mean": ("output:mean", pa.list_(FLOAT, 20), lambda ask: ask(pooled("output", "mean")).output),
    "first": ("output:first", pa.list_(FLOAT, 20), lambda ask: ask(pooled("output", "first")).output),
    "last": ("output:last", pa.list_(FLOAT, 20), lambda ask: ask(pooled("output", "last")).output),
    "row": (
        '[{"name": "output", "rows": [-1, 0]}]',
        pa.list_(pa.list_(FLOAT, 20), 2),
        lambda ask: ask(OutputSpec("output", rows=[-1, 0])).output,
    ),
    "rows pooled": (
        '[{"name": "weights", "reduce": "max", "rows": [-1, 0], "pool": "mean"}]',
        pa.list_(pa.list_(FLOAT), 1),
        lambda ask: ask(OutputSpec("weights", reduce="max", rows=[-1, 0], pool="mean"))["weights"],
    ),
    "weights": ("weights", weights_type(), lambda ask: ask("weights").weights),
    "scores": ("scores", weights_type(), lambda ask: ask("scores")["scores"]),
    "reduced": (
        '[{"name": "weights", "reduce": "max", "heads": [2, 0]}]',
        weights_type(heads=1),
        lambda ask: ask(OutputSpec("weights", reduce="max", heads=[2, 0])).weights,
    ),
    "half": (
        '[{"name": "weights", "data_type": "FP16"}]',
        weights_type(pa.float16()),
        lambda ask: ask(OutputSpec("weights", data_type="FP16")).weights,
    ),
    "heads": ("heads", pa.list_(pa.list_(pa.list_(FLOAT, 5)), 3), lambda ask: ask("heads")["heads"]),
    "heads:mean": ("heads:mean", pa.list_(pa.list_(FLOAT, 5), 3), lambda ask: ask("heads")["heads"].mean(1)),
    "q": ("q", pa.list_(pa.list_(pa.list_(FLOAT, 8)), 3), lambda ask: ask("q")["q"]),
    "pairs": (
        '[{"name": "heads", "pairs": ["0.2", "0.0"]}]',
        pa.list_(pa.list_(pa.list_(FLOAT, 5)), 2),
        lambda ask: ask("heads")["heads"][[2, 0]],
    ),
    "spans": (
        '[{"name": "weights", "heads": [2, 0], "spans": {"first": [0, 1]}}]',
        pa.list_(pa.list_(pa.list_(FLOAT, 1)), 2),
        lambda ask: ask("weights")["weights"][[2, 0], :, :1],
    ),
    "fold": (
        '[{"name": "weights", "fold": "mean", "rows": [0]}]',
        pa.list_(pa.list_(FLOAT), 1),
        lambda ask: ask("weights").weights.mean(0)[:1],
    ),
    "entropy": ("entropy", pa.list_(pa.list_(FLOAT), 3), lambda ask: ask("entropy")["entropy"]),
    "entropy:mean": (
        "entropy:mean",
        pa.list_(FLOAT, 3),
        lambda ask: ask(pooled("entropy", "mean"))["entropy"],
    ),
}


@pytest.mark.parametrize(("outputs", "kind", "expected"), CASES.values(), ids=CASES)
def test_an_output(job, client, tmp_path, outputs, kind, expected):
    """An output has the numbers of a single call, in the Arrow type for its shape."""
    source = write_vectors(tmp_path / "in.parquet", 12)
    for name in ("out.parquet", "out.jsonl"):
        described = job(source, tmp_path / name, "multi", outputs=parse(outputs), shard_rows=5)
        # One row is too short for the second of its first and last rows.
        assert score(described)[0] in ((0, 3) if "rows" in outputs else (0,))
        (column,) = rows_of(tmp_path / name)[0].keys() - {"id"}
        for row in rows_of(tmp_path / name):
            query = drawn(12)[row["id"]]
            found = row[column]
            assert exactly(
                found, expected(lambda spec, query=query: client.attend("multi", query=query, outputs=[spec]))
            )
    assert pq.read_schema(tmp_path / "out.parquet").field(column).type == kind


def test_readers_of_outputs(job, client, tmp_path):
    """pandas, polars and DuckDB read vectors and matrices as such, and Arrow those that are its tensors, by choice."""
    source = write_vectors(tmp_path / "in.parquet", 4)
    outputs = parse("output:mean,heads:mean")
    output, tensors = tmp_path / "out.parquet", tmp_path / "tensors.parquet"
    assert score(job(source, output, "multi", outputs=outputs))[0] == 0
    assert score(job(source, tensors, "multi", outputs=outputs, tensors="extension"))[0] == 0
    answers = [client.attend("multi", query=query, outputs=["output", "heads"]) for query in drawn(4)]
    means = np.stack([answer.output.mean(0) for answer in answers])
    heads = np.stack([answer["heads"].mean(1) for answer in answers])
    frame = pd.read_parquet(output)
    lazy = pl.read_parquet(output)
    rows = duckdb.sql(f"select output, heads, list_sum(output) from '{output}'").fetchall()
    table = pq.read_table(tensors)
    for found, expected in (
        (np.stack(frame["output"]), means),
        (np.stack(frame["heads"].map(np.stack)), heads),
        (lazy["output"].to_numpy(), means),
        (lazy["heads"].to_numpy(), heads),
        (np.array([row[0] for row in rows]), means),
        (np.array([row[1] for row in rows]), heads),
        (np.array([row[2] for row in rows]), means.sum(1)),
        (table["output"].combine_chunks().to_numpy_ndarray(), means),
        (table["heads"].combine_chunks().to_numpy_ndarray(), heads),
    ):
        assert found.shape == expected.shape
        assert np.allclose(found, expected, atol=1e-5)


def test_the_largest(job, client, tmp_path):
    """Top-k weights are written as positions and values."""
    source = write_vectors(tmp_path / "in.parquet", 12)
    spec = {"name": "weights", "as": "most", "top_k": 3, "reduce": "mean"}
    for name in ("out.parquet", "out.jsonl"):
        assert score(job(source, tmp_path / name, "multi", outputs=[spec]))[0] == 0
        for row, query in zip(rows_of(tmp_path / name), drawn(12), strict=True):
            top = client.attend("multi", query=query, outputs=[spec])["most"]
            assert exactly(row["most"]["indices"], top.indices.astype(np.int32))
            assert exactly(row["most"]["values"], top.values)


def test_text_gets_its_tokens(job, client, tmp_path):
    """Several outputs are columns in the requested order; tokens name the rows of weights."""
    source = write_texts(tmp_path / "in.jsonl", 4)
    described = job(source, tmp_path / "out.jsonl", "multi-head", outputs=parse("tokens, predictions,weights"))
    assert score(described)[0] == 0
    for row, sentence in zip(lines_of(tmp_path / "out.jsonl"), SENTENCES, strict=True):
        result = client.attend("multi-head", text=sentence, outputs=["weights", "predictions"])
        assert list(row) == ["id", "tokens", "predictions", "weights"]
        assert row["tokens"] == sentence.split()
        assert row["predictions"][0]["label"] == result.predictions[0].label
        assert np.float32(row["predictions"][0]["probability"]) == np.float32(result.predictions[0].probability)


def test_the_most_probable_labels(job, client, tmp_path):
    """With `top`, each prediction has its most probable labels with ids and probabilities; without it, none."""
    source = write_texts(tmp_path / "in.jsonl", 3)
    specs = [{"name": "predictions", "top": 2}]
    for name in ("out.parquet", "out.jsonl"):
        assert score(job(source, tmp_path / name, "multi-head", outputs=specs))[0] == 0
        for row, sentence in zip(rows_of(tmp_path / name), SENTENCES, strict=False):
            expected = client.attend("multi-head", text=sentence, outputs=specs).predictions
            for found, prediction in zip(row["predictions"], expected, strict=True):
                assert found["id"] == prediction.id
                assert [each["id"] for each in found["top"]] == [each.id for each in prediction.top]
                assert [each["label"] for each in found["top"]] == [each.label for each in prediction.top]
                chances = np.float32([each.probability for each in prediction.top])
                assert exactly([each["probability"] for each in found["top"]], chances)
    assert score(job(source, tmp_path / "plain.jsonl", "multi-head", outputs=parse("predictions")))[0] == 0
    assert "top" not in lines_of(tmp_path / "plain.jsonl")[0]["predictions"][0]


def test_by_default_what_the_service_sends(job, tmp_path):
    """Without --outputs the columns are the output, and predictions if the model has a prediction head."""
    source = write_texts(tmp_path / "in.jsonl", 1)
    assert score(job(source, tmp_path / "out.jsonl", "multi-head"))[0] == 0
    assert list(lines_of(tmp_path / "out.jsonl")[0]) == ["id", "output", "predictions"]


def test_any_width_is_nested_lists(job, tmp_path):
    """A block that accepts any width gives nested lists of any width."""
    table = {"query": [[[1.0, 0.0]], [[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]]}
    source = write(tmp_path / "in.jsonl", table)
    assert score(job(source, tmp_path / "out.parquet", "dot"))[0] == 0
    assert pq.read_schema(tmp_path / "out.parquet").field("output").type == pa.list_(pa.list_(FLOAT))
    assert [np.shape(row["output"]) for row in rows_of(tmp_path / "out.parquet")] == [(1, 2), (2, 3)]


def test_a_causal_mask(job, client, tmp_path):
    """The causal mask applies to every sequence."""
    source = write_vectors(tmp_path / "in.parquet", 5)
    assert score(job(source, tmp_path / "out.jsonl", "multi", causal="top_left"))[0] == 0
    for row, query in zip(lines_of(tmp_path / "out.jsonl"), drawn(5), strict=True):
        assert exactly(row["output"], client.attend("multi", query=query, causal="top_left").output)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ("wieghts", "did you mean 'weights'?"),
        ("output:median", "output: is 'median'; it must be one of None, mean, first, last"),
        ("output,output:mean", "the name 'output' is taken"),
        ("tokens", "rows of vectors have no tokens"),
        ('[{"name": "output", "poool": "mean"}]', "has no option 'poool'"),
        ('[{"name": "weights", "layers": ["x"]}]', "there is no layer 'x'"),
        ('[{"name": "entropy", "top_k": 2}]', "is for scores, weights and received, not for entropy"),
        ('[{"name": "output", "rows": 0}]', "output: "),
        ('[{"name": "output", "top_k": 2, "pool": "mean"}]', "is for scores, weights and received"),
        ("[1]", "must be an object"),
        ("[", "is no JSON"),
        ("predictions", "predicts nothing"),
        ('[{"name": "weights", "pairs": ["1.0"]}]', "weights: there is no layer '1' for the pair '1.0'"),
        ('[{"name": "weights", "pairs": "0.1"}]', "pairs must be a list; write ['0.1']"),
        ("hidden:mean", "hidden: this model gives no hidden"),
        ('[{"name": "weights", "top": 2}]', "is for predictions, not for weights"),
    ],
)
def test_outputs_that_do_not_do(job, tmp_path, outputs, said):
    """An output that the model can give for no row is refused, not a dead letter for every row."""
    source = write_vectors(tmp_path / "in.parquet", 3)
    with pytest.raises(Refused) as refused:
        score(job(source, tmp_path / "out.parquet", "multi", outputs=parse(outputs)))
    assert said in str(refused.value)
    assert not (tmp_path / "out.parquet").exists()


def test_row_groups(tmp_path):
    """Parts of any length become full row groups, of at most one batch more; the last may be short."""
    layout = sink.OutputLayout("parquet", (Column("output", "tensor", (1,)),), pa.int64())
    paths = []
    for part in range(14):
        with sink.open_part(tmp_path, part, layout) as writer:
            writer.add(ScoredRow(i, (np.float32([i]),), 1) for i in range(part * 5000, (part + 1) * 5000))
        paths.append(sink.part_paths(tmp_path, part)[0])
    assembly.assemble(paths, tmp_path / "out.parquet", layout)
    written = pq.ParquetFile(tmp_path / "out.parquet")
    groups = [written.metadata.row_group(i).num_rows for i in range(written.num_row_groups)]
    assert len(groups) == 2
    assert assembly.GROUP_ROWS <= groups[0] <= assembly.GROUP_MOST_ROWS
    assert written.read(["id"])["id"].to_pylist() == list(range(70_000))
