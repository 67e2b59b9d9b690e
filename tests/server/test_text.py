"""Text models: words in; tokens, weights and predictions out."""

import json

import numpy as np
import onnxruntime
import pytest
import requests
from attention_client import AttentionClient

from tests.refusals import refused
from tests.server.reference import CLOSE, STAGES, read_block

SENTENCE = "I gave my cat Tater a toy"
ROLES = {"giver": "I", "recipient": "Tater", "object": "toy"}


def graph(repository, model, file, **feeds):
    """Run one of a version's graphs; return its outputs by name."""
    session = onnxruntime.InferenceSession(repository / model / "1" / file, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def vocabulary(repository, model, file="tokenizer.json"):
    return json.loads((repository / model / "1" / file).read_text())["model"]["vocab"]


def vectors_of(repository, words):
    """The vectors that the front of `multi-head` gives for words."""
    known = vocabulary(repository, "multi-head")
    ids = np.array([[known[word.lower()] for word in words.split()]])
    return graph(repository, "multi-head", "front.onnx", tokens=ids)["query"][0]


def test_the_articles_sentence(transport):
    """From the verb, the trained heads find giver, recipient and object; each is sure of it."""
    result = transport.one("multi-head", text=SENTENCE)
    assert list(result["outputs"]) == ["output"]
    assert result["tokens"] == SENTENCE.split()
    assert {each["name"]: each["label"] for each in result["predictions"]} == ROLES
    for each in result["predictions"]:
        assert each["row"] == 1
        assert 0.9 < each["probability"] <= 1


def test_what_was_asked_and_no_more(transport):
    """With named outputs, predictions come only by name."""
    both = transport.one("multi-head", text=SENTENCE, outputs=["weights", "predictions"])
    assert list(both["outputs"]) == ["weights"]
    assert both["outputs"]["weights"].shape == (3, 7, 7)
    assert len(both["predictions"]) == 3
    assert transport.one("multi-head", text=SENTENCE, outputs=["weights"])["predictions"] == []
    alone = transport.one("multi-head", text=SENTENCE, outputs=["predictions"])
    assert alone["outputs"] == {}
    assert alone["predictions"] == both["predictions"]


def test_the_stages_of_a_text(transport, repository):
    """A text's stages are those of the vectors that the model's front makes of it."""
    outputs = transport.outputs("multi-head", text=SENTENCE, outputs=list(STAGES))
    expected = read_block(repository, "multi-head").stages(vectors_of(repository, SENTENCE))
    for name, stage in outputs.items():
        np.testing.assert_allclose(stage, expected[name], atol=5e-5, rtol=1e-4, err_msg=name)


def test_vectors_past_the_front(transport, repository):
    """A text model takes vectors too, past its front, and answers the same."""
    query = vectors_of(repository, SENTENCE)
    with_vectors = transport.one("multi-head", query=query, outputs=["weights"])
    with_text = transport.one("multi-head", text=SENTENCE, outputs=["weights"])
    np.testing.assert_allclose(with_vectors["outputs"]["weights"], with_text["outputs"]["weights"], atol=1e-6)
    assert with_vectors["tokens"] == []


def test_predictions_from_words_need_words(transport):
    """A model that predicts from the rows of certain words predicts nothing from vectors; asked to, it refuses."""
    query = np.ones((3, 48), np.float32)
    with refused("INVALID_ARGUMENT", "outputs[0]", "text"):
        transport.attend("multi-head", query=query, outputs=["predictions"])
    assert transport.one("multi-head", query=query)["predictions"] == []


def test_a_text_without_a_verb(transport):
    """Where no word is one that the model predicts from, there are no predictions and no error."""
    result = transport.one("multi-head", text="my cat", outputs=["output", "predictions"])
    assert result["predictions"] == []
    assert result["outputs"]["output"].shape == (2, 48)


def test_tokens_as_written(transport):
    """Tokens are the words as written by the caller; places count characters."""
    result = transport.one("multi-head", text="  HE gave, the  DOG", token_offsets=True)
    assert result["tokens"] == ["HE", "gave", "the", "DOG"]
    assert result["token_offsets"] == [(2, 4), (5, 9), (11, 14), (16, 19)]


def test_places_only_when_asked(transport):
    """Offsets are not sent unasked."""
    assert transport.one("multi-head", text=SENTENCE)["token_offsets"] == []


def test_an_unknown_word(transport):
    """A word outside the vocabulary is refused by name, with near ones where there are some."""
    with refused("INVALID_ARGUMENT", None, "'Schrödinger'") as caught:
        transport.attend("multi-head", text="I gave Schrödinger a 🐈 toy")
    assert caught.value.field == transport.at("text")
    with refused(
        "INVALID_ARGUMENT", None, "'frend' is not in this model's vocabulary of 127 words; did you mean 'friend'"
    ):
        transport.attend("multi-head", text="I gave my frend a toy")


def test_the_words_of_a_closed_vocabulary(server):
    """GetModel tells the words that a text may have, over both protocols; the list of models does not."""
    with AttentionClient(server.grpc) as client:
        described = client.model("multi-head")
        listed = {each.name: each for each in client.models()}
        words = list(described.words)
        assert {"i", "gave", "tater", "toy"} <= set(words)
        assert not listed["multi-head"].words
        assert list(client.attend("multi-head", text=" ".join(words[:5])).tokens) == words[:5]
        assert described.manifest.examples[0].text == SENTENCE
        for each in described.manifest.examples:
            assert client.attend("multi-head", text=each.text).predictions
    document = requests.get(f"http://{server.rest}/v1/models/multi-head", timeout=60).json()
    assert (document["words"], document["manifest"]["examples"][0]["text"]) == (words, SENTENCE)


@pytest.mark.parametrize("text", ["", "   ", "...", "\n"])
def test_a_text_without_words(transport, text):
    """A text of no words is refused."""
    with refused("INVALID_ARGUMENT", None, "word") as caught:
        transport.attend("multi-head", text=text)
    assert caught.value.field == transport.at("text")


def test_a_text_too_long(transport, repository):
    """A text of more tokens than the model reads is refused with both numbers; the longest is answered."""
    longest = json.loads((repository / "multi-head/1/manifest.json").read_text())["text"]["max_tokens"]
    with refused("INVALID_ARGUMENT", None, str(longest + 1), str(longest)) as caught:
        transport.attend("multi-head", text="cat " * (longest + 1))
    assert caught.value.field == transport.at("text")
    assert len(transport.one("multi-head", text="cat " * longest)["tokens"]) == longest


def test_a_very_long_unknown_word(transport):
    """An error about a huge word is clear, at its field, and of a size that can be carried."""
    for length, words in ((500, "xxx"), (100_000, "characters")):
        with refused("INVALID_ARGUMENT", None, words) as caught:
            transport.attend("multi-head", text="x" * length)
        assert len(caught.value.message) < 1000


def test_text_and_query(transport):
    """Both is one too many; neither is one too few."""
    with refused("INVALID_ARGUMENT") as caught:
        transport.attend("multi-head", text=SENTENCE, query=np.ones((7, 48), np.float32))
    assert caught.value.field == transport.at("query")
    with refused("INVALID_ARGUMENT") as caught:
        transport.attend("multi-head", key=np.ones((7, 48), np.float32))
    assert caught.value.field == transport.at("query")


def test_text_with_a_mask(transport, repository):
    """Masks are for texts too."""
    mask = {"causal": "top_left"}
    weights = transport.outputs("multi-head", text=SENTENCE, mask=mask, outputs=["weights"])["weights"]
    added = np.where(np.tri(7, dtype=bool), 0, -np.inf)
    expected = read_block(repository, "multi-head").stages(vectors_of(repository, SENTENCE), added=added)["weights"]
    np.testing.assert_allclose(weights, expected, atol=5e-5)


def test_text_over_vectors(transport, repository):
    """A text may attend to a key and value that were sent as vectors."""
    key, value = (np.random.default_rng(i).standard_normal((5, 48)).astype(np.float32) for i in range(2))
    output = transport.outputs("multi-head", text="my cat", key=key, value=value, outputs=["output"])["output"]
    expected = read_block(repository, "multi-head").stages(vectors_of(repository, "my cat"), key, value)["output"]
    np.testing.assert_allclose(output, expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 3])
