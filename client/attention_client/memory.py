"""A memory that the server keeps: what it is called, and what it was made from."""

from datetime import UTC, datetime

from attention_proto.attention.v1 import attention_pb2 as pb


class Memory:
    """A key and value sequence that the server has projected and keeps, for any number of queries to attend to.

    It also keeps here what it was made from, as large as that is. So when the server has it no longer (it expired, made
    room for others, the server restarted, another version of the model has come), a call of `attend` that names it
    creates it again by itself. What is said here of the memory is then what the server said last. A memory that
    `memories` listed was made by somebody else, and cannot be created again.
    """

    def __init__(self, message: pb.Memory, source: pb.CreateMemoryRequest | None = None) -> None:
        self._message = message
        self._source = source

    @property
    def id(self) -> str:
        """Derived from the content and the model's version: the same memory has the same id."""
        return self._message.id

    @property
    def model(self) -> str:
        """The model it was made for."""
        return self._message.model

    @property
    def version(self) -> int:
        """The version whose projection it is."""
        return self._message.version

    @property
    def length(self) -> int:
        """S, its positions."""
        return self._message.length

    @property
    def tokens(self) -> tuple[str, ...]:
        """Its tokens; empty where it was not made from text."""
        return tuple(self._message.tokens)

    @property
    def expire_time(self) -> datetime:
        """When it is forgotten unless used, in UTC; each use starts its time anew, which is not seen here."""
        return self._message.expire_time.ToDatetime(tzinfo=UTC)

    @property
    def size_bytes(self) -> int:
        """What it weighs on the server."""
        return self._message.size_bytes

    def creation(self, model: str, version: int) -> pb.CreateMemoryRequest | None:
        """Return the request that makes it anew for a version of its model; None when that cannot be."""
        if self._source is None or self._source.model != model:
            return None
        request = pb.CreateMemoryRequest()
        request.CopyFrom(self._source)
        request.version = version
        return request

    def renew(self, message: pb.Memory) -> None:
        """Take in what the server said of it when it was made anew."""
        self._message = message

    def __repr__(self) -> str:
        return f"<Memory {self.id} of {self.model} {self.version}: {self.length} positions, {self.size_bytes} bytes>"
