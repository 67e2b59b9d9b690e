"""Answers for rows, in order: several batches of rows are under way at once.

A batch depends on its shard alone, so the same rows always travel together. A row that the model rejects is separated
from its neighbours, which are sent again without it.
"""

import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from attention_client import AttendResult, AttentionError, InvalidRequest, NotFound, TooLarge
from attention_proto.attention.v1 import attention_pb2 as pb

from attention_batch.errors import Refused, Stopped
from attention_batch.readers.rows import FailedRow, Row, ScoredRow
from attention_batch.retry import RetryPolicy
from attention_batch.spec import ScoringSpec, digest

BATCH_ROWS = 32
BATCH_BYTES = 2**20
BYTES_UNDER_WAY = 32 * 2**20  # of batches, unless one alone has more

_OF_MEMORY = re.compile(r"inputs\[\d+\]\.memory")
_CULPRIT = re.compile(r"inputs\[(\d+)\]\.?(.*)")
# Options of an output that can fail for a single row; a fault in any further option fails for every row.
_OF_ONE_ROW = re.compile(r"outputs\[\d+\]\.(rows|pool|data_type)")

RowResult = ScoredRow | FailedRow
T = TypeVar("T")


class Engine(Protocol):
    """A service, or the model in this process."""

    @property
    def concurrency(self) -> int:
        """Number of batches to have under way at once."""
        ...

    @property
    def processes(self) -> int:
        """Number of processes that would compute faster than this process alone; 0 for none."""
        ...

    def model(self, name: str, version: int) -> pb.Model:
        """Return a model version's description; version 0 is the default one. Raises AttentionError."""
        ...

    def attend(self, spec: ScoringSpec, rows: list[Row]) -> list[AttendResult]:
        """Return one answer a row, each behind its prefix. Raises AttentionError."""
        ...


class _NoRoom(Exception):
    """The contexts of all rows together are more than the engine keeps."""


@dataclass
class RowBatch:
    """Consecutive rows of a shard that travel together. Rows that could not be read keep a place.

    Attributes:
        shard: the shard's index.
        rows: in order.
        size: bytes of the rows that are sent.
        last: whether it is the shard's last batch.
    """

    shard: int
    rows: list[Row | FailedRow] = field(default_factory=list)
    size: int = 0
    last: bool = False


def make_batches(shard: int, rows: Iterable[Row | FailedRow]) -> Iterator[RowBatch]:
    """Yield a shard's batches, of at most `BATCH_ROWS` rows and `BATCH_BYTES`, unless one row alone has more.

    There is at least one batch, so that the last one can mark the shard's end.
    """
    batch = RowBatch(shard)
    for row in rows:
        size = row.size if isinstance(row, Row) else 0
        if len(batch.rows) == BATCH_ROWS or (batch.size and batch.size + size > BATCH_BYTES):
            yield batch
            batch = RowBatch(shard)
        batch.rows.append(row)
        batch.size += size
    batch.last = True
    yield batch


