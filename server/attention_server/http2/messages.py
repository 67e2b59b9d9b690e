"""The bytes of a call as they come, cut into messages: each is copied to where it stays; of long ones, some again."""

from collections import deque

import numpy as np

from attention_server.errors import InvalidRequest, TooLarge
from attention_server.http2.nghttp2 import Buffer

PREFIX = 5  # bytes before each message: whether it is compressed, and its length
CUT = 64  # messages that are cut off ahead of who takes them
AHEAD = 2  # times what has come of a message, that is laid out for it at most
LEAST = 512  # bytes that are laid out for a message


class Messages:
    """The messages of a call.

    Args:
        most: bytes of a message.

    Attributes:
        most: as given; less may be set before one has come.
        whole: those that have come and nobody has taken; each behind what its prefix says first.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.whole: deque[tuple[int, Buffer]] = deque()
        self._prefix = b""  # what has come of it
        self._flag: int | None = None  # of the message that comes; None before its prefix is here
        self._length = 0  # of that message
        self._content: memoryview | None = None  # of it
        self._have = 0  # bytes therein
        self._backlog = bytearray()  # behind as many messages as are cut off

    @property
    def has_begun(self) -> bool:
        """Whether a message comes whose prefix is here."""
        return self._flag is not None

    @property
    def unready(self) -> int:
        """The bytes that have come and are of no whole message."""
        prefix = len(self._prefix) if self._flag is None else PREFIX
        return prefix + self._have + len(self._backlog)

    def add(self, content: memoryview) -> None:
        """Take bytes that have come, which are the caller's again afterwards. Raises as `cut`."""
        if self._backlog:
            self._backlog += content
        else:
            left = self._cut(content)
            if left:
                self._backlog += left

    def cut(self) -> None:
        """Cut off messages behind those that were taken.

        Raises:
            InvalidRequest: what comes is no message.
            TooLarge: it is larger than one may be.
        """
        if self._backlog:
            with memoryview(self._backlog) as all_left:
                left = len(self._cut(all_left))
            del self._backlog[: len(self._backlog) - left]

    def drop(self) -> None:
        """Keep nothing of what is not whole."""
        self._prefix, self._flag, self._content, self._have = b"", None, None, 0
        self._backlog = bytearray()

    def _cut(self, left: memoryview) -> memoryview:
        """Return what is left behind the last message that may be cut off."""
        while left and len(self.whole) < CUT:
            left = self._begin(left) if self._flag is None else self._go_on(left)
        return left

    def _begin(self, left: memoryview) -> memoryview:
        missing = PREFIX - len(self._prefix)
        self._prefix += left[:missing]
        if len(self._prefix) < PREFIX:
            return left[missing:]
        flag, length = self._prefix[0], int.from_bytes(self._prefix[1:], "big")
        if flag > 1:
            raise InvalidRequest("the bytes are no message of gRPC: the first is 0, or 1 before a compressed one")
        if length > self.most:
            raise TooLarge(f"the message has {length} bytes; {self.most} may be sent: send fewer or shorter sequences")
        self._prefix, self._flag, self._length = b"", flag, length
        if not length:
            self._end(b"")
        return left[missing:]

    def _go_on(self, left: memoryview) -> memoryview:
        part = left[: self._length - self._have]
        if len(part) == self._length:
            self._end(bytes(part))
            return left[len(part) :]
        begin = self._have
        self._have += len(part)
        content = self._laid_out()
        content[begin : self._have] = part
        if self._have == self._length:
            self._end(content)
        return left[len(part) :]

    def _laid_out(self) -> memoryview:
        """Return where the message is put: as long as what has come of it, and not much longer before all has."""
        content = self._content
        if content is None or len(content) < self._have:
            self._content = np.empty(min(self._length, max(LEAST, AHEAD * self._have)), np.uint8).data
            if content is not None:
                self._content[: len(content)] = content
        assert self._content is not None
        return self._content

    def _end(self, content: Buffer) -> None:
        assert self._flag is not None
        self.whole.append((self._flag, content))
        self._flag, self._content, self._have = None, None, 0
