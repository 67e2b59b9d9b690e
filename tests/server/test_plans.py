"""Plans: plans of short requests are kept, with the learned corrections; those of long ones are not."""

import pytest
from attention_server.domain.messages import OutputSpec
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.repository.loader import load

LONG = 64


@pytest.fixture(scope="module")
def model(repository):
    return load(repository / "multi/1", OnnxRuntime("cpu", threads=1), 2**30)


SMALL = {
    "output": (OutputSpec("output"),),
    "rows": (OutputSpec("output", rows=tuple(range(LONG))),),
    "many": tuple(OutputSpec("output", alias=str(i)) for i in range(LONG)),
}
LARGE = {
    "rows": (OutputSpec("output", rows=tuple(range(LONG + 1))),),
    "alias": (OutputSpec("output", alias="x" * (LONG + 1)),),
    "layers": (OutputSpec("output", layers=("*",) * (LONG + 1)),),
    "rows and alias": (OutputSpec("output", alias="x", rows=tuple(range(LONG))),),
    "many": tuple(OutputSpec("output", alias=str(i)) for i in range(LONG + 1)),
}


@pytest.mark.parametrize("specs", SMALL.values(), ids=SMALL)
def test_a_small_plan_is_kept(model, specs):
    """The same short request has the same plan again, and its cost correction with it."""
    assert model.plan(specs) is model.plan(specs)


@pytest.mark.parametrize("specs", LARGE.values(), ids=LARGE)
def test_a_large_plan_is_not_kept(model, specs):
    """A long request is planned anew each time: callers choose its length, and kept plans would hold it for ever."""
    assert model.plan(specs) is not model.plan(specs)
