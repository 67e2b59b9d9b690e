"""A future for a scheduled job: its result, exception or cancellation."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, InvalidStateError
from typing import Any, Generic, TypeVar

import structlog

T = TypeVar("T")

PENDING, RUNNING, CANCELLED, FINISHED = range(4)

log = structlog.get_logger()


class Future(Generic[T]):
    """A future with the methods of `concurrent.futures.Future`; safe for use from several threads.

    The standard future acquires a condition's locks at each step, for threads that wait. Here most consumers are
    callbacks of an event loop, so a wait creates its own event.
    """

    __slots__ = ("_callbacks", "_error", "_lock", "_result", "_state")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = PENDING
        self._callbacks: list[Callable[[Future[T]], Any]] = []
        self._result: Any = None
        self._error: BaseException | None = None

    def cancel(self) -> bool:
        """Cancel the job unless it runs or has finished; return whether it is cancelled."""
        with self._lock:
            if self._state != PENDING:
                return self._state == CANCELLED
            self._state = CANCELLED
        self._invoke_callbacks()
        return True

    def cancelled(self) -> bool:
        """Return whether the job was cancelled."""
        return self._state == CANCELLED

    def done(self) -> bool:
        """Return whether the job was cancelled or has finished."""
        return self._state >= CANCELLED

    def set_running_or_notify_cancel(self) -> bool:
        """Mark the job as running; return False if it was cancelled."""
        with self._lock:
            if self._state == PENDING:
                self._state = RUNNING
                return True
        return False

    def set_result(self, result: T) -> None:
        """Set the result.

        Raises:
            InvalidStateError: the future is done.
        """
        self._finish(result, None)

    def set_exception(self, error: BaseException) -> None:
        """Set the exception.

        Raises:
            InvalidStateError: the future is done.
        """
        self._finish(None, error)

    def add_done_callback(self, callback: "Callable[[Future[T]], Any]") -> None:
        """Call a function with this future when it is done: in the thread that finishes it, or now if it is done."""
        with self._lock:
            if self._state < CANCELLED:
                self._callbacks.append(callback)
                return
        self._invoke(callback)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            CancelledError: the job was cancelled.
            TimeoutError: the timeout passed.
            BaseException: the job's exception.
        """
        error = self.exception(timeout)
        if error is None:
            result: T = self._result
            return result
        try:
            raise error
        finally:
            del error, self  # the exception's traceback has this frame: break the reference cycle

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the exception; None for a job with a result.

        Raises:
            CancelledError: the job was cancelled.
            TimeoutError: the timeout passed.
        """
        if self._state < CANCELLED:
            done = threading.Event()
            self.add_done_callback(lambda _: done.set())
            if not done.wait(timeout):
                raise TimeoutError
        if self._state == CANCELLED:
            raise CancelledError
        return self._error

    def _finish(self, result: Any, error: BaseException | None) -> None:
        with self._lock:
            if self._state >= CANCELLED:
                raise InvalidStateError
            self._result, self._error, self._state = result, error, FINISHED
        self._invoke_callbacks()

    def _invoke_callbacks(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._invoke(callback)

    def _invoke(self, callback: "Callable[[Future[T]], Any]") -> None:
        try:
            callback(self)
        except Exception:
            log.exception("a callback of a future failed")
