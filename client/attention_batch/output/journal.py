"""What a run has done, so that the next one goes on: `OUTPUT.scoring/`, its lock, its parts and `journal.jsonl`.

The first line says of what the run is; each further one that a shard's part is there; the last that the output is.
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
from attention_batch.output.sink import Counts, durably, part_paths, sync_folder

FORMAT = 1
JOURNAL = "journal.jsonl"
COMPLETE = {"complete": True}


def folder_of(output: Path) -> Path:
    """Return where a run keeps what it has done."""
    return output.with_name(output.name + ".scoring")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder against others; whatever ends the process lets go of it.

    Raises:
        Refused: another run holds it.
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
    """The record of one run, whoever carries it on.

    Args:
        folder: held by `locked`.
        subject: what the run is of: what must be the same to go on.
    """

    def __init__(self, folder: Path, subject: Mapping[str, Any]) -> None:
        self._path = folder / JOURNAL
        self._folder = folder
        self.done: dict[int, Counts] = {}
        self.complete = False
        self._read(subject)

    @property
    def counts(self) -> Counts:
        """What all parts hold."""
        return sum(self.done.values(), Counts())

    def enter(self, shard: int, counts: Counts) -> None:
        """Say that a shard's part is there."""
        size = part_paths(self._folder, shard)[0].stat().st_size
        self._append({"shard": shard, "bytes": size, **asdict(counts)})
        self.done[shard] = counts

    def finish(self) -> None:
        """Say that the output is there, and let the parts go."""
        self._append(COMPLETE)
        self.complete = True
        self.tidy()

    def tidy(self) -> None:
        """Remove what a complete run needs no longer."""
        for path in (*self._folder.glob("*.part"), *self._folder.glob("*.errors")):
            path.unlink(missing_ok=True)

    def _read(self, subject: Mapping[str, Any]) -> None:
        lines = self._lines()
        if len(lines) < 2:  # a run that has done nothing binds nobody
            with durably(self._path) as file:
                file.write(_line({"format": FORMAT, **subject}))
            return
        check_subject(json.loads(lines[0]), subject)
        entries = [json.loads(line) for line in lines[1:]]
        self.complete = COMPLETE in entries
        for entry in entries:
            if "shard" in entry and (self.complete or self._is_there(entry)):
                self.done[entry["shard"]] = Counts(entry["rows"], entry["failed"], entry["tokens"])

    def _lines(self) -> list[bytes]:
        """Return the whole lines; cut off what a sudden end left of another."""
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
            before = file.tell()
            try:
                file.write(_line(entry))
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self._path, before)  # a half line in front of the next one would spoil it
                raise


def start_over(folder: Path, output: Path) -> None:
    """Forget what an earlier run did: its journal first, its output last."""
    for path in folder.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    sync_folder(folder)
    for path in (output, errors_of(output)):
        path.unlink(missing_ok=True)


def errors_of(output: Path) -> Path:
    """Return where a run's dead letters go."""
    return output.with_name(output.name + ".errors.jsonl")


def check_subject(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that an earlier run was of the same.

    Raises:
        Refused: something has changed; says what.
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
