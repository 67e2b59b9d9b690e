"""Large messages to bytes: what they hold in `bytes` is copied once, where protobuf itself moves it several times."""

import functools
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from numpy.typing import NDArray

_LENGTH_DELIMITED = 2


class Parts:
    """The bytes of a message, in pieces that are put together once, at the end.

    Args:
        start: what of it is small, written by protobuf.
    """

    def __init__(self, start: bytes = b"") -> None:
        self.pieces: list[Any] = [start]  # bytes, and what has the buffer protocol
        self.size = len(start)

    def add(self, tag: bytes, content: "Parts | bytes | memoryview") -> None:
        """Add a field: a message; or bytes, which must not change until all is joined.

        Args:
            tag: of the field, see `tag`.
            content: what it holds.
        """
        if isinstance(content, Parts):
            size, pieces = content.size, content.pieces
        else:
            size, pieces = len(content) if isinstance(content, bytes) else content.nbytes, [content]
        head = tag + varint(size)
        self.pieces += [head, *pieces]
        self.size += len(head) + size

    def put(self, head: bytes, array: NDArray[Any]) -> None:
        """Add what stands before an array's bytes, and these; the array must not change until all is joined."""
        self.pieces += (head, np.ascontiguousarray(array))
        self.size += len(head) + array.nbytes

    def put_all(self, heads: Iterable[bytes], batches: Iterable[NDArray[Any]]) -> None:
        """Add what is in the same form for each of a batch: of each array a head, and its part for that one.

        Args:
            heads: what stands before the bytes of each array.
            batches: the arrays, with a leading dimension of one length; they must not change until all is joined.
        """
        columns: list[Iterable[Any]] = []
        for head, batch in zip(heads, batches, strict=True):
            columns += (itertools.repeat(head), np.ascontiguousarray(batch))
            self.size += len(head) * len(batch) + batch.nbytes
        self.pieces += itertools.chain.from_iterable(zip(*columns, strict=False))  # a head has no end

    def join(self) -> bytes:
        """Return the bytes."""
        return b"".join(self.pieces)


def tag(field: FieldDescriptor) -> bytes:
    """Return what stands before a field's length."""
    return varint(field.number << 3 | _LENGTH_DELIMITED)


def serialize(message: Message) -> bytes:
    """Return what `message.SerializeToString()` means; fields may stand in another order.

    Small messages protobuf writes sooner.
    """
    return _parts(message).join()


def _parts(message: Message) -> Parts:
    large, fields = _large_fields(message.DESCRIPTOR), message.ListFields()
    rest = type(message)()
    for field, value in fields:
        if field.number not in large:
            _set(rest, field, value)
    parts = Parts(rest.SerializeToString())
    for field, value in fields:
        kind = large.get(field.number)
        if kind:
            for each in value if kind.is_repeated else (value,):
                parts.add(kind.tag, each if kind.is_bytes else _parts(each))
    return parts


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.is_repeated:
        getattr(message, field.name).MergeFrom(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


class _Kind(NamedTuple):
    """How a field is written that is, or holds, bytes."""

    tag: bytes
    is_bytes: bool
    is_repeated: bool


@functools.cache
def _large_fields(kind: Descriptor) -> dict[int, _Kind]:
    """Return the fields of a message that are, or hold, bytes, by their numbers."""
    found = {}
    for field in kind.fields:
        is_bytes = field.type == FieldDescriptor.TYPE_BYTES
        if is_bytes or (field.message_type is not None and _large_fields(field.message_type)):
            found[field.number] = _Kind(tag(field), is_bytes, field.is_repeated)
    return found


@functools.lru_cache(4096)
def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
