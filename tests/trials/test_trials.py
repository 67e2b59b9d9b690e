"""The trials in short: `make fuzz`, `make chaos` and `make soak` are the same, for longer."""

import random

import pytest

from tests.trials import chaos, fuzz, soak
from tests.trials.hostile_cases import CASES
from tests.trials.subject import Wrong, judge, under_trial

# These have shorter tests of their own in `deploy/test_proxies` and `server/test_repository_swaps`.
BESIDE = (chaos.kill_of_one_of_two, chaos.swaps)


@pytest.fixture(scope="module")
def subject():
    with under_trial(*fuzz.LIMITS, "--max-queued", 32, growth=chaos.MOST_MIB) as started:
        yield started


@pytest.mark.parametrize("door", fuzz.DOORS)
def test_malformed_requests(subject, door):
    """Every door refuses a malformed request as the caller's mistake, without any effect."""
    codes = fuzz.DOORS[door](subject, 7, 20)
    assert codes.total() >= 200
    subject.check(door)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_hostile_cases(subject, case):
    """Floods, bombs, lengths that lie and peers that hold on leave no trace."""
    case(subject)
    subject.check(case.__name__)


@pytest.mark.parametrize("fault", chaos.CALLERS, ids=lambda fault: fault.__name__)
def test_callers_at_fault(subject, fault):
    """Callers that are slow, cancel or disconnect get right answers or none, and leave no trace."""
    fault(subject, random.Random(1))
    subject.check(fault.__name__)


def test_what_schemathesis_makes_of_the_document():
    """No request that schemathesis makes of the OpenAPI document has an answer that the document does not describe."""
    assert fuzz.schemathesis(1) > 500


def test_the_core_guided_by_coverage():
    """The core gives answers and errors of the table and nothing else, in every branch that its input reaches."""
    assert fuzz.coverage_guided(600, 0) >= 600


@pytest.mark.parametrize(
    "fault", [chaos.stop_under_load, *(pytest.param(each, marks=pytest.mark.long) for each in BESIDE)]
)
def test_servers_at_fault(fault):
    """Under load a replica is killed or stopped, and models come and go: no call fails, no answer is wrong."""
    assert fault(random.Random(1)) > 0


def test_a_soak(tmp_path):
    """Under a mixed load neither memory, threads nor open files grow; the picture is drawn."""
    course = soak.soak(4)
    soak.draw(course, tmp_path / "soak.svg")
    assert (tmp_path / "soak.svg").read_text().startswith("<?xml")


# --- the trials can fail ---


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("INTERNAL", ""),
        ("UNKNOWN", ""),
        ("500", ""),
        ("400", 'File "/srv/app.py", line 3'),
        ("INVALID_ARGUMENT", "<Tensor object at 0x7f00aa00bb00>"),
    ],
)
def test_what_is_wrong_is_found(code, text):
    """A fault of ours, and an error that tells of the server's inside, are found."""
    with pytest.raises(Wrong):
        judge(code, text)


def test_growth_is_found():
    """Memory that grows is found."""
    course = soak.Course([soak.Sample(float(i), 100.0 + i, 20, 20) for i in range(100)])
    with pytest.raises(Wrong, match="grew by"):
        course.check()


def test_a_wrong_answer_is_found(subject):
    """An answer that is a little off is found."""
    good = subject.goods[0]
    good.compare(good.outputs, "here")
    with pytest.raises(Wrong):
        good.compare({name: each + 0.01 for name, each in good.outputs.items()}, "here")
