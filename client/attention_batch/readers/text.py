"""Files of text as a source: records of lines, such as JSON lines and CSV."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from attention_batch.readers.fields import Fields
from attention_batch.readers.files import LineCursor, Lines, lines_of
from attention_batch.readers.partitions import partitions
from attention_batch.readers.rows import FailedRow, Row
from attention_batch.readers.source import MOST_BYTES, InputFile, Shard

BOM = b"\xef\xbb\xbf"
Header = tuple[str, ...]
Parser = Callable[[Any, str, int, int], Row | FailedRow]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The reason why a record is no document."""

    reason: str


class TextSource(ABC):
    """Rows of files of text.

    Args:
        files: at least one.
    """

    from_start = False
    of_strings = False  # every value is a string

    def __init__(self, files: tuple[InputFile, ...]) -> None:
        self.files = files
        self.work: float | None = float(sum(file.size for file in files))
        self._cursor = LineCursor()
        self._headers: dict[str, Header] = {}

    @abstractmethod
    def columns(self, chosen: Mapping[str, str]) -> tuple[dict[str, str], pa.DataType]:
        """Return the column of each field, and the type of ids. See `Source.columns`."""

    @abstractmethod
    def records(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        """Yield records, each with all its bytes; read no line before it is needed."""

    @abstractmethod
    def document(self, record: bytes, header: Header) -> Any:
        """Return the document of a record, or `Unreadable`."""

    def header(self, lines: Lines) -> Header:
        """Read the header of a file: the names of columns; empty for a format without."""
        del lines
        return ()

    def header_of(self, path: str) -> Header:
        """Return the header of a file; see `header`."""
        if path not in self._headers:
            with lines_of(path) as lines:
                self._headers[path] = self.header(lines)
        return self._headers[path]

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield runs of records."""
        before = index = 0
        for number, file in enumerate(self.files):
            with lines_of(file.path) as lines:
                self.header(lines)
                records = self.records(lines)
                first, start = 0, lines.at
                while count := sum(1 for _ in limited(records, rows)):
                    yield Shard(index, number, first, count, before, (start, lines.at), lines.at - start)
                    index += 1
                    first += count
                    start = lines.at
            before += first

    def read(self, shard: Shard, fields: Fields) -> Iterator[Row | FailedRow]:
        """Yield a shard's rows."""
        path = self.files[shard.file].path
        start, end = shard.position
        header = self.header_of(path)
        of_folders = partitions(path)
        constants = {name: of_folders[name] for name in of_folders.keys() & set(fields.columns.values())}
        parse = partial(fields.of_document, of_strings=self.of_strings)
        with self._cursor.lines(path, start) as lines:
            for row, record in enumerate(self.records(lines), shard.first):
                document = self.document(record, header)
                if constants and isinstance(document, dict):
                    document = {**constants, **document}
                found = row_of(record, document, path, row, shard.before, parse)
                if found is not None:
                    yield found
                if lines.at >= end:
                    return


def row_of(record: bytes, document: Any, path: str, row: int, before: int, parse: Parser) -> Row | FailedRow | None:
    """Return the row of a record; None for a blank one."""
    if not record.strip():
        return None
    if isinstance(document, Unreadable):
        return FailedRow(path, row, None, "", document.reason)
    return parse(document, path, row, before)


def limited(records: Iterable[bytes], rows: int) -> Iterator[bytes]:
    """Yield the next records: at most `rows`, and none after the one that reaches `MOST_BYTES`."""
    size = 0
    for record in itertools.islice(records, rows):
        size += len(record)
        yield record
        if size >= MOST_BYTES:
            return
