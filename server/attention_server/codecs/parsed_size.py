"""The memory that a protobuf message takes when it is parsed, counted before it is: two bytes may become a hundred."""

import functools
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from attention_server.errors import InvalidRequest, TooLarge

MESSAGE_BYTES = 128  # of a message of many fields, without their content
FIELD_BYTES = 16  # of a text or number
SMALL_BYTES = 64 * 1024  # a message of as many bytes takes a few MiB at most, and is not counted
MAX_FIELDS = 200_000  # in a message
QUICK_FIELDS = 16_384  # of a message that is counted on the event loop

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
WIDTHS = {FIXED64: 8, FIXED32: 4}


class ManyFields(Exception):
    """There are more fields than are to be counted."""


def parsed_bytes(content: Any, descriptor: Any, most: int = MAX_FIELDS) -> int:
    """Return the bytes that a message takes when parsed, beside those of its texts and tensors.

    Args:
        content: the message; bytes or a memoryview.
        descriptor: of its type.
        most: fields to count, those of messages within included.

    Raises:
        ManyFields: there are more.
        InvalidRequest: the bytes are no message.
    """
    if len(content) <= SMALL_BYTES:
        return 0
    return _Counter(memoryview(content), most).count(descriptor, 0, len(content))


def check_fields(content: Any, descriptor: Any) -> int:
    """Return the same; the error of more than MAX_FIELDS is the caller's.

    Raises:
        TooLarge: there are more fields than a message may have.
        InvalidRequest: the bytes are no message.
    """
    try:
        return parsed_bytes(content, descriptor)
    except ManyFields as error:
        raise TooLarge(f"the message has more than {MAX_FIELDS} fields: send tensors as bytes") from error


class _Counter:
    """Walks the fields of a message, and of messages within."""

    def __init__(self, content: memoryview, most: int) -> None:
        self._content = content
        self._left = most

    def count(self, descriptor: Descriptor, begin: int, end: int) -> int:
        """Return the bytes of a message that stands from `begin` to `end`."""
        messages, packed = _fields(descriptor)
        total = MESSAGE_BYTES
        while begin < end:
            self._left -= 1
            if self._left < 0:
                raise ManyFields
            key, begin = self._varint(begin, end)
            number, wire = key >> 3, key & 7
            total += FIELD_BYTES
            if wire == LENGTH:
                length, begin = self._varint(begin, end)
                if begin + length > end:
                    raise _invalid()
                if number in messages:
                    total += self.count(messages[number], begin, begin + length)
                elif number in packed:
                    total += packed[number] * length
                begin += length
            elif wire == VARINT:
                _, begin = self._varint(begin, end)
            elif wire in WIDTHS:
                begin += WIDTHS[wire]
            else:
                raise _invalid()
        return total

    def _varint(self, begin: int, end: int) -> tuple[int, int]:
        """Return a number and the position behind it."""
        value = shift = 0
        while begin < end and shift < 70:
            byte = self._content[begin]
            begin += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, begin
            shift += 7
        raise _invalid()


@functools.cache
def _fields(descriptor: Descriptor) -> tuple[dict[int, Descriptor], dict[int, int]]:
    """Return the fields that are messages, and for those of packed numbers how many bytes a byte becomes at most."""
    messages, packed = {}, {}
    for field in descriptor.fields:
        if field.message_type is not None:
            messages[field.number] = field.message_type
        elif field.cpp_type in NUMBERS:
            packed[field.number] = NUMBERS[field.cpp_type]
    return messages, packed


# A Python object and its place, when lists of numbers become arrays; of fixed width four bytes or eight are one number.
NUMBERS = {
    FieldDescriptor.CPPTYPE_BOOL: 9,
    FieldDescriptor.CPPTYPE_INT32: 44,
    FieldDescriptor.CPPTYPE_UINT32: 44,
    FieldDescriptor.CPPTYPE_INT64: 48,
    FieldDescriptor.CPPTYPE_UINT64: 48,
    FieldDescriptor.CPPTYPE_ENUM: 44,
    FieldDescriptor.CPPTYPE_FLOAT: 9,
    FieldDescriptor.CPPTYPE_DOUBLE: 5,
}


def _invalid() -> InvalidRequest:
    return InvalidRequest("the bytes are no message of the type that this method takes")
