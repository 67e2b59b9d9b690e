"""Masks: the meaning of each part, combinations of parts, and rows without a key that is left."""

import numpy as np
import pytest

from tests.refusals import refused
from tests.server.reference import BLOCKS, CLOSE, additive, read_block

T, S, H = 4, 6, 4
RNG = np.random.default_rng(0)
VECTORS = {
    "query": RNG.standard_normal((T, 16)).astype(np.float32),
    "key": RNG.standard_normal((S, 12)).astype(np.float32),
    "value": RNG.standard_normal((S, 10)).astype(np.float32),
}
BIAS = np.where(RNG.random((H, T, S)) < 0.3, -np.inf, RNG.standard_normal((H, T, S))).astype(np.float32)
MASKS = [
    {"causal": "top_left"},
    {"causal": "bottom_right"},
    {"causal": "none"},
    {"window": {"left": 1, "right": 1}},
    {"window": {"left": 0, "right": -1}},
    {"window": {"left": -1, "right": 0}},
    {"window": {"left": 2, "right": 3}, "causal": "top_left"},
    {"window": {"left": 1, "right": 0}, "causal": "bottom_right"},
    *(
        {"allowed": RNG.random(shape) < 0.6}
        for shape in [(S,), (1, S), (T, 1), (T, S), (H, 1, S), (1, T, S), (H, T, S), ()]
    ),
    {"bias": BIAS},
    {"bias": BIAS[0]},
    {"bias": np.array(-2.5, np.float32)},
    {"bias": np.full((1, S), 0.5, np.float16)},
    {
        "causal": "bottom_right",
        "window": {"left": 3, "right": -1},
        "allowed": RNG.random((T, S)) < 0.8,
        "bias": BIAS[1],
    },
]
ASKED = ["scores", "weights", "entropy", "heads", "output"]


def assert_stages(outputs, expected):
    for name, stage in outputs.items():
        np.testing.assert_allclose(stage, expected[name], **CLOSE, err_msg=name)


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: "-".join(f"{k}{np.shape(v) or ''}" for k, v in mask.items()))
def test_each_mask(transport, repository, mask):
    """A mask hides exactly its own positions; the scores are told before it."""
    expected = read_block(repository, "cross").stages(**VECTORS, added=additive(mask, H, T, S))
    assert_stages(transport.outputs("cross", mask=mask, outputs=ASKED, **VECTORS), expected)
    assert_stages(transport.outputs("cross", mask=mask, **VECTORS), expected)


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.model)
@pytest.mark.parametrize("causal", ["top_left", "bottom_right"])
def test_causal_on_every_block(transport, repository, case, causal):
    """Causal masks are lined up as asked, on every block, with fewer, as many and more keys than queries."""
    for queries, keys in ((5, 3), (4, 4), (3, 5)):
        vectors = case.vectors(np.random.default_rng(keys), queries, keys)
        mask = {"causal": causal}
        answer = transport.attend(case.model, mask=mask, outputs=["weights", "output"], **vectors)
        block = read_block(repository, case.model, answer["version"])
        expected = block.stages(**vectors, added=additive(mask, block.layer["heads"], queries, keys))
        assert_stages(answer["results"][0]["outputs"], expected)


def test_the_requests_mask_and_the_sequences_own(transport, repository):
    """The request's mask is for every sequence and combines, by and, with a sequence's own."""
    block = read_block(repository, "cross")
    shared = {"causal": "bottom_right", "bias": BIAS[0]}
    own = {"allowed": RNG.random((T, S)) < 0.7, "bias": BIAS[1]}
    results = transport.attend("cross", inputs=[VECTORS | {"mask": own}, VECTORS], shared_mask=shared)["results"]
    one, two = additive(shared, H, T, S), additive(own, H, T, S)
    assert_stages(results[0]["outputs"], block.stages(**VECTORS, added=one + two))
    assert_stages(results[1]["outputs"], block.stages(**VECTORS, added=one))


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.model)
def test_a_row_masked_whole(transport, repository, case):
    """A query that may attend to nothing has zeros in weights and heads, and the output's bias as output."""
    vectors = case.vectors(np.random.default_rng(5), 3, 4)
    allowed = np.array([[True] * 4, [False] * 4, [True] * 4])
    mask = {"allowed": allowed}
    answer = transport.attend(case.model, mask=mask, outputs=["weights", "heads", "output"], **vectors)
    outputs = answer["results"][0]["outputs"]
    block = read_block(repository, case.model, answer["version"])
    assert not outputs["weights"][:, 1].any()
    assert not outputs["heads"][:, 1].any()
    np.testing.assert_allclose(outputs["output"][1], block.bias if "b_O" in block.matrices else 0, atol=1e-6)
    assert outputs["weights"][:, [0, 2]].any()
    fast = transport.outputs(case.model, mask=mask, **vectors)["output"]
    np.testing.assert_allclose(fast, outputs["output"], atol=1e-6)


