"""The service behind a run: full, gone, back again, or with a changed model."""

import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from attention_batch.engines import client as engine_client
from attention_batch.errors import Refused, Stopped
from attention_client import InternalError
from attention_server.auth.callers import digest_of, new_token
from serving import HANG, Server, free_port, start_server

from tests.batch.scoring import (
    SECONDS,
    begun,
    rows_of,
    score,
    scored,
    shards_done,
    summary,
    wait_until,
    write_texts,
    write_vectors,
)

OUTPUTS = ("--outputs", "output:mean,entropy:mean", "--shard-rows", 20)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The rows of all runs, which no test changes."""
    return write_vectors(tmp_path_factory.mktemp("source") / "in.parquet", 2000)


@pytest.fixture(scope="module")
def models(repository, tmp_path_factory):
    """A repository of the one model, which every server of these tests loads."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "multi").symlink_to(repository / "multi")
    return folder


@pytest.fixture(scope="module")
def whole(server, source, tmp_path_factory):
    """The output's bytes after an undisturbed run."""
    output = tmp_path_factory.mktemp("whole") / "out.parquet"
    assert scored(source, output, "--model", "multi", "--target", server.grpc, *OUTPUTS).returncode == 0
    return output.read_bytes()


def answered(server: Server) -> int:
    """Return the number of sequences that a server has answered."""
    statistics = requests.get(f"{server.url}/v2/models/multi/stats", timeout=HANG).json()
    return sum(int(each["inference_count"]) for each in statistics["model_stats"])


def kill(server: Server) -> None:
    server.process.kill()
    server.process.wait()
    server.process.returncode = 0  # killed on purpose, so that `start_server` accepts it


def test_a_restarted_server(models, source, whole, tmp_path):
    """A run waits for a server that restarts, and writes the same bytes."""
    output, port = tmp_path / "out.parquet", free_port()
    arguments = (source, output, "--model", "multi", "--target", f"127.0.0.1:{port}", *OUTPUTS)
    with start_server(models, "--grpc-port", port) as first:
        run = begun(*arguments, stderr=subprocess.PIPE)
        wait_until(lambda: shards_done(output) > 2, run)
        kill(first)
        done = shards_done(output)
    assert run.poll() is None
    with start_server(models, "--grpc-port", port):
        _, said = run.communicate()
    assert run.returncode == 0, said
    assert done < 100
    assert output.read_bytes() == whole


def test_a_lost_server(models, source, whole, server, tmp_path):
    """A server that stays away ends a run with a message and status 4; a run on a second server resumes it."""
    output = tmp_path / "out.parquet"
    with start_server(models) as lost:
        arguments = ("--model", "multi", "--target", lost.grpc, "--patience", 0.5, *OUTPUTS)
        run = begun(source, output, *arguments, stderr=subprocess.PIPE)
        wait_until(lambda: shards_done(output) > 2, run)
        kill(lost)
        _, said = run.communicate()
    assert run.returncode == 4, said
    assert b"error: no answer for 0.5 s: " in said
    done = scored(source, output, "--model", "multi", "--target", server.grpc, *OUTPUTS)
    assert (done.returncode, 0 < summary(done)["resumed"] < 2000) == (0, True)
    assert output.read_bytes() == whole


def test_a_server_that_hangs(models, source, tmp_path):
    """SIGTERM ends a run at once, even while it waits for an answer."""
    output = tmp_path / "out.parquet"
    with start_server(models) as hanging:
        arguments = ("--model", "multi", "--target", hanging.grpc, "--timeout", 10 * SECONDS, *OUTPUTS)
        run = begun(source, output, *arguments)
        wait_until(lambda: shards_done(output) > 2, run)
        hanging.process.send_signal(signal.SIGSTOP)
        run.send_signal(signal.SIGTERM)
        assert run.wait(SECONDS) == 4  # less than --timeout
        hanging.process.send_signal(signal.SIGCONT)


def test_no_server(job, source, tmp_path):
    """Without a server a run stops; without the model it is refused at once."""
    with pytest.raises(Stopped, match=r"no answer for 0\.5 s"):
        score(replace(job(source, tmp_path / "out.parquet", "multi", patience=0.5), target=f"127.0.0.1:{free_port()}"))
    with pytest.raises(Refused, match="no model 'none'"):
        score(job(source, tmp_path / "out.parquet", "none"))


def test_a_server_that_comes_later(models, source, whole, tmp_path):
    """A run without a server reports that it waits, and begins when the server starts."""
    output, port = tmp_path / "out.parquet", free_port()
    arguments = (source, output, "--model", "multi", "--target", f"127.0.0.1:{port}", *OUTPUTS)
    with begun(*arguments, stderr=subprocess.PIPE) as run:
        assert run.stderr is not None
        first = run.stderr.readline()
        assert b'{"event": "waiting", "reason": "no answer, waiting 300 s (--patience): ' in first
        with start_server(models, "--grpc-port", port):
            _, said = run.communicate()
    assert run.returncode == 0, said
    assert output.read_bytes() == whole


def test_another_model_under_the_same_version(repository, models, source, tmp_path):
    """When a version's files are replaced, a run stops before it writes a row of the new model."""
    output, port = tmp_path / "out.parquet", free_port()
    arguments = (source, output, "--model", "multi", "--target", f"127.0.0.1:{port}", *OUTPUTS)
    with start_server(models, "--grpc-port", port) as first:
        run = begun(*arguments, stderr=subprocess.PIPE)
        wait_until(lambda: shards_done(output) > 2, run)
        kill(first)
    other = Path(shutil.copytree(repository / "self/1", tmp_path / "other/multi/1"))
    assert '"multi_head"' not in (other / "manifest.json").read_text()
    with start_server(tmp_path / "other", "--grpc-port", port):
        _, said = run.communicate()
        assert (run.returncode, b"is no longer what it was when the run began" in said) == (4, True), said
        done = scored(*arguments)
    assert not output.exists()
    assert (done.returncode, b"model manifest was" in done.stderr) == (1, True)


