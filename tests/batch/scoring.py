"""Files to score, and the command, run as a user runs it."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from attention_batch.plan import ScoringJob
from attention_batch.run import run
from serving import clean_env

COMMAND = Path(sys.executable).with_name("attention-client")
SECONDS = 600  # guard against hanging; no test depends on it
SENTENCES = ("I gave my cat Tater a toy", "Mia was shown a letter by Leo", "Leo gave Mia a letter", "I gave Leo my toy")
WIDTH = 24  # of the model `multi`


def score(job: ScoringJob, stdin: bytes = b"") -> tuple[int, bytes]:
    """Score in this process: exit status and standard output."""
    written = io.BytesIO()
    return run(job, io.BytesIO(stdin), written), written.getvalue()


def command(*arguments: object) -> list[str]:
    return list(map(str, [COMMAND, "score", *arguments]))


def scored(*arguments: object, stdin: bytes | None = None, env: Mapping[str, str] | None = None, **more: Any) -> Any:
    """Run the command to its end."""
    return subprocess.run(
        command(*arguments), input=stdin, capture_output=True, timeout=SECONDS, env=clean_env(env), check=False, **more
    )


def begun(
    *arguments: object, stderr: Any = subprocess.DEVNULL, env: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Begin a run, and let it."""
    return subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=stderr, env=clean_env(env))


def wait_until(condition: Callable[[], object], process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait for a condition, or the end of a process that was to meet it."""
    wait_until(lambda: bool(condition()) or (process is not None and process.poll() is not None), SECONDS)


def events(stderr: bytes) -> list[dict[str, Any]]:
    """Read the JSON lines among what was said on standard error."""
    return [json.loads(line) for line in stderr.splitlines() if line.startswith(b'{"event"')]


def summary(done: Any) -> dict[str, Any]:
    (last,) = (event for event in events(done.stderr) if event["event"] == "summary")
    return last


def write_texts(path: Path, count: int, **columns: Sequence[Any]) -> Path:
    texts = [SENTENCES[i % len(SENTENCES)] for i in range(count)]
    ids = [f"row {i}" for i in range(count)]
    return write(path, {"id": ids, "text": texts, **columns})


def drawn(count: int, width: int = WIDTH, longest: int = 9, seed: int = 0) -> list[np.ndarray]:
    """Draw sequences of several lengths."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rng.integers(1, longest + 1), width)).astype(np.float32) for _ in range(count)]


def write_poisoned(path: Path, count: int, group: int) -> Path:
    """Write rows of which some fail, so that dead letters are resumed too."""
    texts = ["no such words" if i % 97 == 0 else SENTENCES[i % len(SENTENCES)] for i in range(count)]
    return write(path, {"id": range(count), "text": texts}, group=group)


def write_vectors(path: Path, count: int, seed: int = 0) -> Path:
    """Write rows of vectors as Arrow's convention has them: list<fixed_size_list<float>>."""
    sequences = drawn(count, seed=seed)
    column = pa.array([list(each) for each in sequences], pa.list_(pa.list_(pa.float32(), WIDTH)))
    return write(path, {"id": list(range(count)), "query": column})


def write(path: Path, columns: Mapping[str, Any], *, group: int | None = None) -> Path:
    """Write a table in the form of its name."""
    if path.suffix == ".jsonl":
        names = list(columns)
        rows = zip(*(columns[name] for name in names), strict=True)
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    else:
        pq.write_table(pa.table(dict(columns)), path, row_group_size=group)
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read an output, in either form."""
    if path.suffix == ".jsonl":
        return lines_of(path)
    return pq.read_table(path).to_pylist()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def everything(output: Path) -> tuple[bytes, bytes]:
    """Read what a run leaves: its output, and its dead letters."""
    return output.read_bytes(), output.with_name(output.name + ".errors.jsonl").read_bytes()


def letters_of(output: Path) -> list[dict[str, Any]]:
    """Read the dead letters of a run."""
    return lines_of(output.with_name(output.name + ".errors.jsonl"))


def journal_of(output: Path) -> Path:
    return output.with_name(output.name + ".scoring") / "journal.jsonl"


def shards_done(output: Path) -> int:
    """Count what a journal has besides its first line."""
    journal = journal_of(output)
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def exactly(found: Any, expected: np.ndarray) -> bool:
    """Whether nested lists hold the very numbers of an array."""
    return np.array_equal(np.array(found, expected.dtype).reshape(expected.shape), expected)
