"""What may be in flight on a stream, by count and by bytes."""

import threading


class Window:
    """Bounds what is in flight.

    Args:
        count: messages.
        size: bytes of all together; one message alone may have more.
    """

    def __init__(self, count: int, size: int) -> None:
        self._count = self._free = count
        self._size = size
        self._changed = threading.Condition()
        self._closed = False

    def enter(self, size: int) -> bool:
        """Wait until there is room for a message; return whether there is, and not an end.

        Args:
            size: its bytes.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(size))
            if self._closed:
                return False
            self._free -= 1
            self._size -= size
            return True

    def leave(self, size: int) -> None:
        """Make room again."""
        with self._changed:
            self._free += 1
            self._size += size
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in any more, nor wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return self._free == self._count or (self._free > 0 and self._size >= size)
