"""gRPC's message framing: bytes of a request body become messages.

Each message follows a prefix of five bytes: a flag (1 for a compressed message) and the length, big endian.
"""

from collections import deque

import numpy as np

from attention_server.http2.callbacks import Buffer
from attention_server.http2.errors import InvalidMessage, MessageTooLarge

PREFIX = 5  # bytes before each message
QUEUED = 64  # messages that are split off ahead of the reader
GROWTH = 2  # limit of the room for a message, as a multiple of its received bytes
LEAST_ROOM = 512  # bytes


class MessageReader:
    """Splits a request body into messages. Each byte is copied once; of long messages, some bytes again.

    Args:
        max_bytes: of one message.

    Attributes:
        max_bytes: as given; may be lowered before the first byte arrives.
        complete: messages that are not read yet, each behind its flag.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.complete: deque[tuple[int, Buffer]] = deque()
        self._prefix = b""  # the part that has arrived
        self._flag: int | None = None  # of the current message; None before its prefix is complete
        self._length = 0  # of the current message
        self._room: memoryview | None = None  # for the current message
        self._filled = 0  # bytes of it that have arrived
        self._backlog = bytearray()  # bytes behind QUEUED complete messages

    @property
    def has_begun(self) -> bool:
        """Whether a prefix is complete and its message is not."""
        return self._flag is not None

    @property
    def incomplete_bytes(self) -> int:
        """The received bytes that are in no complete message."""
        prefix = len(self._prefix) if self._flag is None else PREFIX
        return prefix + self._filled + len(self._backlog)

    def feed(self, content: memoryview) -> None:
        """Add received bytes, by copying. Raises as `split`."""
        if self._backlog:
            self._backlog += content
        else:
            left = self._split(content)
            if left:
                self._backlog += left

    def split(self) -> bool:
        """Split messages off the backlog, once those before it are read; return whether there was a backlog.

        Raises:
            InvalidMessage: the bytes are not gRPC's.
            MessageTooLarge: a message is over the limit.
        """
        if not self._backlog:
            return False
        with memoryview(self._backlog) as everything:
            left = len(self._split(everything))
        del self._backlog[: len(self._backlog) - left]
        return True

    def drop(self) -> None:
        """Drop everything but the complete messages."""
        self._prefix, self._flag, self._room, self._filled = b"", None, None, 0
        self._backlog = bytearray()

    def _split(self, left: memoryview) -> memoryview:
        """Return the bytes behind the last message that was split off."""
        while left and len(self.complete) < QUEUED:
            left = self._read_prefix(left) if self._flag is None else self._read_content(left)
        return left

    def _read_prefix(self, left: memoryview) -> memoryview:
        missing = PREFIX - len(self._prefix)
        self._prefix += left[:missing]
        if len(self._prefix) < PREFIX:
            return left[missing:]
        flag, length = self._prefix[0], int.from_bytes(self._prefix[1:], "big")
        if flag > 1:
            raise InvalidMessage("the bytes are no message of gRPC: the first is 0, or 1 before a compressed one")
        if length > self.max_bytes:
            raise MessageTooLarge(
                f"the message has {length} bytes; {self.max_bytes} may be sent: send fewer or shorter sequences"
            )
        self._prefix, self._flag, self._length = b"", flag, length
        if not length:
            self._complete(b"")
        return left[missing:]

    def _read_content(self, left: memoryview) -> memoryview:
        part = left[: self._length - self._filled]
        if len(part) == self._length:
            self._complete(bytes(part))
            return left[len(part) :]
        begin = self._filled
        self._filled += len(part)
        room = self._reserve()
        room[begin : self._filled] = part
        if self._filled == self._length:
            self._complete(room)
        return left[len(part) :]

    def _reserve(self) -> memoryview:
        """Return room for the received bytes of the current message, and at most GROWTH times as much."""
        room = self._room
        if room is None or len(room) < self._filled:
            self._room = np.empty(min(self._length, max(LEAST_ROOM, GROWTH * self._filled)), np.uint8).data
            if room is not None:
                self._room[: len(room)] = room
        assert self._room is not None
        return self._room

    def _complete(self, content: Buffer) -> None:
        assert self._flag is not None
        self.complete.append((self._flag, content))
        self._flag, self._room, self._filled = None, None, 0
