"""Parsing and serializing of messages, in a thread where they are large."""

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from attention_server import transport
from attention_server.errors import InvalidRequest
from attention_server.grpc.call import Buffer
from attention_server.transport import INLINE_BYTES

T = TypeVar("T")
M = TypeVar("M", bound=Message)


class Offloader(transport.Offloader):
    """An offloader that parses and serializes messages."""

    async def message(self, kind: type[M], content: Buffer) -> M:
        """Parse a message, a large one in a thread.

        Raises:
            InvalidRequest: the bytes are no message of this type.
            Full: all threads are busy.
        """
        try:
            parse: Callable[[Any], M] = kind.FromString  # which takes a memoryview too
            return await self.run_if(len(content) > INLINE_BYTES, lambda: parse(content))
        except DecodeError as error:
            raise InvalidRequest("the bytes are no message of the type that this method takes") from error

    async def to_write(self, work: Callable[[], T], size: int) -> T:
        """Serialize an answer of `size` bytes, a large one in a thread. Raises as `run`."""
        return await self.run_if(size > INLINE_BYTES, work)
