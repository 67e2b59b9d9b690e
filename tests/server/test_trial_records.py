"""Results of trials that are kept: they spare the same trial, and count for nothing else."""

import shutil
import threading

import pytest
from attention_server.contexts.store import MemoryStore
from attention_server.repository import repository as module
from attention_server.repository import trial_records
from attention_server.repository.in_turn import in_turn
from attention_server.repository.loader import RepositoryError
from attention_server.repository.policy import Policy
from attention_server.repository.repository import Repository
from engines import ObservedEngine

from tests.server.lives import other_weights
from tests.server.spoil import flip_a_byte


@pytest.fixture
def load(models, tmp_path):
    """Load the repository anew; return the runs of graphs that this took, and the costs of `multi`."""

    def load(trials=None):
        runs = []
        policy = Policy(trial_records=tmp_path / "records")
        repository = Repository(models, ObservedEngine(runs.append), MemoryStore(1), policy, trials)
        repository.load()
        with repository.lease("multi") as model:
            return len(runs), model.costs

    return load


def test_the_same_version_is_tried_once(load, models):
    """A second load runs each graph to warm it alone, without another process, and has the costs that were measured."""
    first, measured = load()
    warm, found = load()
    assert warm < first
    assert found == measured
    assert load(trials=object())[0] == warm  # which cannot run a trial
    shutil.copytree(models / "multi", models / "copy")
    assert load()[0] == 2 * warm


def test_a_record_counts_for_its_own_bytes_program_and_machine(load, models, tmp_path, monkeypatch):
    """Other weights, another program or machine, and a damaged record lead to a new trial; a broken file is refused."""
    load()
    warm, _ = load()
    other_weights(models / "multi/1")
    assert load()[0] > warm
    (record, *_) = (tmp_path / "records").iterdir()
    for content in (b"", b"{}", record.read_bytes()[:40]):
        for each in (tmp_path / "records").iterdir():
            each.write_bytes(content)
        assert load()[0] > warm
        assert load()[0] == warm
    monkeypatch.setattr(trial_records, "_machine", lambda: ("another",))
    assert load()[0] > warm
    assert load()[0] == warm
    flip_a_byte(models / "multi/1")
    with pytest.raises(RepositoryError, match="SHA-256 differs"):
        load()


def test_a_folder_that_cannot_be_written_costs_a_line_of_the_log(load, tmp_path, capsys):
    """Without a place for records every start tries all versions."""
    (tmp_path / "records").write_text("a file")
    load()
    (tmp_path / "records").unlink()
    tried, _ = load()
    assert load()[0] < tried
    assert "the result of a trial cannot be kept" in capsys.readouterr().out


def test_versions_on_record_load_at_once(load, models, monkeypatch):
    """Two versions that were tried before open their graphs at the same time; untried ones do so one by one."""
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    shutil.copytree(models / "multi", models / "copy")
    other_weights(models / "copy/1")
    both, opened = threading.Barrier(2), threading.local()
    waits = [False]
    open_graph = ObservedEngine.open

    def observed(self, content):
        if waits[0] and not hasattr(opened, "one"):
            opened.one = True
            both.wait(60)  # breaks where the other version waits for this one
        return open_graph(self, content)

    monkeypatch.setattr(ObservedEngine, "open", observed)
    tried, _ = load()
    waits[0] = True
    assert load()[0] < tried
    assert not both.broken


def test_work_ahead_keeps_its_turn_and_bound():
    """Results come in order, an error in its turn, and no more work has begun than threads and results taken."""
    begun = []

    def work(number):
        begun.append(number)
        if number == 4:
            raise ValueError(number)
        return number

    results = in_turn(work, range(9), 2)
    for taken in range(4):
        assert next(results) == taken
        assert len(begun) <= taken + 3
    with pytest.raises(ValueError, match="4"):
        next(results)
