"""JSON requests: accepted forms, and refusals."""

import base64

import numpy as np
import pytest
import requests
from serving import HANG

from tests.refusals import refused_by_http


@pytest.fixture(scope="module")
def session():
    with requests.Session() as session:
        yield session


@pytest.fixture
def send(server, session):
    """Send a body; return the response."""

    def send(body, model="dot", **headers):
        sent = {"data": body} if isinstance(body, str | bytes) else {"json": body}
        return session.post(f"{server.url}/v1/models/{model}:attend", headers=headers, timeout=HANG, **sent)

    return send


@pytest.fixture
def error(send):
    """Send a body that must be refused; return the refusal."""

    def error(body, model="dot"):
        refused = refused_by_http(send(body, model))
        assert refused.code == "INVALID_ARGUMENT", refused
        return refused

    return error


QUERY = [[1.0, 0.0], [0.0, 1.0]]


def test_shorthand_is_inputs_of_one(send):
    """One sequence's fields at the top level mean the same as `inputs` of one."""
    own = {"query": QUERY, "key": [[1.0, 1.0]], "mask": {"causal": "top_left"}}
    rest = {"outputs": ["output", "weights"]}
    short, long = send(own | rest), send({"inputs": [own]} | rest)
    assert short.status_code == long.status_code == 200
    assert short.json() == long.json()


def test_the_answers_form(send):
    """An answer is `model`, `version` and `results`; a tensor is `data_type`, `shape` and nested `values`."""
    answer = send({"query": QUERY, "outputs": ["weights", {"name": "weights", "as": "top", "top_k": 1}]}).json()
    assert list(answer) == ["model", "version", "results"]
    (result,) = answer["results"]
    assert result.keys() == {"outputs"}
    assert result["outputs"]["weights"].keys() == {"data_type", "shape", "values"}
    assert result["outputs"]["weights"]["shape"] == [1, 2, 2]
    top = result["outputs"]["top"]
    assert top.keys() == {"indices", "values"}
    assert top["indices"] == {"data_type": "UINT16", "shape": [1, 2, 1], "values": [[[0], [1]]]}


def test_the_issues_example(send):
    """The example of the issue answers in the form that it gives."""
    body = {"text": "I gave my cat Tater a toy", "outputs": ["weights", "predictions"]}
    answer = send(body, "multi-head").json()
    assert (answer["model"], answer["version"]) == ("multi-head", 1)
    (result,) = answer["results"]
    assert result["tokens"] == body["text"].split()
    assert (result["outputs"]["weights"]["data_type"], result["outputs"]["weights"]["shape"]) == ("FP32", [3, 7, 7])
    assert result["predictions"][0].keys() == {"name", "label", "probability", "id", "row"}
    based = send(body | {"encoding": "base64"}, "multi-head").json()["results"][0]["outputs"]["weights"]
    assert based.keys() == {"data_type", "shape", "data"}
    weights = np.frombuffer(base64.b64decode(based["data"]), "<f4").reshape(3, 7, 7)
    np.testing.assert_array_equal(weights, np.array(result["outputs"]["weights"]["values"], np.float32))


DATA = base64.b64encode(np.array(QUERY, "<f4").tobytes()).decode()


@pytest.mark.parametrize(
    "query",
    [
        QUERY,
        [[1, 0], [0, 1]],
        {"values": QUERY},
        {"data_type": "FP32", "values": QUERY},
        {"data_type": "FP16", "values": QUERY},
        {"data_type": "FP32", "shape": [2, 2], "values": QUERY},
        {"data_type": "FP32", "shape": [2, 2], "values": [1, 0, 0, 1]},
        {"data_type": "FP32", "shape": [2, 2], "data": DATA},
        {"shape": [2, 2], "data": DATA},
        {"data_type": "FP32", "shape": [1, 2, 2], "data": DATA},
    ],
)
def test_forms_of_a_tensor(send, query):
    """A tensor is nested lists, or an object of `data_type`, `shape` and `values` or base64 `data`."""
    expected = send({"query": QUERY}).json()
    assert send({"query": query}).json() == expected


