"""The bound of the messages in flight on a stream, by count and by bytes."""


class Window:
    """The count of the messages in flight, and of the bytes in all. Waiting for room is the stream's own task.

    Args:
        count: messages in flight at most.
        size: bytes of all together at most; one message alone may have more.
    """

    def __init__(self, count: int, size: int) -> None:
        self._count = self._free = count
        self._size = size

    def has_room(self, size: int) -> bool:
        """Return whether a message of `size` bytes may be sent."""
        return self._free == self._count or (self._free > 0 and self._size >= size)

    def enter(self, size: int) -> None:
        """Count a message in."""
        self._free -= 1
        self._size -= size

    def leave(self, size: int) -> None:
        """Count a message out."""
        self._free += 1
        self._size += size
