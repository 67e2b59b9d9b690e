"""The scheduler alone: who runs when, in which thread, and what never runs."""

import asyncio
import gc
import threading
import weakref
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import pytest
from attention_server.errors import DeadlineExceeded, Stopping, Unavailable
from attention_server.scheduling.fair_queue import FairQueue, QueueLimits
from attention_server.scheduling.job import Job, QueueEntry
from attention_server.scheduling.loop_turns import SHORT_SECONDS as SHORT
from attention_server.scheduling.loop_turns import TURN_SECONDS as TURN
from attention_server.scheduling.scheduler import Scheduler
from serving import wait_until

FOREVER = float("inf")


def work(job, deadline=FOREVER, **about):
    """Return the work of calling a function."""
    return Job(None, lambda _: told([job()]), deadline, **about)


def told(answers):
    """Return what gives answers, when all of a turn are computed."""
    return lambda: answers


def submit(scheduler, job, deadline=FOREVER, *, bulk=False, **about):
    """Submit a function as a job, perhaps as one of many of a stream; return its future when it is in the queue."""
    wanted = work(job, deadline, **about)
    if not bulk:
        return scheduler.submit(wanted)
    admitted = threading.Event()
    future = scheduler.submit(wanted, admitted.set)
    assert admitted.wait(30)
    return future


def runs_in_a_slot(future):
    """Return whether a job that returns its thread ran in one of the slots' threads."""
    return future.result(30).name.startswith("slot-")


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

    def make(slots=1, max_queued=8, max_wait=60.0, max_bytes=1000, **options):
        made.append(Scheduler(slots, QueueLimits(max_queued, max_wait, max_bytes), **options))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.close()


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
            assert blocker.started.wait(30)
        yield scheduler
    finally:
        scheduler.release.set()
        for future in futures:
            future.result(30)


@pytest.fixture
def busy(make):
    """A scheduler of one slot that a job holds; the clock can be set."""
    now = [0.0]
    scheduler = make(max_queued=3, clock=lambda: now[0])
    blocker = Blocker()
    future = scheduler.submit(work(blocker))
    assert blocker.started.wait(30)
    yield scheduler, blocker.release, now
    blocker.release.set()
    future.result(30)


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
            assert future.cancelled() or future.result(30) == 0
    wait_until(lambda: scheduler.idle_slots == 2)
    assert submit(scheduler, int).result(30) == 0


def test_in_order(busy):
    """What waits runs in the order in which it came."""
    scheduler, release, _ = busy
    ran = []
    futures = [submit(scheduler, partial(ran.append, i)) for i in range(3)]
    assert not any(future.done() for future in futures)
    release.set()
    for future in futures:
        future.result(30)
    assert ran == [0, 1, 2]


def test_a_full_queue(busy):
    """Beyond the queue's length a job is refused, and runs neither then nor later."""
    scheduler, release, _ = busy
    futures = [submit(scheduler, int) for _ in range(3)]
    refused = threading.Event()
    with pytest.raises(Unavailable, match="full"):
        submit(scheduler, refused.set)
    release.set()
    assert [future.result(30) for future in futures] == [0, 0, 0]
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
    after.result(30)
    assert not ran.is_set()


def test_cancelled_jobs_make_room(busy):
    """A job whose caller has gone does not keep the queue full for others."""
    scheduler, _, _ = busy
    futures = [submit(scheduler, int) for _ in range(3)]
    futures[1].cancel()
    submit(scheduler, int)


def test_expired_in_the_queue(busy):
    """A job whose deadline passes while it waits never runs, and says why; a deadline not reached is no matter."""
    scheduler, release, now = busy
    ran = threading.Event()
    late, in_time = submit(scheduler, ran.set, 5.0), submit(scheduler, int, 7.0)
    now[0] = 6.0
    release.set()
    with pytest.raises(DeadlineExceeded):
        late.result(30)
    assert in_time.result(30) == 0
    assert not ran.is_set()


def test_expired_before_it_came(make):
    """A job that comes too late does not run, though a slot is free."""
    ran = threading.Event()
    with pytest.raises(DeadlineExceeded):
        submit(make(clock=lambda: 10.0), ran.set, 10.0).result(30)
    assert not ran.is_set()