@pytest.mark.parametrize("absent", ["key", "value", "mask", "text", "outputs", "encoding", "token_offsets", "memory"])
def test_null_is_absent(send, absent):
    """null equals an absent field."""
    assert send({"query": QUERY, absent: None}).json() == send({"query": QUERY}).json()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"query": [[1, 2]',
        b'{"query": [[1, 2]]} x',
        b"{'query': 1}",
        b'{"query": [[NaN]]}',
        b'{"query": [[Infinity]]}',
        b'{"query": [[1,]]}',
        b"\xff\xfe",
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b'{"query":' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"query": [[01]]}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_json(error, body):
    """A body that is no JSON is refused as such, however it breaks."""
    assert "JSON" in error(body).message


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"', b"true"])
def test_what_is_no_object(error, body):
    """A body that is JSON but no object is refused as such."""
    assert "object" in error(body).message


@pytest.mark.parametrize(
    ("body", "field", "meant"),
    [
        ({"querry": QUERY}, "querry", "query"),
        ({"query": QUERY, "output": ["weights"]}, "output", "outputs"),
        ({"query": QUERY, "outputs": [{"name": "weights", "topk": 1}]}, "outputs[0].topk", "top_k"),
        ({"query": QUERY, "mask": {"causual": "top_left"}}, "mask.causual", "causal"),
        ({"query": QUERY, "mask": {"window": {"lefft": 1}}}, "mask.window.lefft", "left"),
        ({"query": {"dtype": "FP32", "values": QUERY}}, "query.dtype", "data_type"),
        ({"inputs": [{"query": QUERY}, {"query": QUERY, "vallue": QUERY}]}, "inputs[1].vallue", "value"),
        ({"query": QUERY, "zzz": 1}, "zzz", "query"),
    ],
)
def test_unknown_fields(error, body, field, meant):
    """An unknown field is refused by its path, with the closest known name."""
    refused = error(body)
    assert refused.field == field
    assert meant in refused.message


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"inputs": {}}, "inputs"),
        ({"inputs": [1]}, "inputs[0]"),
        ({"inputs": [None]}, "inputs[0]"),
        ({"inputs": [[]]}, "inputs[0]"),
        ({"query": 1}, "query"),
        ({"query": "x"}, "query"),
        ({"query": True}, "query"),
        ({"query": [["1", "2"]]}, "query"),
        ({"query": [[None]]}, "query"),
        ({"query": [[1, None]]}, "query"),
        ({"query": [[{}]]}, "query"),
        ({"query": [[True, False]]}, "query"),
        ({"query": [[1, True]]}, "query"),
        ({"query": [[1, 2], [3]]}, "query"),
        ({"query": [1, [2]]}, "query"),
        ({"query": {"values": "x"}}, "query.values"),
        ({"query": {"values": QUERY, "data": DATA, "shape": [2, 2]}}, "query"),
        ({"query": {"shape": [2, 2]}}, "query"),
        ({"query": {}}, "query"),
        ({"query": {"data": DATA}}, "query.shape"),
        ({"query": {"data": "§", "shape": [2, 2]}}, "query.data"),
        ({"query": {"data": DATA[:-1], "shape": [2, 2]}}, "query.data"),
        ({"query": {"data": 1, "shape": [2, 2]}}, "query.data"),
        ({"query": {"data": DATA, "shape": 4}}, "query.shape"),
        ({"query": {"data": DATA, "shape": [2, "2"]}}, "query.shape[1]"),
        ({"query": {"data": DATA, "shape": [2, 2.0]}}, "query.shape[1]"),
        ({"query": {"data": DATA, "shape": [2, None]}}, "query.shape[1]"),
        ({"query": {"values": QUERY, "shape": [3, 2]}}, "query"),
        ({"query": {"values": QUERY, "shape": [-1, 2]}}, "query"),
        ({"query": {"values": QUERY, "shape": [2**31 - 1] * 4}}, "query"),
        ({"query": {"values": QUERY, "data_type": "FP64"}}, "query.data_type"),
        ({"query": {"values": QUERY, "data_type": 1}}, "query.data_type"),
        ({"query": {"values": QUERY, "data_type": "x" * 9999}}, "query.data_type"),
        ({"text": 1}, "text"),
        ({"text": ["x"]}, "text"),
        ({"query": QUERY, "memory": 1}, "memory"),
        ({"query": QUERY, "mask": []}, "mask"),
        ({"query": QUERY, "mask": {"causal": "left"}}, "mask.causal"),
        ({"query": QUERY, "mask": {"causal": True}}, "mask.causal"),
        ({"query": QUERY, "mask": {"window": 1}}, "mask.window"),
        ({"query": QUERY, "mask": {"window": {"left": 1.5}}}, "mask.window.left"),
        ({"query": QUERY, "mask": {"window": {"left": 2**40}}}, "mask.window.left"),
        ({"query": QUERY, "mask": {"allowed": [[1, 0]]}}, "mask.allowed"),
        ({"query": QUERY, "mask": {"allowed": [["true"]]}}, "mask.allowed"),
        ({"query": QUERY, "mask": {"bias": [[None]]}}, "mask.bias"),
        ({"query": QUERY, "outputs": "weights"}, "outputs"),
        ({"query": QUERY, "outputs": {"name": "weights"}}, "outputs"),
        ({"query": QUERY, "outputs": [1]}, "outputs[0]"),
        ({"query": QUERY, "outputs": [{}]}, "outputs[0].name"),
        ({"query": QUERY, "outputs": [{"name": 1}]}, "outputs[0].name"),
        ({"query": QUERY, "outputs": [{"name": "q", "as": 1}]}, "outputs[0].as"),
        ({"query": QUERY, "outputs": [{"name": "q", "heads": 0}]}, "outputs[0].heads"),
        ({"query": QUERY, "outputs": [{"name": "q", "heads": [-1]}]}, "outputs[0].heads[0]"),
        ({"query": QUERY, "outputs": [{"name": "q", "heads": [0, "1"]}]}, "outputs[0].heads[1]"),
        ({"query": QUERY, "outputs": [{"name": "q", "heads": [True]}]}, "outputs[0].heads[0]"),
        ({"query": QUERY, "outputs": [{"name": "q", "rows": [0.5]}]}, "outputs[0].rows[0]"),
        ({"query": QUERY, "outputs": [{"name": "q", "rows": [10**30]}]}, "outputs[0].rows[0]"),
        ({"query": QUERY, "outputs": [{"name": "weights", "top_k": -1}]}, "outputs[0].top_k"),
        ({"query": QUERY, "outputs": [{"name": "weights", "top_k": "1"}]}, "outputs[0].top_k"),
        ({"query": QUERY, "outputs": [{"name": "weights", "reduce": "sum"}]}, "outputs[0].reduce"),
        ({"query": QUERY, "outputs": [{"name": "weights", "pool": "median"}]}, "outputs[0].pool"),
        ({"query": QUERY, "outputs": [{"name": "weights", "data_type": "INT64"}]}, "outputs[0].data_type"),
        ({"query": QUERY, "outputs": [{"name": "weights", "layers": "0"}]}, "outputs[0].layers"),
        ({"query": QUERY, "outputs": [{"name": "weights", "layers": [0]}]}, "outputs[0].layers[0]"),
        ({"query": QUERY, "encoding": "hex"}, "encoding"),
        ({"query": QUERY, "encoding": 64}, "encoding"),
        ({"query": QUERY, "token_offsets": "yes"}, "token_offsets"),
        ({"query": QUERY, "inputs": [{"query": QUERY}]}, "query"),
        ({"query": QUERY, "inputs": None}, None),
    ],
    ids=lambda value: str(value)[:60],
)
def test_wrong_types_and_values(error, send, body, field):
    """A value of another type, or none of the choices, is refused by its path; the message stays short."""
    if field is None:
        assert send(body).status_code == 200  # null is absent
        return
    refused = error(body)
    assert refused.field == field
    assert len(refused.message) < 1000


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1e39", "-1e39", "1" + "0" * 400, str(2**64), str(2**63), str(-(2**63) - 1)]
)
def test_huge_numbers(send, number):
    """A number that FP32 cannot hold is refused as not finite, or as no JSON; one that it can hold is taken."""
    response = send(f'{{"query": [[{number}, 1]], "key": [[0, 0]], "outputs": ["q"]}}')
    if abs(float(number)) < 3e38:
        assert response.status_code == 200, response.text
        assert response.json()["results"][0]["outputs"]["q"]["values"][0][0][0] == pytest.approx(float(number))
        return
    refused = refused_by_http(response)
    assert refused.code == "INVALID_ARGUMENT"
    assert refused.field in ("query", "")
    assert "finite" in refused.message or "JSON" in refused.message


