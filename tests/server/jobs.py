"""Jobs of the scheduler's tests: functions as jobs, jobs that hold a slot, batches."""

import threading
from contextlib import contextmanager

from attention_server.errors import Stopping
from attention_server.scheduling.job import Job
from serving import HANG

FOREVER = float("inf")


def work(job, deadline=FOREVER, **about):
    """Return the work of calling a function."""
    return Job(None, lambda _: told([job()]), deadline, **about)


def told(answers):
    """Return a finalizer that gives these answers."""
    return lambda: answers


def submit(scheduler, job, deadline=FOREVER, *, bulk=False, **about):
    """Submit a function as a job, perhaps as one of many of a stream; return its future when it is in the queue."""
    wanted = work(job, deadline, **about)
    if not bulk:
        return scheduler.submit(wanted)
    admitted = threading.Event()
    future = scheduler.submit(wanted, admitted.set)
    assert admitted.wait(HANG)
    return future


def runs_in_a_slot(future):
    """Return whether a job that returns its thread ran in one of the slots' threads."""
    return future.result(HANG).name.startswith("slot-")


class Blocker:
    """A job that runs until it is released."""

    def __init__(self):
        self.started, self.release = threading.Event(), threading.Event()

    def __call__(self):
        self.started.set()
        assert self.release.wait(HANG)
        return threading.current_thread()


@contextmanager
def held(scheduler):
    """Hold every slot of a scheduler, until its `release` is set or the block ends."""
    blockers = [Blocker() for _ in range(scheduler.state().slots)]
    scheduler.release = threading.Event()
    for blocker in blockers:
        blocker.release = scheduler.release
    futures = [scheduler.submit(work(blocker)) for blocker in blockers]
    try:
        for blocker in blockers:
            assert blocker.started.wait(HANG)
        yield scheduler
    finally:
        scheduler.release.set()
        for future in futures:
            future.result(HANG)


def is_closed(scheduler):
    """Return whether a scheduler refuses jobs because it is stopping."""
    try:
        scheduler.submit(work(int)).cancel()
    except Stopping:
        return True
    return False


def together(batches):
    """Return a function that computes jobs together and records each batch."""

    def run(subjects):
        batches.append(list(subjects))
        return told([ValueError(each) if each == "bad" else each for each in subjects])

    return run
