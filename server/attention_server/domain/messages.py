"""What a request means, whichever protocol it came by."""

import math
import time
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from attention_proto.masks import Mask
from numpy.typing import NDArray

from attention_server.auth.callers import Right
from attention_server.domain.request_record import RequestRecord
from attention_server.errors import Cancelled, DeadlineExceeded, PermissionDenied, TooLarge
from attention_server.scheduling.future import Future

Array = NDArray[np.generic]
Reduce = Literal["none", "mean", "max"]
Pool = Literal["none", "mean", "first", "last"]

POOLS: tuple[Pool, ...] = get_args(Pool)
STAGES = ("q", "k", "v", "scores", "weights", "heads", "output")
PREDICTIONS = "predictions"
NO_MASK = Mask()  # hides nothing
FOR_EVER = 365 * 86_400.0  # seconds; what is longer would overflow in the waiting


def join_path(*parts: str) -> str:
    """Return the path of a field, leaving out what is empty: ("", "query") -> "query"."""
    return ".".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for.

    Attributes:
        sequences: in a request.
        scores_bytes: of one sequence's scores, heads x queries x keys x 4; attention needs them on the way, and more.
        answer_bytes: of an answer's tensors, all sequences together.
        memory_ttl: seconds that a memory is kept after its last use, unless it says otherwise.
        outputs: named in a request.
        work_bytes: of all scores of a request together, those of each layer that runs.
    """

    sequences: int
    scores_bytes: int
    answer_bytes: int
    memory_ttl: float
    outputs: int = 256
    work_bytes: int = 8 * 2**30

    def check_outputs(self, count: int) -> None:
        """Refuse more outputs than a request may name.

        Raises:
            TooLarge: there are more.
        """
        if count > self.outputs:
            raise TooLarge(f"has {count} outputs; a request may name {self.outputs}", field="outputs")

    def check_work(self, needed: int) -> None:
        """Refuse what would keep a slot for too long.

        Args:
            needed: bytes of scores, so far.

        Raises:
            TooLarge: it would.
        """
        if needed > self.work_bytes:
            raise TooLarge(
                f"the sequences need at least {needed} bytes of scores together; {self.work_bytes} may be used: send "
                "fewer or shorter ones",
                field="inputs",
            )

    def check_answer(self, size: int) -> None:
        """Refuse what would have too large an answer.

        Args:
            size: bytes of its tensors, so far.

        Raises:
            TooLarge: it would.
        """
        if size > self.answer_bytes:
            raise TooLarge(
                f"the answer would be at least {size} bytes; {self.answer_bytes} may be sent: ask for fewer sequences, "
                "heads or rows, reduce the heads, or take the top k",
                field="outputs",
            )

    def check_sequences(self, count: int, field: str) -> None:
        """Refuse more sequences than a request may have.

        Raises:
            TooLarge: there are more.
        """
        if count > self.sequences:
            raise TooLarge(f"has {count} sequences; a request may have {self.sequences}", field=field)

    def check_scores(self, heads: int, queries: int, keys: int, field: str) -> None:
        """Refuse what would need too much memory on the way to an answer.

        Raises:
            TooLarge: it would.
        """
        needed = heads * queries * keys * 4
        if needed > self.scores_bytes:
            raise TooLarge(
                f"{queries} queries over {keys} keys with {heads} heads need {needed} bytes of scores; "
                f"{self.scores_bytes} may be used: send shorter sequences",
                field=field,
            )


class Sequence(NamedTuple):
    """One sequence, and what it attends to; or a batch: several that have nothing but arrays, each of the same shapes.

    Attributes:
        path: where the caller wrote it, for errors: `inputs[0]`, or empty for a request's own fields.
        query: [T, Dq]; of a batch [B, T, Dq], and so all three.
        key: [S, Dk].
        value: [S, Dv].
        text, memory_text: the query and the memory as text, for a text model.
        memory: the id of a memory.
        mask: for this sequence alone.
        part: which of those sent as one sequence it is, of a batch the first; None when it was sent by itself.
        batch: B; 1 for one sequence, whose arrays have no dimension for it.
    """

    path: str = ""
    query: Array | None = None
    key: Array | None = None
    value: Array | None = None
    text: str | None = None
    memory_text: str | None = None
    memory: str = ""
    mask: Mask = NO_MASK
    part: int | None = None
    batch: int = 1

    def each(self) -> "Iterator[Sequence]":
        """Yield its sequences, one by one."""
        if self.batch == 1:
            yield self
            return
        for i in range(self.batch):
            query, key, value = [None if x is None else x[i] for x in (self.query, self.key, self.value)]
            yield self._replace(query=query, key=key, value=value, part=(self.part or 0) + i, batch=1)


class OutputSpec(NamedTuple):
    """One thing to send back; see the contract's OutputSpec."""

    name: str
    alias: str = ""
    heads: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    reduce: Reduce = "none"
    top_k: int = 0
    data_type: Literal["FP32", "FP16"] = "FP32"
    layers: tuple[str, ...] = ()
    pool: Pool = "none"

    @property
    def is_whole(self) -> bool:
        """Whether a stage is sent as it is computed."""
        return self._replace(alias="", layers=()) == OutputSpec(self.name)


