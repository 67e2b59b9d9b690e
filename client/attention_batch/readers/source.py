"""The input as shards of rows.

Shards follow from the files and the options alone, so a resumed run cuts its input as the first run did.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from attention_batch.errors import Refused
from attention_batch.readers import remote
from attention_batch.readers.fields import Fields
from attention_batch.readers.rows import FailedRow, Row

MOST_BYTES = 64 * 2**20  # of a shard's input, about
FEW_GROUPS = 2  # row groups for each reader; with fewer, one reader would wait for another at the end


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of rows of one file, scored and written as one part.

    Attributes:
        index: among all shards.
        file: index of its file in `Source.files`.
        first, rows: its rows in that file.
        before: number of rows of the files before.
        position: in the file: (row group, rows before it in the group), or (first byte, end).
        work: its share of the input's bytes.
        lines: its content, if it comes from a stream, which cannot be read twice.
    """

    index: int
    file: int
    first: int
    rows: int
    before: int
    position: tuple[int, int]
    work: float
    lines: tuple[bytes, ...] | None = None


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file's path, and its size and time, by which a change is noticed."""

    path: str
    size: int
    modified_ns: int

    @classmethod
    def at(cls, path: str) -> "InputFile":
        """Return the file's current state. Raises Refused if the file cannot be reached, or its name is not UTF-8."""
        try:
            path.encode()  # the journal and the dead letters name it
        except UnicodeEncodeError as error:
            raise Refused(f"{path!a}: the name is not UTF-8; rename the file") from error
        if remote.is_remote(path):
            return cls(path, *remote.state(path))
        try:
            found = Path(path).stat()
        except OSError as error:
            raise Refused(f"cannot read {path}: {error.strerror}") from error
        return cls(path, found.st_size, found.st_mtime_ns)


class Source(Protocol):
    """Rows in shards."""

    @property
    def files(self) -> tuple[InputFile, ...]:
        """The files; empty for a stream."""
        ...

    @property
    def work(self) -> float | None:
        """Bytes of all shards together; None for a stream."""
        ...

    @property
    def from_start(self) -> bool:
        """Whether a shard can only be read by reading its row group from the start."""
        ...

    def columns(self, chosen: Mapping[str, str]) -> tuple[dict[str, str], pa.DataType]:
        """Return the column of each field that is read, and the type of ids.

        Args:
            chosen: field -> column, as the user chose.

        Raises:
            Refused: a column is missing, or holds another type than its field needs.
        """
        ...

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield shards of at most `rows` rows, in order."""
        ...

    def read(self, shard: Shard, fields: Fields) -> Iterator[Row | FailedRow]:
        """Yield the rows of a shard in order; a row without a valid sequence as a FailedRow with its reason.

        Args:
            shard: one of `shards`.
            fields: the columns to read.

        Raises:
            Refused: the file can no longer be read, or is not the one that the shard was made of.
        """
        ...


def reader_runs(source: Source, shards: Iterable[Shard], readers: int) -> Iterator[list[Shard]]:
    """Yield shards in runs, each of which one reader reads from its first shard to its last.

    A run is one shard. If a row group can only be read from its start, a run is a row group, or a piece of a row group
    where row groups are few for the number of readers.
    """
    if not source.from_start:
        yield from ([shard] for shard in shards)
        return
    groups = (list(group) for _, group in itertools.groupby(shards, lambda shard: (shard.file, shard.position[0])))
    first = list(itertools.islice(groups, FEW_GROUPS * readers))
    pieces = 1 if len(first) == FEW_GROUPS * readers else readers
    for group in itertools.chain(first, groups):
        size = -(-len(group) // pieces)
        yield from (group[start : start + size] for start in range(0, len(group), size))
