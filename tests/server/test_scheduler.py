"""The scheduler: order, threads, batches, deadlines and cancellation of jobs."""

import gc
import threading
import weakref
from functools import partial

import pytest
from attention_server.errors import DeadlineExceeded, Unavailable
from attention_server.scheduling.job import Job, Share
from serving import HANG, wait_until

from tests.server.jobs import held, is_closed, runs_in_a_slot, submit, together, work


def test_in_a_slots_thread(make):
    """A job runs in a thread of the slots', whether it waited or not, as long as no loop is attached."""
    with held(make()) as scheduler:
        waited = [submit(scheduler, threading.current_thread, bulk=bulk) for bulk in (False, True)]
        scheduler.release.set()
        assert all(map(runs_in_a_slot, waited))
        assert runs_in_a_slot(submit(scheduler, threading.current_thread))


def test_cancelled_at_its_turn(make):
    """A job that is cancelled at the very moment in which its slot comes free loses no slot."""
    scheduler = make(slots=2, max_queued=8)
    for _ in range(300):
        futures = [scheduler.submit(work(int)) for _ in range(4)]
        for future in futures:
            future.cancel()
        for future in futures:
            assert future.cancelled() or future.result(HANG) == 0
    wait_until(lambda: scheduler.idle_slots == 2)
    assert submit(scheduler, int).result(HANG) == 0


def test_in_order(busy):
    """Queued jobs run in the order of arrival."""
    scheduler, release, _ = busy
    ran = []
    futures = [submit(scheduler, partial(ran.append, i)) for i in range(3)]
    assert not any(future.done() for future in futures)
    release.set()
    for future in futures:
        future.result(HANG)
    assert ran == [0, 1, 2]


def test_a_full_queue(busy):
    """Beyond the queue's length a job is refused, and runs neither then nor later."""
    scheduler, release, _ = busy
    futures = [submit(scheduler, int) for _ in range(3)]
    refused = threading.Event()
    with pytest.raises(Unavailable, match="full"):
        submit(scheduler, refused.set)
    release.set()
    assert [future.result(HANG) for future in futures] == [0, 0, 0]
    assert not refused.is_set()
    scheduler.close()


def test_cancelled_in_the_queue(busy):
    """A job cancelled while it waits never runs."""
    scheduler, release, _ = busy
    ran = threading.Event()
    future = submit(scheduler, ran.set)
    assert future.cancel()
    after = submit(scheduler, int)
    release.set()
    after.result(HANG)
    assert not ran.is_set()


def test_cancelled_jobs_make_room(busy):
    """A job of a caller that has left makes room in the queue."""
    scheduler, _, _ = busy
    futures = [submit(scheduler, int) for _ in range(3)]
    futures[1].cancel()
    submit(scheduler, int)


def test_expired_in_the_queue(busy):
    """A job with a deadline that passes in the queue never runs, and fails with the reason; a deadline not reached is
    no matter."""
    scheduler, release, now = busy
    ran = threading.Event()
    late, in_time = submit(scheduler, ran.set, 5.0), submit(scheduler, int, 7.0)
    now[0] = 6.0
    release.set()
    with pytest.raises(DeadlineExceeded):
        late.result(HANG)
    assert in_time.result(HANG) == 0
    assert not ran.is_set()


def test_expired_before_it_came(make):
    """A job that comes too late does not run, though a slot is free."""
    ran = threading.Event()
    with pytest.raises(DeadlineExceeded):
        submit(make(clock=lambda: 10.0), ran.set, 10.0).result(HANG)
    assert not ran.is_set()


