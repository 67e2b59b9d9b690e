"""Unmodified clients of Triton and KServe against a real server, each in a process of its own."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from serving import HANG, ROOT, start_server

CLIENTS = ROOT / "tests/oip/clients"
PYTHON = ROOT / ".venv-clients/bin/python"
PROGRAMS = {
    "tritonclient.grpc": ("triton_grpc.py",),
    "tritonclient.grpc.aio": ("triton_grpc_aio.py",),
    "tritonclient.http": ("triton_http.py",),
    "tritonclient.http.aio": ("triton_http_aio.py",),
    "kserve REST": ("kserve_sdk.py", "rest"),
    "kserve gRPC": ("kserve_sdk.py", "grpc"),
}
# A column of the document's table, and the fact in a report that proves it.
COLUMNS = {
    "infer": "infer",
    "JSON or typed contents": "json",
    "stream": "stream_same",
    "gzip, deflate": "gzip",
    "32 at once": "concurrent",
    "metadata": "metadata",
    "config": "config",
    "statistics": "statistics",
    "repository": "index",
    "errors": "error",
}

sys.path.insert(0, str(CLIENTS))
import scenario  # noqa: E402 # what the clients run has to be found by them as it is here


@dataclass
class Report:
    """A client's report: its answers by case and output, and further facts."""

    answers: dict[str, np.ndarray]
    facts: dict[str, Any]


def run(program: tuple[str, ...], server: Any, folder: Path) -> Report:
    script, *more = program
    command = [PYTHON, CLIENTS / script, server.rest, server.grpc, folder, *more]
    done = subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, timeout=HANG, env={"PATH": "/usr/bin"}
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "answers.npz") as answers:
        return Report(dict(answers), json.loads((folder / "facts.json").read_text()))


@pytest.fixture(scope="module")
def reports(server, tmp_path_factory):
    """Every client's report, made when it is first asked for."""
    made: dict[str, Report] = {}

    def report(name: str) -> Report:
        if name not in made:
            made[name] = run(PROGRAMS[name], server, tmp_path_factory.mktemp("client"))
        return made[name]

    return report


@pytest.fixture(scope="module", params=PROGRAMS)
def client(request, reports):
    return reports(request.param)


# --- the same request through attention.v1 ---


@pytest.fixture(scope="module")
def expected(server, connect):
    """attention.v1's answers to the clients' requests, one for each sequence."""
    attend = connect("grpc", server.rest, server.grpc).attend
    cases = scenario.CASES

    def ask(case: str, sequences: list[dict[str, Any]], outputs: list[Any], **mask: Any) -> list[dict[str, Any]]:
        return attend(cases[case].model, inputs=sequences, outputs=outputs, **mask)["results"]

    lengths = cases["lengths"].inputs
    memory = cases["memory"].inputs
    half = cases["half"].inputs["query"]
    return {
        "lengths": ask(
            "lengths",
            [{"query": query[:n]} for query, n in zip(lengths["query"], lengths["query_lengths"], strict=True)],
            ["output", "weights", "q"],
            shared_mask={"causal": "top_left", "window": {"left": 2, "right": -1}},
        ),
        "memory": ask(
            "memory",
            [
                {
                    "query": memory["query"][i],
                    "key": memory["key"][i, :n],
                    "value": memory["value"][i, :n],
                    "mask": {"allowed": memory["allowed"][i, ..., :n], "bias": memory["bias"][i, ..., :n]},
                }
                for i, n in enumerate(memory["key_lengths"])
            ],
            [
                "heads",
                {"name": "weights", "top_k": 2},
                {"name": "scores", "heads": [2, 0], "reduce": "max"},
                "entropy",
                "k",
                "v",
            ],
        ),
        "text": ask("text", [{"text": text} for text in scenario.TEXTS], ["weights", "predictions"]),
        "unnamed": ask("unnamed", [{"query": cases["unnamed"].inputs["query"][0]}], []),
        "half": ask(
            "half",
            [{"query": query} for query in half],
            [{"name": "output", "data_type": "FP16"}, {"name": "weights", "rows": [-1]}],
        ),
    }


