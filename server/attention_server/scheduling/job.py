"""Jobs, and the entries of jobs in the queue."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from attention_server.scheduling.future import Future

S = TypeVar("S")
T = TypeVar("T")

MIN_COST = 1e-6  # seconds: a cost of zero would leave a caller's place in the fair order unchanged


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
        peak: bytes that it needs beside while it runs.
        batch_key: jobs with equal keys may run as one batch; None runs alone.
        max_batch: sequences in one batch of this key.
        count: sequences of this job.
    """

    payload: S
    run: Callable[[Sequence[S]], Callable[[], Sequence[T | Exception]]]
    deadline: float = math.inf
    caller: str = ""
    cost: float = 0.0
    size: int = 0
    batch_key: Hashable | None = None
    max_batch: int = 1
    count: int = 1
    peak: int = 0


class QueueEntry:
    """A job in the queue, with its future and its place in the fair order.

    Attributes:
        job: the job.
        future: holds the job's answer; a cancelled one leaves the queue.
        is_bulk: whether the job waited for room in the queue; such an entry is never shed.
        caller, cost, size, batch_key, count: the job's; the cost is at least MIN_COST.
        tag: start time on the queue's virtual clock; the least tag is next.
    """

    __slots__ = ("batch_key", "caller", "cost", "count", "future", "is_bulk", "job", "size", "tag")

    def __init__(self, job: Job[Any, Any], *, is_bulk: bool = False) -> None:
        self.job = job
        self.future: Future[Any] = Future()
        self.is_bulk = is_bulk
        self.caller = job.caller
        self.cost = max(job.cost, MIN_COST)
        self.size = job.size
        self.batch_key = job.batch_key
        self.count = job.count
        self.tag = 0.0
