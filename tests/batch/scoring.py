"""Input files, runs of the command as a user runs it, and readers of its output."""

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
import serving
from attention_batch.plan import ScoringJob
from attention_batch.run import run
from serving import clean_env

COMMAND = Path(sys.executable).with_name("attention-client")
SECONDS = 600  # guard against hanging; no test depends on it
SENTENCES = ("I gave my cat Tater a toy", "Mia was shown a letter by Leo", "Leo gave Mia a letter", "I gave Leo my toy")
WIDTH = 24  # of the model `multi`


def score(job: ScoringJob, stdin: bytes = b"") -> tuple[int, bytes]:
    """Score in this process; return exit status and standard output."""
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
    """Start the command and return its process."""
    return subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=stderr, env=clean_env(env))


def wait_until(condition: Callable[[], object], process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait for a condition, or the end of the process that should meet it."""
    serving.wait_until(lambda: bool(condition()) or (process is not None and process.poll() is not None), SECONDS)


def events(stderr: bytes) -> list[dict[str, Any]]:
    """Read the JSON lines of standard error."""
    return [json.loads(line) for line in stderr.splitlines() if line.startswith(b'{"event"')]


def summary(done: Any) -> dict[str, Any]:
    (last,) = (event for event in events(done.stderr) if event["event"] == "summary")
    return last


def write_texts(path: Path, count: int, **columns: Sequence[Any]) -> Path:
    texts = [SENTENCES[i % len(SENTENCES)] for i in range(count)]
    ids = [f"row {i}" for i in range(count)]
    return write(path, {"id": ids, "text": texts, **columns})


def drawn(count: int, width: int = WIDTH, longest: int = 9, seed: int = 0) -> list[np.ndarray]:
    """Return random sequences of several lengths."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rng.integers(1, longest + 1), width)).astype(np.float32) for _ in range(count)]


def write_poisoned(path: Path, count: int, group: int) -> Path:
    """Write rows, some of which fail, so that a resumed run has dead letters too."""
    texts = ["no such words" if i % 97 == 0 else SENTENCES[i % len(SENTENCES)] for i in range(count)]
    return write(path, {"id": range(count), "text": texts}, group=group)


def write_vectors(path: Path, count: int, seed: int = 0) -> Path:
    """Write rows of vectors as list<fixed_size_list<float>>."""
    sequences = drawn(count, seed=seed)
    column = pa.array([list(each) for each in sequences], pa.list_(pa.list_(pa.float32(), WIDTH)))
    return write(path, {"id": list(range(count)), "query": column})


def write(path: Path, columns: Mapping[str, Any], *, group: int | None = None) -> Path:
    """Write a table in the format that the file's name tells."""
    if path.suffix == ".jsonl":
        names = list(columns)
        rows = zip(*(columns[name] for name in names), strict=True)
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    else:
        pq.write_table(pa.table(dict(columns)), path, row_group_size=group)
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read the rows of an output, in either format."""
    if path.suffix == ".jsonl":
        return lines_of(path)
    return pq.read_table(path).to_pylist()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def everything(output: Path) -> tuple[bytes, bytes]:
    """Read the bytes of a run's output and of its dead letters."""
    return output.read_bytes(), output.with_name(output.name + ".errors.jsonl").read_bytes()


def letters_of(output: Path) -> list[dict[str, Any]]:
    """Read a run's dead letters."""
    return lines_of(output.with_name(output.name + ".errors.jsonl"))


def journal_of(output: Path) -> Path:
    return output.with_name(output.name + ".scoring") / "journal.jsonl"


def shards_done(output: Path) -> int:
    """Return the number of finished shards in an output's journal."""
    journal = journal_of(output)
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def exactly(found: Any, expected: np.ndarray) -> bool:
    """Return whether nested lists equal an array, bit for bit."""
    return np.array_equal(np.array(found, expected.dtype).reshape(expected.shape), expected)