def test_a_value_of_another_length_beside_text(transport, length):
    """A value beside a text must have one vector for each of its tokens."""
    with refused("INVALID_ARGUMENT", None, str(length), "2") as caught:
        transport.attend("multi-head", text="my cat", value=np.ones((length, 48), np.float32))
    assert caught.value.field == transport.at("value")


def test_texts_and_vectors_side_by_side(transport, repository):
    """One message may hold texts and vectors; each result has the fields of its sequence."""
    inputs = [{"text": "my cat"}, {"query": vectors_of(repository, "my cat")}, {"text": "I gave him a dog"}]
    first, second, third = transport.attend("multi-head", inputs=inputs, outputs=["output"])["results"]
    assert [first["tokens"], second["tokens"], third["tokens"]] == [["my", "cat"], [], ["I", "gave", "him", "a", "dog"]]
    np.testing.assert_allclose(first["outputs"]["output"], second["outputs"]["output"], atol=1e-6)


@pytest.mark.parametrize("name", ["text", "memory_text"])
def test_models_that_read_no_text(transport, name):
    """A model of vectors refuses text by its field."""
    with refused("INVALID_ARGUMENT", None, "text") as caught:
        transport.attend(
            "dot", **({"query": np.ones((1, 2), np.float32)} if name == "memory_text" else {}), **{name: "x"}
        )
    assert caught.value.field == transport.at(name)


