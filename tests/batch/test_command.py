"""The command as a user sees it: progress, summary, wrong usage and a missing extra."""

import os
import pty
import subprocess
import sys
import time

import pytest
from attention_batch.output.sink import Counts
from attention_batch.progress import Progress, display
from serving import clean_env

from tests.batch.scoring import SENTENCES, begun, command, scored, summary, wait_until, write_texts


def test_a_bar_on_a_terminal(server, tmp_path):
    """On a terminal the command shows a bar, and at the end one line with failed rows and rates."""
    source = write_texts(tmp_path / "in.jsonl", 500)
    with source.open("a") as file:
        file.write("{\n")
    ours, theirs = pty.openpty()
    arguments = command(source, tmp_path / "out.jsonl", "--model", "multi-head", "--target", server.grpc)
    env = clean_env({"TERM": "xterm", "COLUMNS": "100"})
    with subprocess.Popen(arguments, stdout=theirs, stderr=theirs, env=env) as run:
        os.close(theirs)
        shown = bytearray()
        try:
            while some := os.read(ours, 4096):
                shown += some
        except OSError:  # the end of a terminal, on Linux
            pass
    os.close(ours)
    assert run.returncode == 3
    assert "━".encode() in shown
    assert b"500 rows" in shown
    assert b"complete: 500 rows, 1 failed, " in shown
    assert b"sequences/s" in shown
    assert b'"event"' not in shown


def test_progress_in_lines(server, tmp_path):
    """Without a terminal the command writes progress as JSON every few seconds, and a summary that adds up."""
    log = tmp_path / "log"
    read, write = os.pipe()  # written below, until the run has told of its progress
    with log.open("wb") as file, os.fdopen(write, "wb") as lines:
        arguments = ("--model", "multi-head", "--target", server.grpc, "--shard-rows", 64)
        process = subprocess.Popen(
            command("-", tmp_path / "out.jsonl", *arguments),
            stdin=read,
            stderr=file,
            env=clean_env(),
        )
        os.close(read)
        row = b'{"text": "%s"}\n' % SENTENCES[0].encode()
        written = 0

        def fed() -> bool:
            nonlocal written
            lines.write(row * 10)
            lines.flush()
            written += 10
            return b'"progress"' in log.read_bytes()

        wait_until(fed, process)
    assert process.wait() == 0
    done = subprocess.CompletedProcess([], 0, b"", log.read_bytes())
    last = summary(done)
    assert (last["rows"], last["failed"], last["status"]) == (written, 0, "complete")
    assert last["sequences_per_second"] > 0
    assert abs(last["tokens_per_second"] / last["sequences_per_second"] - 7) < 0.5


@pytest.mark.parametrize("as_json", [False, True])
def test_lines_on_a_terminal(monkeypatch, capsys, as_json):
    """With --json the summary is a JSON line on a terminal too."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, for rich
    with display(as_json=as_json) as shown:
        shown.end(Progress(None), "complete")
    told = capsys.readouterr().err
    assert ('{"event": "summary", "status": "complete", ' in told) is as_json
    assert ("0 rows" in told) is not as_json


def test_the_time_left():
    """The time left follows from the rows of finished shards, and goes down within a shard."""
    began = time.monotonic() - 10_000  # so long ago that the time of this test counts for nothing
    progress = Progress(4.0, work=1.0, done=Counts(10), under_way=Counts(10), began=began)
    assert progress.seconds_left() == pytest.approx(10_000, rel=0.05)  # 20 of 40 rows in that time
    assert Progress(4.0, under_way=Counts(10)).seconds_left() is None


def test_a_summary_adds_up():
    """A summary counts rows, not batches or shards, of all runs; its rates are those of this run alone."""
    began = time.monotonic() - 10_000
    progress = Progress(4.0, before=Counts(100, 7, 900), done=Counts(20_000, 2, 80_000), began=began)
    progress.under_way = Counts(10_000, 1, 40_000)
    summary = progress.summary()
    assert (summary["rows"], summary["failed"], summary["resumed"]) == (30_100, 10, 107)
    assert summary["sequences_per_second"] == pytest.approx(3, rel=0.05)
    assert summary["tokens_per_second"] == pytest.approx(12, rel=0.05)
    progress.finish_shard(1.0, Counts(10_000, 1, 40_000))
    assert (progress.summary()["rows"], progress.summary()["failed"]) == (30_100, 10)


def test_wrong_usage(tmp_path):
    """Wrong usage ends with status 2."""
    done = scored(tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--model", "m", "--column", "text")
    assert (done.returncode, b"must be FIELD=COLUMN" in done.stderr) == (2, True)
    assert begun(tmp_path / "in.jsonl").wait() == 2


def test_without_the_extra():
    """Without its extra the command names the package to install."""
    code = "import sys; sys.modules['pyarrow'] = None; from attention_client.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "score", "a.jsonl", "b.jsonl", "--model", "m"], capture_output=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == b"error: score needs pyarrow: pip install 'attention-service[batch]'\n"
