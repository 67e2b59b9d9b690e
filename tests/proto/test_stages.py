"""The table of stages: its rows, and that everything made of it agrees with the service's answers."""

import numpy as np
import pytest
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.offers import offers
from attention_proto.stages import FOLDS, OPTIONS, POOLS, REDUCES, STAGES, Stage, numbers_of
from attention_server.domain.messages import KeySpan, OutputSpec
from attention_server.inference.layer import LoadedLayer
from attention_server.inference.planner import answer_bytes, make_plan
from google.protobuf import json_format

from tests.server.reference import BLOCKS
from tests.serving import ROOT

CHOICES = [
    {},
    {"heads": (1,)},
    {"rows": (0, 2)},
    {"reduce": "mean"},
    {"pool": "mean"},
    {"top_k": 2},
    {"data_type": "FP16"},
    {"reduce": "max", "pool": "last", "rows": (1, -1)},
    {"pairs": ("0.1", "0.0")},
    {"spans": (KeySpan("first", 0, 2), KeySpan("all", 0, 6), KeySpan("last", 5, 6)), "data_type": "FP16"},
    {"spans": (KeySpan("first", 0, 2), KeySpan("last", 5, 6)), "pool": "mean", "reduce": "max"},
    {"fold": "mean", "rows": (1,), "top_k": 3},
]


@pytest.mark.parametrize("name", STAGES)
def test_axes(name):
    """A stage has at most one axis of heads, then one of rows, unless these are summed, then one of columns."""
    stage = STAGES[name]
    rows = None if stage.sums_rows else stage.row_axis
    expected = [axis for axis in (stage.head_axis, rows, stage.column_axis) if axis]
    assert list(stage.axes) == expected
    assert stage.row_axis in ("T", "S")
    assert not stage.source or stage.source in STAGES


@pytest.mark.parametrize(
    ("axes", "level", "heads", "rows", "columns", "takes"),
    [
        (("T", "D"), "layer", None, "T", "D", False),
        (("H", "T", "D"), "layer", "H", "T", "D", True),
        (("H", "S"), "site", "H", "S", None, True),
        (("T", "S"), "model", None, "T", "S", False),
    ],
)
def test_a_stage_of_any_level(axes, level, heads, rows, columns, takes):
    """The table carries stages of layers and of the model too: the axes alone tell the options."""
    stage = Stage("new", axes, "a stage that is not there yet", level=level)
    assert (stage.head_axis, stage.row_axis, stage.column_axis) == (heads, rows, columns)
    assert (stage.takes("heads"), stage.takes("reduce"), stage.takes("pool")) == (takes, takes, True)
    assert stage.takes("top_k") == (axes[-2:] == ("T", "S"))
    assert (stage.takes("pairs"), stage.takes("layers"), stage.takes("top")) == (takes, level != "model", False)


def test_every_option_is_a_field_of_the_contract():
    """The options are those of the contract's OutputSpec and of the server's, no more and no less."""
    fields = [field.name for field in pb.OutputSpec.DESCRIPTOR.fields]
    assert {"name", *(option.field for option in OPTIONS.values())} == set(fields)
    assert {"name", *(option.field for option in OPTIONS.values())} == set(OutputSpec._fields) - {"path"}  # for errors
    json_names = {field.json_name for field in pb.OutputSpec.DESCRIPTOR.fields}
    assert "as" in json_names


def test_every_stage_and_option_is_documented():
    """The page about outputs has each stage with its shape, and each option."""
    page = (ROOT / "docs/outputs.md").read_text()
    for stage in STAGES.values():
        assert f"`{stage.name}`" in page
        assert stage.shape in page
    for option in OPTIONS:
        assert f"| `{option}` |" in page


def test_numbers_of_an_enumeration():
    """Each choice has the number that the contract gives it, and every number has a choice."""
    assert numbers_of(REDUCES, pb.OutputSpec.Reduce.items()) == {"none": 0, "mean": 1, "max": 2}
    assert sorted(numbers_of(POOLS, pb.OutputSpec.Pool.items()).values()) == sorted(pb.OutputSpec.Pool.values())
    assert sorted(numbers_of(FOLDS, pb.OutputSpec.Fold.items()).values()) == sorted(pb.OutputSpec.Fold.values())


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("case", [case for case in BLOCKS if case.model in ("cross", "grouped")], ids=lambda c: c.model)
def test_the_size_predicted_is_the_size_sent(transport, repository, case, choice):
    """An output's predicted bytes equal its tensors' bytes, for every stage of tensors that takes the options."""
    vectors = case.vectors(np.random.default_rng(0), 4, 6)
    manifest = manifest_of(repository, case.model)
    layer = manifest.layers[0]
    offered = [stage for stage in STAGES.values() if offers(stage, layer, manifest) and not stage.is_links]
    names = [stage.name for stage in offered if all(stage.takes(option) for option in choice)]
    options = {option: list(x) if isinstance(x, tuple) else x for option, x in choice.items()}
    if "spans" in options:
        options["spans"] = {span.name: [span.begin, span.end] for span in choice["spans"]}
    asked = [{"name": name, **options} for name in names]
    sent = transport.outputs(case.model, outputs=asked, **vectors)
    widths = LoadedLayer(layer, "cpu", {}).widths(case.query, case.value)
    for name, plan in zip(
        names, make_plan([OutputSpec(name, **choice) for name in names], manifest).outputs, strict=True
    ):
        arrays = sent[name] if isinstance(sent[name], tuple) else (sent[name],)
        assert answer_bytes(plan, manifest, widths, 4, 6) == sum(array.nbytes for array in arrays), name


def manifest_of(repository, model):
    return json_format.Parse((repository / model / "1" / "manifest.json").read_text(), pb.Manifest())
