"""Retries: which errors are worth another attempt, how often, and for how long."""

import threading
import time

import pytest
from attention_batch.errors import Stopped
from attention_batch.retry import RetryPolicy
from attention_client import DeadlineExceeded, InternalError, InvalidRequest, NotFound, Unavailable

from tests.batch.scoring import SECONDS


class Calls:
    """A call that raises the given errors in turn, and then answers."""

    def __init__(self, *errors):
        self._errors = list(errors)
        self.count = 0

    def __call__(self):
        self.count += 1
        if self._errors:
            raise self._errors.pop(0)
        return "answer"


def failure():
    return InternalError("internal error", request_id="r-7")


def unavailable(retry_after=None):
    error = Unavailable("no server")
    error.retry_after = retry_after
    return error


@pytest.fixture
def announced():
    return []


@pytest.fixture
def retries(announced):
    """A policy that waits as long as a test may take."""
    return RetryPolicy(SECONDS, announced.append)


def test_an_internal_error_has_three_attempts(retries):
    """A call that fails twice is answered; the third failure ends the run, with the request's id."""
    assert retries.call(Calls(failure(), failure())) == "answer"
    calls = Calls(*(failure() for _ in range(9)))
    with pytest.raises(Stopped, match=r"the server failed, its log says why: internal error \(request r-7\)"):
        retries.call(calls)
    assert calls.count == 3


def test_other_errors_do_not_use_up_attempts(retries):
    """Only internal errors count as attempts, and each call has its own three."""
    calls = Calls(failure(), unavailable(0.001), DeadlineExceeded("late"), unavailable(0.001), failure())
    assert retries.call(calls) == "answer"
    assert calls.count == 6
    assert retries.call(Calls(failure(), failure())) == "answer"


@pytest.mark.parametrize("error", [InvalidRequest("bad"), NotFound("gone")])
def test_an_error_that_no_retry_changes(retries, error):
    """An error of the request is raised at the first attempt."""
    calls = Calls(error)
    with pytest.raises(type(error)):
        retries.call(calls)
    assert calls.count == 1


def test_a_wait_is_announced_once(retries, announced):
    """A wait that the server did not ask for is announced when it begins; an answer ends it."""
    assert retries.call(Calls(unavailable(0.001), unavailable(0.001))) == "answer"
    assert announced == []
    for waits in (1, 2):
        assert retries.call(Calls(unavailable(), unavailable())) == "answer"
        assert announced == [f"no answer, waiting {SECONDS} s (--patience): no server"] * waits


def test_no_answer_for_too_long(announced):
    """A server that does not answer ends the run once its seconds are over; here there are none."""
    calls = Calls(*(unavailable() for _ in range(9)))
    with pytest.raises(Stopped, match="no answer for 0 s: no server"):
        RetryPolicy(0, announced.append).call(calls)
    assert calls.count < 9


def test_waits_double_up_to_a_bound(announced, monkeypatch):
    """Each wait is twice the one before, up to the longest; without a bound these would use up the policy's seconds."""
    monkeypatch.setattr("attention_batch.retry.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("attention_batch.retry.LONGEST_PAUSE", 0.004)
    began = time.monotonic()
    assert RetryPolicy(60, announced.append).call(Calls(*(unavailable() for _ in range(30)))) == "answer"
    assert time.monotonic() - began >= 0.001 + 0.002 + 28 * 0.004


def test_a_cancelled_wait_ends_at_once(retries):
    """Cancelling ends every wait, and later failures are not retried, until the policy starts again."""
    called, ended = threading.Event(), []

    def call():
        called.set()
        raise unavailable(10 * SECONDS)

    def wait():
        try:
            retries.call(call)
        except Stopped as error:
            ended.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert called.wait(SECONDS)
    retries.cancel()
    waiting.join(SECONDS)
    assert ended == ["no server"]
    with pytest.raises(Stopped, match=r"^no server$"):
        retries.call(call)
    retries.start()
    assert retries.call(Calls(unavailable(0.001))) == "answer"
