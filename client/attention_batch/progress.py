"""A run's progress on standard error, as a bar on a terminal and JSON lines elsewhere, and its summary at the end."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from attention_batch.output.failures import failure_kinds
from attention_batch.output.sink import Counts

SECONDS_BETWEEN_LINES = 5.0


@dataclass
class Progress:
    """The counts of a run, and its share of the input's bytes.

    Attributes:
        total: bytes of the input; None for a stream.
        before: counts of the earlier runs that this one resumes.
        work: bytes of the finished shards, those of earlier runs included.
        done: counts of the shards that this run finished.
        under_way: counts of the shards under way.
        began: the run's begin, by `time.monotonic`.
        errors: the file of the failed rows, once it is written.
    """

    total: float | None
    before: Counts = Counts()  # noqa: RUF009 # frozen
    work: float = 0.0
    done: Counts = Counts()  # noqa: RUF009
    under_way: Counts = Counts()  # noqa: RUF009
    began: float = field(default_factory=time.monotonic)
    errors: Path | None = None

    @property
    def counts(self) -> Counts:
        """The rows of this run, shards under way included."""
        return self.done + self.under_way

    @property
    def failed(self) -> int:
        """Rows without an answer, of this run and earlier ones."""
        return self.before.failed + self.counts.failed

    def finish_shard(self, work: float, counts: Counts) -> None:
        """Add a finished shard.

        Args:
            work: its bytes of input.
            counts: of its part.
        """
        self.work += work
        self.done += counts
        self.under_way = Counts()

    def summary(self) -> dict[str, Any]:
        """Return rows of this run and earlier ones, and seconds and rates of this one."""
        seconds = time.monotonic() - self.began
        rate = 1 / seconds if seconds else 0.0
        return {
            "rows": self.before.rows + self.counts.rows,
            "failed": self.failed,
            "resumed": self.before.rows + self.before.failed,
            "seconds": round(seconds, 3),
            "sequences_per_second": round(self.counts.rows * rate, 1),
            "tokens_per_second": round(self.counts.tokens * rate, 1),
        }

    def failures(self) -> dict[str, Any]:
        """Return the file of the failed rows, and the first reason of each kind; empty where no row failed."""
        kinds = failure_kinds(self.errors) if self.errors is not None else []
        return {"errors": str(self.errors), "failures": list(map(asdict, kinds))} if kinds else {}

    def seconds_left(self) -> float | None:
        """Estimate the time left from the rate so far; None before there is a rate."""
        whole, now = self.before + self.done, self.before + self.counts
        if not self.total or not self.work or now == self.before:
            return None
        rows = (whole.rows + whole.failed) / self.work * self.total  # if the rest is like the finished shards
        left = max(0.0, rows - now.rows - now.failed)
        return left * (time.monotonic() - self.began) / (self.counts.rows + self.counts.failed)


class Display(Protocol):
    """A display of a run's progress."""

    def show(self, progress: Progress) -> None:
        """Show the progress so far."""
        ...

    def end(self, progress: Progress, status: str) -> None:
        """Show the summary and the run's status."""
        ...


@contextmanager
def display(*, as_json: bool = False) -> Iterator[Display]:
    """Return the display for standard error: a bar on a terminal, JSON lines elsewhere.

    Args:
        as_json: whether to show JSON lines on a terminal too.
    """
    console = Console(stderr=True)
    if as_json or not console.is_terminal:
        yield _Lines()
        return
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with ProgressBar(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as progress:
        yield _Bar(progress)


class _Bar:
    def __init__(self, progress: ProgressBar) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def show(self, progress: Progress) -> None:
        self._progress.update(self._task, total=progress.total, completed=progress.work, description=_words(progress))

    def end(self, progress: Progress, status: str) -> None:
        self.show(progress)
        summary = progress.summary()
        self._progress.console.print(
            f"{status}: {summary['rows']} rows, {summary['failed']} failed, {summary['seconds']:.1f} s, "
            f"{summary['sequences_per_second']:.0f} sequences/s, {summary['tokens_per_second']:.0f} tokens/s",
            highlight=False,
        )
        failures = progress.failures()
        for kind in failures.get("failures", ()):
            where = f"{kind['file']} row {kind['row']}"
            said = f"  {kind['rows']} x {kind['field']}: {kind['reason']} (first in {where})"
            self._progress.console.print(said, highlight=False, markup=False)
        if failures:
            self._progress.console.print(f"  all failed rows: {failures['errors']}", highlight=False, markup=False)


class _Lines:
    def __init__(self) -> None:
        self._next = time.monotonic() + SECONDS_BETWEEN_LINES

    def show(self, progress: Progress) -> None:
        if time.monotonic() >= self._next:
            share = round(progress.work / progress.total, 4) if progress.total else None
            left = progress.seconds_left()
            write_event("progress", **progress.summary(), share=share, seconds_left=left and round(left))
            self._next = time.monotonic() + SECONDS_BETWEEN_LINES

    def end(self, progress: Progress, status: str) -> None:
        write_event("summary", status=status, **progress.summary(), **progress.failures())


def write_event(name: str, **content: Any) -> None:
    """Write one line of JSON to standard error."""
    sys.stderr.write(json.dumps({"event": name, **content}, ensure_ascii=False) + "\n")
    sys.stderr.flush()


def _words(progress: Progress) -> str:
    summary = progress.summary()
    words = f"{summary['rows']} rows, {summary['sequences_per_second']:.0f}/s"
    return f"{words}, {progress.failed} failed" if progress.failed else words
