"""What a model's head gives: logits of rows, predictions of rows chosen, and labels that are drawn."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
from attention_client import AttentionClient, OutputSpec, Sample
from serving import start_server

from tests.refusals import refused
from tests.server import small_transformer as small
from tests.server import transformer
from tests.server.reference import CLOSE
from tests.server.small_transformer import LABELS
from tests.transports import TRANSPORTS

TEXT = "a b c d e f a b c"
LENGTH = 9
HOT = {"temperature": 100.0}  # of nearly even labels


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Both servers of gRPC, on a model with logits and one without."""
    folder = tmp_path_factory.mktemp("head")
    small.write(folder / "small/1")
    transformer.write(folder / "encoder/1")
    with (
        start_server(folder, "--grpc-server", "native") as native,
        start_server(folder, "--grpc-server", "grpcio") as grpcio,
    ):
        yield native, grpcio


@pytest.fixture(params=TRANSPORTS)
def transport(request, servers, connect):
    return connect(request.param, servers[0].rest, servers[0].grpc)


@pytest.fixture(scope="module")
def expected():
    return small.reference(small.embed(TEXT))[-1]["hidden"] @ small.W["labels"].astype(np.float64)


def ask(transport, *specs, text=TEXT, model="small"):
    return transport.one(model, text=text, outputs=list(specs))


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def labels(transport, **sample):
    """Return the labels that are drawn for each row."""
    found = ask(transport, {"name": "predictions", "sample": sample})["predictions"]
    return [each["id"] for each in found]


def test_logits_of_rows(transport, expected):
    """`logits` are those of all rows, or of the rows chosen in their order, in either number format."""
    some = {"name": "logits", "rows": [-1, 2]}
    outputs = ask(transport, "logits", some | {"as": "some"}, some | {"as": "half", "data_type": "FP16"})["outputs"]
    np.testing.assert_allclose(outputs["logits"], expected, **CLOSE)
    np.testing.assert_allclose(outputs["some"], expected[[-1, 2]], **CLOSE)
    assert outputs["half"].dtype == np.float16
    np.testing.assert_allclose(outputs["half"], expected[[-1, 2]], rtol=1e-3, atol=1e-3)


def test_logits_beside_further_rows(transport, expected):
    """Rows of logits, of predictions and of stages are chosen apart from each other in one request."""
    specs = ({"name": "hidden", "rows": [4]}, {"name": "logits", "rows": [3]}, {"name": "predictions", "rows": [8, 0]})
    result = ask(transport, *specs)
    hidden = small.reference(small.embed(TEXT))[-1]["hidden"]
    np.testing.assert_allclose(result["outputs"]["hidden"], hidden[[4]], **CLOSE)
    np.testing.assert_allclose(result["outputs"]["logits"], expected[[3]], **CLOSE)
    assert [each["row"] for each in result["predictions"]] == [8, 0]
    for each in result["predictions"]:
        assert each["id"] == expected[each["row"]].argmax()
        assert each["probability"] == pytest.approx(softmax(expected)[each["row"]].max(), rel=1e-4)


@pytest.mark.parametrize("model", ["small", "encoder"])
def test_a_seed_draws_the_same(model, servers, connect):
    """Draws of a seed are the same over every protocol and both servers, alone, in company and under load."""
    calls = [connect(name, servers[0].rest, servers[0].grpc) for name in TRANSPORTS]
    calls += [connect("grpc", servers[1].rest, servers[1].grpc)]
    text = TEXT if model == "small" else "ein und zwanzig Katzen Hunde"
    spec = {"name": "predictions", "top": 2, "sample": HOT | {"seed": 2**63, "top_p": 0.9}}
    alone = [ask(call, spec, text=text, model=model)["predictions"] for call in calls]
    expected = [each["id"] for each in alone[0]]
    assert len(set(expected)) > 1
    assert [[each["id"] for each in found] for found in alone] == [expected] * len(calls)
    inputs = [{"text": each} for each in (text.split()[0], text, text)]
    company = calls[0].attend(model, inputs=inputs, outputs=[spec])["results"]
    assert [[each["id"] for each in result["predictions"]] for result in company[1:]] == [expected] * 2
    with ThreadPoolExecutor(8) as pool:
        busy = list(pool.map(lambda _: ask(calls[0], spec, text=text, model=model)["predictions"], range(24)))
    assert [[each["id"] for each in found] for found in busy] == [expected] * 24


