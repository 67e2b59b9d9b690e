"""Heads that are switched off, and the temperature of the softmax."""

import json

import numpy as np
import pytest
import requests
from attention_client import Ablation, AttentionClient

from tests.refusals import refused
from tests.server.reference import BLOCKS, CLOSE, read_block, softmax

SOME = ["weights", "heads", "output", "q", "scores"]
SENTENCE = "I gave my cat Tater a toy"


def without(block, stages, heads):
    """The stages of a block of which some heads are zero behind the weights: their rows of M_O are zero."""
    kept = stages["heads"].copy()
    kept[heads] = 0
    output = block.affine(np.concatenate(kept, -1), "O")
    return stages | {"heads": kept, "output": output}


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.model)
def test_a_head_switched_off(transport, repository, case):
    """Its result is zero, its weights are told; the output is that of M_O with its rows zeroed; the answer says it."""
    vectors = case.vectors(np.random.default_rng(0), 4, 6)
    request = {"outputs": SOME, "ablate": [{"heads": [0]}], **vectors}
    answer = transport.attend(case.model, **request)
    assert answer["ablate"] == [{"layers": [], "heads": [0]}]
    block = read_block(repository, case.model, answer["version"])
    expected = without(block, block.stages(**vectors), [0])
    for name, found in answer["results"][0]["outputs"].items():
        np.testing.assert_allclose(found, expected[name], **CLOSE, err_msg=name)


def test_every_form_of_an_output(transport, repository):
    """Pooled and masked outputs and chosen rows lack the heads; contributions of these are zero."""
    vectors = BLOCKS[-1].vectors(np.random.default_rng(1), 5, 6)
    allowed = np.random.default_rng(2).random((5, 6)) < 0.7
    allowed[:, 0] = True
    block = read_block(repository, "cross")
    expected = without(block, block.stages(**vectors, added=np.where(allowed, 0.0, -np.inf)), [1, 3])
    plain = without(block, block.stages(**vectors), [1, 3])
    ablate = [{"layers": ["0"], "heads": [3]}, {"layers": ["*"], "heads": [1]}]
    pooled = {"name": "output", "pool": "mean"}
    found = transport.outputs("cross", outputs=[pooled], ablate=ablate, **vectors)
    np.testing.assert_allclose(found["output"], plain["output"].mean(0), **CLOSE)
    outputs = [{"name": "output", "rows": [2, 0]}, "contributions"]
    found = transport.outputs("cross", outputs=outputs, ablate=ablate, mask={"allowed": allowed}, **vectors)
    np.testing.assert_allclose(found["output"], expected["output"][[2, 0]], **CLOSE)
    assert not found["contributions"][[1, 3]].any()
    np.testing.assert_allclose(found["contributions"].sum(0) + block.bias, expected["output"], **CLOSE)


@pytest.mark.parametrize("temperature", [0.5, 3.0, 1e-30])
@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.model)
def test_a_temperature(transport, repository, case, temperature):
    """Weights are softmax((scores + mask) / t), whatever the block adds; scores are told undivided."""
    rng = np.random.default_rng(3)
    vectors = case.vectors(rng, 4, 6)
    bias = rng.standard_normal((4, 6)).astype(np.float32)
    bias[rng.random((4, 6)) < 0.3] = -np.inf
    bias[2] = -np.inf
    names = [*SOME, "lse", "entropy"]
    request = {"outputs": names, "score_temperature": temperature, "mask": {"bias": bias}, **vectors}
    answer = transport.attend(case.model, **request)
    assert answer["score_temperature"] == pytest.approx(temperature)
    found = answer["results"][0]["outputs"]
    block = read_block(repository, case.model, answer["version"])
    stages = block.stages(**vectors)
    masked = (stages["scores"] + bias) / temperature
    weights = softmax(masked)
    shared = np.repeat(stages["v"], len(weights) // len(stages["v"]), 0)
    heads = weights @ shared
    expected = {"scores": stages["scores"], "q": stages["q"], "weights": weights, "heads": heads}
    expected["output"] = block.affine(np.concatenate(heads, -1), "O")
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, **CLOSE, err_msg=name)
    if temperature > 0.1:
        rows = np.isfinite(bias).any(-1)
        lse = np.log(np.exp(masked[:, rows]).sum(-1))
        np.testing.assert_allclose(found["lse"][:, rows], lse, **CLOSE)


