"""Files of JSON lines: a line, a run of lines, and what a line says."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

LONGEST = 64 * 2**20  # bytes of a line


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a line is no document."""

    reason: str


def lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines with their ends. Of one that is too long, a piece that is longer than a line may be."""
    while line := stream.readline(LONGEST + 1):
        rest = line
        while len(rest) > LONGEST and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST + 1)
        yield line


def document(line: bytes) -> Any:
    """Return what a line says; `Unreadable` where it says nothing."""
    if len(line) > LONGEST:
        return Unreadable(f"the line is longer than {LONGEST} bytes")
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Unreadable(f"the line is no JSON: {error}")


def runs(stream: BinaryIO, rows: int, most_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yield where each run of lines begins and ends in a file, and how many lines it has."""
    start, source = 0, lines(stream)
    while count := sum(1 for _ in _limited(source, rows, most_bytes)):
        yield start, stream.tell(), count
        start = stream.tell()


def between(stream: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield the lines of a run."""
    stream.seek(start)
    for line in lines(stream):
        yield line
        if stream.tell() >= end:
            return


def take(source: Iterable[bytes], rows: int, most_bytes: int) -> list[bytes]:
    """Return the next run of lines; empty when there is none."""
    return list(_limited(source, rows, most_bytes))


def _limited(source: Iterable[bytes], rows: int, most_bytes: int) -> Iterator[bytes]:
    """Yield lines until there are so many of them, or so many bytes."""
    size = 0
    for line in itertools.islice(source, rows):
        size += len(line)
        yield line
        if size >= most_bytes:
            return
