"""Refusals, over every transport: tensors that are broken or do not fit, and requests that ask for nothing."""

import numpy as np
import pytest

from tests.messages import Raw
from tests.refusals import refused

BIG = 2**62
ONE = b"\0" * 4


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        ((), "rank"),
        ((12,), "rank"),
        ((1, 1, 2, 12), "rank"),
        ((2, 11), "12"),
        ((2, 13), "12"),
        ((0, 12), "empty"),
        ((2, 0), "empty"),
        ((1, 0, 12), "empty"),
    ],
)
@pytest.mark.parametrize("name", ["query", "key"])
def test_shapes_that_do_not_fit(transport, name, shape, what):
    """A tensor of another rank, another width, or without elements is refused by its field, with its shape."""
    array = np.zeros(shape, np.float32)
    vectors = {"query": np.zeros((2, 12), np.float32), "value": np.zeros((2, 10), np.float32), name: array}
    with refused("INVALID_ARGUMENT") as caught:
        transport.attend("self", **vectors)
    assert caught.value.field == transport.at(name)


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_the_width_is_told(transport, name):
    """A wrong width is told beside the right one."""
    vectors = {"query": np.zeros((2, 16), np.float32), "key": np.zeros((3, 12), np.float32)}
    vectors["value"] = np.zeros((3, 10), np.float32)
    vectors[name] = np.zeros((len(vectors[name]), 7), np.float32)
    with refused("INVALID_ARGUMENT", None, "7", {"query": "16", "key": "12", "value": "10"}[name]) as caught:
        transport.attend("cross", **vectors)
    assert caught.value.field == transport.at(name)


def test_keys_and_values_that_do_not_pair(transport):
    """There must be a value for each key."""
    with refused("INVALID_ARGUMENT", None, "4", "3") as caught:
        transport.attend(
            "cross",
            query=np.zeros((2, 16), np.float32),
            key=np.zeros((3, 12), np.float32),
            value=np.zeros((4, 10), np.float32),
        )
    assert caught.value.field == transport.at("value")


def test_keys_of_another_width_than_queries(transport):
    """Where any width will do, queries and keys must share it."""
    with refused("INVALID_ARGUMENT", None, "5", "4") as caught:
        transport.attend("dot", query=np.zeros((2, 5), np.float32), key=np.zeros((2, 4), np.float32))
    assert caught.value.field == transport.at("key")


@pytest.mark.parametrize("given", [["query"], ["query", "key"]])
def test_what_cannot_stand_in_for_a_value(transport, given):
    """Where values have a width of their own, a query or key of another cannot stand in: the value must be sent."""
    with refused("INVALID_ARGUMENT", None, "10") as caught:
        transport.attend("self", **{name: np.zeros((2, 12), np.float32) for name in given})
    assert caught.value.field == transport.at("value")


def test_what_cannot_stand_in_for_a_key(transport):
    """The same for a key."""
    with refused("INVALID_ARGUMENT", None, "8") as caught:
        transport.attend("grouped", query=np.zeros((2, 16), np.float32))
    assert caught.value.field == transport.at("key")


