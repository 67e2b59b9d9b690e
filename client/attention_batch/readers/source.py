"""What is scored: the files that an input names, cut into shards, and the rows of a shard.

A shard follows from the files and the options alone, so that a run that goes on cuts as the first one did.
"""

import glob
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import pyarrow as pa

from attention_batch.errors import Refused
from attention_batch.output.journal import errors_of, folder_of
from attention_batch.readers import ipc, jsonl, parquet
from attention_batch.readers.fields import Fields, check_types, choose
from attention_batch.readers.rows import Failed, Row

FORMS: dict[str, Literal["parquet", "arrow", "jsonl"]] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
STREAM = "-"  # standard input, or output
MOST_BYTES = 64 * 2**20  # of a shard's input, about
MANY = 2  # row groups for each reader: with fewer, one of them would wait for another at the end


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of one file, small enough to be lost.

    Attributes:
        index: among all shards.
        file: which of the source's files.
        first, rows: its rows in that file.
        before: rows of the files before.
        place: where it is in the file: a row group and the rows before in it, or bytes.
        work: its share of the input's bytes.
        lines: its content, of a stream that cannot be read again.
    """

    index: int
    file: int
    first: int
    rows: int
    before: int
    place: tuple[int, int]
    work: float
    lines: tuple[bytes, ...] | None = None


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file, and how to tell that it is still the same."""

    path: str
    size: int
    modified_ns: int

    @classmethod
    def at(cls, path: str) -> "InputFile":
        """Look at a file. Raises Refused when it cannot be."""
        try:
            found = Path(path).stat()
        except OSError as error:
            raise Refused(f"cannot read {path}: {error.strerror}") from error
        return cls(path, found.st_size, found.st_mtime_ns)


class Source(Protocol):
    """Rows in shards."""

    @property
    def files(self) -> tuple[InputFile, ...]:
        """What it reads; empty for a stream."""
        ...

    @property
    def work(self) -> float | None:
        """Bytes of all shards together; None where nobody knows."""
        ...

    @property
    def from_start(self) -> bool:
        """Whether a slice costs the reading of all before it in its group of rows."""
        ...

    def columns(self, said: Mapping[str, str]) -> tuple[dict[str, str], pa.DataType]:
        """Return the column of each field that is read, and the type of ids. Raises Refused."""
        ...

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield shards of at most so many rows, in order."""
        ...

    def read(self, shard: Shard, fields: Fields) -> Iterator[Row | Failed]:
        """Yield a shard's rows, in order."""
        ...


def find(text: str, stdin: BinaryIO, output: Path | None) -> Source:
    """Return what an input names: a file, a folder, a pattern of files, or `-` for JSON lines from standard input.

    Args:
        text: the name.
        stdin: standard input.
        output: the file that is to be written; nothing of it is input.

    Raises:
        Refused: nothing is there, files of two forms, or what the run itself writes.
    """
    if text == STREAM:
        return StreamSource(stdin)
    paths = _paths(text, output)
    _check_forms(text, paths)
    return of_files(tuple(map(InputFile.at, paths)))


def of_files(files: tuple[InputFile, ...]) -> Source:
    """Return the rows of files that are all of one form."""
    match _form(files[0].path):
        case "parquet":
            return TableSource(files, parquet, from_start=True)
        case "arrow":
            return TableSource(files, ipc, from_start=False)
        case _:
            return JsonSource(files)


