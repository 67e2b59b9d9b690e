"""The scheduler's queue: its limits, and the turns of callers."""

import math
import threading
from functools import partial

import pytest
from attention_server.errors import Stopping, Unavailable
from attention_server.scheduling.fair_queue import PASS_BYTES, FairQueue, QueueLimits
from attention_server.scheduling.job import Job, QueueEntry, Share
from serving import HANG

from tests.server.jobs import held, submit, work

# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_wait_that_is_too_long(make):
    """A job with a predicted wait above the limit is refused, with a time to come back."""
    with held(make(max_wait=1.0)) as scheduler:
        submit(scheduler, int, cost=0.7)
        submit(scheduler, int, cost=0.7)  # waits 0.7 s
        with pytest.raises(Unavailable, match="full") as refused:
            submit(scheduler, int, cost=0.1)  # would wait 1.4 s
        assert refused.value.retry_after == pytest.approx(1.4)


def test_as_many_as_slots_wait_for_as_long_as_it_takes(make):
    """Where requests take longer than may be waited, one for each slot may wait all the same."""
    with held(make(max_wait=0.01)) as scheduler:
        submit(scheduler, int, cost=5.0)
        with pytest.raises(Unavailable):
            submit(scheduler, int, cost=0.1)


def test_what_takes_long_may_wait_long(make):
    """A long job may wait for twice its own time, beyond the limit of shorter jobs."""
    with held(make(max_wait=0.5)) as scheduler:
        submit(scheduler, int, cost=1.0)
        submit(scheduler, int, cost=0.5)
        with pytest.raises(Unavailable):
            submit(scheduler, int, cost=0.7)
        submit(scheduler, int, cost=0.8)


def test_bytes_that_wait(make):
    """A job that would exceed the queue's bytes is refused; a job above the whole bound may wait alone."""
    with held(make(max_bytes=100)) as scheduler:
        submit(scheduler, int, size=500).cancel()
        submit(scheduler, int, size=60)
        with pytest.raises(Unavailable, match="full"):
            submit(scheduler, int, size=41)
        submit(scheduler, int, size=40)


def test_a_deadline_that_cannot_be_met(make):
    """A job with a predicted answer after its deadline is refused at once; one with an earlier answer waits."""
    with held(make(clock=lambda: 100.0)) as scheduler:
        submit(scheduler, int, cost=2.0)
        with pytest.raises(Unavailable, match="after the deadline"):
            submit(scheduler, int, 103.5, cost=2.0)
        submit(scheduler, int, 104.5, cost=2.0)


@pytest.mark.parametrize(
    ("limits", "fitting"), [({"max_queued": 4}, 2), ({"max_wait": 0.4}, 3), ({"max_bytes": 40}, 2)], ids=str
)
def test_a_stream_waits_for_room_and_leaves_some(make, limits, fitting):
    """A bulk job waits while half of the queue is full, by any bound; and goes in when there is room."""
    with held(make(**limits)) as scheduler:
        about = {"cost": 0.1, "size": 10}
        for _ in range(fitting):
            submit(scheduler, int, bulk=True, **about)
        admitted = threading.Event()
        waiting = scheduler.submit(work(int, **about), admitted.set)
        single = submit(scheduler, int, **about)
        assert scheduler.state().queued == fitting + 1
        assert not admitted.is_set()
        scheduler.release.set()
        assert single.result(HANG) == 0
        assert waiting.result(HANG) == 0
        assert admitted.is_set()


def test_what_waits_for_room_is_told_of_the_end(make):
    """A job that waits for admission when the scheduler closes is refused with the reason."""
    scheduler = make(max_queued=2)
    with held(scheduler):
        submit(scheduler, int, bulk=True)
        admitted = threading.Event()
        waiting = scheduler.submit(work(int), admitted.set)
        assert not scheduler.close(0)
        assert admitted.is_set()
        with pytest.raises(Stopping):
            waiting.result(0)


def test_a_full_queue_refuses(make):
    """A job for which no thread waits is refused as any job is: the bounds and deadlines are the same."""
    with held(make(max_queued=2, clock=lambda: 100.0)) as scheduler:
        first = scheduler.submit(work(int, cost=2.0))
        with pytest.raises(Unavailable, match="after the deadline"):
            scheduler.submit(work(int, 103.5, cost=2.0))
        scheduler.submit(work(int))
        with pytest.raises(Unavailable, match="full"):
            scheduler.submit(work(int))
        scheduler.release.set()
        assert first.result(HANG) == 0