def test_integers_of_mixed_size(send):
    """Integers of any size and sign may stand in one tensor."""
    answer = send(f'{{"query": [[{2**63}, -1]], "key": [[0, 0]], "outputs": ["q"]}}').json()
    assert answer["results"][0]["outputs"]["q"]["values"] == [[[pytest.approx(2**63), -1]]]


@pytest.mark.parametrize("depth", [3, 33, 65, 500])
def test_deep_nesting(error, depth):
    """Lists nested too deeply for a tensor are refused by the field."""
    refused = error(f'{{"query": {"[" * (depth + 1)}1{"]" * (depth + 1)}}}')
    assert refused.field == "query"
    assert len(refused.message) < 1000


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ('{"query": [[1]], "query": [[2]]}', "query"),
        ('{"query": [[1]], "query": [[1]]}', "query"),
        ('{"query": [[1]], "qu\\u0065ry": [[2]]}', "query"),
        ('{"query": [[1]], "outputs": [{"name": "q", "name": "k"}]}', "name"),
        ('{"query": [[1]], "mask": null, "mask": {"causal": "top_left"}}', "mask"),
        ('{"inputs": [{"query": [[1]], "text": "a", "text": null}]}', "text"),
        ('{"zzz": {"a": {"b": [{"c": 1}]}}, "query": [[1]], "query": [[2]]}', "zzz"),
        ('{"query": {"a": 1}, "query": [[2]]}', "query"),
        ('{"query": {"zz": 1}, "qu\\u0065ry": {"shape": [1], "data": "AAAAAA==", "data": "AAAAAA=="}}', "data"),
        ('{"query": ' + "[" * 900 + "]" * 900 + ', "query": [[1]]}', ""),
        ('{"query": [[1]], "query": [' + "[1]," * 300_000 + "[1]]}", ""),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_duplicate_name(error, body, name):
    """A name twice in one object is refused; the name is told, if it is found in time."""
    refused = error(body)
    assert refused.field in (name, "query")
    assert "twice" in refused.message or "no such field" in refused.message


