"""Execution of jobs: computing batches, finalizing answers, and settling futures."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from attention_server.errors import AttentionServiceError, DeadlineExceeded, Unavailable
from attention_server.scheduling.future import Future
from attention_server.scheduling.job import MIN_COST, QueueEntry

Batch = list[QueueEntry]
Finalizer = Callable[[], Sequence[Any]]


def cost_of(batch: Batch) -> float:
    """Return the predicted seconds of a batch."""
    if len(batch) == 1:
        return max(batch[0].job.cost, MIN_COST)
    return sum([entry.share.cost if entry.share is not None else entry.cost for entry in batch])


def run_batches(batches: Sequence[Batch], clock: Callable[[], float]) -> None:
    """Compute all batches, then finalize and settle each: settling runs callers' code, which would evict caches."""
    for entries, finalize in [_compute(batch, clock) for batch in batches]:
        _finalize(entries, finalize)


def refuse(refusals: Sequence[tuple[QueueEntry, Unavailable]]) -> None:
    """Settle shed entries with refusals, except cancelled ones."""
    for entry, error in refusals:
        if entry.future.set_running_or_notify_cancel():
            entry.future.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False)
class LentSlotTask:
    """A part of a running job, in a slot lent to the job.

    Attributes:
        work: the function to call.
        done: settled when the function has returned; the job cancels it if the task has not begun.
    """

    work: Callable[[], None]
    done: "Future[None]" = field(default_factory=Future)

    def run(self) -> None:
        """Call the function, unless the task was cancelled."""
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001 # raised in the job, by `done.result`
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


def _compute(batch: Batch, clock: Callable[[], float]) -> tuple[Batch, Finalizer]:
    """Compute a batch; return the computed entries, and the finalizer of the answers."""
    begun = [entry for entry in batch if entry.future.set_running_or_notify_cancel()]
    now = clock()
    entries = [entry for entry in begun if now < entry.job.deadline]
    if len(entries) < len(begun):
        for entry in begun:
            if now >= entry.job.deadline:
                entry.future.set_exception(DeadlineExceeded("the deadline passed before the request could run"))
    if not entries:
        return [], tuple
    try:
        return entries, entries[0].job.run([entry.job.payload for entry in entries])
    except BaseException as error:  # noqa: BLE001 # raised by the futures
        # Without a local variable: the exception's traceback has this frame, which would complete a reference cycle.
        return entries, functools.partial(list, [error] * len(entries))


def _finalize(entries: Batch, finalize: Finalizer) -> None:
    try:
        answers = finalize()
    except BaseException as error:  # noqa: BLE001 # raised by the futures
        _settle(entries, [error] * len(entries))
    else:
        _settle(entries, answers)


def _settle(entries: Batch, answers: Sequence[Any]) -> None:
    for entry, answer in zip(entries, answers, strict=True):
        if isinstance(answer, BaseException):
            if isinstance(answer, AttentionServiceError):
                _drop_frames(answer)
            entry.future.set_exception(answer)
        else:
            entry.future.set_result(answer)


def _drop_frames(error: AttentionServiceError) -> None:
    """Remove an expected error's traceback and causes: their frames hold the request, whose future holds the error."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
