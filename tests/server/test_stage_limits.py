"""What one sequence's stages and predictions may hold while it is computed, however little of it is sent."""

import pytest
from attention_server.contexts.store import HeldMemories, MemoryStore
from attention_server.domain.limits import Limits
from attention_server.domain.messages import NO_MASK, OutputSpec, Sequence
from attention_server.errors import TooLarge
from attention_server.inference import head_results
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.inference.engine.protocol import Run
from attention_server.inference.forward import Forward
from attention_server.repository.loader import load

from tests.server import small_transformer as small
from tests.server.small_transformer import HEADS, LABELS, WIDTH

TEXT = "a b c d e"
LENGTH = 5
CONTRIBUTIONS = 4 * HEADS * LENGTH * WIDTH  # bytes of one layer's
WEIGHTS = 4 * HEADS * LENGTH * LENGTH


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(small.write(tmp_path_factory.mktemp("limits") / "small/1"), OnnxRuntime("cpu", 1), 2**30)


def prepare(model, spec, scores_bytes):
    limits = Limits(sequences=1, scores_bytes=scores_bytes, answer_bytes=2**20, memory_ttl=1.0)
    plan = model.plan((spec,))
    ((prepared, _),) = model.checker.prepare(Sequence(text=TEXT), plan, NO_MASK, HeldMemories(MemoryStore(1)), limits)
    return prepared, plan.plan


@pytest.mark.parametrize(
    ("spec", "needed"),
    [
        (OutputSpec("contributions", rows=(0,)), CONTRIBUTIONS),
        (OutputSpec("contributions", layers=("*",), reduce="mean", pool="mean"), 2 * CONTRIBUTIONS),
        (OutputSpec("contributions", pairs=("0.1", "1.0")), 2 * CONTRIBUTIONS),
        (OutputSpec("weights", layers=("*",), top_k=1), 2 * WEIGHTS),
        (OutputSpec("entropy", layers=("*",)), 2 * 4 * HEADS * LENGTH + 2 * WEIGHTS),
    ],
)
def test_stages_are_counted_whole(model, spec, needed):
    """Stages of all layers are held at once, whole, and are bounded so, even where a part of them is sent."""
    prepare(model, spec, needed)
    with pytest.raises(TooLarge, match=f"over 5 keys need {needed} bytes while"):
        prepare(model, spec, needed - 1)


@pytest.mark.parametrize(
    ("specs", "numbers"),
    [
        ([OutputSpec("logits")], LENGTH * len(LABELS)),
        ([OutputSpec("logits", rows=(0, -1), data_type="FP16")], 2 * len(LABELS)),
        ([OutputSpec("predictions")], LENGTH * len(LABELS)),
        ([OutputSpec("predictions", rows=(1,), top=1), OutputSpec("logits")], (LENGTH + 1) * len(LABELS)),
    ],
)
def test_numbers_of_the_head_are_counted_before_it_runs(model, specs, numbers):
    """Rows x labels of logits and predictions are counted, of the rows chosen, however few labels are sent."""
    limits = Limits(sequences=1, scores_bytes=2**20, answer_bytes=2**20, memory_ttl=1.0)
    ((_, profile),) = model.checker.prepare(
        Sequence(text=TEXT), model.plan(tuple(specs)), NO_MASK, HeldMemories(MemoryStore(1)), limits
    )
    assert profile.head_bytes == 4 * numbers


def test_predictions_of_many_rows_are_made_in_blocks(model, monkeypatch):
    """The probabilities of all labels are held for a few rows at a time; candidates are those of all rows at once."""
    prepared, plan = prepare(model, OutputSpec("predictions", top=2), 2**20)
    (whole,) = model.answer([prepared], plan, Run())()
    counts, head = [], Forward.head

    def counting(self, outputs, rows, run):
        counts.append(len(rows))
        return head(self, outputs, rows, run)

    monkeypatch.setattr(head_results, "MAX_NUMBERS", 2 * len(LABELS))
    monkeypatch.setattr(Forward, "head", counting)
    (blocks,) = model.answer([prepared], plan, Run())()
    assert counts == [2, 2, 1]
    assert [each.row for each in blocks.predictions] == list(range(LENGTH))
    for one, other in zip(blocks.predictions, whole.predictions, strict=True):
        assert [each.label for each in one.top] == [each.label for each in other.top]
        assert [each.probability for each in one.top] == pytest.approx(
            [each.probability for each in other.top], rel=1e-6
        )
