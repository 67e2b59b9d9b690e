"""Jobs, and the entries of jobs in the queue."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from attention_server.scheduling.future import Future

S = TypeVar("S")
T = TypeVar("T")

MIN_COST = 1e-6  # seconds: a cost of zero would leave a caller's place in the fair order unchanged


@dataclass(frozen=True, slots=True)
class Share:
    """A job's part of a pass: a computation of several jobs at once.

    Attributes:
        key: jobs with equal keys may share a pass.
        rows: of the job.
        max_rows: of all jobs of a pass.
        cost: predicted seconds that the job adds to a pass.
        bytes: that the pass needs beside for this job.
    """

    key: Hashable
    rows: int = 1
    max_rows: int = 1
    cost: float = 0.0
    bytes: int = 0


@dataclass(slots=True, eq=False)
class Job(Generic[S, T]):
    """A computation to schedule.

    Attributes:
        payload: the input of `run`.
        run: computes a batch of payloads and returns a finalizer that yields one answer or exception per payload. An
            exception that `run` or the finalizer raises is the answer of every payload.
        deadline: on the scheduler's clock; infinite for none.
        caller: name of the caller; callers share the slots evenly.
        cost: predicted seconds in one slot.
        size: bytes that the job holds while it waits, and that its answer will hold.
        peak: bytes that it needs beside while it runs, or that a full pass of jobs like this one does.
        share: of a pass; None runs alone.
    """

    payload: S
    run: Callable[[Sequence[S]], Callable[[], Sequence[T | Exception]]]
    deadline: float = math.inf
    caller: str = ""
    cost: float = 0.0
    size: int = 0
    peak: int = 0
    share: Share | None = None


class QueueEntry:
    """A job in the queue, with its future and its place in the fair order.

    Attributes:
        job: the job.
        future: holds the job's answer; a cancelled one leaves the queue.
        is_bulk: whether the job waited for room in the queue; such an entry is never shed.
        caller, size, share: the job's.
        cost: predicted seconds in one slot, at least MIN_COST; of a job that shares a pass, those that it adds.
        tag: start time on the queue's virtual clock; the least tag is next.
    """

    __slots__ = ("caller", "cost", "future", "is_bulk", "job", "share", "size", "tag")

    def __init__(self, job: Job[Any, Any], *, is_bulk: bool = False) -> None:
        self.job = job
        self.future: Future[Any] = Future()
        self.is_bulk = is_bulk
        self.caller = job.caller
        self.cost = max(job.cost, MIN_COST)
        self.size = job.size
        self.share = job.share
        self.tag = 0.0