@pytest.mark.parametrize(
    "text",
    [
        "a:b",
        "::",
        "\\u003a",
        "\\u003A:",
        "\\\\u003a",
        "\\\\\\u003a",
        "\\\\\\\\u003a",
        '\\":\\"',
        "\\\\",
        '{\\"a\\": 1}',
    ],
)
def test_colons_in_text(text, send):
    """A colon within a string, escaped or not, does not count as a name."""
    refused = refused_by_http(send(f'{{"text": "{text}", "outputs": [ {{"name" : "weights"}} ] }}', "multi-head"))
    assert "twice" not in refused.message
    assert refused.field == "text"


def test_a_long_unknown_name(error):
    """An unknown field's name is not sent back whole."""
    refused = error({"x" * 100_000: 1})
    assert len(refused.message) < 1000


def test_parameters_of_the_content_type(send):
    """A charset beside the media type, or no media type, changes nothing."""
    for kind in ("application/json; charset=utf-8", "text/plain", ""):
        assert send(b'{"query": [[1]]}', **{"content-type": kind}).status_code == 200


@pytest.mark.parametrize("name", ["layers", "heads", "rows"])
def test_null_in_a_list(error, name):
    """Null is no layer, head or row."""
    refused = error({"query": [[1.0, 2.0]], "outputs": [{"name": "weights", name: [None]}]})
    assert refused.field == f"outputs[0].{name}[0]"