def test_everything_masked(transport, repository):
    """Where all is masked, all rows are zeros; by a bias of -inf as well."""
    for mask in ({"allowed": np.zeros((1, 1), bool)}, {"bias": np.array(-np.inf, np.float32)}):
        outputs = transport.outputs("cross", mask=mask, outputs=["weights", "output"], **VECTORS)
        assert not outputs["weights"].any()
        np.testing.assert_allclose(outputs["output"], np.tile(read_block(repository, "cross").bias, (T, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("mask", "field"),
    [
        ({"allowed": np.ones((T, S - 1), bool)}, "allowed"),
        ({"allowed": np.ones((S, T), bool)}, "allowed"),
        ({"allowed": np.ones((2, T, S), bool)}, "allowed"),
        ({"allowed": np.ones((1, H, T, S), bool)}, "allowed"),
        ({"allowed": np.ones((0, S), bool)}, "allowed"),
        ({"allowed": np.ones((T, S), np.float32)}, "allowed"),
        ({"bias": np.zeros((T, S - 1), np.float32)}, "bias"),
        ({"bias": np.zeros((T, S), np.int64)}, "bias"),
        ({"bias": np.full((T, S), np.nan, np.float32)}, "bias"),
        ({"bias": np.full((T, S), np.inf, np.float32)}, "bias"),
        ({"window": {"left": -2, "right": 0}}, "window"),
        ({"window": {"left": 0, "right": -3}}, "window"),
    ],
)
def test_masks_that_do_not_fit(transport, mask, field):
    """A mask of another type, shape or sign is refused by its part, the sequence's and the request's alike."""
    with refused("INVALID_ARGUMENT") as caught:
        transport.attend("cross", mask=mask, **VECTORS)
    assert caught.value.field.startswith(transport.at(f"mask.{field}"))  # JSON may name the place within
    with refused("INVALID_ARGUMENT") as caught:
        transport.attend("cross", inputs=[VECTORS], shared_mask=mask)
    assert caught.value.field.startswith(f"mask.{field}")


def test_a_request_mask_that_fits_only_some(transport):
    """A request's mask must fit each of its sequences."""
    inputs = [VECTORS, VECTORS | {"query": VECTORS["query"][:2]}]
    with refused("INVALID_ARGUMENT", "mask.allowed"):
        transport.attend("cross", inputs=inputs, shared_mask={"allowed": np.ones((T, S), bool)})


def test_heads_masked_apart(transport, repository):
    """A mask of its own for each head hides from that head alone."""
    allowed = np.ones((H, 1, S), bool)
    allowed[1, :, :3] = False
    weights = transport.outputs("cross", mask={"allowed": allowed}, outputs=["weights"], **VECTORS)["weights"]
    assert not weights[1, :, :3].any()
    assert weights[[0, 2, 3]].all()


LEAST = float(np.finfo(np.float32).min)
LOW_BIASES = [
    [[LEAST, LEAST], [0, 0]],
    [[LEAST, -np.inf], [0, 0]],
    [[-np.inf, LEAST], [LEAST, LEAST / 2]],
    [[LEAST / 2, LEAST], [LEAST, 0]],
    [[LEAST, LEAST], [-np.inf, -np.inf]],
    [[-1e38, -1.2e38], [-9e37, -9e37]],
]


def torch_like_softmax(scores, bias):
    """Add and take the softmax in float64, as `torch.softmax` does."""
    masked = scores.astype(np.float64) + bias
    hidden = np.isneginf(masked).all(-1, keepdims=True)
    raised = np.exp(masked - np.where(hidden, 0, masked.max(-1, keepdims=True)))
    return raised / np.where(hidden, 1, raised.sum(-1, keepdims=True))


@pytest.mark.parametrize("asked", [["weights", "output"], ["output"]], ids=["explain", "attend"])
@pytest.mark.parametrize("bias", LOW_BIASES, ids=str)
def test_only_minus_infinity_hides(transport, bias, asked):
    """A finite bias, down to float32's least, hides no key: weights are the softmax of the sums in float64."""
    query, bias = np.eye(2, dtype=np.float32), np.array(bias, np.float32)
    expected = torch_like_softmax(query @ query.T, bias)
    outputs = transport.outputs("dot", query=query, mask={"bias": bias}, outputs=asked)
    np.testing.assert_allclose(outputs["output"], expected @ query, atol=1e-6)
    if "weights" in asked:
        np.testing.assert_allclose(outputs["weights"][0], expected, atol=1e-6)


@pytest.mark.parametrize("bias", LOW_BIASES, ids=str)
def test_two_low_biases_do_not_add_up_to_a_mask(transport, bias):
    """The request's bias and the sequence's own are added in a wider type: their sum hides only where one is -inf."""
    query, bias = np.eye(2, dtype=np.float32), np.array(bias, np.float32)
    shared = np.array([[LEAST, LEAST], [LEAST, LEAST]], np.float32)
    expected = torch_like_softmax(query @ query.T, bias.astype(np.float64) + shared)
    inputs = [{"query": query, "mask": {"bias": bias}}]
    outputs = transport.attend("dot", inputs=inputs, shared_mask={"bias": shared}, outputs=["weights"])["results"][0]
    np.testing.assert_allclose(outputs["outputs"]["weights"][0], expected, atol=1e-6)


def test_the_largest_under_a_finite_bias(transport):
    """Hidden keys come last among the top k; a finite bias, however low, does not hide. Scores are without the bias."""
    query = np.array([[1, 0, 0, 0]], np.float32)
    bias = np.array([[-np.inf, LEAST, 0, LEAST]], np.float32)
    for name, order in (("weights", [2, 1, 3, 0]), ("scores", [1, 2, 3, 0])):
        asked = [{"name": name, "top_k": 4}]
        key = np.eye(4, dtype=np.float32)
        (top,) = transport.outputs("dot", query=query, key=key, mask={"bias": bias}, outputs=asked).values()
        assert top.indices[0, 0].tolist() == order, name
    low = np.array([[LEAST, -np.inf, LEAST, LEAST]], np.float32)
    asked = [{"name": "weights", "top_k": 4}]
    (top,) = transport.outputs("dot", query=query, key=key, mask={"bias": low}, outputs=asked).values()
    assert top.indices[0, 0].tolist() == [0, 2, 3, 1]
    np.testing.assert_allclose(top.values[0, 0], [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-6)


def test_the_largest_under_two_low_biases(transport):
    """A key with a sum of biases below float32's least comes before the hidden keys among the top k."""
    query, key = np.eye(1, 4, dtype=np.float32), np.eye(4, dtype=np.float32)
    own = np.array([[-np.inf, LEAST, 0, LEAST]], np.float32)
    shared = np.array([[0, LEAST, 0, LEAST]], np.float32)
    inputs = [{"query": query, "key": key, "mask": {"bias": own}}]
    asked = {"shared_mask": {"bias": shared}, "outputs": [{"name": "weights", "top_k": 4}]}
    answer = transport.attend("dot", inputs=inputs, **asked)["results"][0]
    assert answer["outputs"]["weights"].indices[0, 0].tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.model)
def test_a_row_masked_whole_in_several_at_once(transport, repository, case):
    """Sequences that are computed together under one mask have zeros in the row that it hides, and only there."""
    rng = np.random.default_rng(6)
    allowed = np.array([[True] * 4, [False] * 4, [True, False, True, True]])
    several = [case.vectors(rng, 3, 4) for _ in range(5)]
    asked = {"outputs": ["weights", "heads", "output"], "shared_mask": {"allowed": allowed}}
    answer = transport.attend(case.model, inputs=several, **asked)
    block = read_block(repository, case.model, answer["version"])
    added = np.where(allowed, 0, -np.inf)
    for vectors, result in zip(several, answer["results"], strict=True):
        assert_stages(result["outputs"], block.stages(**vectors, added=added))
        assert not result["outputs"]["weights"][:, 1].any()
        assert not result["outputs"]["heads"][:, 1].any()
