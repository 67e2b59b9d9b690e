"""Output specs: which heads and rows, reduced how, the largest only, in which format, under which name."""

import numpy as np
import pytest
import requests
from serving import HANG

from tests.refusals import refused
from tests.server.reference import CLOSE, ROWS, STAGES, read_block

RNG = np.random.default_rng(0)
QUERY = RNG.standard_normal((4, 16)).astype(np.float32)
KEY = RNG.standard_normal((6, 12)).astype(np.float32)
VALUE = RNG.standard_normal((6, 10)).astype(np.float32)
VECTORS = {"query": QUERY, "key": KEY, "value": VALUE}


@pytest.fixture
def stages(repository):
    """All stages of `cross` for these vectors."""
    return read_block(repository, "cross").stages(**VECTORS)


def only(transport, **spec):
    """Ask for one output; return its value."""
    (value,) = transport.outputs("cross", outputs=[spec], **VECTORS).values()
    return value


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "output"])
def test_heads_chosen(transport, stages, stage):
    """`heads` chooses heads, in the order given."""
    value = only(transport, name=stage, heads=[2, 0])
    np.testing.assert_allclose(value, stages[stage][[2, 0]], **CLOSE)


@pytest.mark.parametrize(("option", "twice"), [("heads", [2, 0, 2]), ("rows", [1, 1]), ("rows", [0, -4])])
def test_none_is_chosen_twice(transport, option, twice):
    """A head or row that is named twice, also as -1, is refused: lists cannot grow beyond the existing items."""
    with refused("INVALID_ARGUMENT", f"outputs[0].{option}", "twice"):
        only(transport, name="weights", **{option: twice})


@pytest.mark.parametrize("stage", STAGES)
def test_rows_chosen(transport, stages, stage):
    """`rows` chooses query positions, or key positions of k and v, in the order given; -1 is the last."""
    value = only(transport, name=stage, rows=[-1, 0, 2])
    np.testing.assert_allclose(value, np.take(stages[stage], [-1, 0, 2], ROWS[stage]), **CLOSE)


def test_rows_of_keys_are_counted_by_keys(transport, stages):
    """Row 5 of six keys is there for `v`, though there are four queries."""
    np.testing.assert_allclose(only(transport, name="v", rows=[5, -6]), stages["v"][:, [5, -6]], **CLOSE)


@pytest.mark.parametrize(("reduce", "reduced"), [("mean", np.mean), ("max", np.max)])
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "output"])
def test_reduced(transport, stages, stage, reduce, reduced):
    """`reduce` makes the heads one; the rank stays, with H = 1."""
    value = only(transport, name=stage, reduce=reduce)
    assert value.shape[0] == 1
    np.testing.assert_allclose(value, reduced(stages[stage], axis=0, keepdims=True), **CLOSE)


def test_heads_chosen_before_the_reduction(transport, stages):
    """Heads and rows are chosen first, then the heads chosen are reduced."""
    value = only(transport, name="weights", heads=[3, 1], rows=[2], reduce="max")
    np.testing.assert_allclose(value, stages["weights"][[3, 1]][:, [2]].max(0, keepdims=True), **CLOSE)


@pytest.mark.parametrize("k", [1, 4, 6, 100])
@pytest.mark.parametrize("options", [{}, {"reduce": "mean"}, {"heads": [1], "rows": [-1, 0]}])
@pytest.mark.parametrize("stage", ["weights", "scores"])
def test_top_k(transport, stages, stage, options, k):
    """`top_k` sends each row's k largest over keys, after choice and reduction, descending; k over S is S."""
    indices, values = only(transport, name=stage, top_k=k, **options)
    whole = stages[stage]
    if "heads" in options:
        whole = whole[options["heads"]][:, options["rows"]]
    if "reduce" in options:
        whole = whole.mean(0, keepdims=True)
    expected = np.argsort(-whole, axis=-1)[..., :k]
    assert indices.dtype == np.uint16
    assert values.dtype == np.float32
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(values, np.take_along_axis(whole, expected, -1), **CLOSE)


