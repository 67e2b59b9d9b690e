"""Steps of a submission: the bytes of a job, and the wait for the graphs of its version."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from attention_server.budget.account import Account, Lease
from attention_server.domain.call import CallContext
from attention_server.errors import Cancelled, Unavailable
from attention_server.scheduling.future import Future
from attention_server.scheduling.job import Job

T = TypeVar("T")


def reserve(job: Job[Any, Any], account: Account, lease: Lease) -> Callable[[], None]:
    """Hold the bytes that a job needs; return a function that releases the rest beside its answer.

    Raises:
        Full: there is no room.
        TooLarge: there will never be.
    """
    account.begin_job(lease, job.size, job.peak)
    return partial(account.end_job, lease, job.peak)


def submit_after(
    reload: Future[None],
    submit: Callable[[], Future[T]],
    call: CallContext,
    admitted: Callable[[], None] | None,
) -> Future[T]:
    """Return the future of a job that is submitted when a reload is done, in the reload's thread.

    Cancelling the call before that keeps the job from being submitted.

    Args:
        reload: raises Unavailable where the version cannot be loaded; the job's future raises the same.
        submit: submits the job; its errors are the job's.
        call: the context of the job's call.
        admitted: called too where the job is never submitted; see `Scheduler.submit`.
    """
    outcome: Future[T] = Future()

    def begin(_: Future[None]) -> None:
        try:
            if not outcome.set_running_or_notify_cancel():
                raise Cancelled("the caller has gone")  # noqa: TRY301 # ends as every other refusal
            if isinstance(failure := reload.exception(), Unavailable):  # one error a caller, with its own traceback
                raise Unavailable(failure.message, field=failure.field)  # noqa: TRY301
            call.raise_if_ended()
            future = submit()
        except Exception as error:  # noqa: BLE001 # all are the caller's
            if not outcome.done():
                outcome.set_exception(error)
            if admitted is not None:
                admitted()
            return
        if admitted is None:
            call.attach(future)
        future.add_done_callback(settle)

    def settle(future: Future[T]) -> None:
        error = Cancelled("the caller has gone") if future.cancelled() else future.exception()
        if error is None:
            outcome.set_result(future.result())
        else:
            outcome.set_exception(error)

    reload.add_done_callback(begin)
    return outcome