@pytest.mark.parametrize("dtype", [np.bool_, np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_types_that_are_no_vectors(transport, name, dtype):
    """Vectors are FP32 or FP16, numbers in nested lists; the refusal says so."""
    vectors = {each: np.zeros((2, 3), np.float32) for each in ("query", "key", "value")}
    nested = transport.name == "rest-json" and dtype is np.bool_
    with refused("INVALID_ARGUMENT", None, *(["numbers"] if nested else ["FP32", "FP16"])) as caught:
        transport.attend("dot", **vectors | {name: vectors[name].astype(dtype)})
    assert caught.value.field == transport.at(name)


@pytest.mark.parametrize(
    "raw",
    [
        Raw("FP32", (2, 2), b""),
        Raw("FP32", (2, 2), ONE * 3),
        Raw("FP32", (2, 2), ONE * 5),
        Raw("FP32", (2, 2), ONE * 4 + b"\0"),
        Raw("FP16", (2, 2), ONE * 4),
        Raw("FP32", (-1, 2), ONE * 2),
        Raw("FP32", (-1, -2), ONE * 2),
        Raw("FP32", (2, -1), b""),
        Raw("FP32", (BIG, 4), b""),
        Raw("FP32", (BIG, 4), ONE * 4),
        Raw("FP32", (2**31 - 1, 2**31 - 1), ONE),
        Raw("FP32", (2**32, 2**32), b""),
        Raw("FP32", (0, BIG), b""),
        Raw("FP32", (0, BIG, BIG), b""),
        Raw("FP32", (0, 0), b""),
        Raw("FP32", (0,), b""),
        Raw("FP32", (), b""),
        Raw("FP32", (1,) * 65, ONE),
        Raw("FP32", (1,) * 1000, ONE),
    ],
    ids=lambda raw: f"{raw.data_type}{raw.shape[:4]}{len(raw.shape)}-{len(raw.data)}",
)
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_tensors_that_are_broken(transport, name, raw):
    """Bytes that do not fill the shape, a shape that overflows, is negative or has a zero: refused by field."""
    vectors = {each: np.zeros((2, 2), np.float32) for each in ("query", "key", "value")}
    with refused("INVALID_ARGUMENT") as caught:
        transport.attend("dot", **vectors | {name: raw})
    assert caught.value.field.startswith(transport.at(name))  # JSON may name the part: `query.shape[0]`


def test_the_byte_count_is_told(transport):
    """A wrong number of bytes is told beside the right one."""
    with refused("INVALID_ARGUMENT", None, "16", "12") as caught:
        transport.attend("dot", query=Raw("FP32", (2, 2), ONE * 3))
    assert caught.value.field == transport.at("query")


@pytest.mark.parametrize("data_type", [0, 99])
def test_types_that_are_unknown(transport, data_type):
    """A data type that is missing or unknown is refused, with those there are."""
    if "json" in transport.name or "base64" in transport.name:
        data_type = {0: "FLOAT", 99: "fp32"}[data_type]
    with refused("INVALID_ARGUMENT", None, "FP32") as caught:
        transport.attend("dot", query=Raw(data_type, (1, 1), ONE))
    assert caught.value.field.startswith(transport.at("query"))


def test_a_broken_mask(transport):
    """A mask's tensors are read as strictly."""
    for name in ("allowed", "bias"):
        raw = Raw("BOOL", (2, 2), b"\1") if name == "allowed" else Raw("FP32", (2, BIG), b"")
        with refused("INVALID_ARGUMENT") as caught:
            transport.attend("dot", query=np.zeros((2, 2), np.float32), mask={name: raw})
        assert caught.value.field.startswith(transport.at(f"mask.{name}"))


def test_truth_of_any_byte(transport):
    """A BOOL byte other than 0 is true."""
    mask = {"allowed": Raw("BOOL", (1, 3), b"\0\2\xff")}
    query = np.zeros((3, 1), np.float32)
    weights = transport.outputs("dot", query=query, mask=mask, outputs=["weights"])["weights"]
    np.testing.assert_array_equal(weights[0, 0], [0, 0.5, 0.5])


def test_nothing_to_attend(transport):
    """A request without sequences is refused by `inputs`; so is a sequence without a query by `query`."""
    with refused("INVALID_ARGUMENT", "inputs"):
        transport.attend("dot")
    with refused("INVALID_ARGUMENT", "inputs"):
        transport.attend("dot", inputs=[])
    with refused("INVALID_ARGUMENT", "inputs[0].query", "query"):
        transport.attend("dot", inputs=[{}])


def test_one_bad_sequence_of_several(transport):
    """One bad sequence refuses the request, and is named by its place."""
    good = {"query": np.zeros((2, 12), np.float32), "value": np.zeros((2, 10), np.float32)}
    with refused("INVALID_ARGUMENT", "inputs[2].query"):
        transport.attend("self", inputs=[good, good, good | {"query": np.zeros((2, 11), np.float32)}, good])


def test_the_message_names_the_field_too(transport):
    """The message alone names the field as well."""
    with refused("INVALID_ARGUMENT") as caught:
        transport.attend("self", query=np.zeros((2, 11), np.float32))
    assert caught.value.message.startswith(f"{transport.at('query')}: ")
