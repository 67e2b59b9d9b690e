"""The life of a call: a coroutine answers it in a task, which may be stopped with a reason."""

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any

from attention_server.http2.errors import ServerStopping


class CallLifetime(ABC):
    """The task that answers a call; the base of the calls of every server of gRPC.

    Attributes:
        task: runs the coroutine that answers; None for a call that was not started.
    """

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self._must_run = False
        self._stop_reason: Exception | None = None
        self._done_callbacks: list[Callable[[], None]] = []

    def start(self, answer: Coroutine[Any, Any, None], /, *, must_run: bool = False) -> None:
        """Run a coroutine that answers the call.

        Args:
            answer: the coroutine.
            must_run: run it even for a call that is over before its first step, since it ends what was begun.
        """
        self._must_run = must_run
        self.task = asyncio.get_running_loop().create_task(answer)
        self.task.add_done_callback(self._on_task_done)

    def stop(self, reason: Exception, /) -> None:
        """Cancel the task; `stop_reason` returns the reason then."""
        if not self.task or self.task.done() or self._stop_reason:
            return
        if not _has_run(self.task):  # a task that is cancelled before its first step could not finish the call
            asyncio.get_running_loop().call_soon(self.stop, reason)
            return
        self._stop_reason = reason
        self._call_done_callbacks()
        self.task.cancel()

    def abandon(self, reason: Exception, /) -> None:
        """Stop a call that is over. A task before its first step is dropped, which costs little."""
        if self.task and not (self._must_run or self._stop_reason or _has_run(self.task)):
            self._stop_reason = reason
            self.task.cancel()
        else:
            self.stop(reason)

    def stop_reason(self) -> Exception:
        """Return the reason for which the task was cancelled."""
        return self._stop_reason or ServerStopping("the server is stopping")

    def add_done_callback(self, callback: Callable[[], None], /) -> None:
        """Call back once, when the call is answered or stopped; a call that was never started, when it is finished."""
        self._done_callbacks.append(callback)

    @abstractmethod
    def _on_answered(self, error: BaseException | None) -> None:
        """Handle the end of the task.

        Args:
            error: the exception of the coroutine, a fault of the server; None for none, or where it was cancelled.
        """

    def _call_done_callbacks(self) -> None:
        callbacks, self._done_callbacks = self._done_callbacks, []
        for callback in callbacks:
            callback()

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        self._call_done_callbacks()
        self._on_answered(None if task.cancelled() else task.exception())


def _has_run(task: "asyncio.Task[None]") -> bool:
    """Return whether a task has taken its first step."""
    state = inspect.getcoroutinestate(task.get_coro())  # type: ignore[arg-type] # a task runs no plain generator
    return state != inspect.CORO_CREATED
