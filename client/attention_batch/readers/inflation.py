"""A bound on the bytes that compressed files become, and the sizes that an Arrow IPC file names for its buffers.

Arrow allocates the named size of a compressed buffer before it decompresses. The size stands before the buffer itself,
and the buffers stand in the messages of the format, which are FlatBuffers (Message.fbs, File.fbs of Apache Arrow).
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from attention_batch.errors import Refused

INFLATED_BYTES = 2**28  # of a row group or a record batch as it is read; beside so many times its bytes in the file:
INFLATED_SHARE = 64
MAGIC = b"ARROW1"
_CONTINUATION = 0xFFFFFFFF
_DICTIONARY, _BATCH = 2, 3  # kinds of messages
_BLOCK = 24  # bytes


class _Message(NamedTuple):
    """Where a message's metadata and body begin."""

    metadata: int
    body: int


def check_inflation(size: int, compressed: int, where: str) -> None:
    """Check that bytes of a file become no more than a bounded multiple.

    Raises:
        Refused: the size is above the bound.
    """
    if size > INFLATED_BYTES + INFLATED_SHARE * compressed:
        raise Refused(f"{where} becomes {size} bytes of {compressed}, which is too much; write smaller row groups")


def check_arrow(content: pa.Buffer, path: str) -> None:
    """Check the inflation of each record batch of an Arrow IPC file, and of all its dictionaries together.

    Raises:
        Refused: it is too much, or the messages cannot be read.
    """
    view = _View(memoryview(content))
    of_dictionaries = bytes_of_dictionaries = number = 0
    try:
        for message in view.messages():
            kind, size, compressed = view.inflation(message)
            if kind == _DICTIONARY:
                of_dictionaries, bytes_of_dictionaries = of_dictionaries + size, bytes_of_dictionaries + compressed
                check_inflation(of_dictionaries, bytes_of_dictionaries, f"the dictionaries of {path}")
            elif kind == _BATCH:
                check_inflation(size, compressed, f"record batch {number} of {path}")
                number += 1
    except (struct.error, ValueError, IndexError) as error:
        raise Refused(f"cannot read {path}: its messages are damaged: {error}") from error


class _View:
    """A view of a file as FlatBuffers; reads raise ValueError or struct.error where there is nothing."""

    def __init__(self, content: memoryview) -> None:
        self._content = content

    def messages(self) -> Iterator[_Message]:
        """Yield the messages of a file, by its footer, or of a stream."""
        content = self._content
        if bytes(content[:6]) != MAGIC:
            yield from self._stream()
            return
        if bytes(content[-6:]) != MAGIC:
            raise ValueError("it has no end")
        footer = len(content) - 10 - self._number("<i", len(content) - 10)
        root = footer + self._number("<I", footer)
        for field in (2, 3):
            place = self._field(root, field)
            begin, count = self._vector(place) if place else (0, 0)
            for block in range(begin, begin + _BLOCK * count, _BLOCK):
                offset, length = self._number("<q", block), self._number("<i", block + 8)
                first = self._number("<I", offset)
                yield _Message(offset + (8 if first == _CONTINUATION else 4), offset + length)

    def inflation(self, message: _Message) -> tuple[int, int, int]:
        """Return a message's kind, the bytes that its compressed buffers become, and the bytes that it has."""
        root = message.metadata + self._number("<I", message.metadata)
        place = self._field(root, 1)
        kind = self._number("<B", place) if place else 0
        if kind not in (_DICTIONARY, _BATCH):
            return kind, 0, 0
        batch = self._table(root, 2)
        if kind == _DICTIONARY:
            batch = self._table(batch, 1)
        if not self._field(batch, 3):  # no compression
            return kind, 0, 0
        begin, count = self._vector(self._field(batch, 2))
        size = compressed = 0
        for buffer in range(begin, begin + 16 * count, 16):
            offset, length = self._number("<q", buffer), self._number("<q", buffer + 8)
            if length >= 8:
                compressed += length
                size += max(0, self._number("<q", message.body + offset))
        return kind, size, min(compressed, len(self._content))

    def _stream(self) -> Iterator[_Message]:
        place = 0
        while place + 8 <= len(self._content):
            size = self._number("<I", place)
            place += 4
            if size == _CONTINUATION:
                size = self._number("<I", place)
                place += 4
            if size == 0:
                return
            root = place + self._number("<I", place)
            field = self._field(root, 3)
            body = self._number("<q", field) if field else 0
            yield _Message(place, place + size)
            if body < 0:
                raise ValueError("a body has less than no bytes")
            place += size + body

    def _number(self, kind: str, place: int) -> int:
        if place < 0:
            raise ValueError("an offset is before the file")
        return int(struct.unpack_from(kind, self._content, place)[0])

    def _field(self, table: int, number: int) -> int:
        """Return where a field of a table is; 0 where the table has none."""
        entries = table - self._number("<i", table)
        entry = 4 + 2 * number
        if entry >= self._number("<H", entries):
            return 0
        offset = self._number("<H", entries + entry)
        return table + offset if offset else 0

    def _table(self, table: int, number: int) -> int:
        """Return where the table of a field is."""
        place = self._field(table, number)
        if not place:
            raise ValueError("a message has no content")
        return place + self._number("<I", place)

    def _vector(self, place: int) -> tuple[int, int]:
        """Return where the first element of a vector is, and how many there are."""
        begin = place + self._number("<I", place)
        count = self._number("<I", begin)
        if count > len(self._content):
            raise ValueError("a list is longer than the file")
        return begin + 4, count
