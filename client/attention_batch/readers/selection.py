"""The files that an input names, and the format of the files."""

import glob
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, Literal

from attention_batch.errors import Refused
from attention_batch.readers import ipc, parquet
from attention_batch.readers.jsonl import JsonSource, StreamSource
from attention_batch.readers.source import InputFile, Source
from attention_batch.readers.tables import TableSource

INPUT_FORMATS: dict[str, Literal["parquet", "arrow", "jsonl"]] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
STREAM = "-"  # standard input, or output


def open_source(text: str, stdin: BinaryIO, written: Collection[Path] = ()) -> Source:
    """Return the source for an input: a file, a folder, a pattern of files, or `-` for JSON lines from standard input.

    Args:
        text: the input, as the user wrote it.
        stdin: standard input.
        written: the files and folders that the run writes, which are never its input.

    Raises:
        Refused: no file matches, the files have several formats, or the input is a file that the run writes.
    """
    if text == STREAM:
        return StreamSource(stdin)
    paths = _paths(text, {path.resolve() for path in written})
    _check_formats(text, paths)
    return files_source(tuple(map(InputFile.at, paths)))


def files_source(files: tuple[InputFile, ...]) -> Source:
    """Return the source for files that all have one format."""
    match _format(files[0].path):
        case "parquet":
            return TableSource(files, parquet, from_start=True)
        case "arrow":
            return TableSource(files, ipc, from_start=False)
        case _:
            return JsonSource(files)


def _format(path: str) -> str | None:
    return INPUT_FORMATS.get(Path(path).suffix.lower())


def _check_formats(text: str, paths: list[str]) -> None:
    formats = set(map(_format, paths))
    if len(formats) > 1 or None in formats:
        known = ", ".join(INPUT_FORMATS)
        raise Refused(
            f"{text}: must be Parquet or Arrow files or JSON lines, all of one form, by their names ({known})"
        )


def _paths(text: str, written: set[Path]) -> list[str]:
    """Return the paths of the input's files, sorted."""
    if Path(text).is_dir():
        inside = (path for path in Path(text).rglob("*") if path.suffix.lower() in INPUT_FORMATS and path.is_file())
        # By custom, names that begin with . or _ hold no data.
        found = [str(path) for path in inside if not any(part[0] in "._" for part in path.relative_to(text).parts)]
    elif Path(text).exists():
        if _is_written(text, written):
            raise Refused(f"{text}: is what the run itself would write; name another output")
        found = [text]
    else:
        found = [path for path in glob.glob(text, recursive=True) if Path(path).is_file()]  # noqa: PTH207 # absolute too
    found = [path for path in found if not _is_written(path, written)]
    if not found:
        raise Refused(f"{text}: there is no such file, and no file of such a name")
    return sorted(found)


def _is_written(path: str, written: set[Path]) -> bool:
    resolved = Path(path).resolve()
    return not written.isdisjoint((resolved, *resolved.parents))
