"""Every stage of every block, by name, against float64."""

import numpy as np
import pytest

from tests.refusals import refused
from tests.server.reference import BLOCKS, CLOSE, STAGES, additive, read_block, statistics

SOME = [case for case in BLOCKS if case.model in ("cross", "grouped")]
SHAPES = {
    "q": "HTDh",
    "k": "GSDh",
    "v": "GSDv",
    "scores": "HTS",
    "weights": "HTS",
    "entropy": "HT",
    "lse": "HT",
    "heads": "HTDv",
    "output": "TD",
}


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.model)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 3), (2, 33)])
def test_every_stage(transport, repository, case, queries, keys):
    """Each stage can be requested by name and equals the block's formula, in FP32, without a batch dimension."""
    vectors = case.vectors(np.random.default_rng(queries), queries, keys)
    answer = transport.attend(case.model, outputs=list(STAGES), **vectors)
    (result,) = answer["results"]
    block = read_block(repository, case.model, answer["version"])
    expected = block.stages(**vectors)
    assert list(result["outputs"]) == list(STAGES)
    for name, stage in result["outputs"].items():
        assert stage.dtype == np.float32
        assert stage.shape == expected[name].shape
        np.testing.assert_allclose(stage, expected[name], **CLOSE, err_msg=name)


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.model)
@pytest.mark.parametrize("stage", STAGES)
def test_one_stage_alone(transport, repository, case, stage):
    """A stage asked for alone comes alone, and is the same: whichever graph gives it."""
    vectors = case.vectors(np.random.default_rng(1), 4, 6)
    answer = transport.attend(case.model, outputs=[stage], **vectors)
    (result,) = answer["results"]
    assert list(result["outputs"]) == [stage]
    expected = read_block(repository, case.model, answer["version"]).stages(**vectors)[stage]
    np.testing.assert_allclose(result["outputs"][stage], expected, **CLOSE)


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.model)
def test_output_is_what_is_sent_when_nothing_is_asked(transport, case):
    """Without `outputs`, a model without a head sends `output`, and nothing beside it."""
    result = transport.one(case.model, **case.vectors(np.random.default_rng(2), 3, 4))
    assert list(result["outputs"]) == ["output"]
    assert (result["predictions"], result["tokens"], result["memory_tokens"]) == ([], [], [])


def test_the_key_is_the_query_and_the_value_the_key(transport, repository):
    """A query alone attends to itself; a key without a value is its own value."""
    rng = np.random.default_rng(3)
    query, key = (rng.standard_normal((length, 12)).astype(np.float32) for length in (4, 6))
    block = read_block(repository, "self")
    alone = transport.outputs("self", version=1, query=query, outputs=["weights", "output"])
    with_key = transport.outputs("self", version=1, query=query, key=key, outputs=["weights", "output"])
    for name in ("weights", "output"):
        np.testing.assert_allclose(alone[name], block.stages(query)[name], **CLOSE)
        np.testing.assert_allclose(with_key[name], block.stages(query, key)[name], **CLOSE)


def test_a_value_alone_goes_with_the_query_as_key(transport, repository):
    """A value beside a query without a key: the query is the key."""
    rng = np.random.default_rng(4)
    query, value = (rng.standard_normal((4, width)).astype(np.float32) for width in (12, 10))
    output = transport.outputs("self", query=query, value=value)["output"]
    np.testing.assert_allclose(output, read_block(repository, "self", 2).stages(query, query, value)["output"], **CLOSE)


def test_dot_product_takes_any_width(transport):
    """The plain dot product takes vectors of any width, and is one formula."""
    for width in (1, 3, 64):
        x = np.random.default_rng(width).standard_normal((5, width)).astype(np.float32)
        weights = np.exp(x.astype(np.float64) @ x.T)
        weights /= weights.sum(-1, keepdims=True)
        np.testing.assert_allclose(transport.outputs("dot", query=x)["output"], weights @ x, **CLOSE)


