"""A value read from files, and read again when the files change."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")

CHECK_SECONDS = 1.0  # between two checks of the files: the delay until a revoked token is refused


class FileWatcher(Generic[T]):
    """A value that follows its files. Changed files that cannot be used are logged and leave the value as it was.

    Args:
        name: the files' name in the log.
        paths: the files.
        read: returns the value; raises OSError or ValueError if the files cannot be used.

    Raises:
        OSError, ValueError: the files cannot be used at the start.
    """

    def __init__(self, name: str, paths: tuple[Path, ...], read: Callable[[], T]) -> None:
        self._name = name
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._seen = self._fingerprint()
        self._value = read()
        self._next_check = time.monotonic() + CHECK_SECONDS

    def get(self) -> T:
        """Return the value, after reading changed files; the files are checked at most once in CHECK_SECONDS."""
        if time.monotonic() >= self._next_check and self._lock.acquire(blocking=False):
            try:
                self._check()
            finally:
                self._lock.release()
        return self._value

    def _check(self) -> None:
        self._next_check = time.monotonic() + CHECK_SECONDS
        state = self._fingerprint()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._value = self._read()
        except (OSError, ValueError) as error:
            log.warning(
                "files changed and cannot be used; what they said before stays", what=self._name, reason=str(error)
            )
        else:
            log.info("files changed and were read again", what=self._name)

    def _fingerprint(self) -> list[tuple[int, int, int] | None]:
        return [_file_state(path) for path in self._paths]


def _file_state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
