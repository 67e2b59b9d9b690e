"""JSON lines as a source: files, and standard input."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson
import pyarrow as pa

from attention_batch.errors import Refused
from attention_batch.readers.fields import Fields, choose_columns
from attention_batch.readers.rows import FailedRow, Row
from attention_batch.readers.source import MOST_BYTES, InputFile, Shard

LONGEST = 64 * 2**20  # bytes of a line


class JsonSource:
    """Rows of files of JSON lines."""

    from_start = False

    def __init__(self, files: tuple[InputFile, ...]) -> None:
        self.files = files
        self.work: float | None = float(sum(file.size for file in files))

    def columns(self, chosen: Mapping[str, str]) -> tuple[dict[str, str], pa.DataType]:
        """Return the column of each field, and the type of ids, by the first readable row. See `Source.columns`."""
        for file in self.files:
            with open(file.path, "rb") as opened:  # noqa: PTH123 # a path as the user wrote it
                for line in _lines(opened):
                    if isinstance(document := _document(line), dict):
                        return _columns(document, chosen, file.path)
        raise Refused(f"{self.files[0].path} has no row that can be read: one JSON object is expected on each line")

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield runs of lines."""
        before = index = 0
        for number, file in enumerate(self.files):
            first = 0
            with open(file.path, "rb") as opened:  # noqa: PTH123
                for start, end, count in _runs(opened, rows):
                    yield Shard(index, number, first, count, before, (start, end), end - start)
                    index += 1
                    first += count
            before += first

    def read(self, shard: Shard, fields: Fields) -> Iterator[Row | FailedRow]:
        """Yield a shard's rows."""
        path = self.files[shard.file].path
        with open(path, "rb") as opened:  # noqa: PTH123
            yield from _rows(_between(opened, *shard.position), shard, path, fields)


class StreamSource:
    """Rows of JSON lines from a stream, which can be read once."""

    files: tuple[InputFile, ...] = ()
    work: float | None = None
    from_start = False

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = _lines(stream)
        self._seen: list[bytes] = []

    def columns(self, chosen: Mapping[str, str]) -> tuple[dict[str, str], pa.DataType]:
        """Return the column of each field, and the type of ids, by the first readable row. See `Source.columns`."""
        for line in self._lines:
            self._seen.append(line)
            if isinstance(document := _document(line), dict):
                return _columns(document, chosen, "standard input")
        raise Refused("standard input has no row that can be read: one JSON object is expected on each line")

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield runs of lines, each with its content."""
        index = first = 0
        every = itertools.chain(self._seen, self._lines)
        while lines := list(_limited(every, rows)):
            yield Shard(index, 0, first, len(lines), 0, (0, 0), sum(map(len, lines)), tuple(lines))
            index += 1
            first += len(lines)

    def read(self, shard: Shard, fields: Fields) -> Iterator[Row | FailedRow]:
        """Yield a shard's rows."""
        yield from _rows(shard.lines or (), shard, "-", fields)


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """The reason why a line is no JSON document."""

    reason: str


def _columns(document: Mapping[str, Any], chosen: Mapping[str, str], where: str) -> tuple[dict[str, str], pa.DataType]:
    columns = choose_columns(list(document), chosen, where)
    of_integers = "id" not in columns or isinstance(document[columns["id"]], int)
    return columns, pa.int64() if of_integers else pa.string()


def _rows(lines: Iterable[bytes], shard: Shard, path: str, fields: Fields) -> Iterator[Row | FailedRow]:
    for row, line in enumerate(lines, shard.first):
        if not line.strip():
            continue
        document = _document(line)
        if isinstance(document, _Unreadable):
            yield FailedRow(path, row, None, "", document.reason)
        else:
            yield fields.of_document(document, path, row, shard.before)


def _document(line: bytes) -> Any:
    """Return a line's JSON document, or `_Unreadable`."""
    if len(line) > LONGEST:
        return _Unreadable(f"the line is longer than {LONGEST} bytes")
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _Unreadable(f"the line is no JSON: {error}")


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines, line ends included. Of a line above `LONGEST`, yield a piece that is longer than `LONGEST`."""
    while line := stream.readline(LONGEST + 1):
        rest = line
        while len(rest) > LONGEST and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST + 1)
        yield line


def _runs(stream: BinaryIO, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield the first byte, the end and the number of lines of each run of lines."""
    start, source = 0, _lines(stream)
    while count := sum(1 for _ in _limited(source, rows)):
        yield start, stream.tell(), count
        start = stream.tell()


def _between(stream: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield the lines from one byte to another."""
    stream.seek(start)
    for line in _lines(stream):
        yield line
        if stream.tell() >= end:
            return


def _limited(source: Iterable[bytes], rows: int) -> Iterator[bytes]:
    """Yield the next lines: at most `rows`, and none after the line that reaches `MOST_BYTES`."""
    size = 0
    for line in itertools.islice(source, rows):
        size += len(line)
        yield line
        if size >= MOST_BYTES:
            return
