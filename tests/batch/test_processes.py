"""The local engine in several worker processes, any of which may end at any moment."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from attention_batch.engines.processes import WorkerPool
from attention_batch.errors import Refused
from attention_batch.plan import ScoringJob
from attention_batch.readers.selection import open_source
from attention_batch.readers.source import Shard, reader_runs
from attention_batch.spec import parse

from tests.batch.scoring import (
    SENTENCES,
    begun,
    command,
    everything,
    journal_of,
    score,
    scored,
    shards_done,
    summary,
    wait_until,
    write,
    write_poisoned,
)

ROWS, SHARD = 2000, 50
TWO = {"ATTENTION_SLOTS": "2"}  # also where there is one core
OUTPUTS = ("--outputs", "tokens,weights,output:mean,predictions,entropy:mean", "--shard-rows", SHARD)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    return write_poisoned(tmp_path_factory.mktemp("poisoned") / "in.parquet", ROWS, group=350)


@pytest.fixture(scope="module")
def models(repository, tmp_path_factory):
    """A repository of the one model, which every worker of every run loads."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "multi-head").symlink_to(repository / "multi-head")
    return folder


@pytest.fixture
def options(models):
    return ("--model", "multi-head", "--engine", "local", "--models", models, *OUTPUTS)


@pytest.fixture(scope="module")
def whole(server, poisoned, tmp_path_factory):
    """Output and dead letters of a run through a server."""
    output = tmp_path_factory.mktemp("whole") / "out.parquet"
    assert scored(poisoned, output, "--model", "multi-head", "--target", server.grpc, *OUTPUTS).returncode == 3
    return everything(output)


def workers(output: Path) -> list[int]:
    """Return the ids of the worker processes with a folder among a run's parts."""
    return [int(folder.name.removeprefix("worker-")) for folder in journal_of(output).parent.glob("worker-*")]


def has_ended(process: int) -> bool:
    """Return whether a process is gone, or a zombie."""
    try:
        return bool(re.search(r"State:\s+[ZX]", Path(f"/proc/{process}/status").read_text()))
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.long)])
def test_killed_at_any_point(poisoned, options, whole, tmp_path, kills):
    """kill -9 of the run at random points ends its workers too, and a last run writes the same bytes."""
    output, chance, killed = tmp_path / "out.parquet", random.Random(0), 0
    while killed < kills:
        if output.exists():  # the run was complete before the kill
            assert everything(output) == whole
            shutil.rmtree(journal_of(output).parent)
            output.unlink()
        run = begun(poisoned, output, *options, env=TWO)
        until = min(shards_done(output) + chance.randrange(8), ROWS // SHARD - 1)
        wait_until(lambda until=until: shards_done(output) >= until and workers(output), run)
        left = workers(output)
        run.kill()
        killed += run.wait() == -signal.SIGKILL
        wait_until(lambda left=left: all(map(has_ended, left)))
    done = scored(poisoned, output, *options, env=TWO)
    assert (done.returncode, summary(done)["resumed"] > 0) == (3, True), done.stderr
    assert everything(output) == whole
    assert {each.name for each in journal_of(output).parent.iterdir()} == {"journal.jsonl", "lock"}


def test_a_worker_that_goes(poisoned, options, tmp_path):
    """A worker killed by the system for lack of memory stops the run with a message and status 4."""
    output = tmp_path / "out.parquet"
    run = begun(poisoned, output, *options, env=TWO, stderr=subprocess.PIPE)
    wait_until(lambda: shards_done(output) > 3 and workers(output), run)
    os.kill(workers(output)[0], signal.SIGKILL)
    _, said = run.communicate()
    assert run.returncode == 4
    assert said.endswith(b"error: a worker has ended, perhaps for want of memory; the same command goes on\n")
    assert not workers(output)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGINT])
def test_interrupted(poisoned, options, tmp_path, number):
    """SIGTERM, and Ctrl-C, which workers receive too, end a run at once, with its message alone."""
    output = tmp_path / "out.parquet"
    run = begun(poisoned, output, *options, env=TWO, stderr=subprocess.PIPE)
    wait_until(lambda: shards_done(output) > 3 and workers(output), run)
    at_work = workers(output)
    if number == signal.SIGINT:
        for worker in at_work:
            os.kill(worker, number)
    run.send_signal(number)
    _, said = run.communicate()
    assert (run.returncode, b'"status": "interrupted"' in said, b"Traceback" in said) == (4, True, False), said
    assert said.endswith(b"error: interrupted; the same command goes on\n")
    assert all(map(has_ended, at_work))
    assert not workers(output)


def test_too_many_errors(poisoned, options, tmp_path):
    """The bound on failed rows applies to the sum over all workers."""
    done = scored(poisoned, tmp_path / "out.parquet", *options, "--max-errors", 5, env=TWO)
    assert done.returncode == 5
    assert b"rows failed, more than --max-errors 5" in done.stderr
    assert 5 < summary(done)["failed"] < ROWS


def test_a_full_disk(poisoned, options, tmp_path):
    """A worker that cannot write stops the run as a run in one process stops."""
    output = tmp_path / "out.parquet"
    limited = ["prlimit", "--fsize=20000", *command(poisoned, output, *options)]
    done = subprocess.run(limited, capture_output=True, check=False, env={**os.environ, **TWO})
    assert done.returncode == 4, done.stderr
    assert b"error: File too large; the same command goes on when that is mended\n" in done.stderr
    assert not workers(output)


def test_workers_that_begin_early(repository, poisoned, whole, tmp_path, monkeypatch):
    """For a large input, workers start before the model is known; a refused run ends its workers."""
    monkeypatch.setattr("attention_batch.run.LARGE", 1)
    monkeypatch.setenv("ATTENTION_SLOTS", "2")
    output, begun_early = tmp_path / "out.parquet", []
    monkeypatch.setattr(
        "attention_batch.run.WorkerPool", lambda n: begun_early.append(WorkerPool(n)) or begun_early[-1]
    )
    specs = parse(OUTPUTS[1])
    job = ScoringJob(
        input=str(poisoned),
        output=str(output),
        model="multi-head",
        outputs=specs,
        engine="local",
        models=repository,
        shard_rows=SHARD,
    )
    assert score(job)[0] == 3
    assert everything(output) == whole
    with pytest.raises(Refused, match="no model 'none'"):
        score(replace(job, model="none", output=str(tmp_path / "none.parquet")))
    assert len(begun_early) == 2
    assert not multiprocessing.active_children()


def shards(*groups):
    """Return shards at positions (group, row), a given number in each row group."""
    places = [(group, row) for group, count in enumerate(groups) for row in range(count)]
    return [Shard(i, 0, 0, 1, 0, place, 0.0) for i, place in enumerate(places)]


@pytest.mark.parametrize(
    ("name", "groups", "expected"),
    [
        ("in.parquet", [3, 2, 1, 4], [[0, 1, 2], [3, 4], [5], [6, 7, 8, 9]]),
        ("in.parquet", [5], [[0, 1, 2], [3, 4]]),
        ("in.parquet", [2, 3], [[0], [1], [2, 3], [4]]),
        ("in.parquet", [], []),
        ("in.jsonl", [3], [[0], [1], [2]]),
    ],
)
def test_runs(tmp_path, name, groups, expected):
    """A row group, which is read from its start, has one reader, unless a reader would have none."""
    source = open_source(str(write(tmp_path / name, {"text": SENTENCES[:1]})), None)
    runs = reader_runs(source, iter(shards(*groups)), 2)
    assert [[shard.index for shard in run] for run in runs] == expected