def test_a_text_that_attends_to_itself_takes_no_memory_text(transport):
    """Where text attends to itself, a memory text is refused."""
    with refused("INVALID_ARGUMENT") as caught:
        transport.attend("multi-head", text="my cat", memory_text="my dog")
    assert caught.value.field == transport.at("memory_text")


# --- two texts ---


def cross_vectors(repository):
    """The rows of the fronts of `text-cross` for "cats and" and "zwanzig Katzen ein"."""
    english, german = (vocabulary(repository, "text-cross", f) for f in ("tokenizer.json", "memory-tokenizer.json"))
    ids = np.array([[english["cats"], english["and"]]])
    memory_ids = np.array([[german["zwanzig"], german["Katzen"], german["ein"]]])
    memory = graph(repository, "text-cross", "memory-front.onnx", tokens=memory_ids)
    return graph(repository, "text-cross", "front.onnx", tokens=ids)["query"][0], memory["key"][0], memory["value"][0]


TWO = {"text": "cats and", "memory_text": "zwanzig  Katzen ein"}


def test_a_text_and_the_text_it_attends_to(transport, repository):
    """A text attends to a memory text, read by a front of its own; tokens and places of both come back."""
    result = transport.one("text-cross", **TWO, outputs=list(STAGES), token_offsets=True)
    assert (result["tokens"], result["memory_tokens"]) == (["cats", "and"], ["zwanzig", "Katzen", "ein"])
    assert result["token_offsets"] == [(0, 4), (5, 8)]
    assert result["memory_token_offsets"] == [(0, 7), (9, 15), (16, 19)]
    expected = read_block(repository, "text-cross").stages(*cross_vectors(repository))
    for name, stage in result["outputs"].items():
        np.testing.assert_allclose(stage, expected[name], **CLOSE, err_msg=name)


def test_text_and_vectors_mixed(transport, repository):
    """Either side may be text, and the second one vectors."""
    query, key, value = cross_vectors(repository)
    expected = read_block(repository, "text-cross").stages(query, key, value)["output"]
    for sequence in (
        {"query": query, "memory_text": TWO["memory_text"]},
        {"text": "cats and", "key": key, "value": value},
    ):
        np.testing.assert_allclose(transport.outputs("text-cross", **sequence)["output"], expected, **CLOSE)


def test_predictions_from_each_kind_of_rows(transport, repository):
    """Predictors read from all rows, the first, the last, or the mean; each tells its row, the mean none."""
    result = transport.one("text-cross", **TWO)
    output = result["outputs"]["output"]
    heads = graph(repository, "text-cross", "head.onnx", output=output)
    of_mean = graph(repository, "text-cross", "head.onnx", output=output.mean(0, keepdims=True))["mean"][0]
    read = [("each", 0, heads["each"][0]), ("each", 1, heads["each"][1]), ("first", 0, heads["first"][0])]
    read += [("last", 1, heads["last"][1]), ("mean", None, of_mean)]
    assert [(each["name"], each.get("row")) for each in result["predictions"]] == [(name, row) for name, row, _ in read]
    for each, (_, _, chances) in zip(result["predictions"], read, strict=True):
        assert each["label"] == "abcd"[chances.argmax()]
        assert each["probability"] == pytest.approx(chances.max(), abs=1e-5)