def test_ties_go_to_the_lower_index(transport):
    """Of equal weights the lower position comes first."""
    x = np.zeros((5, 3), np.float32)
    indices, values = transport.outputs("dot", query=x, outputs=[{"name": "weights", "top_k": 3}])["weights"]
    np.testing.assert_array_equal(indices, np.tile([0, 1, 2], (1, 5, 1)))
    np.testing.assert_allclose(values, 0.2)


@pytest.mark.parametrize("stage", ["weights", "scores"])
def test_masked_keys_come_last(transport, stage):
    """A masked key comes after all visible keys, also with the largest score or a weight that underflows to 0."""
    query = np.array([[100.0]], np.float32)
    key = np.array([[9.0], [-9.0], [1.0], [-1.0]], np.float32)
    mask = {"allowed": np.array([False, True, True, True])}
    spec = {"name": stage, "top_k": 4}
    indices = transport.outputs("dot", query=query, key=key, mask=mask, outputs=[spec])[stage].indices
    assert indices[0, 0].tolist()[0] == 2
    assert indices[0, 0].tolist()[-1] == 0


def test_masked_in_every_head_is_masked_after_reduction(transport, repository):
    """After a reduction a key is masked when it is in all heads that were chosen, and not before."""
    allowed = np.ones((4, 1, 6), bool)
    allowed[:, :, 0] = False
    allowed[2, :, 1] = False
    spec = {"name": "scores", "top_k": 6, "reduce": "max", "heads": [2]}
    mask = {"allowed": allowed}
    indices = transport.outputs("cross", mask=mask, outputs=[spec], **VECTORS)["scores"].indices
    assert (np.sort(indices[0, :, 4:], -1) == [0, 1]).all()
    both = transport.outputs("cross", mask=mask, outputs=[spec | {"heads": [2, 3]}], **VECTORS)["scores"].indices
    assert (both[0, :, 5] == 0).all()


def test_half_precision(transport, stages):
    """`data_type` FP16 sends half precision, of top k's values too."""
    weights = only(transport, name="weights", data_type="FP16")
    assert weights.dtype == np.float16
    np.testing.assert_allclose(weights, stages["weights"], rtol=1e-3, atol=1e-6)
    assert only(transport, name="weights", data_type="FP16", top_k=2).values.dtype == np.float16


def test_what_half_precision_cannot_hold(transport):
    """A number over FP16's largest is refused by the option that asked for it, not sent as infinity."""
    x = np.full((1, 1), 1e5, np.float32)
    with refused("INVALID_ARGUMENT", "outputs[0].data_type", "FP32"):
        transport.attend("dot", query=x, outputs=[{"name": "output", "data_type": "FP16"}])


def test_two_forms_of_one_stage(transport, stages):
    """`as` names an output; two forms of one stage need different ones; the order of the request is kept."""
    specs = [{"name": "weights", "as": "z"}, {"name": "output"}, {"name": "weights", "as": "a", "heads": [1]}]
    outputs = transport.outputs("cross", outputs=specs, **VECTORS)
    assert list(outputs) == ["z", "output", "a"]
    np.testing.assert_allclose(outputs["z"], stages["weights"], **CLOSE)
    np.testing.assert_allclose(outputs["a"], stages["weights"][[1]], **CLOSE)


@pytest.mark.parametrize(
    "specs",
    [["output", "output"], ["q", {"name": "k", "as": "q"}], [{"name": "q", "as": "x"}, {"name": "k", "as": "x"}]],
)
def test_a_name_twice(transport, specs):
    """Two outputs with one name are refused, at the second."""
    with refused("INVALID_ARGUMENT", "outputs[1]", "as"):
        transport.attend("cross", outputs=specs, **VECTORS)


