"""Threads for parsing and writing large messages, so that the loop is free meanwhile."""

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from attention_server.errors import InvalidRequest
from attention_server.grpc.call import Buffer
from attention_server.transport import Threads

T = TypeVar("T")
M = TypeVar("M", bound=Message)

BYTES = 4 * 1024 * 1024  # of a message: up to so many are parsed or written within a few milliseconds
SEQUENCES = 64  # likewise
TEXT_BYTES = 16 * 1024  # of a message with text


class Offloader:
    """Runs short work at once, and long work in a thread.

    Args:
        threads: refuse further work when all are busy.
    """

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    async def message(self, kind: type[M], content: Buffer) -> M:
        """Parse a message, a large one in a thread.

        Raises:
            InvalidRequest: the bytes are no message of this type.
            Full: all threads are busy.
        """
        try:
            parse: Callable[[Any], M] = kind.FromString  # which takes a memoryview too
            return await self._threads.run(lambda: parse(content)) if len(content) > BYTES else parse(content)
        except DecodeError as error:
            raise InvalidRequest("the bytes are no message of the type that this method takes") from error

    async def run(self, work: Callable[[], T]) -> T:
        """Run a function in a thread.

        Raises:
            Full: all are busy.
            Exception: the function's.
        """
        return await self._threads.run(work)

    @staticmethod
    def should_offload(size: int, sequences: int, *, text: bool = False) -> bool:
        """Return whether a message takes long to convert to a request.

        Args:
            size: in bytes.
            sequences: to be converted one by one.
            text: whether a sequence is a text.
        """
        return size > (TEXT_BYTES if text else BYTES) or sequences > SEQUENCES

    async def to_write(self, work: Callable[[], T], size: int) -> T:
        """Serialize an answer of `size` bytes, a large one in a thread. Raises as `run`."""
        return await self._threads.run(work) if size > BYTES else work()