@pytest.mark.parametrize("top", [1, 2, 3, 100])
def test_the_most_probable_labels(transport, repository, top):
    """`top` gives each prediction its k most probable labels, descending, with ids; all of a predictor with fewer."""
    result = transport.one("text-cross", **TWO, outputs=["output", {"name": "predictions", "top": top}])
    heads = graph(repository, "text-cross", "head.onnx", output=result["outputs"]["output"])
    plain = transport.one("text-cross", **TWO, outputs=["predictions"])["predictions"]
    assert [{name: value for name, value in each.items() if name != "top"} for each in result["predictions"]] == plain
    for each in result["predictions"]:
        ids = [candidate["id"] for candidate in each["top"]]
        assert {**each["top"][0]} == {name: each[name] for name in ("id", "label", "probability")}
        assert [candidate["label"] for candidate in each["top"]] == ["abcd"[id_] for id_ in ids]
        if each["name"] != "mean":
            chances = heads[each["name"]][each["row"]]
            assert ids == np.argsort(-chances, kind="stable")[:top].tolist()
            np.testing.assert_allclose([candidate["probability"] for candidate in each["top"]], chances[ids], atol=1e-5)


def test_embeddings_of_a_text(transport, repository):
    """`embeddings` are the vectors that the front makes of the text, or those that were sent."""
    query, _, _ = cross_vectors(repository)
    specs = ["embeddings", {"name": "embeddings", "as": "last", "rows": [-1]}, {"name": "output", "rows": [0]}]
    specs.append({"name": "embeddings", "as": "mean", "pool": "mean"})
    outputs = transport.outputs("text-cross", **TWO, outputs=specs)
    np.testing.assert_array_equal(outputs["embeddings"], query)
    np.testing.assert_array_equal(outputs["last"], query[-1:])
    np.testing.assert_allclose(outputs["mean"], query.mean(0), **CLOSE)
    alone = transport.outputs("text-cross", **TWO, outputs=["embeddings"])
    np.testing.assert_array_equal(alone["embeddings"], query)
    sent = transport.outputs("multi-head", query=np.ones((3, 48), np.float32), outputs=["embeddings"])
    np.testing.assert_array_equal(sent["embeddings"], np.ones((3, 48)))


def test_predictions_from_vectors(transport, repository):
    """Predictors that need no words work on vectors as on text."""
    query, key, value = cross_vectors(repository)
    from_vectors = transport.one("text-cross", query=query, key=key, value=value)["predictions"]
    from_text = transport.one("text-cross", **TWO)["predictions"]
    assert [each["label"] for each in from_vectors] == [each["label"] for each in from_text]


def test_unknown_words_where_the_model_allows_them(transport):
    """A model may read unknown words as its unknown token: each is shown as such or as written, and answered."""
    result = transport.one("text-cross", text="cats fly", memory_text="zwanzig fliegen")
    assert len(result["tokens"]) == len(result["memory_tokens"]) == 2
    assert result["outputs"]["output"].shape == (2, 8)


def test_a_memory_text_too_long_or_empty(transport):
    """The memory text has a limit of its own, and must have words too."""
    with refused("INVALID_ARGUMENT", None, "7", "6") as caught:
        transport.attend("text-cross", text="cats", memory_text="ein " * 7)
    assert caught.value.field == transport.at("memory_text")
    with refused("INVALID_ARGUMENT") as caught:
        transport.attend("text-cross", text="cats", memory_text="")
    assert caught.value.field == transport.at("memory_text")


@pytest.mark.parametrize(
    ("sequence", "field"),
    [
        ({"memory_text": "ein", "key": np.ones((1, 6), np.float32)}, "memory_text"),
        ({"memory_text": "ein", "value": np.ones((1, 4), np.float32)}, "value"),
        ({"memory": "m", "key": np.ones((1, 6), np.float32), "value": np.ones((1, 4), np.float32)}, "memory"),
        ({"memory_text": "ein", "memory": "m"}, "memory"),
        ({"value": np.ones((1, 4), np.float32)}, "key"),
    ],
)
def test_one_memory_at_most(transport, sequence, field):
    """A sequence has at most one of key, memory text and memory, and a value goes with a key."""
    with refused("INVALID_ARGUMENT") as caught:
        transport.attend("text-cross", text="cats", **sequence)
    assert caught.value.field == transport.at(field)


def test_a_memory_that_is_not_kept(transport):
    """An unknown memory is not found, by its field."""
    with refused("NOT_FOUND", None, "nobody") as caught:
        transport.attend("text-cross", text="cats", memory="nobody")
    assert caught.value.field == transport.at("memory")
