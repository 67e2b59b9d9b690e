"""Documents that are nearly right: valid ones with a few edits, written by one that JSON's rules do not bind."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

QUERY = [[0.5, -1.0, 2.0], [1.0, 0.0, 0.25]]


@dataclass
class Literal:
    """Text written as it is, JSON or not."""

    text: str


@dataclass
class Pairs:
    """An object as a list of names and values, so that a name can stand twice."""

    pairs: list[tuple[str, Any]]


ATTEND: list[dict[str, Any]] = [
    {"query": QUERY},
    {"query": QUERY, "key": QUERY, "value": QUERY, "outputs": ["weights", "output"]},
    {"inputs": [{"query": QUERY}, {"query": QUERY, "mask": {"causal": "top_left"}}], "mask": {"causal": "none"}},
    {"query": {"data_type": "FP32", "shape": [2, 3], "values": QUERY}, "encoding": "base64"},
    {"query": {"data_type": "FP32", "shape": [1, 2], "data": "AAAAAAAAgD8="}},
    {"query": {"data_type": "FP16", "shape": [1, 2], "data": "AAAAPA=="}, "outputs": ["q", "k", "v", "heads"]},
    {
        "query": QUERY,
        "outputs": [
            {"name": "weights", "as": "a", "heads": [0], "rows": [0, -1], "reduce": "mean", "top_k": 2},
            {"name": "scores", "data_type": "FP16", "layers": ["*"]},
        ],
    },
    {"query": QUERY, "mask": {"window": {"left": 1, "right": 0}, "allowed": [[True, False]], "bias": [[0.0, -1.5]]}},
    {"text": "I gave my cat Tater a toy", "outputs": ["weights", "predictions"], "token_offsets": True},
    {"text": "twenty one", "memory_text": "ein und zwanzig", "outputs": ["predictions"]},
    {"text": "I gave my cat", "text_pair": "a toy", "truncate": "left"},
    {"token_ids": [1, 2, 3], "outputs": ["weights"]},
    {"token_ids": [1, 2], "memory_token_ids": [0, 3], "token_offsets": True},
    {"query": QUERY, "memory": "0123456789abcdef"},
    {"query": QUERY, "lengths": [1, 1], "mask": {"causal": "bottom_right"}},
    {"model": "dot", "version": 1, "query": QUERY},
]
MEMORY: list[dict[str, Any]] = [
    {"key": QUERY, "ttl": 1.5},
    {"key": QUERY, "value": QUERY, "model": "dot", "version": 1},
    {"memory_text": "ein und zwanzig", "truncate": "right"},
    {"memory_token_ids": [1, 2]},
]
TOKENIZE: list[dict[str, Any]] = [
    {"text": "I gave my cat Tater a toy"},
    {"inputs": [{"text": "twenty"}, {"text": "one", "text_pair": "two"}], "truncate": "right"},
    {"inputs": [{"text": "ein und zwanzig"}], "memory": True},
]
EMBEDDINGS: list[dict[str, Any]] = [
    {"model": "multi-head", "input": "I gave my cat Tater a toy"},
    {"model": "text-cross@1", "input": ["cats", "and"], "encoding_format": "base64", "user": "me"},
    {"model": "multi-head", "input": [21, 8, 107], "dimensions": 48, "encoding_format": "float"},
    {"model": "multi-head", "input": [[21], [8, 107]]},
]
INFER: list[dict[str, Any]] = [
    {"inputs": [{"name": "query", "shape": [1, 2, 3], "datatype": "FP32", "data": QUERY}]},
    {
        "id": "7",
        "inputs": [
            {"name": "query", "shape": [2, 1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]},
            {"name": "query_lengths", "shape": [2], "datatype": "INT64", "data": [1, 1]},
        ],
        "outputs": [{"name": "weights", "parameters": {"heads": "0", "top_k": 1, "binary_data": True}}],
        "parameters": {"causal": "top_left", "window_left": 1, "binary_data_output": False, "timeout": 1000000},
    },
    {
        "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["I gave my cat"]}],
        "outputs": [{"name": "predictions"}, {"name": "tokens"}],
    },
    {
        "inputs": [
            {"name": "query", "shape": [1, 1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
            {"name": "allowed", "shape": [1, 1], "datatype": "BOOL", "data": [True]},
        ]
    },
    {"parameters": {"unload_dependents": False}},
    {"ready": True},
]
MODELS = (
    "dot",
    "dot",
    "dot",
    "multi",
    "self",
    "grouped",
    "cross",
    "text-cross",
    "multi-head",
    "text-cross",
    "multi-head",
    "nobody",
    "..",
    "%2e%2e",
    "a%00b",
    "é",
)

ODD_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    1.5,
    2**31 - 1,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    -(2**63) - 1,
    "",
    "x",
    "weights",
    "é\u2028",
    "\ud800",
    "x" * 5000,
    "NaN",
    [],
    {},
    [None],
    [[]],
    [[], []],
    [[1.0, 2.0], [3.0]],
    [[[[[[1.0]]]]]],
    [1, "1"],
    [2**62, 4],
    [-1, 3],
    [0],
    [1] * 70,
    [2**31 - 1] * 4,
    [2**63 - 1, 2**63 - 1, 2],
    {"data_type": "FP64", "values": [1.0]},
    {"data_type": "FP32", "shape": [2**31 - 1, 4], "data": ""},
    {"shape": [0, 3], "values": []},
    Literal("NaN"),
    Literal("Infinity"),
    Literal("-Infinity"),
    Literal("1e400"),
    Literal("-0"),
    Literal("1e-400"),
    Literal("1" * 5000),
    Literal("01"),
    Literal("0x10"),
    Literal("'x'"),
    Literal("{"),
    Literal("]"),
    Literal('"\\u0000"'),
    Literal('"\\ud83d"'),
    Literal('{"a":1,"a":2}'),
    Literal("[" * 3000 + "]" * 3000),
    Literal("[" * 900 + "1" + "]" * 900),
    Literal('{"a":' * 900 + "1" + "}" * 900),
    Literal("[1," * 500 + "1" + "]" * 500),
]
ODD_NAMES = [
    "",
    "query",
    "inputs",
    "outputs",
    "parameters",
    "shape",
    "__class__",
    "é",
    "x" * 3000,
    "\x00",
    "weights.top_k",
]


def written(value: Any) -> str:
    """Write a document."""
    if isinstance(value, Literal):
        return value.text
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(name)}:{written(each)}" for name, each in value.pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


def as_pairs(value: Any) -> Any:
    """Return a document with objects that can hold a name twice."""
    if isinstance(value, dict):
        return Pairs([(name, as_pairs(each)) for name, each in value.items()])
    return [as_pairs(each) for each in value] if isinstance(value, list) else value


def _places(value: Any, found: list[tuple[list[Any], int]]) -> list[tuple[list[Any], int]]:
    """Return every element of an object or a list, as the list that has it and its index."""
    elements = value.pairs if isinstance(value, Pairs) else value if isinstance(value, list) else []
    for i, each in enumerate(elements):
        found.append((elements, i))
        _places(each[1] if isinstance(each, tuple) else each, found)
    return found


def edit(document: Any, at: int, how: int, odd: int) -> None:
    """Change one place of a document."""
    places = _places(document, [])
    if not places:
        return
    elements, i = places[at % len(places)]
    element = elements[i]
    named = isinstance(element, tuple)
    value = as_pairs(ODD_VALUES[odd % len(ODD_VALUES)])
    kind = how % 6
    if kind <= 2:
        elements[i] = (element[0], value) if named else value
    elif kind == 3:
        del elements[i]
    elif kind == 4:
        elements.insert(i, (element[0], value) if named else value)
    else:
        name = ODD_NAMES[odd % len(ODD_NAMES)]
        elements[i] = (name, element[1]) if named else [element]


@st.composite
def documents(draw: Callable[..., Any], valid: list[dict[str, Any]]) -> bytes:
    """Draw a valid document with a few edits."""
    document = as_pairs(draw(st.sampled_from(valid)))
    numbers = st.integers(0, 999)
    for at, how, odd in draw(st.lists(st.tuples(numbers, numbers, numbers), max_size=4)):
        edit(document, at, how, odd)
    return written(document).encode("utf-8", "surrogatepass")


def damaged(body: bytes, rng: random.Random) -> bytes:
    """Return a body as a bad line, or a bad caller, would send it."""
    kind = rng.randrange(8)
    at = rng.randrange(len(body) + 1)
    if kind == 0:
        return body[:at]
    if kind == 1:
        return body[:at] + rng.randbytes(rng.randrange(1, 9)) + body[at:]
    if kind == 2:
        return body[:at] + rng.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x00")) + body[at:]
    if kind == 3:
        return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b" " * 100, b"//\n", b")]}',\n")) + body
    if kind == 4:
        return body + rng.choice((b"x", b"{}", b",", b"\x00", body))
    if kind == 5 and body:
        at = rng.randrange(len(body))
        return body[:at] + bytes([body[at] ^ (1 << rng.randrange(8))]) + body[at + 1 :]
    if kind == 6:
        end = min(len(body), at + rng.randrange(1, 20))
        return body[:at] + body[end:]
    return body.replace(rng.choice((b"[", b"]", b"{", b"}", b":", b",", b'"')), b"", 1)


def binary(document: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return a body of JSON with bytes behind it, and a header of its length; either may lie."""
    raw = rng.choice(
        (
            b"",
            bytes(8),
            np.ones(2, "<f4").tobytes(),
            rng.randbytes(rng.randrange(64)),
            b"\xff\xff\xff\xff" + b"abc",
            b"\x03\x00\x00\x00abc",
        )
    )
    length = rng.choice(
        (
            len(document),
            len(document),
            len(document) - 1,
            len(document) + 1,
            0,
            -1,
            2**31,
            2**63,
            10**40,
            "x",
            "",
            "1e3",
            "+5",
        )
    )
    return document + raw, str(length)
