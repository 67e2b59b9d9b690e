"""Numbers that are none: refused where one could reach an answer, harmless elsewhere."""

import contextlib

import numpy as np
import pytest

from tests.refusals import Refused, refused
from tests.server.reference import CLOSE, read_block

VECTORS = {
    name: np.random.default_rng(i).standard_normal(shape).astype(np.float32)
    for i, (name, shape) in enumerate({"query": (3, 16), "key": (4, 12), "value": (4, 10)}.items())
}


def with_fault(name, number, place, dtype=np.float32):
    array = VECTORS[name].astype(dtype)
    array[place] = number
    return VECTORS | {name: array}


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_refused_with_its_place(transport, name, number, dtype):
    """A NaN or infinity that can reach an answer is refused by field and first place."""
    with refused("INVALID_ARGUMENT", None, "finite", "[1, 2]") as caught:
        transport.attend("cross", **with_fault(name, number, (1, 2), dtype))
    assert caught.value.field == transport.at(name)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize("asked", [["output"], ["weights", "heads", "output"], ["scores"]])
def test_harmless_where_masked(transport, repository, name, number, asked):
    """In a key or value that nothing may attend to, it changes nothing that can be seen."""
    allowed = np.array([True, True, False, True])
    mask = {"allowed": allowed}
    outputs = transport.outputs("cross", mask=mask, outputs=asked, **with_fault(name, number, (2, 5)))
    expected = read_block(repository, "cross").stages(**VECTORS, added=np.where(allowed, 0, -np.inf))
    for stage, value in outputs.items():
        columns = allowed if stage == "scores" else slice(None)
        np.testing.assert_allclose(value[..., columns], expected[stage][..., columns], **CLOSE)
        assert np.isfinite(value).all()


def test_refused_where_one_query_may_attend(transport):
    """Masked for some queries is not masked for all."""
    allowed = np.ones((3, 4), bool)
    allowed[:2, 2] = False
    with refused("INVALID_ARGUMENT", None, "[2, 0]") as caught:
        transport.attend("cross", mask={"allowed": allowed}, **with_fault("key", np.nan, (2, 0)))
    assert caught.value.field == transport.at("key")


@pytest.mark.parametrize("name", ["key", "value"])
def test_refused_under_a_finite_bias(transport, name):
    """A finite bias, down to float32's least, hides no key: the number that it is added to must be finite."""
    bias = np.zeros((3, 4), np.float32)
    bias[:, 2] = np.finfo(np.float32).min
    with refused("INVALID_ARGUMENT", None, "[2, 0]") as caught:
        transport.attend("cross", mask={"bias": bias}, **with_fault(name, np.nan, (2, 0)))
    assert caught.value.field == transport.at(name)


def test_harmless_in_a_query_that_attends_to_nothing(transport, repository):
    """A query with a fully masked row may hold any numbers: its output is the bias."""
    allowed = np.array([[True] * 4, [False] * 4, [True] * 4])
    mask = {"allowed": allowed}
    output = transport.outputs("cross", mask=mask, **with_fault("query", np.nan, (1, 0)))["output"]
    block = read_block(repository, "cross")
    np.testing.assert_allclose(output, block.stages(**VECTORS, added=np.where(allowed, 0, -np.inf))["output"], **CLOSE)


def test_refused_in_a_query_that_is_its_own_key(transport):
    """A query that attends to nothing, but is attended to as a key, must be finite."""
    query = np.ones((3, 5), np.float32)
    query[1, 1] = np.nan
    allowed = np.ones((3, 3), bool)
    allowed[1] = False
    with refused("INVALID_ARGUMENT", None, "[1, 1]") as caught:
        transport.attend("dot", query=query, mask={"allowed": allowed})
    assert caught.value.field == transport.at("query")


def test_padding_of_a_sequence_that_is_its_own_key(transport, repository):
    """NaN as padding of a query that is its own memory is harmless when its row and its column are masked."""
    query = np.random.default_rng(3).standard_normal((5, 12)).astype(np.float32)
    padded = np.vstack([query, np.full((2, 12), np.nan, np.float32)])
    real = np.arange(7) < 5
    mask = {"allowed": real[:, None] & real[None, :]}
    output = transport.outputs("self", version=1, query=padded, mask=mask)["output"]
    np.testing.assert_allclose(output[:5], read_block(repository, "self").stages(query)["output"], **CLOSE)
    np.testing.assert_array_equal(output[5:], 0)


def test_huge_numbers_in_masked_keys(transport):
    """A masked key may hold a number so large that its score overflows: it is masked all the same."""
    query = np.full((2, 2), 1e20, np.float32)
    key = np.array([[1e-20, 0], [1e30, 1e30], [0, 1e-20]], np.float32)
    value = np.array([[1.0], [2.0], [4.0]], np.float32)
    mask = {"allowed": np.array([True, False, True])}
    for asked in (["output"], ["weights", "output"]):
        outputs = transport.outputs("dot", query=query, key=key, value=value, mask=mask, outputs=asked)
        np.testing.assert_allclose(outputs["output"], [[2.5], [2.5]], rtol=1e-5)


def test_no_answer_that_is_no_number(transport):
    """Finite vectors with products that overflow are answered with numbers or refused: no NaN leaves the server."""
    x = np.full((2, 2), 1e30, np.float32)
    outputs = {}
    with contextlib.suppress(Refused):
        outputs = transport.outputs("dot", query=x, outputs=["weights", "scores", "output"])
    for stage in outputs.values():
        assert np.isfinite(stage).all()


def test_which_of_a_batch(transport):
    """An error in a dense batch says which of its sequences it is in."""
    batch = np.ones((3, 2, 2), np.float32)
    batch[1, 0, 1] = np.inf
    with refused("INVALID_ARGUMENT", None, "[0, 1]", "sequence 1 of the batch"):
        transport.attend("dot", query=batch)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_refused_where_such_a_one_was_taken(transport, dtype):
    """A sequence of known shapes is still checked for its numbers and its further fields."""
    good = {name: array.astype(dtype) for name, array in VECTORS.items()}
    before = transport.outputs("cross", **good)
    with refused("INVALID_ARGUMENT", None, "finite", "[2, 3]") as caught:
        transport.attend("cross", **with_fault("key", np.nan, (2, 3), dtype))
    assert caught.value.field == transport.at("key")
    for name, array in transport.outputs("cross", **good).items():
        np.testing.assert_array_equal(array, before[name])
    with refused("INVALID_ARGUMENT", None, "wide"):
        transport.attend("cross", **good | {"value": good["value"][:, :9]})


def test_an_overflow_that_nobody_asked_for(transport):
    """An overflow in a stage that is not requested fails no request."""
    huge = VECTORS | {"value": np.full_like(VECTORS["value"], 3e38)}
    asked = {"outputs": ["k"]}
    np.testing.assert_array_equal(
        transport.outputs("cross", **asked, **huge)["k"], transport.outputs("cross", **asked, **VECTORS)["k"]
    )
    with refused("INVALID_ARGUMENT", None, "overflows"):
        transport.attend("cross", outputs=["v"], **huge)
