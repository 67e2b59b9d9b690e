"""Masks: what each part means, that parts combine, and what happens where nothing is left to attend to."""

import numpy as np
import pytest

from tests.conftest import refused
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
ASKED = ["scores", "weights", "heads", "output"]


def assert_stages(outputs, expected):
    for name, stage in outputs.items():
        np.testing.assert_allclose(stage, expected[name], **CLOSE, err_msg=name)


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: "-".join(f"{k}{np.shape(v) or ''}" for k, v in mask.items()))
def test_each_mask(transport, repository, mask):
    """A mask hides what it says it hides; the scores are told before it."""
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
