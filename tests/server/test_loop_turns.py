"""Short jobs that an event loop computes between its callbacks."""

import asyncio
import threading
from functools import partial
from itertools import pairwise

import pytest
from attention_server.scheduling.job import Job, Share
from attention_server.scheduling.loop_turns import SHORT_SECONDS as SHORT
from attention_server.scheduling.loop_turns import TURN_SECONDS as TURN
from serving import HANG, wait_until

from tests.server.jobs import runs_in_a_slot, told, work


@pytest.fixture
def loop():
    """A loop that runs in a thread of its own."""
    running = asyncio.new_event_loop()
    thread = threading.Thread(target=running.run_forever)
    thread.start()
    running.do = lambda function, *args: asyncio.run_coroutine_threadsafe(_called(function, *args), running).result(
        HANG
    )
    yield running
    running.call_soon_threadsafe(running.stop)
    thread.join()
    running.close()


async def _called(function, *args):
    return function(*args)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_loop_computes_what_is_short(make, loop, slots):
    """The loop computes short jobs while no slot computes; a slot's thread computes long ones."""
    scheduler = make(slots=slots)
    loop.do(scheduler.attach, loop)
    here = loop.do(threading.current_thread)
    assert loop.do(scheduler.submit, work(threading.current_thread, cost=SHORT)).result(HANG) is here
    assert scheduler.submit(work(threading.current_thread, cost=SHORT)).result(HANG) is here
    assert runs_in_a_slot(loop.do(scheduler.submit, work(threading.current_thread, cost=1.1 * SHORT)))


def test_a_loop_answers_while_slots_compute(make, loop):
    """With several slots, jobs that arrive together run in the slots."""
    scheduler = make(slots=2)
    loop.do(scheduler.attach, loop)

    def several():
        return [scheduler.submit(work(threading.current_thread)) for _ in range(4)]

    assert all(map(runs_in_a_slot, loop.do(several)))


def test_a_loop_takes_turns(make, loop):
    """Between turns of short jobs the loop runs its further callbacks; and it takes those together that may run
    together."""
    scheduler = make(max_queued=100)
    loop.do(scheduler.attach, loop)
    ran = []

    def several():
        loop.call_soon(lambda: loop.call_soon(ran.append, "else"))
        return [scheduler.submit(work(partial(ran.append, i), cost=SHORT / 2)) for i in range(8)]

    for future in loop.do(several):
        future.result(HANG)
    assert ran.index("else") <= TURN / (SHORT / 2)
    alike = [Job(i, lambda these: told([len(these)] * len(these)), share=Share("alike", max_rows=8)) for i in range(5)]
    assert [each.result(HANG) for each in loop.do(lambda: [scheduler.submit(each) for each in alike])] == [5] * 5


def test_a_loop_never_computes_what_is_long(make, loop):
    """The loop computes for a short time only, with any jobs behind a cancelled short one or batched with it."""
    scheduler = make(max_queued=100)
    loop.do(scheduler.attach, loop)

    def given_up():
        short = scheduler.submit(work(int, cost=SHORT / 2))
        long = scheduler.submit(work(threading.current_thread, cost=1.0))
        short.cancel()
        return long

    assert runs_in_a_slot(loop.do(given_up))
    about = {"share": Share("alike", max_rows=8, cost=TURN / 7), "cost": SHORT / 2}
    alike = [Job(i, lambda these: told([threading.current_thread()] * len(these)), **about) for i in range(8)]
    assert all(map(runs_in_a_slot, loop.do(lambda: [scheduler.submit(each) for each in alike])))


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
        future.result(HANG)
    wait_until(lambda: turns[-1] == 100)
    assert max(after - before for before, after in pairwise(turns)) == most / (SHORT / 4)


def test_a_loop_tells_when_a_turn_is_computed(make, loop):
    """The results of a turn's jobs are set when all jobs of the turn are computed."""
    scheduler = make(max_queued=100)
    loop.do(scheduler.attach, loop)
    steps = []

    def job(i):
        def run(_):
            steps.append(("computed", i))
            return lambda: [steps.append(("told", i))]

        return Job(None, run, cost=SHORT / 4)

    for future in loop.do(lambda: [scheduler.submit(job(i)) for i in range(3)]):
        future.result(HANG)
    assert steps == [(step, i) for step in ("computed", "told") for i in range(3)]


def test_a_loop_that_is_gone(make, loop):
    """Jobs that wait for the loop when the scheduler closes run in the slots' threads."""
    scheduler = make()
    loop.do(scheduler.attach, loop)

    def submitted_and_closed():
        future = scheduler.submit(work(threading.current_thread))
        assert scheduler.close(HANG)
        return future

    assert runs_in_a_slot(loop.do(submitted_and_closed))
