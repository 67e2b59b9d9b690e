"""SIGTERM and Ctrl-C, which end a run at its next step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Interrupts:
    """The interrupts of one run.

    A signal raises KeyboardInterrupt in the main thread at once, so a wait ends. The exception may arise inside an
    import, or inside a library's callback, that swallows it or raises another error in its place. `check` and
    `as_interrupts` therefore go by the signal, not by the exception.
    """

    def __init__(self) -> None:
        self._received = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle SIGTERM, and Ctrl-C unless the process ignores it, until the block ends."""
        numbers = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            numbers.append(signal.SIGINT)
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal came."""
        if self._received:
            raise KeyboardInterrupt

    @contextmanager
    def as_interrupts(self) -> Iterator[None]:
        """Turn any error of the block into KeyboardInterrupt if a signal came."""
        try:
            yield
        except Exception as error:
            if self._received:
                raise KeyboardInterrupt from error
            raise

    def _receive(self, *_: object) -> NoReturn:
        self._received = True
        raise KeyboardInterrupt
