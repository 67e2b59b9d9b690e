"""Batches of rows: the bounds of one, and of all under way."""

import itertools

import numpy as np
import pytest
from attention_batch.readers.rows import FailedRow, Row
from attention_batch.retry import RetryPolicy
from attention_batch.scorer import BATCH_BYTES, BATCH_ROWS, BYTES_UNDER_WAY, RowBatch, Scorer, make_batches
from attention_batch.spec import ScoringSpec, resolve
from attention_client import AttendResult, Sequence
from attention_proto.attention.v1 import attention_pb2 as pb

CONCURRENCY = 4


def row(number, size=1):
    return Row("in.jsonl", number, number, Sequence(query=np.zeros((1, 1), np.float32)), size)


def failed(number):
    return FailedRow("in.jsonl", number, number, "query", "is null")


def lengths(rows):
    return [len(batch.rows) for batch in make_batches(0, rows)]


def test_a_batch_is_bounded_in_rows():
    """The bound itself is one batch; one row more begins another."""
    assert lengths(map(row, range(BATCH_ROWS))) == [BATCH_ROWS]
    assert lengths(map(row, range(2 * BATCH_ROWS + 1))) == [BATCH_ROWS, BATCH_ROWS, 1]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([BATCH_BYTES - 1, 1], [2]),
        ([BATCH_BYTES - 1, 1, 1], [2, 1]),
        ([BATCH_BYTES, 1], [1, 1]),
        ([1, BATCH_BYTES], [1, 1]),
        ([3 * BATCH_BYTES, 3 * BATCH_BYTES], [1, 1]),  # a row above the bound travels alone
    ],
)
def test_a_batch_is_bounded_in_bytes(sizes, expected):
    """The rows of a batch have at most the bound together; a row that exceeds it begins the next batch."""
    assert lengths(itertools.starmap(row, enumerate(sizes))) == expected


def test_batches_keep_rows_and_order():
    """A failed row keeps its place and adds no bytes; the last batch, and it alone, ends the shard."""
    rows = [failed(0), row(1, BATCH_BYTES), failed(2), row(3), failed(4)]
    batches = list(make_batches(7, rows))
    assert [batch.rows for batch in batches] == [rows[:3], rows[3:]]
    assert [(batch.shard, batch.size, batch.last) for batch in batches] == [(7, BATCH_BYTES, False), (7, 1, True)]
    (empty,) = make_batches(0, [])
    assert (empty.rows, empty.last) == ([], True)


class Instant:
    """An engine that answers every batch at once."""

    concurrency = CONCURRENCY
    processes = 0

    def model(self, name, version):
        return pb.Model(name=name, version=version)

    def attend(self, _, sequences):
        return [AttendResult("m", 1, {"output": np.zeros((1, 1), np.float32)}) for _ in sequences]


@pytest.mark.parametrize(
    ("size", "most"),
    [
        (1, 2 * CONCURRENCY),
        (BYTES_UNDER_WAY // 4, 4),
        (BYTES_UNDER_WAY // 4 + 1, 3),
        (2 * BYTES_UNDER_WAY, 1),  # a batch above the bound is under way alone
    ],
)
def test_batches_under_way_are_bounded(size, most):
    """Batches are read ahead up to a number and a sum of bytes, and never further; results come in order."""
    outputs = resolve(
        [{"name": "output"}], pb.Manifest(layers=[pb.Layer(heads=1, stages=["output"])]), reads_text=False
    )
    scorer = Scorer(Instant(), ScoringSpec("m", 1, "", outputs), RetryPolicy(0, print))
    read, ahead = 0, []

    def batches():
        nonlocal read
        for number in range(20):
            read += 1
            yield RowBatch(0, [row(number)], size)

    for given, (batch, results) in enumerate(scorer.score(batches())):
        ahead.append(read - given)
        assert [result.id for result in results] == [batch.rows[0].id] == [given]
    # Beyond those under way, the batch in hand has been read and waits for its turn.
    assert ahead == [min(20 - given, most + 1) for given in range(20)]