def flat(results: list[dict[str, Any]]) -> dict[str, list[np.ndarray]]:
    """Return each output's arrays, one for each sequence, by the protocol's names."""
    found: dict[str, list[np.ndarray]] = {}
    for result in results:
        for name, value in result["outputs"].items():
            parts = (
                {f"{name}.indices": value.indices, f"{name}.values": value.values} if isinstance(value, tuple) else {}
            )
            for part, array in (parts or {name: value}).items():
                found.setdefault(part, []).append(array)
        if result["tokens"]:
            found.setdefault("tokens", []).append(np.array(result["tokens"]))
        for part in ("name", "label", "probability") if result["predictions"] else ():
            found.setdefault(f"predictions.{part}", []).append(np.array([p[part] for p in result["predictions"]]))
    return found


@pytest.mark.parametrize("case", scenario.CASES)
def test_answers_are_those_of_attention_v1(client, expected, case):
    """Each output of each sequence equals attention.v1's, and its padding is zero."""
    wanted = flat(expected[case])
    got = {name.partition("/")[2]: array for name, array in client.answers.items() if name.startswith(f"{case}/")}
    assert got.keys() == wanted.keys()
    for name, arrays in wanted.items():
        assert len(got[name]) == len(arrays)
        for dense, array in zip(got[name], arrays, strict=True):
            inside = tuple(map(slice, array.shape))
            if array.dtype.kind in "US":
                assert dense.tolist() == array.tolist()
                continue
            np.testing.assert_allclose(dense[inside], array, rtol=1e-5, atol=1e-6, err_msg=name)
            padding = dense.copy()
            padding[inside] = 0
            assert not padding.any(), name


def test_a_batch_keeps_its_shape(client):
    """Answers are padded to the dense input's length, even if every sequence is shorter."""
    assert client.answers["lengths/output"].shape == (3, 6, 20)
    assert client.answers["lengths/weights"].shape == (3, 3, 6, 6)
    assert client.answers["memory/k"].shape[2] == 5
    assert client.answers["half/output"].dtype == np.float16
    assert client.answers["memory/weights.indices"].shape == (2, 4, 4, 2)


# --- everything else that the clients do ---


def test_health_and_readiness(client):
    """Server and models are ready; a model that is not there is not."""
    assert client.facts["live"] is client.facts["ready"] is True
    *there, nobody = client.facts["model_ready"]
    assert all(there) and not nobody


def test_many_requests_at_once(client):
    """32 requests in flight have each its own answer."""
    assert client.facts["concurrent"] is True


def test_errors_arrive_with_their_words(client):
    """A refusal arrives as the client's own error, with the code and the words that name the input."""
    code, words = client.facts["error"]
    assert code in {"400", "StatusCode.INVALID_ARGUMENT"}
    assert words.startswith("query: must be 24 wide, but has shape [2, 3]")


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name.startswith("triton")])
def test_what_models_are(reports, name):
    """Triton's clients parse the metadata, the configuration and the index."""
    facts = reports(name).facts
    inputs = ["query", "key", "value", "text", "token_ids", "query_lengths", "key_lengths", "allowed", "bias"]
    assert facts["metadata"]["inputs"] == inputs
    outputs = ["output", "contributions", "heads", "statistics", "received", "lse", "entropy", "weights", "scores"]
    outputs += ["v", "k", "q", "embeddings"]
    predictions = [f"predictions.{part}" for part in ("name", "label", "probability", "row", "id")]
    assert facts["metadata"]["outputs"] == [*outputs, *predictions, "tokens", "truncated_tokens"]
    assert facts["config"] == "multi"
    assert facts["statistics"] >= 3  # the sequences that this client alone has had answered
    assert ["self", "2", "READY"] in facts["index"]


@pytest.mark.parametrize("name", ["tritonclient.grpc", "tritonclient.grpc.aio"])
def test_streams(reports, name):
    """A stream answers in order and equals single requests; a refused request does not end it."""
    facts = reports(name).facts
    ids = list(scenario.CASES)
    if name == "tritonclient.grpc":
        ids.insert(2, "error")
        assert facts["stream_error"].startswith("query: must be 24 wide")
    assert facts["stream"] == ids
    assert facts["stream_same"] is True


