"""JSON lines as a source: files, and standard input."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
from attention_proto.duplicates import duplicate_name

from attention_batch.errors import Refused
from attention_batch.readers.documents import Document, integer_type, names_of, value_of
from attention_batch.readers.fields import Fields, choose_columns
from attention_batch.readers.files import LONGEST, Lines, lines_of
from attention_batch.readers.partitions import partitions
from attention_batch.readers.rows import OPTIONAL, FailedRow, Row
from attention_batch.readers.source import InputFile, Shard
from attention_batch.readers.text import BOM, Header, TextSource, Unreadable, limited, row_of

LOOK_ROWS, LOOK_BYTES = 1000, 8 * 2**20  # that are read for the type of ids, at most
STDIN = "standard input"


class JsonSource(TextSource):
    """Rows of files of JSON lines."""

    def columns(self, chosen: Mapping[str, str]) -> tuple[dict[str, str], pa.DataType]:
        """Return the columns by the first readable row; optional ones, and the type of ids, by the next rows too."""
        for file in self.files:
            with lines_of(file.path) as lines:
                for line in lines:
                    document = document_of(line)
                    if isinstance(document, dict):
                        of_folders = partitions(file.path)
                        looked = [document, *_more(lines)]
                        columns = choose_columns(_names(looked, chosen), chosen, file.path, of_folders)
                        return columns, _id_type([{**of_folders, **each} for each in looked], columns)
                    _refuse_array(document, line, file.path)
        raise _no_row(self.files[0].path)

    def records(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        """Return lines."""
        return lines

    def document(self, record: bytes, header: Header) -> Any:
        """Return a line's document, or `Unreadable`."""
        del header
        return document_of(record)


class StreamSource:
    """Rows of JSON lines from a stream, which can be read once."""

    files: tuple[InputFile, ...] = ()
    work: float | None = None
    from_start = False

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = Lines(stream, STDIN)
        self._seen: list[bytes] = []

    def columns(self, chosen: Mapping[str, str]) -> tuple[dict[str, str], pa.DataType]:
        """Return the column of each field, and the type of ids, by the first readable row. See `Source.columns`."""
        for line in self._lines:
            self._seen.append(line)
            document = document_of(line)
            if isinstance(document, dict):
                columns = choose_columns(names_of(document), chosen, STDIN)
                return columns, _id_type([document], columns)
            _refuse_array(document, line, STDIN)
        raise _no_row(STDIN)

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield runs of lines, each with its content."""
        index = first = 0
        every = itertools.chain(self._seen, self._lines)
        while lines := list(limited(every, rows)):
            yield Shard(index, 0, first, len(lines), 0, (0, 0), sum(map(len, lines)), tuple(lines))
            index += 1
            first += len(lines)

    def read(self, shard: Shard, fields: Fields) -> Iterator[Row | FailedRow]:
        """Yield a shard's rows."""
        for row, line in enumerate(shard.lines or (), shard.first):
            if (found := row_of(line, document_of(line), "-", row, shard.before, fields.of_document)) is not None:
                yield found


def document_of(line: bytes) -> Any:
    """Return a line's JSON document, or `Unreadable`."""
    if len(line) > LONGEST:
        return Unreadable(f"the line is longer than {LONGEST} bytes")
    try:
        document = orjson.loads(line.removeprefix(BOM))
    except orjson.JSONDecodeError as error:
        return Unreadable(f"the line is no JSON: {error}")
    name = duplicate_name(line, document)
    return document if name is None else Unreadable(f"the name {name!r} stands twice in one object")


def _more(lines: Lines) -> Iterator[Document]:
    """Yield the documents of the next lines, at most `LOOK_ROWS` and `LOOK_BYTES`."""
    end = lines.at + LOOK_BYTES
    for line in itertools.islice(lines, LOOK_ROWS):
        if isinstance(document := document_of(line), dict):
            yield document
        if lines.at >= end:
            return


def _names(documents: list[Document], chosen: Mapping[str, str]) -> list[str]:
    """Return the names in the first document, and those in further ones that a row may lack."""
    optional = {*OPTIONAL, *chosen.values()}
    further = (name for each in documents for name in names_of(each) if name in optional)
    return list(dict.fromkeys([*names_of(documents[0]), *further]))


def _id_type(documents: list[Document], columns: Mapping[str, str]) -> pa.DataType:
    if "id" not in columns:
        return pa.int64()
    ids = [value_of(document, columns["id"]) for document in documents]
    if not isinstance(ids[0], int):
        return pa.string()
    return integer_type([id_ for id_ in ids if isinstance(id_, int) and abs(id_) < 2**64])


def _refuse_array(document: Any, line: bytes, where: str) -> None:
    if isinstance(document, list) or line.removeprefix(BOM).strip() == b"[":
        raise Refused(f"{where} is a JSON array; write one object on each line: jq -c '.[]' INPUT > OUT")


def _no_row(where: str) -> Refused:
    return Refused(f"{where} has no row that can be read: one JSON object is expected on each line")