class Request(NamedTuple):
    """Attention over one or more sequences."""

    model: str
    version: int = 0
    inputs: tuple[Sequence, ...] = ()
    outputs: tuple[OutputSpec, ...] = ()
    mask: Mask = NO_MASK
    token_offsets: bool = False


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """A memory to be kept.

    Attributes:
        model, version: for which.
        key: [S, Dk]; or `memory_text`.
        value: [S, Dv]; the key when absent.
        memory_text: the memory as text, for a text model.
        ttl: seconds to keep it after its last use; None for the server's default.
    """

    model: str
    version: int = 0
    key: Array | None = None
    value: Array | None = None
    memory_text: str | None = None
    ttl: float | None = None


class Computation(Protocol):
    """What runs for one or more callers."""

    def drop_caller(self) -> None:
        """One caller waits no more."""


@dataclass(slots=True)
class Presence:
    """Whether a caller is still there; one for all the messages of a stream."""

    cancelled: bool = False


@dataclass(slots=True)
class CallContext:
    """Who asks, how long they wait, and whether they still do.

    Attributes:
        request_id: in the log, and sent back.
        caller: whose work this is: the name of their token or certificate; else their host.
        seconds: how long they wait; None, or more than a machine can wait, is for ever.
        rights: what they may do; an edge that forgets to say lets nobody do anything.
        watch: what takes note of what happens to the request.
    """

    request_id: str
    caller: str = ""
    seconds: InitVar[float | None] = None
    rights: frozenset[Right] = frozenset()
    record: RequestRecord = field(default_factory=RequestRecord)
    deadline: float = field(init=False)
    _presence: Presence = field(default_factory=Presence, init=False)
    _work: "Future[Any] | None" = field(default=None, init=False)
    _runs: set[Computation] = field(default_factory=set, init=False)

    def __post_init__(self, seconds: float | None) -> None:
        self.deadline = math.inf if seconds is None or seconds > FOR_EVER else time.monotonic() + seconds

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller has left."""
        return self._presence.cancelled

    def for_message(self, record: RequestRecord) -> "CallContext":
        """Return the call of a message of the stream that this is of: its caller is the same, its time its own."""
        part = CallContext(self.request_id, self.caller, None, self.rights, record)
        part.deadline, part._presence, part._work, part._runs = self.deadline, self._presence, self._work, self._runs
        return part

    @property
    def is_expired(self) -> bool:
        """Return whether the caller's time ran out."""
        return time.monotonic() >= self.deadline

    def require(self, right: Right) -> None:
        """Refuse what the caller may not do.

        Raises:
            PermissionDenied: they have not this right.
        """
        if right not in self.rights:
            raise PermissionDenied(f"this needs the right {right!r}, which {self.caller} has not")

    def raise_if_ended(self) -> None:
        """Raise what ends the work for this caller: Cancelled or DeadlineExceeded."""
        if self.is_expired:  # asked first, for with the time the transport goes too
            raise DeadlineExceeded("the deadline passed before the request could be answered")
        if self.is_cancelled:
            raise Cancelled("the caller has gone")

    def remaining(self) -> float | None:
        """Return the seconds that are left; None for ever."""
        return None if self.deadline == math.inf else max(0.0, self.deadline - time.monotonic())

    def attach(self, work: "Future[Any]") -> None:
        """Say what is done for the caller: when they leave and it has not begun, it never will."""
        self._work = work
        if self.is_cancelled:
            work.cancel()

    def detach(self) -> None:
        """All is done: keep nothing of it while the answer is on its way."""
        self._work = None

    def cancel(self) -> None:
        """The caller has gone. To leave when all is done changes nothing."""
        self._presence.cancelled = True
        work = self._work
        if work is not None:
            work.cancel()
        for run in list(self._runs):
            self._drop(run)

    def add_run(self, run: Computation) -> None:
        """A computation for the caller begins: when they leave, they leave it too."""
        self._runs.add(run)
        if self.is_cancelled:
            self._drop(run)

    def remove_run(self, run: Computation) -> None:
        """The computation has ended."""
        self._runs.discard(run)

    def _drop(self, run: Computation) -> None:
        try:
            self._runs.remove(run)
        except KeyError:  # it ended, or another thread left it
            return
        run.drop_caller()


