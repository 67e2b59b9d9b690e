"""A value read from files, and read again when they change, so that secrets are renewed without a restart."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")

SECONDS = 1.0  # between two looks at the files: what was revoked is refused that soon


class FileWatcher(Generic[T]):
    """What files say now. A change that cannot be read is logged, and what they said before stays.

    Args:
        what: they are, for the log.
        paths: the files.
        read: them; raises OSError or ValueError where they say nothing that can be used.

    Raises:
        OSError, ValueError: they cannot be read at the start.
    """

    def __init__(self, what: str, paths: tuple[Path, ...], read: Callable[[], T]) -> None:
        self._what = what
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._seen = self._state()
        self._value = read()
        self._next_look = time.monotonic() + SECONDS

    def get(self) -> T:
        """Return the value; look whether the files have changed, if the last look is some time ago."""
        if time.monotonic() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._value

    def _look(self) -> None:
        self._next_look = time.monotonic() + SECONDS
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._value = self._read()
        except (OSError, ValueError) as error:
            log.warning(
                "files changed and cannot be used; what they said before stays", what=self._what, reason=str(error)
            )
        else:
            log.info("files changed and were read again", what=self._what)

    def _state(self) -> list[tuple[int, int, int] | None]:
        return [_state(path) for path in self._paths]


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
