"""How long a run waits for a server: one that is full, restarts or is lost, whatever it was asked."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from attention_client import AttentionError, DeadlineExceeded, InternalError, InvalidRequest, TooLarge, Unavailable

from attention_batch.errors import Stopped

INTERNAL_ATTEMPTS = 3
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds between attempts, where the server names none

T = TypeVar("T")


class Patience:
    """Asks over and over where that helps, from any thread.

    Args:
        seconds: to wait for a server that does not answer, from its last answer to anyone.
        say: told once why there is a wait, each time that one begins.
    """

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._say = say
        self._stopping = threading.Event()
        self._heard = time.monotonic()
        self._waiting = False

    def begin(self) -> None:
        """Count from now on."""
        self._stopping = threading.Event()
        self._heard = time.monotonic()

    def end(self) -> None:
        """Wait no more: whoever waits is told that the run stops."""
        self._stopping.set()

    def ask(self, ask: Callable[[], T]) -> T:
        """Ask until there is an answer, as long as there is hope.

        Raises:
            Stopped: there is none.
            AttentionError: as `ask` raises it: what no waiting mends.
        """
        attempts, pause = 0, FIRST_PAUSE
        began = time.monotonic()
        while True:
            try:
                answer = ask()
            except (Unavailable, DeadlineExceeded) as error:
                if self._stopping.is_set():  # the run's own end has broken the call off
                    raise Stopped(str(error)) from error
                if time.monotonic() - max(self._heard, began) > self._seconds:
                    raise Stopped(f"no answer for {self._seconds:g} s: {error}") from error
                asked_to_wait = error.retry_after if isinstance(error, Unavailable) else None
                if asked_to_wait is None and not self._waiting:
                    self._waiting = True
                    self._say(f"no answer, waiting {self._seconds:g} s (--patience): {error}")
                self._wait(asked_to_wait or pause, error)
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

    def _was_heard(self) -> None:
        self._heard = time.monotonic()
        self._waiting = False

    def _wait(self, seconds: float, error: AttentionError) -> None:
        if self._stopping.wait(seconds):
            raise Stopped(str(error)) from error


def _with_id(error: AttentionError) -> str:
    return f"{error} (request {error.request_id})" if error.request_id else str(error)
