"""The scheduler alone: who runs when, in which thread, and what never runs."""

import gc
import threading
import weakref

import pytest
from attention_server.errors import DeadlineExceeded, Unavailable
from attention_server.scheduler import Scheduler

FOREVER = float("inf")


class Blocker:
    """A job that runs until it is released."""

    def __init__(self):
        self.started, self.release = threading.Event(), threading.Event()

    def __call__(self):
        self.started.set()
        assert self.release.wait(30)
        return threading.current_thread()


@pytest.fixture
def make():
    """Make schedulers that are closed in the end."""
    made = []

    def make(**options):
        made.append(Scheduler(**{"slots": 1, "max_queued": 8} | options))
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
    thread = threading.Thread(target=scheduler.submit, args=(blocker, FOREVER))
    thread.start()
    assert blocker.started.wait(30)
    yield scheduler, blocker.release, now
    blocker.release.set()
    thread.join()


def test_at_once_in_the_callers_thread(make):
    """While a slot is free a job runs in the thread that brings it, and is done when submit returns."""
    future = make().submit(threading.current_thread, FOREVER)
    assert future.done()
    assert future.result() is threading.current_thread()


def test_in_order(busy):
    """What waits runs in the order in which it came, in a thread of the slots."""
    scheduler, release, _ = busy
    ran = []
    futures = [scheduler.submit(lambda i=i: ran.append(i) or threading.current_thread(), FOREVER) for i in range(3)]
    assert not any(future.done() for future in futures)
    release.set()
    threads = [future.result(30) for future in futures]
    assert ran == [0, 1, 2]
    assert threading.current_thread() not in threads


def test_a_full_queue(busy):
    """Beyond the queue's length a job is refused, and runs neither then nor later."""
    scheduler, release, _ = busy
    futures = [scheduler.submit(int, FOREVER) for _ in range(3)]
    refused = threading.Event()
    with pytest.raises(Unavailable, match="full"):
        scheduler.submit(refused.set, FOREVER)
    release.set()
    assert [future.result(30) for future in futures] == [0, 0, 0]
    assert not refused.is_set()
    scheduler.close()


def test_cancelled_in_the_queue(busy):
    """A job cancelled while it waits never runs."""
    scheduler, release, _ = busy
    ran = threading.Event()
    future = scheduler.submit(ran.set, FOREVER)
    assert future.cancel()
    after = scheduler.submit(int, FOREVER)
    release.set()
    after.result(30)
    assert not ran.is_set()


def test_cancelled_jobs_make_room(busy):
    """A job whose caller has gone does not keep the queue full for others."""
    scheduler, _, _ = busy
    futures = [scheduler.submit(int, FOREVER) for _ in range(3)]
    futures[1].cancel()
    scheduler.submit(int, FOREVER)


def test_expired_in_the_queue(busy):
    """A job whose deadline passes while it waits never runs, and says why; a deadline not reached is no matter."""
    scheduler, release, now = busy
    ran = threading.Event()
    late, in_time = scheduler.submit(ran.set, 5.0), scheduler.submit(int, 7.0)
    now[0] = 6.0
    release.set()
    with pytest.raises(DeadlineExceeded):
        late.result(30)
    assert in_time.result(30) == 0
    assert not ran.is_set()


def test_expired_before_it_came(make):
    """A job that comes too late does not run, though a slot is free."""
    ran = threading.Event()
    future = make(clock=lambda: 10.0).submit(ran.set, 10.0)
    with pytest.raises(DeadlineExceeded):
        future.result(0)
    assert not ran.is_set()


def test_a_job_that_fails(make):
    """What a job raises belongs to its future; its slot is free again."""
    scheduler = make()

    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        scheduler.submit(fail, FOREVER).result(0)
    assert scheduler.submit(int, FOREVER).result(0) == 0


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_as_many_at_once_as_there_are_slots(make, slots):
    """Slots are how many run at once, however many come."""
    scheduler = make(slots=slots, max_queued=20)
    lock, running, most = threading.Lock(), 0, 0
    together = threading.Barrier(slots)

    def job():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(30)  # needs all slots at once
        with lock:
            running -= 1

    threads = [threading.Thread(target=lambda: scheduler.submit(job, FOREVER).result(30)) for _ in range(slots * 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == slots


def test_close_finishes_what_was_taken(busy):
    """Closing refuses what is new, and waits for what runs and what waits."""
    scheduler, release, _ = busy
    futures = [scheduler.submit(int, FOREVER) for _ in range(2)]
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    while not scheduler._closed:  # set at once
        threading.Event().wait(0.001)
    with pytest.raises(Unavailable, match="stopping"):
        scheduler.submit(int, FOREVER)
    assert closing.is_alive()
    release.set()
    closing.join(30)
    assert not closing.is_alive()
    assert [future.result(0) for future in futures] == [0, 0]


def test_close_twice(make):
    """Closing again does nothing, and no thread is left."""
    scheduler = make(slots=3)
    scheduler.close()
    scheduler.close()
    assert not any(thread.is_alive() for thread in scheduler._threads)


def test_nobody_overtakes_the_queue(make):
    """While somebody waits, a newcomer goes behind them, though the slot be free for a moment."""
    scheduler = make()
    stop, waited = threading.Event(), threading.Event()

    def greedy():
        while not stop.is_set():
            scheduler.submit(lambda: None, FOREVER).result(30)

    thread = threading.Thread(target=greedy)
    thread.start()
    try:
        for _ in range(20):
            scheduler.submit(waited.set, FOREVER).result(30)
            assert waited.is_set()
    finally:
        stop.set()
        thread.join()


def test_nothing_of_the_last_job_is_kept(make, busy):
    """A slot that waits for its next job does not hold the answer of the last one."""
    scheduler, release, _ = busy

    class Answer:
        pass

    future = scheduler.submit(Answer, FOREVER)
    release.set()
    kept = weakref.ref(future.result(30))
    del future
    scheduler.submit(lambda: None, FOREVER).result(30)
    scheduler.close()
    gc.collect()
    assert kept() is None
