"""Files at addresses with a scheme: s3:// and further stores by pyarrow, https:// and the rest by fsspec."""

import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
from pyarrow import fs

from attention_batch.errors import Refused

OF_PYARROW = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
_VERSION = ("ETag", "Last-Modified", "LastModified", "mtime", "modified", "created")  # by which a change is noticed


def is_remote(path: str) -> bool:
    """Return whether a path is an address with a scheme."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", path) is not None


def state(path: str) -> tuple[int, int]:
    """Return a file's size, and a number that changes with its content as far as the store tells.

    Raises:
        Refused: the file cannot be reached.
    """
    system, inner = _system(path)
    with _named(path):
        if isinstance(system, fs.FileSystem):
            info = system.get_file_info(inner)
            size, version = (info.size if info.is_file else None), info.mtime_ns or 0
        else:
            known = system.info(inner)
            size = known.get("size")
            version = zlib.crc32(repr([str(known.get(name)) for name in _VERSION]).encode())
    if size is None:
        raise Refused(f"cannot read {path}: there is no such file, or it does not tell its size")
    return int(size), version


def opened(path: str) -> pa.NativeFile:
    """Open a file for reading at any place. Raises Refused if it cannot be reached."""
    system, inner = _system(path)
    with _named(path):
        if isinstance(system, fs.FileSystem):
            return system.open_input_file(inner)
        return pa.PythonFile(_Raw(system.open(inner, "rb", cache_type="readahead")), mode="r")


def files_below(path: str) -> list[str] | None:
    """Return the addresses of all files of a folder; None where the address is no folder.

    Raises:
        Refused: the folder cannot be listed.
    """
    system, inner = _system(path)
    parts = urlsplit(path)
    if parts.scheme in ("http", "https"):  # have no folders
        return None
    with _named(path):
        if isinstance(system, fs.FileSystem):
            if system.get_file_info(inner).type != fs.FileType.Directory:
                return None
            found = system.get_file_info(fs.FileSelector(inner, recursive=True))
            names = [quote(each.path, safe="/=") for each in found if each.is_file]
        else:
            names = system.find(inner) if system.isdir(inner) else []
            if not names:
                return None
    query = f"?{parts.query}" if parts.query else ""
    return [f"{parts.scheme}://{name.lstrip('/')}{query}" for name in names]


def inside(path: str) -> str:
    """Return the path of an address, without scheme and query."""
    return urlsplit(path).path if is_remote(path) else path


def _system(path: str) -> tuple[Any, str]:
    """Return the file system of an address, of pyarrow or of fsspec, and the path in it."""
    parts = urlsplit(path)
    if "@" in parts.netloc:
        raise Refused(f"{parts.scheme}://: give credentials by the environment; an address is written to the journal")
    with _named(path):
        if parts.scheme in OF_PYARROW:
            system, inner = fs.FileSystem.from_uri(path)
            return system, inner
        try:
            from fsspec.core import url_to_fs  # noqa: PLC0415 # an extra

            system, inner = url_to_fs(path)
        except ImportError as missing:
            raise Refused(f"{parts.scheme}:// needs a package: pip install 'attention-service[remote]'") from missing
        return system, inner


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Raise any error of a store as Refused: each has errors of its own."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"cannot read {path}: {error or type(error).__name__}") from error


class _Raw(io.RawIOBase):
    """A file of fsspec, all errors of which are OSError."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        try:
            return bytes(self._file.read(-1 if size is None else size))
        except Exception as error:
            raise OSError(f"{error or type(error).__name__}") from error

    def seek(self, place: int, whence: int = 0) -> int:
        return int(self._file.seek(place, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()
