"""Rows in, answers out, in order: packed into messages, several of them under way at once.

A message is a function of its shard alone, so that the same rows always travel together. A row that the model cannot
take is told from its neighbours, which are asked again without it.
"""

import hashlib
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from attention_client import (
    AttendResult,
    AttentionError,
    InvalidRequest,
    NotFound,
    TooLarge,
)
from attention_client import Sequence as Asked
from attention_proto.attention.v1 import attention_pb2 as pb

from attention_batch.errors import Refused, Stopped
from attention_batch.readers.rows import Failed, Row, Scored
from attention_batch.retry import Patience
from attention_batch.spec import Outputs

MESSAGE_ROWS = 32
MESSAGE_BYTES = 2**20
BYTES_UNDER_WAY = 32 * 2**20  # of messages, unless one alone has more

_CULPRIT = re.compile(r"inputs\[(\d+)\]\.?(.*)")
# What of the outputs asked for one row cannot give, and another can; all else is wrong for every row.
_OF_ONE_ROW = re.compile(r"outputs\[\d+\]\.(rows|pool|data_type)")

Outcome = Scored | Failed
T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """What is asked about every row.

    Attributes:
        model, version: what is to answer.
        manifest: the SHA-256 of that version's manifest, see `digest`.
        outputs: what to send back, and what to keep of it.
    """

    model: str
    version: int
    manifest: str
    outputs: Outputs


class Engine(Protocol):
    """What answers: a service, or a model in this process."""

    @property
    def lanes(self) -> int:
        """How many messages to have under way at once."""
        ...

    @property
    def workers(self) -> int:
        """How many processes would do more than the lanes of this one; 0 for none."""
        ...

    def model(self, name: str, version: int) -> pb.Model:
        """Describe a model version; 0 is the default one. Raises AttentionError."""
        ...

    def attend(self, question: Question, sequences: list[Asked]) -> list[AttendResult]:
        """Answer one message. Raises AttentionError."""
        ...


@dataclass
class Message:
    """Rows that travel together, those that failed on the way to it in their places.

    Attributes:
        shard: whose rows.
        rows: in order.
        size: bytes of what is sent.
        last: whether the shard ends with it.
    """

    shard: int
    rows: list[Row | Failed] = field(default_factory=list)
    size: int = 0
    last: bool = False


def pack(shard: int, rows: Iterable[Row | Failed]) -> Iterator[Message]:
    """Yield a shard's messages; at least one, for the last of them says that the shard has ended."""
    message = Message(shard)
    for row in rows:
        size = row.size if isinstance(row, Row) else 0
        if len(message.rows) == MESSAGE_ROWS or (message.size and message.size + size > MESSAGE_BYTES):
            yield message
            message = Message(shard)
        message.rows.append(row)
        message.size += size
    message.last = True
    yield message


class Scorer:
    """Asks an engine, over and over where that helps.

    Args:
        engine: what answers.
        question: about every row.
        patience: how long to wait for an answer.
    """

    def __init__(self, engine: Engine, question: Question, patience: Patience) -> None:
        self._engine = engine
        self._question = question
        self._patience = patience

    def score(self, messages: Iterable[Message]) -> Generator[tuple[Message, list[Outcome]]]:
        """Yield each message with what came of its rows, in order.

        Raises:
            Refused: the model cannot do what is asked of every row.
            Stopped: there is no server, or it fails.
        """
        self._patience.begin()
        if self._engine.lanes == 1:
            # Another thread would only take turns with this one.
            yield from ((message, self._answer(message)) for message in messages)
            return
        with self._pool() as pool:
            under_way: deque[tuple[Message, Future[list[Outcome]]]] = deque()
            size = 0
            for message in messages:
                while under_way and (len(under_way) >= 2 * self._engine.lanes or size + message.size > BYTES_UNDER_WAY):
                    size -= under_way[0][0].size
                    yield _next(under_way)
                under_way.append((message, pool.submit(self._answer, message)))
                size += message.size
            while under_way:
                yield _next(under_way)

    @contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(self._engine.lanes, "scorer")
        try:
            yield pool
        finally:
            self._patience.end()
            pool.shutdown(wait=False, cancel_futures=True)  # what is still under way ends with its connection

    def _answer(self, message: Message) -> list[Outcome]:
        asked = [row for row in message.rows if isinstance(row, Row)]
        answers = iter(self._outcomes(asked))
        return [next(answers) if isinstance(row, Row) else row for row in message.rows]

    def _outcomes(self, rows: list[Row]) -> list[Outcome]:
        """Answer rows; where they are refused, find the one at fault."""
        if not rows:
            return []
        try:
            results = self._ask(lambda: self._engine.attend(self._question, [row.sequence for row in rows]))
        except (InvalidRequest, TooLarge) as error:
            return self._without_culprit(rows, error)
        return [self._scored(row, result) for row, result in zip(rows, results, strict=True)]

    def _without_culprit(self, rows: list[Row], error: InvalidRequest | TooLarge) -> list[Outcome]:
        named = _CULPRIT.fullmatch(error.field or "")
        if named and int(named[1]) < len(rows):
            culprit = int(named[1])
            others = self._outcomes(rows[:culprit] + rows[culprit + 1 :])
            return [*others[:culprit], rows[culprit].failed(named[2], error.message), *others[culprit:]]
        if isinstance(error, InvalidRequest) and not _OF_ONE_ROW.fullmatch(error.field or ""):
            raise Refused(str(error)) from error
        if len(rows) == 1:
            return [rows[0].failed(error.field or "", error.message)]
        middle = len(rows) // 2
        return self._outcomes(rows[:middle]) + self._outcomes(rows[middle:])

    def _scored(self, row: Row, result: AttendResult) -> Scored:
        query = row.sequence.query
        tokens = len(result.tokens) if query is None else len(query)  # type: ignore[arg-type] # an array
        return Scored(row.id, tuple(column.take(result) for column in self._question.outputs.columns), tokens)

    def confirm(self) -> None:
        """Look whether the model is still the one that was asked.

        Raises:
            Stopped: it is not.
        """
        question = self._question
        now = self._ask(lambda: self._engine.model(question.model, question.version))
        if digest(now) != question.manifest:
            raise Stopped(
                f"version {question.version} of model {question.model!r} is no longer what it was when the run began; "
                "serve that again to go on, or --restart to score all rows with the new one"
            )

    def _ask(self, ask: Callable[[], T]) -> T:
        """Ask about rows of a run that has begun: what is gone now may come back for the next one."""
        try:
            return self._patience.ask(ask)
        except (InvalidRequest, TooLarge):
            raise
        except NotFound as error:
            raise Stopped(f"what answered before is gone: {error}") from error
        except AttentionError as error:
            raise Stopped(str(error)) from error


def digest(model: pb.Model) -> str:
    """Return what tells a version from another of its number: the hash of its manifest, which has its files' hashes."""
    return hashlib.sha256(model.manifest.SerializeToString(deterministic=True)).hexdigest()


def _next(under_way: "deque[tuple[Message, Future[list[Outcome]]]]") -> tuple[Message, list[Outcome]]:
    message, future = under_way.popleft()
    return message, future.result()
