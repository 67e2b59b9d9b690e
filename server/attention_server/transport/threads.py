"""A pool of threads for work that would block the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from attention_server.budget.account import Lease
from attention_server.budget.current import current_lease
from attention_server.errors import Full

T = TypeVar("T")


class Threads:
    """A pool of threads without a queue: work is refused while all threads are busy.

    Args:
        count: number of threads.
        name: prefix of the threads' names.
    """

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._count = self._idle = count

    def check_idle(self) -> None:
        """Check that a thread is idle.

        Raises:
            Full: all threads are busy.
        """
        if not self._idle:
            raise Full("more requests are here than can be answered")

    def run(
        self, work: Callable[[], T], lease: Lease | None = None, on_done: Callable[[], object] = lambda: None
    ) -> "asyncio.Future[T]":
        """Run a function in a thread; call this on the event loop.

        Args:
            work: the function.
            lease: not given back before the function ends, though its caller may leave; by default that of the request
                that this task answers.
            on_done: called on the loop when the function has ended, or will not begin.

        Raises:
            Full: all threads are busy.
        """
        self.check_idle()
        self._idle -= 1
        loop = asyncio.get_running_loop()
        lease = lease or current_lease.get()
        lease.retain()
        done = self._pool.submit(work)
        # The returned future may be cancelled while the thread is still busy: only the thread's own end counts.
        done.add_done_callback(lambda _: self._on_done(loop, lease, on_done))
        result = asyncio.wrap_future(done)
        result.add_done_callback(_retrieve_exception)
        return result

    async def run_if(self, condition: bool, work: Callable[[], T]) -> T:
        """Run a function in a thread if a condition holds, else on the loop.

        Raises:
            Full: all threads are busy.
            Exception: the function's.
        """
        return await self.run(work) if condition else work()

    @property
    def is_idle(self) -> bool:
        """Whether all threads are idle."""
        return self._idle == self._count

    def close(self) -> None:
        """End each thread after its current work."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _on_done(self, loop: asyncio.AbstractEventLoop, lease: Lease, on_done: Callable[[], object]) -> None:
        lease.release()
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._add_idle, on_done)

    def _add_idle(self, on_done: Callable[[], object]) -> None:
        self._idle += 1
        on_done()


def _retrieve_exception(result: "asyncio.Future[Any]") -> None:
    """Retrieve the exception of a future that nothing may await any more: asyncio would log it."""
    if not result.cancelled():
        result.exception()
