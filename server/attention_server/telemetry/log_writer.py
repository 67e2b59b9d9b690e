"""The writer of log lines: a thread of its own writes these, so that a stuck reader or a full disk holds nothing up."""

import atexit
import os
import threading
from collections import deque
from typing import NamedTuple

MAX_BYTES = 2**20  # of lines that wait for the reader
SECONDS_TO_DRAIN = 1.0


class LogLosses(NamedTuple):
    """Lines that are missing in the log, by cause.

    Attributes:
        unread: dropped because the reader of stderr was too slow.
        failed: could not be written; the disk is full, or the reader has gone.
    """

    unread: int
    failed: int


class LogWriter:
    """A stream for log lines; `write` never waits and never fails.

    Args:
        file: the descriptor to write to.
        max_bytes: bytes of the lines that may wait; further lines are dropped and counted.
    """

    def __init__(self, file: int = 2, max_bytes: int = MAX_BYTES) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._size = 0  # of the waiting lines, and of the one that is being written
        self._unread = self._failed = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def losses(self) -> LogLosses:
        """The lines that are missing so far."""
        with self._changed:
            return LogLosses(self._unread, self._failed)

    def write(self, text: str) -> int:
        """Queue a line; return its length in characters."""
        line = text.encode(errors="backslashreplace")
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
                atexit.register(self.drain)
            if self._size + len(line) > self._max_bytes:
                self._unread += 1
            else:
                self._lines.append(line)
                self._size += len(line)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Return at once: lines are written as soon as the reader takes these."""

    def drain(self, seconds: float = SECONDS_TO_DRAIN) -> bool:
        """Wait until all lines are written, `seconds` at most; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._size, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                line = self._lines.popleft()
            written = self._written(line)
            with self._changed:
                self._size -= len(line)
                self._failed += not written
                self._changed.notify_all()

    def _written(self, line: bytes) -> bool:
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError:
            return False
        return True
