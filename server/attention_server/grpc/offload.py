"""What would hold up the loop, and is done in a thread: other callers are answered meanwhile."""

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from attention_server.errors import InvalidRequest
from attention_server.http2.nghttp2 import Buffer
from attention_server.transport import Threads

T = TypeVar("T")
M = TypeVar("M", bound=Message)

BYTES = 4 * 1024 * 1024  # of a message: those are read or written within a few milliseconds
SEQUENCES = 64  # likewise
TEXT_BYTES = 16 * 1024  # of a message with text


class Offloader:
    """Does what is light at once, and what is heavy in a thread.

    Args:
        threads: which refuse what comes when all are busy.
    """

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    async def message(self, kind: type[M], content: Buffer) -> M:
        """Read a message's bytes, in a thread where they are many.

        Raises:
            InvalidRequest: they are no message of this kind.
            Full: all threads are busy.
        """
        try:
            read: Callable[[Any], M] = kind.FromString  # which takes views too
            return await self._threads.run(lambda: read(content)) if len(content) > BYTES else read(content)
        except DecodeError as error:
            raise InvalidRequest("the bytes are no message of the type that this method takes") from error

    async def run(self, work: Callable[[], T]) -> T:
        """Do something in a thread.

        Raises:
            Full: all are busy.
            Exception: what it raises.
        """
        return await self._threads.run(work)

    @staticmethod
    def should_offload(size: int, sequences: int, *, text: bool = False) -> bool:
        """Return whether it takes long to read a message.

        Args:
            size: its bytes.
            sequences: that have to be looked at by themselves.
            text: whether one of them is a text.
        """
        return size > (TEXT_BYTES if text else BYTES) or sequences > SEQUENCES

    async def to_write(self, work: Callable[[], T], size: int) -> T:
        """Write an answer of so many bytes, in a thread where they are many. Raises as `run`."""
        return await self._threads.run(work) if size > BYTES else work()
