"""The thread pool of both ports: a thread counts as busy for as long as it works."""

import asyncio
import threading

import pytest
from attention_server.errors import Full
from attention_server.transport.threads import Threads
from serving import HANG, wait_until


def test_a_thread_is_busy_until_it_is_idle():
    """A caller that leaves does not free its thread; when it has ended, another has room."""
    release = threading.Event()

    async def used():
        threads = Threads(1, "test")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(threads.run(lambda: release.wait(HANG)), 0.01)
        with pytest.raises(Full):
            threads.run(int)
        assert not threads.is_idle
        release.set()
        await asyncio.to_thread(wait_until, lambda: threads.is_idle)
        assert await threads.run(int) == 0
        threads.close()

    asyncio.run(used())


def test_what_fails_when_nobody_waits(caplog):
    """A failure after its waiter was cancelled is dropped, and not logged."""

    async def used():
        threads = Threads(1, "test")
        begun, release = threading.Event(), threading.Event()

        def fail():
            begun.set()
            release.wait(HANG)
            raise ValueError

        left = threads.run(fail)
        await asyncio.to_thread(begun.wait, 30)
        del left
        release.set()
        await asyncio.to_thread(wait_until, lambda: threads.is_idle)
        threads.close()

    asyncio.run(used())
    assert not caplog.records
