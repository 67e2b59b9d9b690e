"""A handle of a memory that the server keeps, and the request that created it."""

from datetime import UTC, datetime

from attention_proto.attention.v1 import attention_pb2 as pb


class Memory:
    """A key and value sequence that the server has projected and keeps, for any number of queries to attend to.

    The handle holds the request that created the memory, with all its data. When the server no longer has the memory
    (it expired or was evicted, the server restarted, the model has a new version), a call of `attend` that names it
    creates it again under its id, and the attributes are those of the new one. A memory from the list of `memories`
    comes without its data, and cannot be created again.
    """

    def __init__(self, message: pb.Memory, source: pb.CreateMemoryRequest | None = None) -> None:
        self._message = message
        self._source = source

    @property
    def id(self) -> str:
        """The id, random; it names the memory for the caller that created it alone."""
        return self._message.id

    @property
    def model(self) -> str:
        """The name of its model."""
        return self._message.model

    @property
    def version(self) -> int:
        """The model's version that projected it."""
        return self._message.version

    @property
    def length(self) -> int:
        """The number of its positions: `source_length` + `prefix_length`."""
        return self._message.length

    @property
    def source_length(self) -> int:
        """The number of keys of another sequence, to which a query attends."""
        return self._message.source_length

    @property
    def prefix_length(self) -> int:
        """The number of positions that a query goes on behind, in a decoder."""
        return self._message.prefix_length

    @property
    def tokens(self) -> tuple[str, ...]:
        """Its tokens; empty where it was created from vectors."""
        return tuple(self._message.tokens)

    @property
    def truncated_tokens(self) -> int:
        """The number of tokens of its text that were dropped."""
        return self._message.truncated_tokens

    @property
    def expire_time(self) -> datetime:
        """The time at which it expires unless used, in UTC, as of its creation; each use on the server postpones it."""
        return self._message.expire_time.ToDatetime(tzinfo=UTC)

    @property
    def size_bytes(self) -> int:
        """The size of its keys and values on the server, in bytes."""
        return self._message.size_bytes

    @property
    def shared_bytes(self) -> int:
        """How many of `size_bytes` other memories of the caller keep too; these count once in the server's budget."""
        return self._message.shared_bytes

    @property
    def pinned(self) -> bool:
        """Whether the server never evicts it to make room for others."""
        return self._message.pinned

    @property
    def data_type(self) -> str:
        """FP32 or FP16, the format in which the server keeps it."""
        return pb.DataType.Name(self._message.data_type).removeprefix("DATA_TYPE_")

    @property
    def max_storage_error(self) -> float:
        """The largest absolute difference between a kept number and the projected one; 0 for FP32."""
        return self._message.max_storage_error

    def creation(self, model: str, version: int) -> pb.CreateMemoryRequest | None:
        """Return the request that creates it for a version of its model; None for another model or without data."""
        if self._source is None or self._source.model != model:
            return None
        request = pb.CreateMemoryRequest()
        request.CopyFrom(self._source)
        request.version = version
        request.id = self.id  # it is the same memory, on every replica
        return request

    def renew(self, message: pb.Memory) -> None:
        """Take over the attributes of the memory that the server created again."""
        self._message = message

    def __repr__(self) -> str:
        return f"<Memory {self.id} of {self.model} {self.version}: {self.length} positions, {self.size_bytes} bytes>"
