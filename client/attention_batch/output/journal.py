"""The record of a run, by which the next run resumes it: `OUTPUT.scoring/`, its lock, its parts and `journal.jsonl`.

The journal's first line is the run's fingerprint, each further line is a finished shard, and the last line says that
the output is complete.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attention_batch.errors import Refused
from attention_batch.output.durable import durably, sync_folder
from attention_batch.output.sink import Counts, part_paths

FORMAT = 1
JOURNAL = "journal.jsonl"
COMPLETE = {"complete": True}


def folder_of(output: Path) -> Path:
    """Return the folder of a run's journal and parts."""
    return output.with_name(output.name + ".scoring")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder, creating it; the end of the process releases the lock.

    Raises:
        Refused: another run has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(f"another run is writing {folder.with_suffix('')}; wait for it, or end it") from error
        yield


class Journal:
    """The record of one run and of the runs that resume it.

    Args:
        folder: locked by `locked`.
        fingerprint: name -> value of all that must be equal in a run that resumes this one.

    Attributes:
        done: shard index -> counts, for each shard with a part.
        complete: whether the output was assembled.

    Raises:
        Refused: the folder has the journal of another fingerprint.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        self._path = folder / JOURNAL
        self._folder = folder
        self.done: dict[int, Counts] = {}
        self.complete = False
        self._read(fingerprint)

    @property
    def counts(self) -> Counts:
        """The sum over all parts."""
        return sum(self.done.values(), Counts())

    def record(self, shard: int, counts: Counts) -> None:
        """Record a shard that has a part."""
        size = part_paths(self._folder, shard)[0].stat().st_size
        self._append({"shard": shard, "bytes": size, **asdict(counts)})
        self.done[shard] = counts

    def finish(self) -> None:
        """Record that the output exists, and remove the parts."""
        self._append(COMPLETE)
        self.complete = True
        self.remove_parts()

    def remove_parts(self) -> None:
        """Remove the parts of a complete run."""
        for path in (*self._folder.glob("*.part"), *self._folder.glob("*.errors")):
            path.unlink(missing_ok=True)

    def _read(self, fingerprint: Mapping[str, Any]) -> None:
        lines = self._lines()
        if len(lines) < 2:  # a run without a finished shard does not bind the next run to its fingerprint
            with durably(self._path) as file:
                file.write(_line({"format": FORMAT, **fingerprint}))
            return
        check_fingerprint(json.loads(lines[0]), fingerprint)
        entries = [json.loads(line) for line in lines[1:]]
        self.complete = COMPLETE in entries
        for entry in entries:
            if "shard" in entry and (self.complete or self._is_there(entry)):
                self.done[entry["shard"]] = Counts(entry["rows"], entry["failed"], entry["tokens"])

    def _lines(self) -> list[bytes]:
        """Return the whole lines; truncate a half line that a crash left at the end."""
        if not self._path.exists():
            return []
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._path, len(whole))
        return whole.splitlines()

    def _is_there(self, entry: Mapping[str, Any]) -> bool:
        part, errors = part_paths(self._folder, entry["shard"])
        return part.exists() and errors.exists() and part.stat().st_size == entry["bytes"]

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())


def written_by(output: Path) -> tuple[Path, ...]:
    """Return the files and the folder that a run writes."""
    return output, errors_of(output), folder_of(output)


def start_over(folder: Path, output: Path) -> None:
    """Remove an earlier run: its journal first, its output last."""
    for path in folder.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    sync_folder(folder)
    for path in (output, errors_of(output)):
        path.unlink(missing_ok=True)


def errors_of(output: Path) -> Path:
    """Return the path of a run's dead-letter file."""
    return output.with_name(output.name + ".errors.jsonl")


def check_fingerprint(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that an earlier run had the same fingerprint.

    Raises:
        Refused: a value differs; the message names each.
    """
    if before.get("format") != FORMAT:
        raise Refused(f"the journal has format {before.get('format')}, not {FORMAT}; --restart starts over")
    changed = [name for name, value in now.items() if before.get(name) != json.loads(json.dumps(value))]
    if changed:
        said = "; ".join(f"{name} was {_short(before.get(name))} and is {_short(now[name])}" for name in changed)
        raise Refused(
            f"an earlier run was not of the same: {said}. Give what it had to go on, or --restart to start over"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "…"


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
