"""Retries of calls while a server is full, restarting or unreachable."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from attention_client import AttentionError, DeadlineExceeded, InternalError, InvalidRequest, TooLarge, Unavailable

from attention_batch.errors import Stopped

INTERNAL_ATTEMPTS = 3
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds between attempts, unless the server names a pause

T = TypeVar("T")


class RetryPolicy:
    """A policy of retries, shared by all threads of a run.

    Args:
        seconds: how long to go without any answer, counted from the last answer to any thread.
        say: called with the reason each time a wait begins that the server did not ask for.
    """

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._say = say
        self._stopping = threading.Event()
        self._heard = time.monotonic()
        self._waiting = False

    def start(self) -> None:
        """Start the time without an answer at zero."""
        self._stopping = threading.Event()
        self._heard = time.monotonic()

    def cancel(self) -> None:
        """Retry no more: every waiting call raises Stopped."""
        self._stopping.set()

    def call(self, call: Callable[[], T]) -> T:
        """Call until there is an answer.

        An unreachable or full server is retried until `seconds` pass without an answer to any thread; an internal error
        is retried `INTERNAL_ATTEMPTS` times in all.

        Args:
            call: the function to call; raises AttentionError.

        Raises:
            Stopped: the retries are used up, or `cancel` was called.
            AttentionError: an error that no retry can change.
        """
        attempts, pause = 0, FIRST_PAUSE
        began = time.monotonic()
        while True:
            try:
                answer = call()
            except (Unavailable, DeadlineExceeded) as error:
                self._check_time(began, error)
                named = error.retry_after if isinstance(error, Unavailable) else None
                if named is None:
                    self._announce(error)
                self._wait(named or pause, error)
                pause = min(2 * pause, LONGEST_PAUSE)
            except InternalError as error:
                attempts += 1
                if attempts == INTERNAL_ATTEMPTS:
                    raise Stopped(f"the server failed, its log says why: {_with_id(error)}") from error
                self._wait(pause, error)
            except (InvalidRequest, TooLarge):
                self._was_heard()
                raise
            else:
                self._was_heard()
                return answer

    def _check_time(self, began: float, error: AttentionError) -> None:
        if self._stopping.is_set():  # the run closed its connection, which raised this error
            raise Stopped(str(error)) from error
        if time.monotonic() - max(self._heard, began) > self._seconds:
            raise Stopped(f"no answer for {self._seconds:g} s: {error}") from error

    def _announce(self, error: AttentionError) -> None:
        if not self._waiting:
            self._waiting = True
            self._say(f"no answer, waiting {self._seconds:g} s (--patience): {error}")

    def _was_heard(self) -> None:
        self._heard = time.monotonic()
        self._waiting = False

    def _wait(self, seconds: float, error: AttentionError) -> None:
        if self._stopping.wait(seconds):
            raise Stopped(str(error)) from error


def _with_id(error: AttentionError) -> str:
    return f"{error} (request {error.request_id})" if error.request_id else str(error)
