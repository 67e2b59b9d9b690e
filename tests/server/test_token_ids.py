"""Ids of tokens in place of texts: taken as they are, checked against the vocabulary."""

import asyncio
import json

import numpy as np
import pytest
import requests
from attention_client import AsyncAttentionClient, AttentionClient, InvalidRequest, Sequence
from serving import HANG

from tests.refusals import refused

SENTENCE = "I gave my cat Tater a toy"
TWO = {"text": "cats and", "memory_text": "zwanzig Katzen ein"}


def ids_of(repository, model, text, file="tokenizer.json"):
    vocabulary = json.loads((repository / model / "1" / file).read_text())["model"]["vocab"]
    return [vocabulary[word if word in vocabulary else word.lower()] for word in text.split()]


@pytest.fixture(scope="module")
def sentence(repository):
    return ids_of(repository, "multi-head", SENTENCE)


@pytest.fixture(scope="module")
def two(repository):
    memory = ids_of(repository, "text-cross", TWO["memory_text"], "memory-tokenizer.json")
    return {"token_ids": ids_of(repository, "text-cross", TWO["text"]), "memory_token_ids": memory}


def test_ids_give_what_their_text_gives(transport, sentence):
    """Outputs, predictions and tokens are those of the text; tokens are spelled as in the vocabulary, unplaced."""
    outputs = ["weights", "output", "predictions"]
    text = transport.one("multi-head", text=SENTENCE, outputs=outputs)
    ids = transport.one("multi-head", token_ids=sentence, outputs=outputs, token_offsets=True)
    for name, expected in text["outputs"].items():
        np.testing.assert_array_equal(ids["outputs"][name], expected)
    assert ids["tokens"] == SENTENCE.lower().split()
    assert ids["token_offsets"] == []
    assert [each["row"] for each in ids["predictions"]] == [each["row"] for each in text["predictions"]]


def test_ids_of_the_memory(transport, two):
    """Either side may be ids, and the other one a text."""
    expected = transport.one("text-cross", **TWO, outputs=["weights"])
    both = TWO | two
    for sides in (("token_ids", "memory_token_ids"), ("text", "memory_token_ids"), ("token_ids", "memory_text")):
        sent = {name: both[name] for name in sides}
        found = transport.one("text-cross", **sent, outputs=["weights"])
        np.testing.assert_array_equal(found["outputs"]["weights"], expected["outputs"]["weights"])
        assert found["memory_tokens"] == expected["memory_tokens"]


@pytest.mark.parametrize("name", ["token_ids", "memory_token_ids"])
def test_an_id_outside_the_vocabulary(transport, two, name):
    """An id that the model has no vector for is refused by its place, with the largest that there is."""
    largest = {"token_ids": 5, "memory_token_ids": 5}[name]
    for wrong in (largest + 1, 2**32 - 1):
        with refused("INVALID_ARGUMENT", None, str(wrong), f"0 to {largest}") as caught:
            transport.attend("text-cross", **(two | {name: [0, wrong, 1]}))
        assert caught.value.field == transport.at(f"{name}[1]")
    assert len(transport.one("text-cross", **(two | {name: [largest]}))["outputs"]["output"])


def test_more_ids_than_the_model_reads(transport, repository):
    """Ids are as many as the tokens of a text may be."""
    longest = json.loads((repository / "multi-head/1/manifest.json").read_text())["text"]["max_tokens"]
    with refused("INVALID_ARGUMENT", None, str(longest + 1), str(longest)) as caught:
        transport.attend("multi-head", token_ids=[1] * (longest + 1))
    assert caught.value.field == transport.at("token_ids")
    assert len(transport.one("multi-head", token_ids=[1] * longest)["tokens"]) == longest


def test_one_source_alone(transport, sentence, two):
    """Ids stand in place of a text or a query, and those of a memory in place of its further forms."""
    with refused("INVALID_ARGUMENT", None, "query, text and token_ids") as caught:
        transport.attend("multi-head", token_ids=sentence, text=SENTENCE)
    assert caught.value.field == transport.at("query")
    with refused("INVALID_ARGUMENT", None, "only one") as caught:
        transport.attend("text-cross", **two, memory_text="ein")
    assert caught.value.field == transport.at("memory_token_ids")
    with refused("INVALID_ARGUMENT", None, "reads no text") as caught:
        transport.attend("dot", token_ids=[1, 2])
    assert caught.value.field == transport.at("token_ids")


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        ([], "token_ids", "at least one"),
        ([1, -1], "token_ids[1]", "0 to 126"),
        ([1, 2**63], "token_ids", "numbers that fit"),
        ([1, 2**70], "token_ids", "integers"),
        ([1.0], "token_ids", "integers"),
        ([True], "token_ids", "integers"),
        (["1"], "token_ids", "integers"),
        ([None], "token_ids", "integers"),
        ([[1, 2]], "token_ids", "a list of integers"),
        ([[1], 2], "token_ids", "equal lengths"),
        ("12", "token_ids", "a list"),
        ({"values": [1]}, "token_ids", "a list"),
    ],
)
def test_what_is_no_list_of_ids(server, value, field, words):
    """JSON that is no list of ids is refused by its field."""
    answer = requests.post(f"{server.url}/v1/models/multi-head:attend", json={"token_ids": value}, timeout=HANG)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (400, field)
    assert words in error["message"]


