"""The files that an input names, and the format of the files."""

import glob
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import BinaryIO, Literal

from attention_batch.errors import Refused
from attention_batch.readers import ipc, parquet
from attention_batch.readers.delimited import CsvSource
from attention_batch.readers.files import COMPRESSIONS
from attention_batch.readers.jsonl import JsonSource, StreamSource
from attention_batch.readers.remote import files_below, inside, is_remote
from attention_batch.readers.source import InputFile, Source
from attention_batch.readers.tables import TableSource

Format = Literal["parquet", "arrow", "jsonl", "csv"]

INPUT_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
}
STREAM = "-"  # standard input, or output
SHOWN = 5  # names of files that are passed over
SPLITS = "dataset_dict.json"  # of a folder of Hugging Face's datasets with a folder for each split
STATE = "state.json"  # beside the Arrow files of one split
Say = Callable[[str], None]


def open_source(text: str, stdin: BinaryIO, written: Collection[Path] = (), say: Say = lambda _: None) -> Source:
    """Return the source for an input: a file, a folder, a pattern of files, or `-` for JSON lines from standard input.

    Args:
        text: the input, as the user wrote it.
        stdin: standard input.
        written: the files and folders that the run writes, which are never its input.
        say: called with a sentence about the files of a folder that are passed over.

    Raises:
        Refused: no file matches, the files have several formats, or the input is a file that the run writes.
    """
    if text == STREAM:
        return StreamSource(stdin)
    paths = _paths(text, {path.resolve() for path in written}, say)
    _check_formats(text, paths)
    return files_source(tuple(map(InputFile.at, paths)))


def files_source(files: tuple[InputFile, ...]) -> Source:
    """Return the source for files that all have one format."""
    match format_of(files[0].path):
        case "parquet":
            return TableSource(files, parquet, from_start=True)
        case "arrow":
            return TableSource(files, ipc, from_start=False)
        case "csv":
            return CsvSource(files)
        case _:
            return JsonSource(files)


def format_of(path: str) -> Format | None:
    """Return the format that a file's name tells; None for none. Text may be compressed."""
    name = Path(inside(path))
    if name.suffix.lower() not in COMPRESSIONS:
        return INPUT_FORMATS.get(name.suffix.lower())
    inner = INPUT_FORMATS.get(Path(name.stem).suffix.lower())
    return inner if inner in ("jsonl", "csv") else None


def _check_formats(text: str, paths: list[str]) -> None:
    formats = set(map(format_of, paths))
    if len(formats) > 1 or None in formats:
        known = ", ".join(INPUT_FORMATS)
        packed = ", ".join(COMPRESSIONS)
        raise Refused(
            f"{text}: must be Parquet or Arrow files, JSON lines or CSV, all of one form, by their names ({known}; "
            f"of text also with {packed})"
        )


def _paths(text: str, written: set[Path], say: Say) -> list[str]:
    """Return the paths of the input's files, sorted."""
    if is_remote(text):
        found = _at_address(text, say)
    elif Path(text).is_dir():
        found = _in_folder(Path(text), written, say)
    elif Path(text).exists():
        if _is_written(Path(text), written):
            raise Refused(f"{text}: is what the run itself would write; name another output")
        found = [text]
    else:
        matches = [path for path in glob.glob(text, recursive=True) if Path(path).is_file()]  # noqa: PTH207 # absolute too
        found = [path for path in matches if not _is_written(Path(path), written)]
    if not found:
        raise Refused(f"{text}: there is no such file, and no file of such a name")
    return sorted(found)


def _in_folder(folder: Path, written: set[Path], say: Say) -> list[str]:
    """Return the files below a folder that can be read, and say which files are passed over."""
    if (splits := folder / SPLITS).exists():
        names = ", ".join(sorted(json.loads(splits.read_bytes()).get("splits", [])))
        raise Refused(f"{folder} has the splits {names}; give the folder of one: {folder}/SPLIT")
    every = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_written(path, written)]
    # By custom, names that begin with . or _ hold no data.
    shown = [path for path in every if not any(part[0] in "._" for part in path.relative_to(folder).parts)]
    found = _readable(shown)
    if (state := folder / STATE).exists() and (listed := _listed(state)):
        found = [path for path in found if path.name in listed]
    kept = set(found)
    _say_passed(str(folder), [str(path.relative_to(folder)) for path in every if path not in kept], say)
    return list(map(str, found))


def _at_address(address: str, say: Say) -> list[str]:
    """Return the files of an address, which may be that of a folder."""
    every = files_below(address)
    if every is None:
        return [address]
    begin = inside(address).rstrip("/")
    own = {path: inside(path).removeprefix(begin).strip("/") for path in every}
    shown = [path for path, name in own.items() if not any(part[:1] in ("_", ".") for part in name.split("/"))]
    readable = set(_readable([Path(inside(path)) for path in shown]))
    found = {path for path in shown if Path(inside(path)) in readable}
    _say_passed(address, [name for path, name in own.items() if path not in found], say)
    return list(found)


def _readable(paths: list[Path]) -> list[Path]:
    """Return the files with a format, without `.json` beside files of further formats, which it describes."""
    found = [path for path in paths if format_of(str(path)) is not None]
    others = [path for path in found if path.suffix != ".json"]
    return others or found


def _say_passed(folder: str, passed: list[str], say: Say) -> None:
    if passed:
        names = ", ".join(passed[:SHOWN]) + (", ..." if len(passed) > SHOWN else "")
        say(f"{folder}: {len(passed)} files are passed over, for they have no format that is read: {names}")


def _listed(state: Path) -> set[str]:
    """Return the names of the files that a dataset has, by its own list."""
    try:
        return {each["filename"] for each in json.loads(state.read_bytes())["_data_files"]}
    except (ValueError, LookupError, TypeError):
        return set()


def _is_written(path: Path, written: set[Path]) -> bool:
    resolved = path.resolve()
    return not written.isdisjoint((resolved, *resolved.parents))
