"""Input files by path, and the lines of text files, which may be compressed."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self

import pyarrow as pa

from attention_batch.errors import Refused
from attention_batch.readers import remote

LONGEST = 64 * 2**20  # bytes of a line
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
BUFFER = 2**18  # bytes
_WIDE = (b"\xff\xfe", b"\xfe\xff")  # how UTF-16 begins


class Lines:
    """The lines of a stream, line ends included. Of a line above `LONGEST`, a piece that is longer than `LONGEST`.

    Args:
        stream: a text file, decompressed.
        path: of the file.

    Attributes:
        at: the byte behind the last line.

    Raises:
        Refused: the file is UTF-16; or, at any line, cannot be decompressed.
    """

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self._stream = stream
        self._path = path
        self.at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            line = rest = self._stream.readline(LONGEST + 1)
            self.at += len(rest)
            while len(rest) > LONGEST and not rest.endswith(b"\n"):
                rest = self._stream.readline(LONGEST + 1)
                self.at += len(rest)
        except OSError as error:
            raise _refused(self._path, error) from error
        if self.at == len(line) and (line.startswith(_WIDE) or b"\0" in line[:4]):
            raise Refused(f"{self._path} is UTF-16; text must be UTF-8: iconv -f UTF-16 -t UTF-8 INPUT > OUT")
        if not line:
            raise StopIteration
        return line

    def move_to(self, place: int) -> None:
        """Go to the byte at which a line begins; in a compressed file only forward."""
        if not is_compressed(self._path):
            self._stream.seek(place)
            self.at = place
        while self.at < place and (skipped := self._stream.read(min(BUFFER, place - self.at))):
            self.at += len(skipped)


class LineCursor:
    """A reader of the lines of files from given bytes on; of a compressed file, fastest from first to last."""

    def __init__(self) -> None:
        self._path = ""
        self._lines: Lines | None = None  # of a compressed file, where the last reading ended

    @contextmanager
    def lines(self, path: str, place: int) -> Iterator[Lines]:
        """Return a file's lines from the byte on at which one begins.

        Raises:
            Refused: the file cannot be decompressed.
        """
        if is_compressed(path):
            if self._lines is None or path != self._path or self._lines.at > place:
                self._path, self._lines = path, lines_of(path)
            self._lines.move_to(place)
            yield self._lines
            return
        with lines_of(path) as lines:
            lines.move_to(place)
            yield lines


def lines_of(path: str) -> Lines:
    """Open a text file, which may be compressed.

    Raises:
        OSError: the file cannot be read.
        Refused: it cannot be decompressed.
    """
    compression = COMPRESSIONS.get(Path(remote.inside(path)).suffix.lower())
    if not compression and not remote.is_remote(path):
        return Lines(open(path, "rb", buffering=BUFFER), path)  # noqa: PTH123 # a path as the user wrote it
    file = remote.opened(path) if remote.is_remote(path) else pa.OSFile(path)
    raw = pa.CompressedInputStream(file, compression) if compression else file
    return Lines(io.BufferedReader(raw, BUFFER), path)


def table_file(path: str) -> str | pa.NativeFile:
    """Return a file as Arrow opens it: the path itself, or an open remote file. Raises Refused as `remote.opened`."""
    return remote.opened(path) if remote.is_remote(path) else path


def is_compressed(path: str) -> bool:
    """Return whether a file's name tells a compression."""
    return Path(remote.inside(path)).suffix.lower() in COMPRESSIONS


def _refused(path: str, error: OSError) -> OSError | Refused:
    """Return the error itself, or Refused where it is one of a decompression, which has no number."""
    return error if error.errno else Refused(f"cannot read {path}: {error}")