def test_a_memory_of_ids(server, two):
    """A memory is kept of ids as of a text, by both clients; without its handle a second one is another memory."""
    with AttentionClient(server.grpc) as client:
        of_text = client.create_memory("text-cross", memory_text=TWO["memory_text"])
        of_ids = client.create_memory("text-cross", memory_token_ids=two["memory_token_ids"])
        other = client.create_memory("text-cross", memory_token_ids=two["memory_token_ids"][:2])
        assert (of_ids.tokens, of_ids.length) == (of_text.tokens, of_text.length)
        assert of_ids.id != other.id
        answers = [client.attend("text-cross", token_ids=two["token_ids"], memory=each) for each in (of_text, of_ids)]
        np.testing.assert_array_equal(answers[0].output, answers[1].output)
        assert answers[1].key_tokens == of_text.tokens
        with pytest.raises(InvalidRequest, match="reads no memory text"):
            client.create_memory("cross", memory_token_ids=[1])

    async def ask():
        async with AsyncAttentionClient(server.grpc) as client:
            memory = await client.create_memory("text-cross", memory_token_ids=np.array(two["memory_token_ids"]))
            return await client.attend("text-cross", token_ids=two["token_ids"], memory=memory)

    np.testing.assert_array_equal(asyncio.run(ask()).output, answers[0].output)
    url = f"{server.url}/v1/models/text-cross/memories"
    made = requests.post(url, json={"memory_token_ids": two["memory_token_ids"]}, timeout=HANG).json()
    assert (made["id"], tuple(made["tokens"])) == (of_ids.id, of_ids.tokens)


def test_the_client_refuses_what_has_no_form(server, two):
    """The client names the field of ids that are no list of integers; a batch may mix ids and texts."""
    with AttentionClient(server.grpc) as client:
        for wrong in ([], [1.5], [[1]], [-1], [2**32], "ab"):
            with pytest.raises(InvalidRequest) as caught:
                client.attend("text-cross", token_ids=wrong, memory_text="ein")
            assert caught.value.field == "inputs[0].token_ids"
        mixed = [Sequence(**TWO), Sequence(**two)]
        first, second = client.attend_batch("text-cross", mixed, outputs=["weights"])
        np.testing.assert_array_equal(first.weights, second.weights)
        assert second.key_tokens == first.key_tokens
        many = list(client.attend_many("text-cross", mixed * 3, outputs=["weights"]))
        np.testing.assert_array_equal(many[-1].weights, first.weights)


def test_dense_batches_of_the_open_inference_protocol(server, two):
    """Padded ids [B, T] with their lengths give what each gives alone."""
    url = f"{server.url}/v2/models/text-cross"
    listed = {
        each["name"]: (each["datatype"], each["shape"]) for each in requests.get(url, timeout=HANG).json()["inputs"]
    }
    assert listed["token_ids"] == listed["memory_token_ids"] == ("INT64", [-1, -1])
    inputs = [
        {"name": "token_ids", "datatype": "INT64", "shape": [2, 3], "data": [*two["token_ids"], 99, 1, 99, 99]},
        {"name": "query_lengths", "datatype": "INT64", "shape": [2], "data": [2, 1]},
        {"name": "memory_token_ids", "datatype": "INT64", "shape": [2, 3], "data": two["memory_token_ids"] * 2},
    ]
    sent = {"inputs": inputs, "outputs": [{"name": "weights"}, {"name": "tokens"}]}
    answer = requests.post(f"{url}/infer", json=sent, timeout=HANG).json()
    found = {each["name"]: np.reshape(each["data"], each["shape"]) for each in answer["outputs"]}
    with AttentionClient(server.grpc) as client:
        first = client.attend("text-cross", **two, outputs=["weights"])
    np.testing.assert_allclose(found["weights"][0, :, :2], first.weights, atol=1e-7)
    assert found["tokens"].tolist()[0] == [*first.tokens, ""][: found["tokens"].shape[1]]
    inputs[0]["data"][2] = 1
    inputs[0]["data"][1] = -7
    refusal = requests.post(f"{url}/infer", json=sent, timeout=HANG).json()["error"]
    assert "token_ids[1]" in refusal
    assert "is -7" in refusal


def test_tokenize_by_either_tokenizer(server, two):
    """A model that reads a memory by another tokenizer tokenizes by the one that is asked for."""
    with AttentionClient(server.grpc) as client:
        (text,) = client.tokenize("text-cross", [TWO["text"]])
        (memory,) = client.tokenize("text-cross", [TWO["memory_text"]], memory=True)
        assert (list(text.token_ids), list(memory.token_ids)) == (two["token_ids"], two["memory_token_ids"])
        with pytest.raises(InvalidRequest, match="no pairs"):
            client.tokenize("text-cross", [("ein", "und")], memory=True)
        with pytest.raises(InvalidRequest, match="reads no text"):
            client.tokenize("dot", ["a"])