class Scorer:
    """Scores batches of rows through an engine, with retries.

    Args:
        engine: computes the answers.
        spec: the model version and outputs.
        retries: the policy of retries.
    """

    def __init__(self, engine: Engine, spec: ScoringSpec, retries: RetryPolicy) -> None:
        self._engine = engine
        self._spec = spec
        self._retries = retries

    def score(self, batches: Iterable[RowBatch]) -> Generator[tuple[RowBatch, list[RowResult]]]:
        """Yield each batch with one result a row, in order.

        Raises:
            Refused: the model cannot give the requested outputs for any row.
            Stopped: the server is unreachable, or fails.
        """
        self._retries.start()
        if self._engine.concurrency == 1:
            # A second thread would only take turns with this one.
            yield from ((batch, self._answer(batch)) for batch in batches)
            return
        with self._pool() as pool:
            under_way: deque[tuple[RowBatch, Future[list[RowResult]]]] = deque()
            size = 0
            for batch in batches:
                while under_way and (
                    len(under_way) >= 2 * self._engine.concurrency or size + batch.size > BYTES_UNDER_WAY
                ):
                    size -= under_way[0][0].size
                    yield _next(under_way)
                under_way.append((batch, pool.submit(self._answer, batch)))
                size += batch.size
            while under_way:
                yield _next(under_way)

    @contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(self._engine.concurrency, "scorer")
        try:
            yield pool
        finally:
            self._retries.cancel()
            pool.shutdown(wait=False, cancel_futures=True)  # closing the connection ends the calls under way

    def _answer(self, batch: RowBatch) -> list[RowResult]:
        sent = [row for row in batch.rows if isinstance(row, Row)]
        answers = iter(self._results(sent))
        return [next(answers) if isinstance(row, Row) else row for row in batch.rows]

    def _results(self, rows: list[Row]) -> list[RowResult]:
        """Score rows; if the engine rejects one, score the rest without it."""
        if not rows:
            return []
        several = len({row.prefix for row in rows} - {None}) > 1
        try:
            answers = self._call(lambda: self._engine.attend(self._spec, rows), several_prefixes=several)
        except (InvalidRequest, TooLarge) as error:
            return self._without_culprits(rows, error)
        except _NoRoom:
            return self._halves(rows)
        return [self._scored(row, answer) for row, answer in zip(rows, answers, strict=True)]

    def _without_culprits(self, rows: list[Row], error: InvalidRequest | TooLarge) -> list[RowResult]:
        violations = error.violations if isinstance(error, InvalidRequest) else ()
        failed: dict[int, FailedRow] = {}
        for path, message in violations or [(error.field or "", error.message)]:
            named = _CULPRIT.fullmatch(path)
            if named and int(named[1]) < len(rows):
                failed.setdefault(int(named[1]), rows[int(named[1])].failed(named[2], message))
        if failed:
            rest = iter(self._results([row for i, row in enumerate(rows) if i not in failed]))
            return [failed[i] if i in failed else next(rest) for i in range(len(rows))]
        if isinstance(error, InvalidRequest) and not _OF_ONE_ROW.fullmatch(error.field or ""):
            raise Refused(str(error)) from error
        if len(rows) == 1:
            return [rows[0].failed(error.field or "", error.message)]
        return self._halves(rows)

    def _halves(self, rows: list[Row]) -> list[RowResult]:
        middle = len(rows) // 2
        return self._results(rows[:middle]) + self._results(rows[middle:])

    def _scored(self, row: Row, answer: AttendResult) -> ScoredRow:
        query = row.sequence.query
        tokens = len(answer.tokens) if query is None else len(query)  # type: ignore[arg-type] # an array
        return ScoredRow(row.id, tuple(column.take(answer) for column in self._spec.outputs.columns), tokens)

    def confirm(self) -> None:
        """Check that the engine still serves the model version that the run began with.

        Raises:
            Stopped: it serves another manifest under that version, or cannot be reached.
        """
        spec = self._spec
        now = self._call(lambda: self._engine.model(spec.model, spec.version))
        if digest(now) != spec.manifest:
            raise Stopped(
                f"version {spec.version} of model {spec.model!r} is no longer what it was when the run began; "
                "serve that again to go on, or --restart to score all rows with the new one"
            )

    def _call(self, call: Callable[[], T], *, several_prefixes: bool = False) -> T:
        """Call the engine with retries. Errors that concern no row stop the run, since a later run may succeed."""
        try:
            return self._retries.call(call)
        except (InvalidRequest, TooLarge):
            raise
        except NotFound as error:
            if several_prefixes and _OF_MEMORY.fullmatch(error.field or ""):
                raise _NoRoom from error
            raise Stopped(f"what answered before is gone: {error}") from error
        except AttentionError as error:
            raise Stopped(str(error)) from error


def _next(under_way: "deque[tuple[RowBatch, Future[list[RowResult]]]]") -> tuple[RowBatch, list[RowResult]]:
    batch, future = under_way.popleft()
    return batch, future.result()
