"""What will come of a work: an answer, an error, or nothing, when it is given up before it begins."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, InvalidStateError
from typing import Any, Generic, TypeVar

import structlog

T = TypeVar("T")

WAITING, RUNNING, CANCELLED, ENDED = range(4)

log = structlog.get_logger()


class Future(Generic[T]):
    """A future, with the methods of Python's own: any thread may settle it, and any be told.

    Of Python's each step takes a condition's locks, for threads that wait. Here hardly one does: a loop is told.
    """

    __slots__ = ("_answer", "_error", "_lock", "_state", "_tell")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = WAITING
        self._tell: list[Callable[[Future[T]], Any]] = []
        self._answer: Any = None
        self._error: BaseException | None = None

    def cancel(self) -> bool:
        """Give it up, unless it has begun; return whether it is given up."""
        with self._lock:
            if self._state != WAITING:
                return self._state == CANCELLED
            self._state = CANCELLED
        self._told()
        return True

    def cancelled(self) -> bool:
        """Return whether it was given up."""
        return self._state == CANCELLED

    def done(self) -> bool:
        """Return whether there is nothing to wait for any more."""
        return self._state >= CANCELLED

    def set_running_or_notify_cancel(self) -> bool:
        """Begin; return whether somebody still wants it."""
        with self._lock:
            if self._state == WAITING:
                self._state = RUNNING
                return True
        return False

    def set_result(self, answer: T) -> None:
        """Settle it.

        Raises:
            InvalidStateError: it is done.
        """
        self._settle(answer, None)

    def set_exception(self, error: BaseException) -> None:
        """Settle it with an error. Raises as `set_result`."""
        self._settle(None, error)

    def add_done_callback(self, tell: "Callable[[Future[T]], Any]") -> None:
        """Have it told when it is done, in the thread that settles it; at once, where it is."""
        with self._lock:
            if self._state < CANCELLED:
                self._tell.append(tell)
                return
        self._told_by(tell)

    def result(self, timeout: float | None = None) -> T:
        """Return the answer, when it is there.

        Raises:
            CancelledError: it was given up.
            TimeoutError: it took longer than so many seconds.
            BaseException: the error that it was settled with.
        """
        error = self.exception(timeout)
        if error is None:
            answer: T = self._answer
            return answer
        try:
            raise error
        finally:
            del error, self  # its trace has this frame, which would hold it

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error that it was settled with; None where there is an answer. Raises as `result`."""
        if self._state < CANCELLED:
            ended = threading.Event()
            self.add_done_callback(lambda _: ended.set())
            if not ended.wait(timeout):
                raise TimeoutError
        if self._state == CANCELLED:
            raise CancelledError
        return self._error

    def _settle(self, answer: Any, error: BaseException | None) -> None:
        with self._lock:
            if self._state >= CANCELLED:
                raise InvalidStateError
            self._answer, self._error, self._state = answer, error, ENDED
        self._told()

    def _told(self) -> None:
        told, self._tell = self._tell, []
        for tell in told:
            self._told_by(tell)

    def _told_by(self, tell: "Callable[[Future[T]], Any]") -> None:
        try:
            tell(self)
        except Exception:
            log.exception("what was to be told of an outcome failed, for a fault of ours")