def test_a_long_name(transport):
    """An output may be named at some length."""
    named = "n" * 256
    assert named in transport.outputs("cross", outputs=[{"name": "q", "as": named}], **VECTORS)
    with refused("INVALID_ARGUMENT", "outputs[0]", "257 characters"):
        transport.attend("cross", outputs=[{"name": "q", "as": named + "n"}], **VECTORS)


@pytest.mark.parametrize(
    ("spec", "field", "word"),
    [
        ({"name": "weight"}, "outputs[0].name", "did you mean 'weights'"),
        ({"name": "attention"}, "outputs[0].name", "scores"),
        ({"name": ""}, "outputs[0].name", "weights"),
        ({"name": "predictions"}, "outputs[0].name", "no head"),
        ({"name": "weights", "heads": [4]}, "outputs[0].heads", "4"),
        ({"name": "weights", "rows": [4]}, "outputs[0].rows", "4"),
        ({"name": "weights", "rows": [-5]}, "outputs[0].rows", "4"),
        ({"name": "k", "rows": [6]}, "outputs[0].rows", "6"),
        ({"name": "output", "heads": [0]}, "outputs[0].heads", "heads"),
        ({"name": "output", "reduce": "mean"}, "outputs[0].reduce", "heads"),
        ({"name": "output", "top_k": 1}, "outputs[0].top_k", "weights"),
        ({"name": "q", "top_k": 1}, "outputs[0].top_k", "weights"),
        ({"name": "entropy", "top_k": 1}, "outputs[0].top_k", "scores, weights and received, not for entropy"),
        ({"name": "weights", "layers": ["second"]}, "outputs[0].layers", "second"),
        ({"name": "weights", "pairs": ["0.4"]}, "outputs[0].pairs", "no head 4 for the pair '0.4'; layer 0 has 4"),
        ({"name": "weights", "pairs": ["0.1", "7.1"]}, "outputs[0].pairs", "no layer '7' for the pair '7.1'"),
        ({"name": "weights", "pairs": ["0.1", "0.1"]}, "outputs[0].pairs", "twice"),
        ({"name": "weights", "pairs": ["1"]}, "outputs[0].pairs", "LAYER.HEAD, such as '0.0'"),
        ({"name": "weights", "pairs": ["0.1"], "heads": [1]}, "outputs[0].heads", "beside pairs"),
        ({"name": "weights", "pairs": ["0.1"], "layers": ["0"]}, "outputs[0].layers", "beside pairs"),
        ({"name": "output", "pairs": ["0.1"]}, "outputs[0].pairs", "contributions"),
        ({"name": "weights", "fold": "rollout"}, "outputs[0].fold", "self-attention"),
        ({"name": "weights", "top": 2}, "outputs[0].top", "is for predictions, not for weights"),
        ({"name": "hidden"}, "outputs[0].name", "this model gives no hidden"),
        ({"name": "embeddings"}, "outputs[0].name", "this model gives no embeddings"),
        ({"name": "embeddings", "layers": ["0"]}, "outputs[0].layers", "of the model, not of a layer"),
        ({"name": "scores", "spans": {"a": [0, 1]}}, "outputs[0].spans", "is for weights and received, not for scores"),
        ({"name": "statistics", "spans": {"a": [0, 1]}}, "outputs[0].spans", "weights and received"),
        ({"name": "weights", "spans": {"a": [0, 1]}, "top_k": 1}, "outputs[0].top_k", "beside spans"),
        ({"name": "weights", "spans": {"a": [0, 1], "b": [2, 2]}}, "outputs[0].spans", "'b' is from 2 to 2"),
        ({"name": "weights", "spans": {"a": [3, 2]}}, "outputs[0].spans", "'a' is from 3 to 2"),
        ({"name": "weights", "spans": {"a": [5, 7]}}, "outputs[0].spans", "'a' ends at 7; there are 6 keys"),
        ({"name": "weights", "spans": {"": [0, 1]}}, "outputs[0].spans", "1 to 256 characters"),
        ({"name": "weights", "spans": {"a" * 257: [0, 1]}}, "outputs[0].spans", "1 to 256 characters"),
        ({"name": "weights", "spans": {f"{i}": [0, 1] for i in range(1025)}}, "outputs[0].spans", "1025 ranges"),
        (
            {"name": "weights", "spans": {"a": {"begin": 0, "end": 1, "characters": True}}},
            "outputs[0].spans",
            "'a' counts characters, but the keys are of no text",
        ),
    ],
)
def test_what_is_not_offered(transport, spec, field, word):
    """A name, head, row, layer or option that is not offered is refused by its field, with the accepted ones."""
    with refused("INVALID_ARGUMENT", field, word):
        transport.attend("cross", outputs=[spec], **VECTORS)