def test_a_memory_of_a_block(transport, repository, server):
    """A kept key and value sequence is projected alone, so that heads of a block are switched off over it too."""
    vectors = BLOCKS[-1].vectors(np.random.default_rng(4), 3, 6)
    block = read_block(repository, "cross")
    expected = without(block, block.stages(**vectors), [2])
    with AttentionClient(server.grpc) as client:
        memory = client.create_memory("cross", key=vectors["key"], value=vectors["value"])
    sent = {"query": vectors["query"], "memory": memory.id}
    found = transport.outputs("cross", outputs=["output"], ablate=[{"heads": [2]}], **sent)["output"]
    np.testing.assert_allclose(found, expected["output"], **CLOSE)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"ablate": [{"layers": ["7"]}]}, "ablate[0].layers", "there is no layer '7'"),
        ({"ablate": [{"heads": [0]}, {"heads": [4]}]}, "ablate[1].heads", "no head 4; layer 0 has 4, from 0"),
        ({"score_temperature": 0.0}, "score_temperature", "must be above 0"),
        ({"score_temperature": -1.0}, "score_temperature", "must be above 0"),
    ],
)
def test_what_cannot_be_changed(transport, change, field, words):
    """A layer or head that is not there, or a temperature that is no positive number, is refused by its field."""
    vectors = BLOCKS[-1].vectors(np.random.default_rng(5), 2, 3)
    with refused("INVALID_ARGUMENT", field, words):
        transport.attend("cross", **vectors, **change)


def test_predictions_without_a_head(server, repository):
    """The trained model's prediction changes with a head; both clients' calls take it, and tell it in the result."""
    with AttentionClient(server.grpc) as client:
        ablate, plain = [Ablation(heads=[0, 1])], client.attend("multi-head", text=SENTENCE)
        changed = client.attend("multi-head", text=SENTENCE, ablate=ablate, score_temperature=2)
        assert (changed.ablate, changed.score_temperature) == ((Ablation((), (0, 1)),), 2.0)
        assert plain.ablate == ()
        (of_stream,) = client.attend_many("multi-head", [SENTENCE], ablate=[{"heads": [0, 1]}], score_temperature=2)
    assert of_stream.predictions == changed.predictions
    chances = [sorted((each.label, each.probability) for each in of.predictions) for of in (plain, changed)]
    assert chances[0] != chances[1]


def test_the_open_inference_protocol(server):
    """`ablate` is the text of a JSON list, `score_temperature` a number; the response repeats both."""
    query = np.random.default_rng(6).standard_normal((1, 3, 24)).astype(np.float32)
    url = f"http://{server.rest}/v2/models/multi/infer"

    def infer(**parameters):
        tensor = {"name": "query", "shape": query.shape, "datatype": "FP32", "data": query.ravel().tolist()}
        document = {"inputs": [tensor], "outputs": [{"name": "heads"}], "parameters": parameters}
        return requests.post(url, json=document, timeout=60).json()

    answer = infer(ablate=json.dumps([{"heads": [1]}]), score_temperature=2.0)
    assert answer["parameters"] == {"ablate": '[{"heads": [1]}]', "score_temperature": 2.0}
    heads = np.reshape(answer["outputs"][0]["data"], answer["outputs"][0]["shape"])[0]
    assert not heads[1].any()
    with AttentionClient(server.grpc) as client:
        same = client.attend("multi", query=query[0], outputs=["heads"], score_temperature=2)
    np.testing.assert_allclose(heads[0], same["heads"][0], atol=1e-6)
    assert "parameters.ablate: must be a JSON list" in infer(ablate="{")["error"]
    assert "parameters.ablate[0].heads: there is no head 9" in infer(ablate='[{"heads": [9]}]')["error"]
    assert "parameters.score_temperature: must be above 0" in infer(score_temperature=0)["error"]
