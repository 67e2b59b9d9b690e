"""A future: settled once, given up only before it begins, told to whoever asks in time or late."""

import contextlib
import gc
import threading
import weakref
from concurrent.futures import CancelledError, InvalidStateError

import pytest
from attention_server.scheduling.future import Future
from serving import HANG


def test_an_answer():
    """A callback that was added before runs when the future is settled, a later one at once; a thread may wait."""
    outcome, told = Future(), []
    outcome.add_done_callback(told.append)
    assert outcome.set_running_or_notify_cancel()
    assert not outcome.done()
    with pytest.raises(TimeoutError):
        outcome.result(0.01)
    threading.Timer(0.05, outcome.set_result, [7]).start()
    assert outcome.result(HANG) == 7
    assert outcome.exception() is None
    outcome.add_done_callback(told.append)
    assert told == [outcome, outcome]


def test_an_error():
    """`result` raises the error, each time."""
    outcome = Future()
    outcome.set_exception(KeyError("x"))
    for _ in range(2):
        with pytest.raises(KeyError):
            outcome.result(0)
    assert isinstance(outcome.exception(0), KeyError)


def test_given_up():
    """A cancelled future never begins; a running one cannot be cancelled."""
    outcome, told = Future(), []
    outcome.add_done_callback(told.append)
    assert outcome.cancel()
    assert outcome.cancel()
    assert outcome.cancelled()
    assert not outcome.set_running_or_notify_cancel()
    assert told == [outcome]
    with pytest.raises(CancelledError):
        outcome.result(0)
    begun = Future()
    assert begun.set_running_or_notify_cancel()
    assert not begun.cancel()
    begun.set_result(1)
    assert not begun.cancel()
    assert begun.result(0) == 1


def test_one_who_fails_to_be_told():
    """The further callbacks run all the same."""
    outcome, told = Future(), []
    outcome.add_done_callback(lambda _: 1 / 0)
    outcome.add_done_callback(told.append)
    outcome.set_result(None)
    assert told == [outcome]


def test_given_up_or_begun():
    """Of a thread that begins and one that gives up at the same moment, one wins."""
    for _ in range(500):
        outcome, won = Future(), []
        meet = threading.Barrier(2)

        def race(step, outcome=outcome, won=won, meet=meet):
            meet.wait(HANG)
            won.append(step())

        threads = [
            threading.Thread(target=race, args=[step])
            for step in (outcome.cancel, outcome.set_running_or_notify_cancel)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG)
        assert sorted(won) == [False, True]


def test_settled_once():
    """A settled future keeps its result."""
    given_up, answered = Future(), Future()
    given_up.cancel()
    answered.set_result(1)
    for outcome in (given_up, answered):
        with pytest.raises(InvalidStateError):
            outcome.set_result(2)
    assert answered.result(0) == 1


def test_an_error_is_not_kept():
    """When all readers have seen an error, it is freed, and with it the objects of its trace; not when the collector
    comes by."""

    class Fault(Exception):
        pass

    def fail():
        raise Fault

    def caught():
        try:
            fail()
        except Fault as error:
            return error

    gc.disable()
    try:
        outcome = Future()
        outcome.set_exception(caught())
        kept = weakref.ref(outcome.exception())
        with contextlib.suppress(Fault):
            outcome.result(0)
        del outcome
        assert kept() is None
    finally:
        gc.enable()