def test_a_rollout_is_of_one_sequence(transport):
    """With a key of its own, even as long as the query, a site attends to another sequence."""
    query, key, value = (RNG.standard_normal((3, width)).astype(np.float32) for width in (16, 8, 6))
    folds = [{"name": "weights", "as": fold, "fold": fold} for fold in ("mean", "rollout")]
    with refused("INVALID_ARGUMENT", "outputs[1].fold", "leave key and memory out"):
        transport.attend("grouped", query=query, key=key, value=value, outputs=folds)
    found = transport.outputs("grouped", query=query, key=key, value=value, outputs=[*folds[:1], "weights"])
    np.testing.assert_allclose(found["mean"], found["weights"].mean(0), rtol=1e-6)


def test_heads_of_grouped_keys(transport, repository):
    """`k` and `v` have the heads of keys and values, fewer than those of q in grouped-query attention."""
    query, key, value = (RNG.standard_normal((3, width)).astype(np.float32) for width in (16, 8, 6))
    vectors = {"query": query, "key": key, "value": value}
    k = transport.outputs("grouped", outputs=["k"], **vectors)["k"]
    assert k.shape == (2, 3, 4)
    with refused("INVALID_ARGUMENT", "outputs[0].heads", "2"):
        transport.attend("grouped", outputs=[{"name": "k", "heads": [2]}], **vectors)


def test_the_second_of_several_is_named(transport):
    """The field's path counts outputs from 0."""
    with refused("INVALID_ARGUMENT", "outputs[1].name"):
        transport.attend("cross", outputs=["q", "x"], **VECTORS)


def test_layers_by_name(transport, stages, repository):
    """The one layer of a plain block can be named, or meant by `*`; the output keeps its name."""
    for layers in ([read_block(repository, "cross").layer["name"]], ["*"]):
        outputs = transport.outputs("cross", outputs=[{"name": "weights", "layers": layers}], **VECTORS)
        np.testing.assert_allclose(outputs["weights"], stages["weights"], **CLOSE)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "output"])
def test_pairs_of_layer_and_head(transport, stages, stage):
    """`pairs` chooses heads by LAYER.HEAD, in the order given, in one output."""
    value = only(transport, name=stage, pairs=["0.2", "0.0"])
    np.testing.assert_allclose(value, stages[stage][[2, 0]], **CLOSE)


@pytest.mark.parametrize(
    "options", [{"rows": [-1, 1]}, {"reduce": "max"}, {"pool": "mean"}, {"top_k": 3}, {"data_type": "FP16"}], ids=str
)
def test_options_of_pairs(transport, options):
    """Every further option applies to the heads of pairs as it does to those of `heads`."""
    of_pairs = only(transport, name="weights", pairs=["0.3", "0.1"], **options)
    of_heads = only(transport, name="weights", heads=[3, 1], **options)
    np.testing.assert_array_equal(of_pairs, of_heads)


