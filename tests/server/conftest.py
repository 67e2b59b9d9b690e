"""Fixtures of the core's tests: schedulers, and a repository that changes."""

import shutil

import pytest
from attention_server.scheduling.fair_queue import QueueLimits
from attention_server.scheduling.scheduler import Scheduler
from serving import HANG

from tests.server.jobs import Blocker, work


@pytest.fixture
def make():
    """Make schedulers that are closed in the end."""
    made = []

    def make(slots=1, max_queued=8, max_wait=60.0, max_bytes=1000, **options):
        made.append(Scheduler(slots, QueueLimits(max_queued, max_wait, max_bytes), **options))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.close()


@pytest.fixture
def busy(make):
    """A scheduler of one slot that a job holds; the clock can be set."""
    now = [0.0]
    scheduler = make(max_queued=3, clock=lambda: now[0])
    blocker = Blocker()
    future = scheduler.submit(work(blocker))
    assert blocker.started.wait(HANG)
    yield scheduler, blocker.release, now
    blocker.release.set()
    future.result(HANG)


@pytest.fixture
def models(repository, tmp_path):
    """A repository of its own, with version 1 of `multi`."""
    shutil.copytree(repository / "multi", tmp_path / "models/multi")
    return tmp_path / "models"


@pytest.fixture
def publish(repository, models, tmp_path):
    """Publish a version as the documents say: made whole aside, then renamed. `publish(2)`, `publish(2, spoil)`."""

    def publish(version, change=None, model="multi"):
        shutil.copytree(repository / model / "1", tmp_path / "aside")
        if change is not None:
            change(tmp_path / "aside")
        (models / model).mkdir(exist_ok=True)
        (tmp_path / "aside").rename(models / model / str(version))

    return publish