@pytest.mark.parametrize("model", ["cross", "text-cross"])
def test_cross_attention_needs_a_memory(transport, model):
    """A cross-attention model without a key or memory is refused, not answered from the query."""
    width = {"cross": 16, "text-cross": 8}[model]
    with refused("INVALID_ARGUMENT", None, "memory") as caught:
        transport.attend(model, query=np.zeros((2, width), np.float32))
    assert caught.value.field == transport.at("key")


def test_a_batch_is_its_sequences(transport, repository):
    """A query [B, T, D] stands for B sequences: B results, each without a batch dimension."""
    rng = np.random.default_rng(5)
    query = rng.standard_normal((3, 4, 12)).astype(np.float32)
    results = transport.attend("self", version=1, query=query, outputs=["weights", "output"])["results"]
    block = read_block(repository, "self")
    assert len(results) == 3
    for result, each in zip(results, query, strict=True):
        for name, stage in result["outputs"].items():
            np.testing.assert_allclose(stage, block.stages(each)[name], **CLOSE)


def test_what_goes_with_a_batch_may_be_batched_or_shared(transport, repository):
    """Beside a query [B, T, D], key, value, allowed and bias may have a leading B, or be shared by all."""
    rng = np.random.default_rng(6)
    query = rng.standard_normal((2, 3, 16)).astype(np.float32)
    key = rng.standard_normal((2, 4, 12)).astype(np.float32)
    value = rng.standard_normal((4, 10)).astype(np.float32)
    allowed = rng.random((2, 1, 3, 4)) < 0.7
    bias = rng.standard_normal((4, 3, 4)).astype(np.float32)
    mask = {"allowed": allowed, "bias": bias}
    results = transport.attend("cross", query=query, key=key, value=value, mask=mask)["results"]
    block = read_block(repository, "cross")
    for i, result in enumerate(results):
        added = np.where(allowed[i], bias, -np.inf)
        expected = block.stages(query[i], key[i], value, added)["output"]
        np.testing.assert_allclose(result["outputs"]["output"], expected, **CLOSE)


@pytest.mark.parametrize("name", ["key", "value"])
def test_a_batch_of_another_size(transport, name):
    """A leading dimension that is not the query's is refused by the name of the field that has it."""
    vectors = {"key": np.zeros((2, 4, 12), np.float32), "value": np.zeros((2, 4, 10), np.float32)}
    vectors[name] = np.repeat(vectors[name], [2, 1], 0)
    with refused("INVALID_ARGUMENT") as caught:
        transport.attend("cross", query=np.zeros((2, 3, 16), np.float32), **vectors)
    assert caught.value.field == transport.at(name)


def test_an_empty_batch(transport):
    """A batch of no sequences is refused by name, even beside full ones: results stay one a sequence."""
    empty = {"query": np.zeros((0, 3, 12), np.float32)}
    with refused("INVALID_ARGUMENT") as caught:
        transport.attend("self", version=1, **empty)
    assert caught.value.field == transport.at("query")
    with refused("INVALID_ARGUMENT", "inputs[0].query"):
        transport.attend("self", version=1, inputs=[empty, {"query": np.zeros((3, 12), np.float32)}])


def test_ragged_sequences_in_one_message(transport, repository):
    """Sequences of any lengths go in one message, and the results come in the same order."""
    rng = np.random.default_rng(7)
    lengths = [5, 1, 17, 2, 5]
    inputs = [{"query": rng.standard_normal((length, 24)).astype(np.float32)} for length in lengths]
    results = transport.attend("multi", inputs=inputs, outputs=["weights", "output"])["results"]
    block = read_block(repository, "multi")
    assert len(results) == len(lengths)
    for result, sequence in zip(results, inputs, strict=True):
        expected = block.stages(sequence["query"])
        for name, stage in result["outputs"].items():
            np.testing.assert_allclose(stage, expected[name], **CLOSE)


