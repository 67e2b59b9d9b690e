"""Resumption: after any end of a run, and any number of ends, the output has the bytes of an undisturbed run."""

import functools
import io
import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from attention_batch.errors import Refused, Stopped, TooManyErrors
from attention_batch.run import run

from tests.batch.scoring import (
    SENTENCES,
    begun,
    command,
    everything,
    journal_of,
    lines_of,
    score,
    scored,
    shards_done,
    summary,
    wait_until,
    write,
    write_poisoned,
    write_texts,
)

ROWS, SHARD = 1500, 50
OUTPUTS = "tokens,weights,output:mean,predictions,entropy:mean"


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    return write_poisoned(tmp_path_factory.mktemp("poisoned") / "in.parquet", ROWS, group=350)


@pytest.fixture(scope="module")
def whole(server, poisoned, tmp_path_factory):
    """Return a function that returns the output of an undisturbed run, in either format."""
    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def output(form):
        written = folder / f"out.{form}"
        assert scored(poisoned, written, *options(server)).returncode == 3
        return written

    return output


def options(server):
    return ("--model", "multi-head", "--target", server.grpc, "--outputs", OUTPUTS, "--shard-rows", SHARD)


@pytest.mark.parametrize(
    ("form", "kills"),
    [("parquet", 2), *(pytest.param(form, 150, marks=pytest.mark.long) for form in ("parquet", "jsonl"))],
)
def test_killed_at_any_point(server, poisoned, whole, tmp_path, form, kills):
    """After kill -9 at random points, also during assembly, a last run writes the same output and dead letters."""
    output = tmp_path / f"out.{form}"
    chance = random.Random(form)
    killed = 0
    while killed < kills:
        if output.exists():  # the run was complete before the kill
            assert everything(output) == everything(whole(form))
            shutil.rmtree(journal_of(output).parent)
            output.unlink()
        run = begun(poisoned, output, *options(server))
        if killed % 2 == 0:  # a few further shards, so that the kill falls among them
            until = min(shards_done(output) + 1 + chance.randrange(4), ROWS // SHARD - 1)
            wait_until(lambda until=until: shards_done(output) >= until, run)
            wait_until(lambda: chance.random() < 0.05, run)
        else:
            wait_until(output.with_name(output.name + ".tmp").exists, run)
        run.kill()
        killed += run.wait() == -signal.SIGKILL
    done = scored(poisoned, output, *options(server))
    assert done.returncode == 3
    assert summary(done)["resumed"] > 0
    assert everything(output) == everything(whole(form))
    assert not list(journal_of(output).parent.glob("*.part"))


def test_a_complete_run_is_not_repeated(server, tmp_path):
    """A complete run leaves no parts; its command, repeated, writes no file and reports the same counts."""
    source = write_texts(tmp_path / "in.jsonl", 20)
    assert scored(source, tmp_path / "out.jsonl", *options(server)).returncode == 0
    assert {path.name for path in journal_of(tmp_path / "out.jsonl").parent.iterdir()} == {"journal.jsonl", "lock"}
    before = (tmp_path / "out.jsonl").stat().st_mtime_ns
    done = scored(source, tmp_path / "out.jsonl", *options(server))
    assert (done.returncode, summary(done)["rows"], summary(done)["resumed"]) == (0, 20, 20)
    assert (tmp_path / "out.jsonl").stat().st_mtime_ns == before
    (tmp_path / "out.jsonl").unlink()
    done = scored(source, tmp_path / "out.jsonl", *options(server))
    assert (done.returncode, b"was complete and has gone; --restart" in done.stderr) == (1, True)


def test_interrupted(server, poisoned, tmp_path):
    """SIGTERM and Ctrl-C end a run at once, with a message and status 4; the second run goes on."""
    output = tmp_path / "out.parquet"
    for number in (signal.SIGTERM, signal.SIGINT):
        before = shards_done(output)
        run = begun(poisoned, output, *options(server), stderr=subprocess.PIPE)
        wait_until(lambda before=before: shards_done(output) > before + 3, run)
        run.send_signal(number)
        _, said = run.communicate()
        assert run.returncode == 4
        assert b'"status": "interrupted"' in said
        assert said.endswith(b"error: interrupted; the same command goes on\n")


class Interrupting(io.BytesIO):
    """Standard input that sends this process a signal, in a library that keeps KeyboardInterrupt from the run."""

    def __init__(self, content, number, error):
        super().__init__(content)
        self._number, self._error = number, error

    def readline(self, size=-1):
        if self.tell() == 0:
            try:
                signal.raise_signal(self._number)
            except KeyboardInterrupt:
                if self._error:
                    raise self._error from None
        return super().readline(size)


@pytest.mark.parametrize("error", [None, ImportError("half a module"), Refused("by chance")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_within_a_library(job, tmp_path, number, error):
    """A signal ends a run also where KeyboardInterrupt is swallowed, or another error raised in its place."""
    content = b'{"text": "%s"}\n' % SENTENCES[0].encode() * 1000
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped, match=r"^interrupted$"):
        run(job("-", tmp_path / "out.jsonl", "multi-head"), Interrupting(content, number, error), io.BytesIO())
    assert not (tmp_path / "out.jsonl").exists()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers


def stopped(job, tmp_path, **options):
    """Stop a run after ten shards, and return its input."""
    source = write_texts(tmp_path / "in.jsonl", 100, poison=[0] * 100)
    with source.open("a") as file:
        file.write("{\n" * 3)
    described = job(source, tmp_path / "out.jsonl", "multi-head", shard_rows=10, max_errors=1, **options)
    with pytest.raises(Exception, match="rows failed"):
        score(described)
    assert shards_done(tmp_path / "out.jsonl") == 10
    return source


def test_a_changed_input_is_refused(job, tmp_path):
    """A changed input is refused; --restart scores it."""
    source = stopped(job, tmp_path)
    os.utime(source, ns=(1, 1))
    with pytest.raises(Refused, match=r"input was .* and is .*--restart to start over"):
        score(job(source, tmp_path / "out.jsonl", "multi-head", shard_rows=10))
    write_texts(source, 3)
    assert score(job(source, tmp_path / "out.jsonl", "multi-head", shard_rows=10, restart=True))[0] == 0
    assert len(lines_of(tmp_path / "out.jsonl")) == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"shard_rows": 11}, "shard rows was 10 and is 11"),
        ({"outputs": [{"name": "weights"}]}, 'outputs was [] and is [{"name": "weights"}]'),
        ({"causal": "top_left"}, 'causal was "none" and is "top_left"'),
        ({"columns": {"id": "text"}}, 'columns was {"id": "id", "text": "text"} and is {"id": "text"'),
    ],
)
def test_a_changed_option_is_refused(job, tmp_path, changed, said):
    """A changed option that would give different rows is refused by name."""
    source = stopped(job, tmp_path)
    with pytest.raises(Refused) as refused:
        score(job(source, tmp_path / "out.jsonl", "multi-head", **{"shard_rows": 10, **changed}))
    assert said in str(refused.value)
    assert score(job(source, tmp_path / "out.jsonl", "multi-head", shard_rows=10))[0] == 3


