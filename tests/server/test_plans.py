"""Plans: plans of short requests are kept, with the learned corrections; those of long ones are not."""

import pytest
from attention_server.domain.messages import CANDIDATE_BYTES, OutputSpec, Sample
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.inference.labels import read_labels
from attention_server.inference.prediction_plan import PredictionPlan, candidate_bytes
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


def test_a_plan_of_long_pairs_is_not_kept(model):
    """The characters of pairs count: a head may be written with any number of zeros before it."""
    specs = (OutputSpec("weights", pairs=(f"0.{'0' * LONG}1",)),)
    assert model.plan(specs) is not model.plan(specs)


def test_draws_of_many_seeds_have_one_plan(repository):
    """A seed belongs to a sequence and not to the plan: draws of many seeds run together, and learn one cost."""
    model = load(repository / "text-cross/1", OnnxRuntime("cpu", threads=1), 2**30)
    plans = [model.plan((OutputSpec("predictions", sample=Sample(seed=seed)),)) for seed in (1, 2, None)]
    assert plans[0] is plans[1] is plans[2]


@pytest.mark.parametrize("top", [0, 1, 3, 100])
def test_candidates_count_towards_the_answer(transport, repository, top):
    """The bytes predicted for the most probable labels are those of the labels sent, at the most rows that are read."""
    model = load(repository / "text-cross/1", OnnxRuntime("cpu", threads=1), 2**30)
    labels = read_labels(model.manifest, model.reader)
    asked = [{"name": "predictions", "top": top}]
    sent = transport.one("text-cross", text="cats and dogs", memory_text="ein", outputs=asked)["predictions"]
    candidates = sum(len(each.get("top", ())) for each in sent)
    assert (
        candidate_bytes(PredictionPlan(top=top), model.manifest.predictors, labels, 3) == CANDIDATE_BYTES * candidates
    )