def test_draws_without_a_seed_differ(transport):
    """Without a seed each draw is new: four times nine draws are the same once in 10^12 times."""
    assert len({tuple(labels(transport, **HOT)) for _ in range(4)}) > 1


def test_what_is_told_of_a_drawn_label(transport, expected):
    """A drawn label has its own probability, as without a draw; `top` is unchanged beside it."""
    spec = {"name": "predictions", "top": len(LABELS)}
    plain = ask(transport, spec)["predictions"]
    drawn = ask(transport, spec | {"sample": HOT | {"seed": 3}})["predictions"]
    assert [each["id"] for each in drawn] != [each["id"] for each in plain]
    for one, other in zip(drawn, plain, strict=True):
        assert one["top"] == other["top"]
        assert one["label"] == LABELS[one["id"]]
        assert one["probability"] == pytest.approx(softmax(expected)[one["row"], one["id"]], rel=1e-4)


def test_narrow_draws_are_the_most_probable(transport, expected):
    """One label that is left by a filter is the most probable one."""
    best = expected.argmax(-1).tolist()
    for sample in ({"temperature": 1e-3}, {"top_k": 1}, {"top_p": 1e-6}):
        assert labels(transport, **sample) == best


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"name": "logits", "rows": [1, -8]}, "rows", "names a row twice"),
        ({"name": "logits", "rows": [9]}, "rows", "there is no row 9; there are 9, from 0"),
        ({"name": "logits", "pool": "mean"}, "pool", "ask for rows"),
        ({"name": "logits", "layers": ["0"]}, "layers", "logits is of the model"),
        ({"name": "logits", "heads": [0]}, "heads", "logits has no heads"),
        ({"name": "logits", "top_k": 2}, "top_k", "not for logits"),
        ({"name": "logits", "sample": {}}, "sample", "is for predictions, not for logits"),
        ({"name": "weights", "sample": {"seed": 1}}, "sample", "is for predictions, not for weights"),
        ({"name": "predictions", "rows": [0, 0]}, "rows", "names a row twice"),
        ({"name": "predictions", "rows": [-10]}, "rows", "there is no row -10"),
        ({"name": "predictions", "pool": "last"}, "pool", "predictions take rows, sample, top alone"),
        ({"name": "predictions", "sample": {"temperature": 0.0}}, "sample.temperature", "must be above 0 and finite"),
        ({"name": "predictions", "sample": {"temperature": -1.0}}, "sample.temperature", "not -1"),
        ({"name": "predictions", "sample": {"temperature": 1e-60}}, "sample.temperature", "must be above 0"),
        ({"name": "predictions", "sample": {"top_p": 0.0}}, "sample.top_p", "must be above 0 and at most 1, not 0"),
        ({"name": "predictions", "sample": {"top_p": 1.5}}, "sample.top_p", "must be above 0 and at most 1, not 1.5"),
        ({"name": "predictions", "sample": {"top_k": 4}}, "sample.top_k", "is 4; there are 3 labels"),
    ],
)
def test_what_is_refused(transport, spec, field, words):
    """Options without meaning, and values beyond their range, are refused by the field's path."""
    with refused("INVALID_ARGUMENT", f"outputs[0].{field}", words):
        ask(transport, spec)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_temperature_that_is_no_number(servers, connect, value):
    """NaN and infinity, which JSON has not, are refused over gRPC."""
    transport = connect("grpc", servers[0].rest, servers[0].grpc)
    for name in ("temperature", "top_p"):
        with refused("INVALID_ARGUMENT", f"outputs[0].sample.{name}", "must be above 0"):
            labels(transport, **{name: value})


@pytest.mark.parametrize(
    ("sample", "field", "words"),
    [
        ({"temperature": "1"}, ".temperature", "must be a number, not a string"),
        ({"temperature": 1e60}, ".temperature", "must be above 0 and finite"),
        ({"top_k": -1}, ".top_k", "must be 0 or above"),
        ({"seed": -1}, ".seed", "must be an integer from 0 to 18446744073709551615"),
        ({"seed": 0.5}, ".seed", "must be an integer"),
        ({"heat": 1}, ".heat", "there is no such field"),
        (3, "", "must be an object, not a number"),
    ],
)
def test_a_sample_of_another_form_in_json(servers, connect, sample, field, words):
    """JSON of another type, or a field that is unknown, is refused by its path."""
    transport = connect("rest-json", servers[0].rest, servers[0].grpc)
    with refused("INVALID_ARGUMENT", f"outputs[0].sample{field}", words):
        ask(transport, {"name": "predictions", "sample": sample})