def in_runs(source: "Source", shards: Iterable[Shard], readers: int) -> Iterator[list[Shard]]:
    """Yield shards in runs for several readers, each of whom reads its run from the beginning to the end.

    A run is a shard; of files whose groups of rows can only be read from their start it is a group, or a piece of one
    where they are few for so many readers.
    """
    if not source.from_start:
        yield from ([shard] for shard in shards)
        return
    groups = (list(group) for _, group in itertools.groupby(shards, lambda shard: (shard.file, shard.place[0])))
    first = list(itertools.islice(groups, MANY * readers))
    pieces = 1 if len(first) == MANY * readers else readers
    for group in itertools.chain(first, groups):
        size = -(-len(group) // pieces)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _form(path: str) -> str | None:
    return FORMS.get(Path(path).suffix.lower())


def _check_forms(text: str, paths: list[str]) -> None:
    forms = set(map(_form, paths))
    if len(forms) > 1 or None in forms:
        known = ", ".join(FORMS)
        raise Refused(
            f"{text}: must be Parquet or Arrow files or JSON lines, all of one form, by their names ({known})"
        )


def _paths(text: str, output: Path | None) -> list[str]:
    """Return the files that an input names, in the order of their names."""
    if Path(text).is_dir():
        inside = (path for path in Path(text).rglob("*") if path.suffix.lower() in FORMS and path.is_file())
        # What is hidden, or begins with _, is by custom no data.
        found = [str(path) for path in inside if not any(part[0] in "._" for part in path.relative_to(text).parts)]
    elif Path(text).exists():
        if _is_written(text, output):
            raise Refused(f"{text}: is what the run itself would write; name another output")
        found = [text]
    else:
        found = [path for path in glob.glob(text, recursive=True) if Path(path).is_file()]  # noqa: PTH207 # absolute too
    found = [path for path in found if not _is_written(path, output)]
    if not found:
        raise Refused(f"{text}: there is no such file, and no file of such a name")
    return sorted(found)


def _is_written(path: str, output: Path | None) -> bool:
    """Return whether a file is a run's output, its dead letters, or in the folder where it keeps what it has done."""
    if output is None:
        return False
    place = Path(path).resolve()
    written = {each.resolve() for each in (output, errors_of(output), folder_of(output))}
    return not written.isdisjoint((place, *place.parents))


class Tables(Protocol):
    """A module that reads files of columns: `parquet`, or `ipc`."""

    def schema(self, path: str) -> pa.Schema:
        """Return a file's schema."""
        ...

    def slices(self, path: str, rows: int, most_bytes: int, /) -> Iterator[tuple[int, int, int, float]]:
        """Yield the slices of a file's groups of rows: group, rows of it before, rows, and share of the file."""
        ...

    def Cursor(self) -> "Cursor":
        """Return what reads slices."""
        ...


class Cursor(Protocol):
    """Reads slices, the next one faster than any other."""

    def read(self, path: str, group: int, skipped: int, count: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield the batches of a slice."""
        ...


class TableSource:
    """Rows of files of columns: row groups of Parquet, or record batches of Arrow."""

    def __init__(self, files: tuple[InputFile, ...], tables: Tables, *, from_start: bool) -> None:
        self.files = files
        self.from_start = from_start
        self._tables = tables
        self.work: float | None = float(sum(file.size for file in files))
        self._cursor = tables.Cursor()

    def columns(self, said: Mapping[str, str]) -> tuple[dict[str, str], pa.DataType]:
        """Return the column of each field; every file must have them, with ids of one type."""
        first = self._tables.schema(self.files[0].path)
        columns = choose(first.names, said, self.files[0].path)
        id_type = first.field(columns["id"]).type if "id" in columns else pa.int64()
        for file in self.files:
            schema = self._tables.schema(file.path)
            missing = [column for column in columns.values() if column not in schema.names]
            if missing:
                raise Refused(f"{file.path} has no column {missing[0]!r}, as {self.files[0].path} has")
            check_types(schema, columns, file.path)
            if "id" in columns and schema.field(columns["id"]).type != id_type:
                raise Refused(
                    f"{file.path}: ids are {schema.field(columns['id']).type}, but {id_type} in the first file"
                )
        return columns, id_type

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield parts of groups of rows."""
        before = index = 0
        for number, file in enumerate(self.files):
            first = 0
            for group, skipped, count, share in self._tables.slices(file.path, rows, MOST_BYTES):
                yield Shard(index, number, first, count, before, (group, skipped), share * file.size)
                index += 1
                first += count
            before += first

    def read(self, shard: Shard, fields: Fields) -> Iterator[Row | Failed]:
        """Yield a shard's rows."""
        path = self.files[shard.file].path
        first = shard.first
        for batch in self._cursor.read(path, *shard.place, shard.rows, list(dict.fromkeys(fields.columns.values()))):
            yield from fields.of_batch(batch, path, first, shard.before)
            first += batch.num_rows


class JsonSource:
    """Rows of files of JSON lines."""

    from_start = False

    def __init__(self, files: tuple[InputFile, ...]) -> None:
        self.files = files
        self.work: float | None = float(sum(file.size for file in files))

    def columns(self, said: Mapping[str, str]) -> tuple[dict[str, str], pa.DataType]:
        """Return the column of each field, and the type of ids, as the first row that can be read has them."""
        for file in self.files:
            with open(file.path, "rb") as opened:  # noqa: PTH123 # a path as the user wrote it
                for line in jsonl.lines(opened):
                    if isinstance(document := jsonl.document(line), dict):
                        return _json_columns(document, said, file.path)
        raise Refused(f"{self.files[0].path} has no row that can be read: one JSON object is expected on each line")

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield runs of lines."""
        before = index = 0
        for number, file in enumerate(self.files):
            first = 0
            with open(file.path, "rb") as opened:  # noqa: PTH123
                for start, end, count in jsonl.runs(opened, rows, MOST_BYTES):
                    yield Shard(index, number, first, count, before, (start, end), end - start)
                    index += 1
                    first += count
            before += first

    def read(self, shard: Shard, fields: Fields) -> Iterator[Row | Failed]:
        """Yield a shard's rows."""
        path = self.files[shard.file].path
        with open(path, "rb") as opened:  # noqa: PTH123
            yield from _json_rows(jsonl.between(opened, *shard.place), shard, path, fields)


class StreamSource:
    """Rows of JSON lines that come once."""

    files: tuple[InputFile, ...] = ()
    work: float | None = None
    from_start = False

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = jsonl.lines(stream)
        self._seen: list[bytes] = []

    def columns(self, said: Mapping[str, str]) -> tuple[dict[str, str], pa.DataType]:
        """Return the column of each field, as the first row that can be read has them."""
        for line in self._lines:
            self._seen.append(line)
            if isinstance(document := jsonl.document(line), dict):
                return _json_columns(document, said, "standard input")
        raise Refused("standard input has no row that can be read: one JSON object is expected on each line")

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield runs of lines, each with its content."""
        index = first = 0
        every = itertools.chain(self._seen, self._lines)
        while lines := jsonl.take(every, rows, MOST_BYTES):
            yield Shard(index, 0, first, len(lines), 0, (0, 0), sum(map(len, lines)), tuple(lines))
            index += 1
            first += len(lines)

    def read(self, shard: Shard, fields: Fields) -> Iterator[Row | Failed]:
        """Yield a shard's rows."""
        yield from _json_rows(shard.lines or (), shard, "-", fields)


def _json_columns(
    document: Mapping[str, Any], said: Mapping[str, str], where: str
) -> tuple[dict[str, str], pa.DataType]:
    columns = choose(list(document), said, where)
    of_integers = "id" not in columns or isinstance(document[columns["id"]], int)
    return columns, pa.int64() if of_integers else pa.string()


def _json_rows(lines: Iterable[bytes], shard: Shard, path: str, fields: Fields) -> Iterator[Row | Failed]:
    for row, line in enumerate(lines, shard.first):
        if not line.strip():
            continue
        document = jsonl.document(line)
        if isinstance(document, jsonl.Unreadable):
            yield Failed(path, row, None, "", document.reason)
        else:
            yield fields.of_document(document, path, row, shard.before)
