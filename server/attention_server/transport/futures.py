"""Futures of jobs on an event loop, and callbacks from further threads."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from attention_server.domain.call import CallContext
from attention_server.errors import DeadlineExceeded
from attention_server.scheduling.future import Future

T = TypeVar("T")

LATE = "the deadline passed while the request waited or ran"


async def wait_for(future: "Future[T]", call: CallContext) -> T:
    """Wait on the event loop for the future of a call's job; cancelling the wait cancels the call.

    Raises:
        DeadlineExceeded: the job ended after the deadline.
        asyncio.CancelledError: the job was cancelled.
        Exception: the job's.
    """
    try:
        answer = await on_loop(future)
    except asyncio.CancelledError:
        call.cancel()
        raise
    finally:
        call.detach()
    if call.is_expired:
        raise DeadlineExceeded(LATE)
    return answer


async def wait_until_deadline(future: "Future[T]", call: CallContext) -> T:
    """Wait as `wait_for`, and no longer than until the call's deadline, which the request itself may have shortened.

    Raises:
        DeadlineExceeded: the deadline passed.
        Exception: as `wait_for`.
    """
    try:
        async with asyncio.timeout(call.remaining()) as limit:
            return await wait_for(future, call)
    except TimeoutError as error:
        if limit.expired():
            raise DeadlineExceeded(LATE) from error
        raise


def on_loop(future: "Future[T]") -> "asyncio.Future[T]":
    """Return an awaitable of a job's future; a job that ends in the loop's thread settles it without a detour."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    awaitable: asyncio.Future[T] = loop.create_future()

    def settle() -> None:
        if awaitable.done():
            return
        if future.cancelled():
            awaitable.cancel()
        elif error := future.exception():
            awaitable.set_exception(error)
        else:
            awaitable.set_result(future.result())

    def done(_: "Future[T]") -> None:
        if threading.get_ident() == thread:
            settle()
        else:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle)

    future.add_done_callback(done)
    return awaitable


def make_poster() -> Callable[[Callable[[], Any]], None]:
    """Return a function that runs a callback on the running loop: at once when called by the loop's thread."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()

    def post(callback: Callable[[], Any]) -> None:
        if threading.get_ident() == thread:
            callback()
        else:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(callback)

    return post