def test_spans(transport, stages):
    """Each span has the weights of its keys summed, in the order of the names, before heads are reduced."""
    spans = {"b": [3, 6], "a": [0, 4], "one": [2, 3], "all": {"end": 6}}

    def summed(weights):
        return np.stack([weights[..., 3:6].sum(-1), weights[..., :4].sum(-1), weights[..., 2], weights.sum(-1)], -1)

    weights = stages["weights"]
    expected = {
        "whole": ({}, summed(weights)),
        "max": ({"reduce": "max", "rows": [2, 0]}, summed(weights)[:, [2, 0]].max(0, keepdims=True)),
        "pairs": ({"pairs": ["0.2", "0.0"], "pool": "mean"}, summed(weights)[[2, 0]].mean(1)),
        "received": ({"name": "received", "rows": [1, 3]}, summed(weights)[:, [1, 3]].sum(1)),
        "two": ({"name": "received", "pairs": ["0.2", "0.0"]}, summed(weights)[[2, 0]].sum(1)),
        "half": ({"data_type": "FP16", "heads": [1]}, summed(weights)[[1]].astype(np.float16)),
    }
    asked = [{"name": "weights", "as": name, "spans": spans, **each} for name, (each, _) in expected.items()]
    found = transport.outputs("cross", outputs=asked, **VECTORS)
    for name, (_, value) in expected.items():
        assert found[name].dtype == (np.float16 if name == "half" else np.float32)
        np.testing.assert_allclose(found[name], value, err_msg=name, **(CLOSE if name != "half" else {"rtol": 1e-3}))


def test_a_span_of_masked_keys(transport):
    """The weights on masked keys are zeros, and so is their sum, however small a part the others are."""
    mask = {"allowed": np.array([True, True, False, False, True, True])}
    spec = {"name": "weights", "spans": {"hidden": [2, 4], "rest": [0, 2]}}
    found = transport.outputs("cross", mask=mask, outputs=[spec], **VECTORS)["weights"]
    assert (found[..., 0] == 0).all()
    assert (found[..., 1] > 0).all()


def test_what_is_no_span(server):
    """In JSON a span is two numbers or an object; anything else is refused by the name of the span."""
    url = f"{server.url}/v1/models/cross:attend"
    for spans, field, words in (
        ([[0, 1]], "outputs[0].spans", "must be an object of ranges by name, not a list"),
        ({"a": [0]}, "outputs[0].spans.a", "must be [begin, end], not 1 numbers"),
        ({"a": [-1, 2]}, "outputs[0].spans.a.range[0]", "at least 0"),
        ({"a": {"from": 1}}, "outputs[0].spans.a.from", "there is no such field"),
        ({"a": {"begin": -1, "end": 2}}, "outputs[0].spans.a.begin", "must be 0 or above"),
    ):
        sent = {name: array.tolist() for name, array in VECTORS.items()}
        sent["outputs"] = [{"name": "weights", "spans": spans}]
        error = requests.post(url, json=sent, timeout=HANG).json()["error"]
        assert (error["field"], words in error["message"]) == (field, True), error


def test_masked_keys_of_pairs_come_last(transport):
    """Among the top k of pairs, a key that the mask hides in this head comes last."""
    allowed = np.ones((4, 1, 6), bool)
    allowed[2, :, 5] = False
    spec = {"name": "scores", "top_k": 6, "pairs": ["0.2", "0.3"]}
    indices = transport.outputs("cross", mask={"allowed": allowed}, outputs=[spec], **VECTORS)["scores"].indices
    assert (indices[0, :, 5] == 5).all()
    assert not (indices[1, :, 5] == 5).all()


def test_indices_that_need_more_than_16_bits(transport):
    """Positions past 65535 come as INT32."""
    query, key = np.ones((1, 1), np.float32), np.zeros((65537, 1), np.float32)
    key[-1] = 1
    outputs = [{"name": "weights", "top_k": 1}]
    top = transport.outputs("dot", query=query, key=key, outputs=outputs)["weights"]
    assert top.indices.dtype == np.int32
    assert top.indices.item() == 65536
    top = transport.outputs("dot", query=query, key=key[1:], outputs=outputs)["weights"]
    assert top.indices.dtype == np.uint16
    assert top.indices.item() == 65535