def test_a_version_that_goes(repository, source, tmp_path):
    """When the server drops the version, a run stops with status 4, since it can resume when the version is back."""
    output, port = tmp_path / "out.parquet", free_port()
    models = tmp_path / "models"
    shutil.copytree(repository / "multi", models / "multi")
    arguments = (source, output, "--model", "multi", "--target", f"127.0.0.1:{port}", *OUTPUTS)
    with start_server(models, "--grpc-port", port) as first:
        run = begun(*arguments, stderr=subprocess.PIPE)
        wait_until(lambda: shards_done(output) > 2, run)
        kill(first)
    (models / "multi/1").rename(models / "multi/2")
    with start_server(models, "--grpc-port", port):
        _, said = run.communicate()
    assert (run.returncode, b"what answered before is gone: " in said) == (4, True)


def test_a_full_server(models, source, whole, tmp_path):
    """A full server is asked again after the time that it names, and no row is lost."""
    with start_server(models, "--slots", 1, "--max-queued", 1) as narrow:
        names = [tmp_path / f"{i}.parquet" for i in range(2)]
        with ThreadPoolExecutor() as pool:
            arguments = ("--model", "multi", "--target", narrow.grpc, *OUTPUTS)
            runs = [pool.submit(scored, source, name, *arguments) for name in names]
            assert [run.result().returncode for run in runs] == [0, 0]
    assert [name.read_bytes() for name in names] == [whole] * 2


def test_several_replicas(models, server, source, whole, tmp_path):
    """Calls are balanced over several addresses, and the output has the same bytes."""
    with start_server(models) as second:
        before = answered(server)
        arguments = ("--model", "multi", "--target", f"{server.grpc},{second.grpc}", *OUTPUTS)
        assert scored(source, tmp_path / "out.parquet", *arguments).returncode == 0
        assert answered(second) > 0
        assert answered(server) - before + answered(second) == 2000  # sequences, of fewer requests
        assert answered(server) > before
    assert (tmp_path / "out.parquet").read_bytes() == whole


def test_the_engine_in_process(models, source, whole, tmp_path):
    """The local engine in the command's own process writes the same bytes."""
    arguments = ("--model", "multi", "--engine", "local", "--models", models, *OUTPUTS)
    done = scored(source, tmp_path / "out.parquet", *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.parquet").read_bytes() == whole
    bad = scored(source, tmp_path / "x.parquet", "--model", "multi", "--engine", "local", "--models", tmp_path)
    assert (bad.returncode, b"error: no model in " in bad.stderr) == (1, True)


def test_the_engine_in_process_loads_every_model(repository, tmp_path):
    """Variables that name a server's models do not limit the local engine, which loads the whole repository."""
    source = write_texts(tmp_path / "in.jsonl", 3)
    arguments = ("--model", "multi-head", "--engine", "local", "--models", repository)
    variables = {"ATTENTION_REPOSITORY_MODE": "explicit", "ATTENTION_LOAD_MODEL": "dot"}
    done = scored(source, tmp_path / "out.jsonl", *arguments, env=variables)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "out.jsonl")) == 3


@pytest.mark.parametrize("limits", [{"BATCH_ROWS": 1}, {"BATCH_ROWS": 7}, {"BATCH_BYTES": 1500}])
def test_answers_do_not_depend_on_packing(job, source, whole, tmp_path, monkeypatch, limits):
    """The answer of a row does not depend on the rows in its batch."""
    for name, value in limits.items():
        monkeypatch.setattr(f"attention_batch.scorer.{name}", value)
    outputs = [{"name": "output", "pool": "mean"}, {"name": "entropy", "pool": "mean"}]
    assert score(job(source, tmp_path / "out.parquet", "multi", outputs=outputs, shard_rows=20))[0] == 0
    assert (tmp_path / "out.parquet").read_bytes() == whole


def test_a_server_that_asks_who_calls(models, tmp_path):
    """The token of the command line is sent, and its rate limit waited for; without a token a run is refused."""
    source = write_vectors(tmp_path / "in.parquet", 600)
    token = new_token()
    (tmp_path / "tokens.toml").write_text(f'[batch]\nsha256 = "{digest_of(token)}"\nmax_in_flight = 2\n')
    with start_server(models, "--tokens", tmp_path / "tokens.toml") as guarded:
        arguments = (source, tmp_path / "out.parquet", "--model", "multi", "--target", guarded.grpc)
        refused = scored(*arguments)
        assert (refused.returncode, b"token" in refused.stderr) == (1, True)
        done = scored(*arguments, env={"ATTENTION_TOKEN": token})
        assert done.returncode == 0, done.stderr


def test_a_server_that_fails(job, tmp_path, monkeypatch):
    """A fault of the server fails no row: after three attempts the run stops, and names the request in its log."""
    attempts = []

    def fail(*_):
        attempts.append(1)
        raise InternalError("internal error", request_id="r-7")

    monkeypatch.setattr(engine_client.ClientEngine, "attend", fail)
    source = write_texts(tmp_path / "in.jsonl", 3)
    with pytest.raises(Stopped, match=r"its log says why: internal error \(request r-7\)"):
        score(job(source, tmp_path / "out.jsonl", "multi-head"))
    assert len(attempts) == 3
    assert not (tmp_path / "out.jsonl").exists()
    monkeypatch.undo()
    assert score(job(source, tmp_path / "out.jsonl", "multi-head"))[0] == 0
    assert len(rows_of(tmp_path / "out.jsonl")) == 3