def test_a_batch_among_ragged_sequences(transport):
    """A batch within `inputs` takes its place: results in order, one a sequence."""
    rng = np.random.default_rng(8)
    batch = rng.standard_normal((2, 3, 6)).astype(np.float32)
    last = rng.standard_normal((4, 6)).astype(np.float32)
    results = transport.attend("dot", inputs=[{"query": batch}, {"query": last}], outputs=["q"])["results"]
    for result, each in zip(results, [*batch, last], strict=True):
        np.testing.assert_array_equal(result["outputs"]["q"][0], each)


def test_half_precision_inputs(transport, repository):
    """FP16 vectors are taken with FP16's values; the answer is FP32."""
    rng = np.random.default_rng(9)
    query, key = (rng.standard_normal((length, 24)).astype(np.float16) for length in (3, 5))
    output = transport.outputs("multi", query=query, key=key)["output"]
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, read_block(repository, "multi").stages(query, key)["output"], **CLOSE)


def test_entropy_where_weights_are_zero_and_one(transport):
    """The entropy of a row with one key is exactly 0, of equal weights ln S, and of a row with no key 0."""
    query = np.array([[1e3], [0.0], [1.0]], np.float32)
    key = np.array([[1.0], [0.0], [-1.0], [0.5]], np.float32)
    allowed = np.array([[True] * 4, [True] * 4, [False] * 4])
    outputs = transport.outputs("dot", query=query, key=key, mask={"allowed": allowed}, outputs=["weights", "entropy"])
    assert outputs["weights"][0, 0].tolist() == [1, 0, 0, 0]
    assert outputs["entropy"].shape == (1, 3)
    assert outputs["entropy"][0, [0, 2]].tolist() == [0, 0]
    assert not np.signbit(outputs["entropy"]).any()
    np.testing.assert_allclose(outputs["entropy"][0, 1], np.log(4), rtol=1e-6)


def test_entropy_of_reduced_heads_is_that_of_each(transport, repository):
    """`reduce` takes the mean or maximum of the heads' entropies, not the entropy of the mean."""
    case = next(case for case in BLOCKS if case.model == "multi")
    vectors = case.vectors(np.random.default_rng(9), 5, 5)
    expected = read_block(repository, "multi").stages(**vectors)["entropy"]
    specs = [{"name": "entropy", "as": how, "reduce": how} for how in ("mean", "max")]
    outputs = transport.outputs("multi", outputs=specs, **vectors)
    np.testing.assert_allclose(outputs["mean"], expected.mean(0, keepdims=True), **CLOSE)
    np.testing.assert_allclose(outputs["max"], expected.max(0, keepdims=True), **CLOSE)


COMBINING = [case for case in BLOCKS if case.model in ("multi", "cross")]


@pytest.mark.parametrize("case", COMBINING, ids=lambda case: case.model)
@pytest.mark.parametrize("mask", [{}, {"causal": "bottom_right"}, {"allowed": np.arange(6) % 2 == 0}], ids=str)
def test_contributions_and_the_bias_are_the_output(transport, repository, case, mask):
    """Each head's part of `output` is its values through its rows of M_O; with b_O, all of them sum up to `output`."""
    vectors = case.vectors(np.random.default_rng(10), 4, 6)
    specs = ["contributions", "output", {"name": "contributions", "as": "some", "pairs": ["0.1", "0.0"], "rows": [-1]}]
    specs += [{"name": "contributions", "as": "mean", "reduce": "mean", "pool": "last"}]
    answer = transport.attend(case.model, outputs=specs, **vectors, **({"mask": mask} if mask else {}))
    outputs = answer["results"][0]["outputs"]
    block = read_block(repository, case.model, answer["version"])
    added = additive(mask, block.layer["heads"], 4, 6)
    expected = block.stages(**vectors, added=added)["contributions"]
    np.testing.assert_allclose(outputs["contributions"], expected, **CLOSE)
    np.testing.assert_allclose(outputs["contributions"].sum(0) + block.bias, outputs["output"], **CLOSE)
    np.testing.assert_allclose(outputs["some"], expected[[1, 0]][:, [-1]], **CLOSE)
    np.testing.assert_allclose(outputs["mean"], expected.mean(0)[None, -1], **CLOSE)