@pytest.mark.parametrize("name", ["tritonclient.grpc", "tritonclient.http", "tritonclient.http.aio"])
def test_compression(reports, name):
    """Requests, and over HTTP answers, may be compressed with gzip and deflate."""
    assert reports(name).facts["gzip"] is reports(name).facts["deflate"] is True


@pytest.mark.parametrize("name", ["tritonclient.http", "tritonclient.http.aio", "kserve REST", "kserve gRPC"])
def test_both_forms_of_tensors(reports, name):
    """JSON, and typed contents over gRPC, give the same answers as bytes."""
    assert reports(name).facts["json"] is True


@pytest.mark.parametrize("name", ["tritonclient.grpc", "tritonclient.http"])
def test_large_messages_versions_and_what_is_not_offered(reports, name):
    """There is no wall at 4 MiB; a version can be asked for; shared memory is refused as not offered."""
    facts = reports(name).facts
    assert facts["large"] == [1, 1, 1500, 1500]
    assert facts["version"] == "1"
    assert facts["unimplemented"] in {"501", "StatusCode.UNIMPLEMENTED"}


@pytest.mark.parametrize("name", ["kserve REST", "kserve gRPC"])
def test_options_of_an_output(reports, name):
    """An output's options may be its own parameters; the request's id comes back."""
    assert reports(name).facts["output_parameters"] == ["weights.indices", "weights.values"]
    assert reports(name).facts["id"] == "7"


def test_curl(server):
    """curl asks in JSON, and reads JSON."""
    body = (
        '{"inputs":[{"name":"query","datatype":"FP32","shape":[1,2,2],"data":[1,0,0,1]}],"outputs":[{"name":"scores"}]}'
    )
    command = ["curl", "-sS", "--fail", f"{server.url}/v2/models/dot/infer", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
    answer = json.loads(done.stdout)
    (scores,) = answer["outputs"]
    assert (answer["model_name"], answer["model_version"]) == ("dot", "1")
    assert (scores["name"], scores["datatype"], scores["shape"]) == ("scores", "FP32", [1, 1, 2, 2])
    np.testing.assert_allclose(scores["data"], np.eye(2).ravel() * scores["data"][0])


def test_a_client_made_from_reflection_alone(server):
    """A client without generated code learns the service by reflection and calls it."""
    with grpc.insecure_channel(server.grpc) as channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        method = pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ModelInfer")
        asked = message_factory.GetMessageClass(method.input_type)()
        tensor = {"name": "query", "datatype": "FP32", "shape": [1, 1, 2], "contents": {"fp32Contents": [3, 4]}}
        json_format.ParseDict({"modelName": "dot", "inputs": [tensor]}, asked)
        call = channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=type(asked).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        answer = call(asked, timeout=HANG)
        assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [3, 4]
        assert not answer.outputs[0].HasField("contents")


def test_the_documents_example_runs():
    """The example at the top of the document prints the output in its comment."""
    text = (ROOT / "docs/open-inference-protocol.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    said = code.rsplit("  # ", 1)[1].strip()
    with start_server(ROOT / "models") as server:
        code = code.replace("127.0.0.1:8080", server.rest)
        done = subprocess.run([PYTHON, "-c", code], check=True, capture_output=True, text=True, timeout=HANG)
    assert done.stdout.strip() == said


def test_the_conformance_table_is_what_was_seen(reports):
    """The table in the document equals the reports of the clients' runs."""
    text = (ROOT / "docs/open-inference-protocol.md").read_text()
    header, _, *rows = re.findall(r"^\| (.*) \|$", text[text.index("## What was seen to work") :], re.MULTILINE)[:8]
    columns = [each.strip() for each in header.split("|")][1:]
    assert columns == list(COLUMNS)
    said = {}
    for row in rows:
        name, *cells = (each.strip() for each in row.split("|"))
        said[name.strip("`")] = [cell == "yes" for cell in cells]
    for name in PROGRAMS:
        facts = reports(name).facts | {"infer": True}
        assert said[name] == [bool(facts.get(fact)) for fact in COLUMNS.values()], name
