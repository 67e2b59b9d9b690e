"""Messages with large tensors to bytes: each tensor is copied once, where protobuf itself moves it several times."""

import functools
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from attention_proto.attention.v1.attention_pb2 import Tensor

_LENGTH_DELIMITED = 2
_DATA = Tensor.DESCRIPTOR.fields_by_name["data"].number


def serialize(message: Message) -> bytes:
    """Return what `message.SerializeToString()` means; fields may stand in another order."""
    return b"".join(_parts(message))


def _parts(message: Message) -> list[bytes]:
    if isinstance(message, Tensor):
        data = message.data
        form = Tensor(data_type=message.data_type, shape=message.shape)
        return [form.SerializeToString(), _head(_DATA, len(data)), data]
    rest, parts = type(message)(), []
    for field, value in message.ListFields():
        if field.message_type is None or not _has_tensors(field.message_type):
            _set(rest, field, value)
            continue
        for each in value if field.is_repeated else (value,):
            inner = _parts(each)
            parts += [_head(field.number, sum(map(len, inner))), *inner]
    return [rest.SerializeToString(), *parts]


def _set(message: Message, field: Any, value: Any) -> None:
    if field.is_repeated:
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


@functools.cache
def _has_tensors(kind: Descriptor) -> bool:
    return kind is Tensor.DESCRIPTOR or any(
        field.message_type is not None and _has_tensors(field.message_type) for field in kind.fields
    )


def _head(number: int, length: int) -> bytes:
    """Return the tag of a field and the length of its content."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