@pytest.mark.parametrize("model", ["dot", "grouped", "self"])
def test_a_block_without_m_o_has_no_contributions(transport, model):
    """Where heads are the output, there is nothing that combines them."""
    case = next(case for case in BLOCKS if case.model == model)
    with refused("INVALID_ARGUMENT", "outputs[0].name", "this model gives no contributions"):
        transport.attend(model, outputs=["contributions"], **case.vectors(np.random.default_rng(0), 2, 2))


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.model)
def test_lse_under_a_mask(transport, repository, case):
    """Weights are exp(scores + mask - lse); a row without keys has -1e30, a number that every protocol has."""
    vectors = case.vectors(np.random.default_rng(7), 4, 6)
    allowed = np.random.default_rng(8).random((4, 6)) < 0.6
    allowed[2] = False
    expected = read_block(repository, case.model).stages(**vectors, added=np.where(allowed, 0.0, -np.inf))
    lse, scores = (
        transport.outputs(case.model, mask={"allowed": allowed}, outputs=[name], **vectors)[name]
        for name in ("lse", "scores")
    )
    np.testing.assert_allclose(lse, expected["lse"], **CLOSE)
    assert (lse[:, 2] == np.float32(-1e30)).all()
    weights = np.exp(np.where(allowed, scores - lse[..., None], -np.inf))
    np.testing.assert_allclose(weights, expected["weights"], **CLOSE)


@pytest.mark.parametrize("choice", [{}, {"rows": [3, 0]}, {"heads": [1]}, {"rows": [-1], "reduce": "max"}], ids=str)
@pytest.mark.parametrize("case", SOME, ids=lambda case: case.model)
def test_sums_over_rows(transport, repository, case, choice):
    """`received` and `statistics` are of the rows chosen; a row without keys does not count; heads are reduced last."""
    vectors = case.vectors(np.random.default_rng(9), 4, 6)
    allowed = np.random.default_rng(10).random((4, 6)) < 0.7
    allowed[1] = False
    weights = read_block(repository, case.model).stages(**vectors, added=np.where(allowed, 0.0, -np.inf))["weights"]
    rows = [row % 4 for row in choice.get("rows", range(4))]
    expected = {"received": weights[:, rows].sum(1), "statistics": statistics(weights, rows)}
    if "heads" in choice:
        expected = {name: stage[choice["heads"]] for name, stage in expected.items()}
    if "reduce" in choice:
        expected = {name: stage.max(0, keepdims=True) for name, stage in expected.items()}
    asked = [{"name": name, **choice} for name in expected]
    found = transport.outputs(case.model, mask={"allowed": allowed}, outputs=asked, **vectors)
    for name, stage in expected.items():
        np.testing.assert_allclose(found[name], stage, **CLOSE, err_msg=name)


def test_the_keys_that_receive_most(transport, repository):
    """`top_k` of `received`: the largest sums, and keys that are hidden from every row chosen last."""
    vectors = BLOCKS[-1].vectors(np.random.default_rng(11), 3, 6)
    allowed = np.ones((3, 6), bool)
    allowed[:2, 4] = False
    added = np.where(allowed, 0.0, -np.inf)
    weights = read_block(repository, "cross").stages(**vectors, added=added)["weights"][:, :2].sum(1)
    spec = {"name": "received", "rows": [0, 1], "top_k": 6}
    indices, values = transport.outputs("cross", mask={"allowed": allowed}, outputs=[spec], **vectors)["received"]
    np.testing.assert_array_equal(indices, np.argsort(-weights, axis=-1))
    np.testing.assert_allclose(values, np.sort(weights, -1)[:, ::-1], **CLOSE)
    assert (indices[:, -1] == 4).all()