def test_a_job_that_fails(make):
    """A job's exception belongs to its future; its slot is free again."""
    scheduler = make()

    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        submit(scheduler, fail).result(HANG)
    assert submit(scheduler, int).result(HANG) == 0


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
        together.wait(HANG)  # needs all slots at once
        with lock:
            running -= 1

    threads = [threading.Thread(target=lambda: submit(scheduler, job).result(HANG)) for _ in range(slots * 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert most == slots


def test_close_finishes_what_was_taken(busy):
    """Closing refuses new jobs, and waits for running and queued ones."""
    scheduler, release, _ = busy
    futures = [submit(scheduler, int) for _ in range(2)]
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    wait_until(lambda: is_closed(scheduler))
    assert closing.is_alive()
    release.set()
    closing.join(HANG)
    assert not closing.is_alive()
    assert [future.result(HANG) for future in futures] == [0, 0]


def test_close_twice(make):
    """Closing again does nothing, and no thread is left."""
    before = set(threading.enumerate())
    scheduler = make(slots=3)
    scheduler.close()
    scheduler.close()
    assert set(threading.enumerate()) <= before


def test_nobody_overtakes_the_queue(make):
    """While a job waits, a new one goes behind it, even if a slot is free for a moment."""
    scheduler = make()
    stop, waited = threading.Event(), threading.Event()

    def greedy():
        while not stop.is_set():
            submit(scheduler, lambda: None).result(HANG)

    thread = threading.Thread(target=greedy)
    thread.start()
    try:
        for _ in range(20):
            submit(scheduler, waited.set).result(HANG)
            assert waited.is_set()
    finally:
        stop.set()
        thread.join()


def test_nothing_of_the_last_job_is_kept(make, busy):
    """A slot that waits for its next job does not hold the answer of the last one."""
    scheduler, release, _ = busy

    class Answer:
        pass

    future = submit(scheduler, Answer, bulk=True)
    release.set()
    kept = weakref.ref(future.result(HANG))
    del future
    submit(scheduler, lambda: None).result(HANG)
    scheduler.close()
    gc.collect()
    assert kept() is None


# --- batches ---------------------------------------------------------------------------------------------------------


def test_one_kind_runs_together(make):
    """Works of one kind run together, as many as may; others alone. Each future has its own answer, or error."""
    batches = []
    run = together(batches)
    with held(make(max_queued=20)) as scheduler:
        one, two = Share(1, max_rows=3), Share(2, max_rows=3)
        shares = [("a", one), ("b", None), ("c", one), ("bad", one), ("d", two), ("e", one)]
        futures = {each: scheduler.submit(Job(each, run, share=share)) for each, share in shares}
        scheduler.release.set()
        for name, future in futures.items():
            if name == "bad":
                with pytest.raises(ValueError, match="bad"):
                    future.result(HANG)
            else:
                assert future.result(HANG) == name
    assert batches == [["a", "c", "bad"], ["b"], ["d"], ["e"]]


def test_an_answer_that_cannot_be_given(make):
    """Where the arithmetic was done and the answers cannot be put together, each future has the error."""

    def run(subjects):
        return lambda: 1 / 0

    with held(make(max_queued=20)) as scheduler:
        futures = [scheduler.submit(Job(each, run, share=Share(1, max_rows=2))) for each in "ab"]
        scheduler.release.set()
        for future in futures:
            with pytest.raises(ZeroDivisionError):
                future.result(HANG)
    assert submit(scheduler, int).result(HANG) == 0


def test_what_is_gone_is_not_run_together(make):
    """Of works that run together, those that were cancelled or have expired are left out."""
    batches, now = [], [0.0]
    run = together(batches)
    with held(make(clock=lambda: now[0])) as scheduler:
        works = [
            Job(each, run, deadline, share=Share(1, max_rows=8))
            for each, deadline in zip("abcd", (9, 1, 9, 9), strict=True)
        ]
        futures = [scheduler.submit(each) for each in works]
        futures[2].cancel()
        now[0] = 2.0
        scheduler.release.set()
        assert (futures[0].result(HANG), futures[3].result(HANG)) == ("a", "d")
        with pytest.raises(DeadlineExceeded):
            futures[1].result(HANG)
    assert batches == [["a", "d"]]


# --- idle slots ------------------------------------------------------------------------------------------------------


def test_a_job_that_is_alone_has_all_slots(make):
    """A mapped job runs in as many slots as are free, and its results are in order."""
    scheduler = make(slots=3)
    together_at_once = threading.Barrier(3)

    def each(item):
        together_at_once.wait(HANG)
        return item * 2

    assert submit(scheduler, lambda: scheduler.map(each, [1, 2, 3])).result(HANG) == [2, 4, 6]
    assert scheduler.idle_slots == 3


def test_a_job_that_is_not_alone_has_one_slot(make):
    """While further jobs wait, a mapped job runs in its own slot, item by item."""
    with held(make(slots=1)) as scheduler:
        threads = submit(scheduler, lambda: scheduler.map(lambda _: threading.get_ident(), range(5)))
        scheduler.release.set()
        assert len(set(threads.result(HANG))) == 1


def test_a_job_that_is_alone_while_the_server_stops(make):
    """A job that runs while the scheduler closes ends by itself, and the closing with it."""
    scheduler = make(slots=2)
    begun, closing = threading.Event(), threading.Event()

    def job():
        begun.set()
        assert closing.wait(HANG)
        return scheduler.map(lambda item: item, range(50))

    future = []
    runner = threading.Thread(target=lambda: future.append(submit(scheduler, job)))
    runner.start()
    assert begun.wait(HANG)
    closer = threading.Thread(target=scheduler.close)
    closer.start()
    wait_until(lambda: is_closed(scheduler))
    closing.set()
    runner.join(HANG)
    closer.join(HANG)
    assert not closer.is_alive()
    assert future[0].result(HANG) == list(range(50))


def test_a_part_that_fails(make):
    """An item's exception is the job's; the slots are free again."""
    scheduler = make(slots=2)

    def each(item):
        raise KeyError(item)

    with pytest.raises(KeyError):
        submit(scheduler, lambda: scheduler.map(each, range(4))).result(HANG)
    wait_until(lambda: scheduler.idle_slots == 2)


def test_no_part_outlives_its_job(make):
    """When one part fails, the job ends after all parts that have begun."""
    scheduler = make(slots=3)
    for _ in range(20):  # which slot fails is a matter of chance
        begun, ended = threading.Barrier(3), threading.Event()

        def each(item, begun=begun, ended=ended):
            begun.wait(HANG)
            if item == "fails":
                raise KeyError(item)
            if item == "slow":
                threading.Event().wait(0.01)
                ended.set()

        with pytest.raises(KeyError):
            submit(scheduler, lambda each=each: scheduler.map(each, ["quick", "fails", "slow"])).result(HANG)
        assert ended.is_set()