def test_room_that_was_given_up(make):
    """When every queued job is cancelled, a job that waits for admission is admitted and runs."""
    scheduler = make(max_queued=2)
    with held(scheduler):
        queued = [scheduler.submit(work(int)) for _ in range(2)]
        admitted = threading.Event()
        streamed = scheduler.submit(work(int), admitted.set)
        assert not admitted.is_set()
        for future in queued:
            assert future.cancel()
        scheduler.release.set()
    assert streamed.result(HANG) == 0


# --- callers ---------------------------------------------------------------------------------------------------------


def test_callers_take_turns(make):
    """A caller with many jobs waits behind a caller with few: of two callers each has every second turn."""
    ran = []
    with held(make(max_queued=20)) as scheduler:
        futures = [submit(scheduler, partial(ran.append, "greedy"), caller="greedy", cost=0.1) for _ in range(6)]
        futures += [submit(scheduler, partial(ran.append, "light"), caller="light", cost=0.1) for _ in range(2)]
        scheduler.release.set()
        for future in futures:
            future.result(HANG)
    assert ran == ["greedy", "light", "greedy", "light", "greedy", "greedy", "greedy", "greedy"]


def test_turns_are_as_long_as_the_work(make):
    """Callers share seconds, not requests: beside a caller with requests that take four times as long, four are
    answered."""
    ran = []
    with held(make(max_queued=20)) as scheduler:
        futures = [submit(scheduler, partial(ran.append, "long"), caller="a", cost=0.4) for _ in range(3)]
        futures += [submit(scheduler, partial(ran.append, "short"), caller="b", cost=0.1) for _ in range(8)]
        scheduler.release.set()
        for future in futures:
            future.result(HANG)
    assert ran[:10].count("short") in (7, 8)
    assert [i for i, each in enumerate(ran) if each == "long"][1] in (4, 5)


def test_the_greedy_make_room(make):
    """In a full queue the newest job of the caller with the most is refused, not the new one; until shares are even."""
    with held(make(max_queued=4)) as scheduler:
        greedy = [submit(scheduler, int, caller="greedy", cost=0.1) for _ in range(4)]
        light = [submit(scheduler, int, caller="light", cost=0.1) for _ in range(2)]
        for shed in greedy[2:]:
            with pytest.raises(Unavailable, match="most of what waits") as refused:
                shed.result(0)
            assert refused.value.retry_after > 0
        for caller in ("light", "greedy"):
            with pytest.raises(Unavailable, match="full"):
                submit(scheduler, int, caller=caller, cost=0.1)
        scheduler.release.set()
        assert [future.result(HANG) for future in (*greedy[:2], *light)] == [0] * 4


def test_streams_are_not_shed(make):
    """An admitted bulk job is never shed, however much its caller has in the queue."""
    with held(make(max_queued=4)) as scheduler:
        streamed = [submit(scheduler, int, caller="stream", cost=1.0, bulk=True) for _ in range(2)]
        for _ in range(2):
            submit(scheduler, int, caller="light", cost=0.1)
        with pytest.raises(Unavailable, match="full"):
            submit(scheduler, int, caller="another", cost=0.2)
        scheduler.release.set()
        assert [future.result(HANG) for future in streamed] == [0, 0]


def test_what_was_cancelled_costs_no_turn(make):
    """Jobs that were cancelled in the queue do not put the next job of the same caller behind."""
    ran = []
    with held(make(max_queued=4)) as scheduler:
        for _ in range(3):
            submit(scheduler, int, caller="a", cost=1.0).cancel()
        futures = [submit(scheduler, partial(ran.append, each), caller=each, cost=1.0) for each in ("b", "b", "a")]
        scheduler.release.set()
        for future in futures:
            future.result(HANG)
    assert ran == ["b", "a", "b"]


def test_a_cancelled_job_moves_up_its_own_caller_alone(make):
    """A job that was cancelled in the queue changes no turn of further callers."""
    ran = []
    with held(make(max_queued=8)) as scheduler:
        cancelled = submit(scheduler, int, caller="a", cost=1.0)
        turns = [("b", "b1"), ("b", "b2"), ("c", "c1"), ("a", "a2")]
        futures = [submit(scheduler, partial(ran.append, name), caller=caller, cost=0.5) for caller, name in turns]
        cancelled.cancel()
        scheduler.release.set()
        for future in futures:
            future.result(HANG)
    assert sorted(ran[:3]) == ["a2", "b1", "c1"]
    assert ran[3] == "b2"