def test_a_job_that_fails(make):
    """What a job raises belongs to its future; its slot is free again."""
    scheduler = make()

    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        submit(scheduler, fail).result(30)
    assert submit(scheduler, int).result(30) == 0


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

    threads = [threading.Thread(target=lambda: submit(scheduler, job).result(30)) for _ in range(slots * 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == slots


def is_closed(scheduler):
    """Return whether a scheduler refuses jobs because it is stopping."""
    try:
        scheduler.submit(work(int)).cancel()
    except Stopping:
        return True
    return False


def test_close_finishes_what_was_taken(busy):
    """Closing refuses what is new, and waits for what runs and what waits."""
    scheduler, release, _ = busy
    futures = [submit(scheduler, int) for _ in range(2)]
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    wait_until(lambda: is_closed(scheduler))
    assert closing.is_alive()
    release.set()
    closing.join(30)
    assert not closing.is_alive()
    assert [future.result(30) for future in futures] == [0, 0]


def test_close_twice(make):
    """Closing again does nothing, and no thread is left."""
    before = set(threading.enumerate())
    scheduler = make(slots=3)
    scheduler.close()
    scheduler.close()
    assert set(threading.enumerate()) <= before


def test_nobody_overtakes_the_queue(make):
    """While somebody waits, a newcomer goes behind them, though the slot be free for a moment."""
    scheduler = make()
    stop, waited = threading.Event(), threading.Event()

    def greedy():
        while not stop.is_set():
            submit(scheduler, lambda: None).result(30)

    thread = threading.Thread(target=greedy)
    thread.start()
    try:
        for _ in range(20):
            submit(scheduler, waited.set).result(30)
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
    kept = weakref.ref(future.result(30))
    del future
    submit(scheduler, lambda: None).result(30)
    scheduler.close()
    gc.collect()
    assert kept() is None


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_a_wait_that_is_too_long(make):
    """What would wait longer than may be waited, by what is predicted, is refused, and told when to come back."""
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
    """A job may wait for twice as long as it takes itself, though that is more than others may."""
    with held(make(max_wait=0.5)) as scheduler:
        submit(scheduler, int, cost=1.0)
        submit(scheduler, int, cost=0.5)
        with pytest.raises(Unavailable):
            submit(scheduler, int, cost=0.7)
        submit(scheduler, int, cost=0.8)


def test_bytes_that_wait(make):
    """What would make the queue hold too many bytes is refused; what is larger than all of it may wait alone."""
    with held(make(max_bytes=100)) as scheduler:
        submit(scheduler, int, size=500).cancel()
        submit(scheduler, int, size=60)
        with pytest.raises(Unavailable, match="full"):
            submit(scheduler, int, size=41)
        submit(scheduler, int, size=40)


def test_a_deadline_that_cannot_be_met(make):
    """What would be answered after its deadline, as predicted, is refused at once; what would be before, waits."""
    with held(make(clock=lambda: 100.0)) as scheduler:
        submit(scheduler, int, cost=2.0)
        with pytest.raises(Unavailable, match="after the deadline"):
            submit(scheduler, int, 103.5, cost=2.0)
        submit(scheduler, int, 104.5, cost=2.0)


@pytest.mark.parametrize(
    ("limits", "fitting"), [({"max_queued": 4}, 2), ({"max_wait": 0.4}, 3), ({"max_bytes": 40}, 2)], ids=str
)
def test_a_stream_waits_for_room_and_leaves_some(make, limits, fitting):
    """What is one of many waits while half of the queue is full, by whichever bound; and goes in when there is room."""
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
        assert single.result(30) == 0
        assert waiting.result(30) == 0
        assert admitted.is_set()


def test_what_waits_for_room_is_told_of_the_end(make):
    """Who waits to be let in when the scheduler closes is let go, and learns why."""
    scheduler = make(max_queued=2)
    with held(scheduler):
        submit(scheduler, int, bulk=True)
        admitted = threading.Event()
        waiting = scheduler.submit(work(int), admitted.set)
        assert not scheduler.close(0)
        assert admitted.is_set()
        with pytest.raises(Stopping):
            waiting.result(0)


# --- a loop ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def loop():
    """A loop that runs in a thread of its own."""
    running = asyncio.new_event_loop()
    thread = threading.Thread(target=running.run_forever)
    thread.start()
    running.do = lambda function, *args: asyncio.run_coroutine_threadsafe(_called(function, *args), running).result(30)
    yield running
    running.call_soon_threadsafe(running.stop)
    thread.join()
    running.close()


async def _called(function, *args):
    return function(*args)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_loop_computes_what_is_short(make, loop, slots):
    """What is short a loop computes itself, while nothing else does; what takes longer, a thread of the slots'."""
    scheduler = make(slots=slots)
    loop.do(scheduler.attach, loop)
    here = loop.do(threading.current_thread)
    assert loop.do(scheduler.submit, work(threading.current_thread, cost=SHORT)).result(30) is here
    assert scheduler.submit(work(threading.current_thread, cost=SHORT)).result(30) is here
    assert runs_in_a_slot(loop.do(scheduler.submit, work(threading.current_thread, cost=1.1 * SHORT)))


def test_a_loop_answers_while_slots_compute(make, loop):
    """Where there are several slots, what comes together is theirs."""
    scheduler = make(slots=2)
    loop.do(scheduler.attach, loop)

    def several():
        return [scheduler.submit(work(threading.current_thread)) for _ in range(4)]

    assert all(map(runs_in_a_slot, loop.do(several)))


def test_a_loop_takes_turns(make, loop):
    """Between short jobs the loop does what else there is to do; and it takes those together that may run together."""
    scheduler = make(max_queued=100)
    loop.do(scheduler.attach, loop)
    ran = []

    def several():
        loop.call_soon(lambda: loop.call_soon(ran.append, "else"))
        return [scheduler.submit(work(partial(ran.append, i), cost=SHORT / 2)) for i in range(8)]

    for future in loop.do(several):
        future.result(30)
    assert ran.index("else") <= TURN / (SHORT / 2)
    alike = [Job(i, lambda these: told([len(these)] * len(these)), batch_key="alike", max_batch=8) for i in range(5)]
    assert [each.result(30) for each in loop.do(lambda: [scheduler.submit(each) for each in alike])] == [5] * 5


def test_a_loop_never_computes_what_is_long(make, loop):
    """Whatever stands behind a short job that is given up, or runs with it, the loop computes for a short time."""
    scheduler = make(max_queued=100)
    loop.do(scheduler.attach, loop)

    def given_up():
        short = scheduler.submit(work(int, cost=SHORT / 2))
        long = scheduler.submit(work(threading.current_thread, cost=1.0))
        short.cancel()
        return long

    assert runs_in_a_slot(loop.do(given_up))
    about = {"batch_key": "alike", "max_batch": 8, "cost": SHORT / 2}
    alike = [Job(i, lambda these: told([len(these)] * len(these)), **about) for i in range(8)]
    together = [each.result(30) for each in loop.do(lambda: [scheduler.submit(each) for each in alike])]
    assert max(together) == TURN / (SHORT / 2)


@pytest.mark.parametrize(("closed", "most"), [(False, TURN), (True, SHORT)])
def test_a_loop_computes_once_a_turn(make, loop, closed, most):
    """However many jobs wait, a turn of the loop computes those of a short time; shorter where many are refused."""
    scheduler = make(max_queued=200)
    if closed:
        scheduler.admission.trip()
    loop.do(scheduler.attach, loop)
    ran, turns = [], []

    def turn():
        turns.append(len(ran))
        if len(ran) < 100:
            loop.call_soon(turn)

    def several():
        turn()
        return [scheduler.submit(work(partial(ran.append, i), cost=SHORT / 4), int) for i in range(100)]

    for future in loop.do(several):
        future.result(30)
    wait_until(lambda: turns[-1] == 100)
    assert max(after - before for before, after in pairwise(turns)) == most / (SHORT / 4)


def test_a_loop_tells_when_a_turn_is_computed(make, loop):
    """What comes of the jobs of a turn is told when all of them are computed."""
    scheduler = make(max_queued=100)
    loop.do(scheduler.attach, loop)
    steps = []

    def job(i):
        def run(_):
            steps.append(("computed", i))
            return lambda: [steps.append(("told", i))]

        return Job(None, run, cost=SHORT / 4)

    for future in loop.do(lambda: [scheduler.submit(job(i)) for i in range(3)]):
        future.result(30)
    assert steps == [(step, i) for step in ("computed", "told") for i in range(3)]


def test_a_loop_that_is_gone(make, loop):
    """What a loop was to compute when the scheduler closes, threads compute."""
    scheduler = make()
    loop.do(scheduler.attach, loop)

    def submitted_and_closed():
        future = scheduler.submit(work(threading.current_thread))
        assert scheduler.close(30)
        return future

    assert runs_in_a_slot(loop.do(submitted_and_closed))


def test_a_full_queue_refuses(make):
    """What nobody waits for in a thread is refused as other work is: the bounds and deadlines are the same."""
    with held(make(max_queued=2, clock=lambda: 100.0)) as scheduler:
        first = scheduler.submit(work(int, cost=2.0))
        with pytest.raises(Unavailable, match="after the deadline"):
            scheduler.submit(work(int, 103.5, cost=2.0))
        scheduler.submit(work(int))
        with pytest.raises(Unavailable, match="full"):
            scheduler.submit(work(int))
        scheduler.release.set()
        assert first.result(30) == 0


# --- callers ---------------------------------------------------------------------------------------------------------


def test_callers_take_turns(make):
    """Who sends much is behind who sends little: of two callers each has every second turn."""
    ran = []
    with held(make(max_queued=20)) as scheduler:
        futures = [submit(scheduler, partial(ran.append, "greedy"), caller="greedy", cost=0.1) for _ in range(6)]
        futures += [submit(scheduler, partial(ran.append, "light"), caller="light", cost=0.1) for _ in range(2)]
        scheduler.release.set()
        for future in futures:
            future.result(30)
    assert ran == ["greedy", "light", "greedy", "light", "greedy", "greedy", "greedy", "greedy"]


def test_turns_are_as_long_as_the_work(make):
    """Callers share seconds, not requests: beside one whose requests take four times as long, four are answered."""
    ran = []
    with held(make(max_queued=20)) as scheduler:
        futures = [submit(scheduler, partial(ran.append, "long"), caller="a", cost=0.4) for _ in range(3)]
        futures += [submit(scheduler, partial(ran.append, "short"), caller="b", cost=0.1) for _ in range(8)]
        scheduler.release.set()
        for future in futures:
            future.result(30)
    assert ran[:10].count("short") in (7, 8)
    assert [i for i, each in enumerate(ran) if each == "long"][1] in (4, 5)


def test_the_greedy_make_room(make):
    """In a full queue the newest of the caller who has most goes, not the newcomer; until shares are even."""
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
        assert [future.result(30) for future in (*greedy[:2], *light)] == [0] * 4


def test_streams_are_not_shed(make):
    """What waited to be let in stays in, however much its caller has in the queue."""
    with held(make(max_queued=4)) as scheduler:
        streamed = [submit(scheduler, int, caller="stream", cost=1.0, bulk=True) for _ in range(2)]
        for _ in range(2):
            submit(scheduler, int, caller="light", cost=0.1)
        with pytest.raises(Unavailable, match="full"):
            submit(scheduler, int, caller="another", cost=0.2)
        scheduler.release.set()
        assert [future.result(30) for future in streamed] == [0, 0]


def test_what_was_cancelled_costs_no_turn(make):
    """Jobs that were cancelled in the queue do not put their caller's next one behind."""
    ran = []
    with held(make(max_queued=4)) as scheduler:
        for _ in range(3):
            submit(scheduler, int, caller="a", cost=1.0).cancel()
        futures = [submit(scheduler, partial(ran.append, each), caller=each, cost=1.0) for each in ("b", "b", "a")]
        scheduler.release.set()
        for future in futures:
            future.result(30)
    assert ran == ["b", "a", "b"]


def test_callers_who_have_gone_are_forgotten():
    """A queue that is never empty does not remember everyone who ever called: after many, old debts are forgiven."""
    queue = FairQueue(QueueLimits(8, 60.0, 1000), 1)

    def come_and_go(caller, cost):
        queue.push(QueueEntry(work(int, caller=caller, cost=cost)))
        (entry,) = queue.pop(0)
        assert entry.caller == caller

    come_and_go("heavy", 100.0)
    for i in range(2000):
        come_and_go(str(i), 0.1)
    for caller in ("heavy", "light"):
        queue.push(QueueEntry(work(int, caller=caller, cost=0.1)))
    assert queue.first.caller == "heavy"  # it came first, and owes nothing any more


# --- together --------------------------------------------------------------------------------------------------------


def together(batches):
    """Return what runs works together, and takes note of which."""

    def run(subjects):
        batches.append(list(subjects))
        return told([ValueError(each) if each == "bad" else each for each in subjects])

    return run


def test_one_kind_runs_together(make):
    """Works of one kind run together, as many as may; others alone. Each future has its own answer, or error."""
    batches = []
    run = together(batches)
    with held(make(max_queued=20)) as scheduler:
        kinds = [("a", 1), ("b", None), ("c", 1), ("bad", 1), ("d", 2), ("e", 1)]
        futures = {each: scheduler.submit(Job(each, run, batch_key=kind, max_batch=3)) for each, kind in kinds}
        scheduler.release.set()
        for name, future in futures.items():
            if name == "bad":
                with pytest.raises(ValueError, match="bad"):
                    future.result(30)
            else:
                assert future.result(30) == name
    assert batches == [["a", "c", "bad"], ["b"], ["d"], ["e"]]


def test_an_answer_that_cannot_be_given(make):
    """Where the arithmetic was done and the answers cannot be put together, each future has the error."""

    def run(subjects):
        return lambda: 1 / 0

    with held(make(max_queued=20)) as scheduler:
        futures = [scheduler.submit(Job(each, run, batch_key=1, max_batch=2)) for each in "ab"]
        scheduler.release.set()
        for future in futures:
            with pytest.raises(ZeroDivisionError):
                future.result(30)
    assert submit(scheduler, int).result(30) == 0


def test_room_that_was_given_up(make):
    """When all that waits is given up, who waits for room is let in, and runs."""
    scheduler = make(max_queued=2)
    with held(scheduler):
        queued = [scheduler.submit(work(int)) for _ in range(2)]
        admitted = threading.Event()
        streamed = scheduler.submit(work(int), admitted.set)
        assert not admitted.is_set()
        for future in queued:
            assert future.cancel()
        scheduler.release.set()
    assert streamed.result(30) == 0


def test_what_is_gone_is_not_run_together(make):
    """Of works that run together, those that were cancelled or have expired are left out."""
    batches, now = [], [0.0]
    run = together(batches)
    with held(make(clock=lambda: now[0])) as scheduler:
        works = [
            Job(each, run, deadline, batch_key=1, max_batch=8)
            for each, deadline in zip("abcd", (9, 1, 9, 9), strict=True)
        ]
        futures = [scheduler.submit(each) for each in works]
        futures[2].cancel()
        now[0] = 2.0
        scheduler.release.set()
        assert (futures[0].result(30), futures[3].result(30)) == ("a", "d")
        with pytest.raises(DeadlineExceeded):
            futures[1].result(30)
    assert batches == [["a", "d"]]


# --- alone -----------------------------------------------------------------------------------------------------------


def test_a_job_that_is_alone_has_all_slots(make):
    """What a job spreads is done in as many slots as are free, and in order for who reads it."""
    scheduler = make(slots=3)
    together_at_once = threading.Barrier(3)

    def each(item):
        together_at_once.wait(30)
        return item * 2

    assert submit(scheduler, lambda: scheduler.map(each, [1, 2, 3])).result(30) == [2, 4, 6]
    assert scheduler.idle_slots == 3


def test_a_job_that_is_not_alone_has_one_slot(make):
    """While others wait, what a job spreads is done in its own slot, one after the other."""
    with held(make(slots=1)) as scheduler:
        threads = submit(scheduler, lambda: scheduler.map(lambda _: threading.get_ident(), range(5)))
        scheduler.release.set()
        assert len(set(threads.result(30))) == 1


def test_a_job_that_is_alone_while_the_server_stops(make):
    """A job that runs while the scheduler closes ends by itself, and the closing with it."""
    scheduler = make(slots=2)
    begun, closing = threading.Event(), threading.Event()

    def job():
        begun.set()
        assert closing.wait(30)
        return scheduler.map(lambda item: item, range(50))

    future = []
    runner = threading.Thread(target=lambda: future.append(submit(scheduler, job)))
    runner.start()
    assert begun.wait(30)
    closer = threading.Thread(target=scheduler.close)
    closer.start()
    wait_until(lambda: is_closed(scheduler))
    closing.set()
    runner.join(30)
    closer.join(30)
    assert not closer.is_alive()
    assert future[0].result(30) == list(range(50))


def test_a_part_that_fails(make):
    """What a part raises is the job's; the slots are free again."""
    scheduler = make(slots=2)

    def each(item):
        raise KeyError(item)

    with pytest.raises(KeyError):
        submit(scheduler, lambda: scheduler.map(each, range(4))).result(30)
    wait_until(lambda: scheduler.idle_slots == 2)
