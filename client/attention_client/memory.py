"""A handle of a memory that the server keeps, and the request that created it."""

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from attention_proto.attention.v1 import attention_pb2 as pb

_TO_BE_KEPT = {"token_ids", "memory", "extend"}  # fields of a sequence of ids alone


class Extension(NamedTuple):
    """The request that put a sequence behind a memory.

    Attributes:
        before: the memory; None where the sequence begins a prefix.
        request: of Attend, with this one sequence and the least of outputs.
        tokens: of the sequence.
    """

    before: "Memory | None"
    request: pb.AttendRequest
    tokens: tuple[str, ...]


Creation = pb.CreateMemoryRequest | pb.AttendRequest


class Memory:
    """A key and value sequence that the server has projected and keeps, for any number of queries to attend to.

    The handle holds the request that created the memory, with all its data. When the server no longer has the memory
    (it expired or was evicted, the server restarted, the model has a new version), a call of `attend` that names it
    creates it again under its id, and the attributes are those of the new one. A memory that a sequence was put behind
    (`extend`) is created again by way of those before it, and has a new id then. A memory from the list of `memories`
    comes without its data, and cannot be created again.

    Attributes:
        source: the request that created it; None without its data.
    """

    def __init__(self, message: pb.Memory, source: pb.CreateMemoryRequest | Extension | None = None) -> None:
        self._message = message
        self.source = source

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
        root, steps = self._chain()
        of_root = () if root is None else tuple(root._message.tokens)  # noqa: SLF001  # of this class
        return tuple(itertools.chain(of_root, *[step.tokens for step in steps]))

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
        """How many of `size_bytes` further memories of the caller keep too; these count once in the server's budget."""
        return self._message.shared_bytes

    @property
    def pinned(self) -> bool:
        """Whether the server never evicts it to make room for further ones."""
        return self._message.pinned

    @property
    def data_type(self) -> str:
        """FP32 or FP16, the format in which the server keeps it."""
        return pb.DataType.Name(self._message.data_type).removeprefix("DATA_TYPE_")

    @property
    def max_storage_error(self) -> float:
        """The largest absolute difference between a kept number and the projected one; 0 for FP32."""
        return self._message.max_storage_error

    def creations(self, model: str, version: int) -> list[Creation]:
        """Return the requests that create it for a version of its model; none for another model or without data.

        Each request of Attend goes on behind the memory of the request before. Ids of tokens that were put behind it
        step by step are put there at once.
        """
        root, steps = self._chain()
        requests = [step.request for step in steps]
        if root is None:
            return _joined(requests, model, version)
        if root.source is None or isinstance(root.source, Extension) or root.source.model != model:
            return []
        request = pb.CreateMemoryRequest()
        request.CopyFrom(root.source)
        request.version = version
        request.id = root.id  # it is the same memory, on every replica
        return [request, *_joined(requests, model, version)]

    def _chain(self) -> "tuple[Memory | None, list[Extension]]":
        """Return the memory at the beginning, None for none, and the steps from there to this one."""
        root: Memory | None = self
        steps: list[Extension] = []
        while root is not None and isinstance(root.source, Extension):
            steps.append(root.source)
            root = root.source.before
        return root, steps[::-1]

    def after(self, extension: Extension) -> "Memory":
        """Return this memory with the request that put its last sequence there."""
        return Memory(self._message, extension)

    def renew(self, message: pb.Memory) -> None:
        """Take over the attributes of the memory that the server created again."""
        self._message = message

    def __repr__(self) -> str:
        return f"<Memory {self.id} of {self.model} {self.version}: {self.length} positions, {self.size_bytes} bytes>"


def _joined(steps: Sequence[pb.AttendRequest], model: str, version: int) -> list[Creation]:
    """Return the requests of steps, first to last; adjacent steps of ids are one request."""
    requests: list[pb.AttendRequest] = []
    for step in steps:
        (sequence,) = step.inputs
        if requests and _is_of_ids(sequence) and _is_of_ids(requests[-1].inputs[0]):
            requests[-1].inputs[0].token_ids.extend(sequence.token_ids)
            continue
        request = pb.AttendRequest()
        request.CopyFrom(step)
        request.model, request.version = model, version
        requests.append(request)
    return list(requests)


def _is_of_ids(sequence: pb.Sequence) -> bool:
    return all(field.name in _TO_BE_KEPT for field, _ in sequence.ListFields()) and bool(sequence.token_ids)