def test_rows_and_samples_that_contradict_each_other(transport):
    """Predictions are made once: two outputs that ask for them have the same rows, sample and seed."""
    for one, other, field in (
        ({"rows": [0]}, {"rows": [1]}, "outputs[1].rows"),
        ({}, {"sample": {}}, "outputs[1].sample"),
        ({"sample": {"seed": 1}}, {"sample": {"seed": 2}}, "outputs"),
    ):
        with refused("INVALID_ARGUMENT", field, "predictions are made once"):
            ask(transport, {"name": "predictions"} | one, {"name": "predictions"} | other)


def test_a_model_without_logits(transport):
    """A head that reads rows of its own gives no logits and takes no rows; its labels can be drawn all the same."""
    text = "ein und zwanzig"
    with refused("INVALID_ARGUMENT", "outputs[0].name", "this model gives no logits"):
        ask(transport, "logits", text=text, model="encoder")
    with refused("INVALID_ARGUMENT", "outputs[0].rows", "predictor 'class' of this model reads rows of its own"):
        ask(transport, {"name": "predictions", "rows": [0]}, text=text, model="encoder")
    found = ask(transport, {"name": "predictions", "sample": {"seed": 1}}, text=text, model="encoder")["predictions"]
    assert [each["name"] for each in found] == ["token"] * 3 + ["class"]


def test_the_open_inference_protocol(servers, expected):
    """Logits are an output with a shape; a sample is the text of a JSON object."""
    url = f"{servers[0].url}/v2/models/small"
    listed = {each["name"]: each["shape"] for each in requests.get(url, timeout=60).json()["outputs"]}
    assert listed["logits"] == [-1, -1, len(LABELS)]
    text = {"name": "text", "datatype": "BYTES", "shape": [2], "data": [TEXT, "a b"]}

    def infer(sample):
        outputs = [{"name": "logits", "parameters": {"rows": "-1,0"}}]
        outputs += [{"name": "predictions", "parameters": {"rows": "0", "sample": sample}}]
        return requests.post(f"{url}/infer", json={"inputs": [text], "outputs": outputs}, timeout=60).json()

    found = {each["name"]: np.reshape(each["data"], each["shape"]) for each in infer('{"top_k": 1}')["outputs"]}
    np.testing.assert_allclose(found["logits"][0], expected[[-1, 0]], **CLOSE)
    assert found["predictions.id"][0].tolist() == [expected[0].argmax()]
    for sample, words in (
        ("{", "outputs[1].sample: must be a JSON object"),
        ('{"seed": 1, "seed": 2}', "outputs[1].sample: must be a JSON object"),
        ('{"top_p": 2}', "outputs[1].sample.top_p: must be above 0"),
    ):
        assert words in infer(sample)["error"]


def test_the_client(servers):
    """The client takes a sample as an object or as a dict, and names the field that it cannot write."""
    with AttentionClient(servers[0].grpc) as client:
        found = [
            client.attend("small", text=TEXT, outputs=[OutputSpec("predictions", sample=sample)]).predictions
            for sample in (Sample(temperature=100, seed=7), HOT | {"seed": 7})
        ]
        assert found[0] == found[1]
        with pytest.raises(ValueError, match="outputs"):
            client.attend("small", text=TEXT, outputs=[OutputSpec("predictions", sample=Sample(seed=-1))])


def test_file_scoring(servers, tmp_path, expected):
    """`score` writes logits [rows, V] and predictions of the rows chosen, drawn with a seed."""
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    specs = [{"name": "logits", "rows": [-1, 0]}, {"name": "logits", "as": "all"}]
    specs += [{"name": "predictions", "rows": [1, 2], "sample": HOT | {"seed": 7}}]
    program = Path(sys.executable).with_name("attention-client")
    command = [program, "score", tmp_path / "in.jsonl", tmp_path / "out.parquet", "--model", "small"]
    command += ["--tensors", "extension", "--outputs", json.dumps(specs), "--target", servers[0].grpc]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("logits").type.shape == [2, len(LABELS)]
    np.testing.assert_allclose(table["logits"].combine_chunks().to_numpy_ndarray()[0], expected[[-1, 0]], **CLOSE)
    np.testing.assert_allclose(table["all"].to_pylist()[0], expected, **CLOSE)
    assert [each["row"] for each in table["predictions"].to_pylist()[0]] == [1, 2]