def test_callers_who_have_gone_are_forgotten():
    """A queue that is never empty does not remember every caller that ever came: after many, old debts are forgiven."""
    queue = FairQueue(QueueLimits(8, 60.0, 1000), 1)

    def come_and_go(caller, cost):
        queue.push(QueueEntry(work(int, caller=caller, cost=cost)))
        (entry,) = queue.next_batch(0, 0.0)
        queue.take([entry])
        assert entry.caller == caller

    come_and_go("heavy", 100.0)
    for i in range(2000):
        come_and_go(str(i), 0.1)
    for caller in ("heavy", "light"):
        queue.push(QueueEntry(work(int, caller=caller, cost=0.1)))
    assert queue.first.caller == "heavy"  # it came first, and owes nothing any more


# --- passes of several entries ---------------------------------------------------------------------------------------


def alike(rows=1, cost=0.01, deadline=math.inf, size=0, caller=""):
    """Return an entry of a pass of 8 rows, of which each alone takes 1 s."""
    share = Share("pack", rows, 8, cost, size)
    return QueueEntry(Job(None, int, cost=1.0, caller=caller, deadline=deadline, share=share))


def shared(*entries, spare=0, now=0.0):
    """Return the places of the entries in the next pass."""
    queue = FairQueue(QueueLimits(64, 60.0, 1000), 1)
    for entry in entries:
        queue.push(entry)
    return [entries.index(entry) for entry in queue.next_batch(spare, now)]


def test_a_pass_ends_at_its_rows_and_bytes():
    """Entries of one key share a pass in their order, up to its rows and bytes; one beyond begins the next pass."""
    assert shared(alike(3), alike(3), alike(2), alike(1)) == [0, 1, 2]
    assert shared(alike(3), alike(6), alike(1)) == [0]  # the order holds: the third one does not overtake
    assert shared(alike(9), alike(1)) == [0]
    assert shared(*[alike(1, size=PASS_BYTES // 3) for _ in range(4)]) == [0, 1, 2]
    assert shared(QueueEntry(work(int)), alike(1), alike(1)) == [0]
    assert shared(alike(1), alike(1), alike(1), alike(1), spare=1) == [0, 1]  # the rest is for the free slot


def test_a_pass_ends_before_the_deadlines_of_its_entries():
    """An entry joins a pass only if this ends, as predicted, before the deadline of each; one that has expired ends."""
    assert shared(alike(deadline=1.05, cost=0.04), alike(cost=0.04), now=1.0) == [0]
    assert shared(alike(cost=0.04), alike(deadline=1.05, cost=0.04), alike(), now=1.0) == [0]
    assert shared(alike(deadline=1.1, cost=0.04), alike(cost=0.04), now=1.0) == [0, 1]
    assert shared(alike(cost=0.04), alike(deadline=0.5), alike(), now=1.0) == [0, 1, 2]


def test_a_caller_with_many_entries_does_not_hold_up_passes_of_others():
    """Of a caller with a thousand entries and one with a single one, the single one runs in the next pass but one."""
    queue = FairQueue(QueueLimits(2000, 1e6, 1000), 1)
    for _ in range(1000):
        queue.push(alike(caller="many"))
    queue.take(queue.next_batch(0, 0.0))
    queue.push(alike(caller="one"))
    queue.push(QueueEntry(work(int, caller="other", cost=1.0)))
    callers = []
    for _ in range(2):
        batch = queue.next_batch(0, 0.0)
        queue.take(batch)
        callers += [entry.caller for entry in batch]
    assert {"one", "other"} <= set(callers)


def test_an_entry_that_shares_a_pass_counts_for_less():
    """The first of its key is predicted to run alone; each further one adds to the pass what it costs there."""
    queue = FairQueue(QueueLimits(64, 60.0, 1000), 1)
    for _ in range(3):
        entry = alike()
        queue.price(entry)
        queue.push(entry)
    assert queue.seconds == pytest.approx(1.02)
    queue.take(queue.next_batch(0, 0.0))
    entry = alike()
    queue.price(entry)
    assert (len(queue), queue.seconds, entry.cost) == (0, pytest.approx(0), 1.0)