def test_an_input_that_changes_meanwhile(server, poisoned, tmp_path):
    """An input that changes during a run is noticed at the end, and no output is assembled."""
    source, output = Path(shutil.copy(poisoned, tmp_path)), tmp_path / "out.parquet"
    run = begun(source, output, *options(server), stderr=subprocess.PIPE)
    wait_until(lambda: shards_done(output) > 1, run)
    run.send_signal(signal.SIGSTOP)
    os.utime(source)
    run.send_signal(signal.SIGCONT)
    _, said = run.communicate()
    assert (run.returncode, output.exists()) == (1, False)
    assert b"in.parquet has changed while it was read; --restart scores it as it is now" in said


def test_two_versions(job, tmp_path):
    """A run resumes only with its own model version, by default and by option."""
    source = write(tmp_path / "in.jsonl", {"query": [[[1.0] * 12], [[1.0]]]})
    with pytest.raises(Exception, match="rows failed"):
        score(job(source, tmp_path / "out.jsonl", "self", shard_rows=1, version=1, max_errors=0))
    with pytest.raises(Refused, match="model version was 1 and is 2; model manifest was"):
        score(job(source, tmp_path / "out.jsonl", "self", shard_rows=1))
    assert score(job(source, tmp_path / "out.jsonl", "self", shard_rows=1, version=1))[0] == 3


def test_a_run_that_did_nothing_binds_nobody(job, tmp_path):
    """A run with outputs that the server refuses does not bind the next run to its options."""
    source = write_texts(tmp_path / "in.jsonl", 3)
    for outputs in ([{"name": "wieghts"}], [{"name": "weights", "heads": [99]}]):
        with pytest.raises(Refused, match="outputs"):
            score(job(source, tmp_path / "out.jsonl", "multi-head", outputs=outputs))
    assert (
        score(job(source, tmp_path / "out.jsonl", "multi-head", outputs=[{"name": "entropy", "pool": "mean"}]))[0] == 0
    )


def test_what_is_not_ours_is_not_overwritten(job, tmp_path):
    """A file that no run wrote is replaced only with --restart."""
    source = write_texts(tmp_path / "in.jsonl", 3)
    (tmp_path / "out.jsonl").write_text("precious")
    with pytest.raises(Refused, match="no run that can be resumed wrote it"):
        score(job(source, tmp_path / "out.jsonl", "multi-head"))
    assert (tmp_path / "out.jsonl").read_text() == "precious"
    assert score(job(source, tmp_path / "out.jsonl", "multi-head", restart=True))[0] == 0


