"""CSV files as a source: the first record has the names, and every value is a string."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from attention_batch.errors import Refused
from attention_batch.readers.fields import check_unique, choose_columns
from attention_batch.readers.files import LONGEST, Lines
from attention_batch.readers.partitions import partitions
from attention_batch.readers.source import InputFile
from attention_batch.readers.text import BOM, Header, TextSource, Unreadable


class CsvSource(TextSource):
    """Rows of CSV files. An empty value is null; vectors, and ids of tokens, are JSON in a value.

    Args:
        files: at least one; `.tsv` has tabs in place of commas.
    """

    of_strings = True

    def __init__(self, files: tuple[InputFile, ...]) -> None:
        super().__init__(files)
        self._delimiter = "\t" if ".tsv" in Path(files[0].path.lower()).suffixes[-2:] else ","
        csv.field_size_limit(LONGEST)

    def columns(self, chosen: Mapping[str, str]) -> tuple[dict[str, str], pa.DataType]:
        """Return the column of each field; ids of a column are strings. See `Source.columns`."""
        first = self.files[0].path
        columns = choose_columns(self.header_of(first), chosen, first, partitions(first))
        for file in self.files:
            names = self.header_of(file.path)
            known = {*names, *partitions(file.path)}
            if missing := [column for column in columns.values() if column not in known]:
                raise Refused(f"{file.path} has no column {missing[0]!r}, as {first} has")
            check_unique(names, columns, file.path)
        return columns, pa.string() if "id" in columns else pa.int64()

    def header(self, lines: Lines) -> Header:
        """Read the names of a file's columns."""
        record = next(self.records(lines), b"")
        names = self._values(record)
        if isinstance(names, Unreadable):
            raise Refused(f"{self.files[0].path}: the names of the columns cannot be read: {names.reason}")
        return tuple(names)

    def records(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        """Yield records, which have several lines where a value in quotes has."""
        taken: list[bytes] = []

        def texts() -> Iterator[str]:
            for line in lines:
                taken.append(line)
                yield line.decode("utf-8", "surrogateescape")

        while True:
            try:
                for _ in csv.reader(texts(), delimiter=self._delimiter):
                    yield b"".join(taken)
                    taken.clear()
            except csv.Error:  # a value above the limit; the record is unreadable, and the next line begins another
                yield b"".join(taken)
                taken.clear()
            else:
                return

    def document(self, record: bytes, header: Header) -> Any:
        """Return a record as name -> value, or `Unreadable`."""
        values = self._values(record)
        if isinstance(values, Unreadable):
            return values
        if len(values) != len(header):
            return Unreadable(f"the row has {len(values)} values, and the file {len(header)} columns")
        return {name: value or None for name, value in zip(header, values, strict=True)}

    def _values(self, record: bytes) -> list[str] | Unreadable:
        try:
            text = record.removeprefix(BOM).decode()
            return next(csv.reader(io.StringIO(text, newline="\n"), delimiter=self._delimiter), [])
        except UnicodeDecodeError as error:
            return Unreadable(f"is not UTF-8: {error.reason} at byte {error.start}")
        except csv.Error as error:
            return Unreadable(f"the row is no CSV: {error}")