class TopK(NamedTuple):
    """The largest of each row: positions and values, [H, T, k]; [H, k] pooled."""

    indices: Array
    values: Array


class Span(NamedTuple):
    """A part of a text, in characters."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text, read by a model's tokenizer.

    Attributes:
        ids: INT64 [T].
        vocabulary: each token as the vocabulary has it.
        shown: each token as the caller wrote it.
        spans: where each stands in the text.
    """

    ids: NDArray[np.int64]
    vocabulary: tuple[str, ...]
    shown: tuple[str, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer of a model's head; `row` is None when it was read from the mean of all rows."""

    name: str
    label: str
    probability: float
    row: int | None


class Result(NamedTuple):
    """The answer for one sequence; or for a batch, whose arrays have a leading dimension B, and which has nothing else.

    Attributes:
        outputs: by name, in the order asked.
        tokens, memory_tokens: the texts, read.
        predictions: what the model's head says; None where it was not asked.
        batch: B; 1 for one sequence, whose arrays have no dimension for it.
    """

    outputs: dict[str, Array | TopK]
    tokens: Tokens | None = None
    memory_tokens: Tokens | None = None
    predictions: tuple[Prediction, ...] | None = None
    batch: int = 1

    def each(self) -> "Iterator[Result]":
        """Yield those of its sequences, one by one."""
        if self.batch == 1:
            yield self
            return
        for i in range(self.batch):
            yield Result({name: x[i] for name, x in self.outputs.items()})


class Response(NamedTuple):
    """The answer: a result for each sequence or batch, in order."""

    model: str
    version: int
    results: tuple[Result, ...]
    token_offsets: bool = False

    def each(self) -> Iterator[Result]:
        """Yield a result for each sequence, in order."""
        for result in self.results:
            yield from result.each()

    @property
    def size(self) -> int:
        """The bytes of all its tensors."""
        size = 0
        for result in self.results:
            for x in result.outputs.values():
                size += x.indices.nbytes + x.values.nbytes if isinstance(x, TopK) else x.nbytes
        return size


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """What is known of one version in the repository.

    Attributes:
        name, version: which.
        state: READY answers; LOADING is being verified and warmed; UNLOADING finishes the requests that hold it;
            UNAVAILABLE lies in the repository and is not served.
        reason: why it is not ready; empty when it is.
    """

    name: str
    version: int
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
    reason: str