def test_two_runs_exclude_each_other(server, poisoned, tmp_path):
    """A second run of an output is refused while the first lives; a killed run holds no lock."""
    output = tmp_path / "out.parquet"
    first = begun(poisoned, output, *options(server))
    wait_until(lambda: shards_done(output) > 1, first)
    os.kill(first.pid, signal.SIGSTOP)
    second = scored(poisoned, output, *options(server))
    assert second.returncode == 1
    assert second.stderr.endswith(b"error: another run is writing %s; wait for it, or end it\n" % bytes(output))
    first.kill()
    first.wait()
    assert scored(poisoned, output, *options(server)).returncode == 3


def test_half_a_line_of_the_journal(job, tmp_path):
    """A half line that a crash left in the journal spoils neither the resumed run nor the one that resumes that run."""
    texts = ["no such words" if i in (25, 65) else SENTENCES[i % 4] for i in range(100)]
    source = write(tmp_path / "in.jsonl", {"text": texts})
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert score(job(source, whole, "multi-head", shard_rows=10))[0] == 3
    with pytest.raises(TooManyErrors):  # in the third shard
        score(job(source, output, "multi-head", shard_rows=10, max_errors=0))
    journal = journal_of(output)
    journal.write_bytes(journal.read_bytes()[:-7])
    with pytest.raises(TooManyErrors):  # in the seventh, after the second was scored again
        score(job(source, output, "multi-head", shard_rows=10, max_errors=1))
    assert shards_done(output) == 6
    assert score(job(source, output, "multi-head", shard_rows=10))[0] == 3
    assert everything(output) == everything(whole)


def test_a_part_that_is_gone_or_cut(job, tmp_path):
    """A part that is missing, or of another size than the journal has, is written again."""
    source = stopped(job, tmp_path)
    first, second, *_ = sorted(journal_of(tmp_path / "out.jsonl").parent.glob("*.part"))
    first.unlink()
    second.write_bytes(b"")
    assert score(job(source, tmp_path / "out.jsonl", "multi-head", shard_rows=10))[0] == 3
    assert [row["id"] for row in lines_of(tmp_path / "out.jsonl")] == [f"row {i}" for i in range(100)]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 150 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        not shutil.which("mount")
        or os.geteuid()
        or subprocess.call(["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", folder], stderr=subprocess.DEVNULL)
    ):
        pytest.skip("a file system cannot be mounted here; the limit of a file's size stands in for it, below")
    yield folder
    subprocess.check_call(["umount", folder])


def test_a_full_disk(server, poisoned, whole, tmp_path, small_disk):
    """A full disk stops a run with a message and status 4; with room, the next run writes the same bytes."""
    output = small_disk / "out.parquet"
    done = scored(poisoned, output, *options(server))
    assert done.returncode == 4
    assert b"error: No space left on device; the same command goes on when that is mended\n" in done.stderr
    assert not output.exists()
    assert 0 < shards_done(output) < ROWS // SHARD
    subprocess.check_call(["mount", "-o", "remount,size=50m", small_disk])
    done = scored(poisoned, output, *options(server))
    assert (done.returncode, summary(done)["resumed"] > 0) == (3, True)
    assert everything(output) == everything(whole("parquet"))


def test_a_file_that_may_not_grow(server, poisoned, whole, tmp_path):
    """A limit of file size ends a run as a full disk does, here when the output is assembled."""
    undisturbed, output = whole("jsonl"), tmp_path / "out.jsonl"
    limited = ["prlimit", f"--fsize={undisturbed.stat().st_size - 1}", *command(poisoned, output, *options(server))]
    done = subprocess.run(limited, capture_output=True, check=False)
    assert done.returncode == 4
    assert b"File too large" in done.stderr
    assert not list(Path(tmp_path).glob("**/*.tmp"))
    done = scored(poisoned, output, *options(server))
    assert (done.returncode, summary(done)["resumed"]) == (3, ROWS)
    assert everything(output) == everything(undisturbed)


def test_memory_is_flat(server, tmp_path):
    """Memory does not grow with the number of rows: neither by input, nor output, nor answers under way."""

    def peak(rows):
        flat = pa.array(np.random.default_rng(0).standard_normal(rows * 64 * 64, np.float32))
        query = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(flat, 64), 64)
        source = write(tmp_path / f"{rows}.parquet", {"query": query})
        run = begun(source, tmp_path / "out.parquet", "--model", "dot", "--target", server.grpc, "--restart")
        most = 0

        def ended() -> bool:
            nonlocal most
            # `wait4` would count the memory of this process, which started the run, too.
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{run.pid}/status").read_text())
            most = int(found[1]) if found else most
            return found is None

        wait_until(ended, run)
        assert run.wait() == 0
        return most / 1024

    small, large = peak(1000), peak(7000)
    assert large < small + 60  # MiB; the rows have 94 more, and the answers too
