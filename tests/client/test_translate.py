"""Translation: by a servicer that reverses texts, and by the real server with the model that learned numbers."""

import asyncio

import numpy as np
import pytest
from attention_client import (
    AsyncAttentionClient,
    AttentionClient,
    InvalidRequest,
    NotFound,
    translate,
    translate_async,
)
from attention_client.cli.commands import app
from attention_proto.attention.v1 import attention_pb2 as pb
from serving import ROOT, start_server
from typer.testing import CliRunner

pytestmark = pytest.mark.both_grpc_servers


@pytest.fixture(scope="module")
def server(grpc_server):
    """The real server with the embedded models."""
    with start_server(ROOT / "models") as server:
        yield server


@pytest.fixture
def numbers(server):
    """A client of the real server."""
    with AttentionClient(server.grpc) as client:
        yield client


class Sabotaged(AttentionClient):
    """Deletes every memory on the server before it attends to anything."""

    def attend(self, model, **options):
        for memory in self.memories(model):
            self.delete_memory(memory)
        return super().attend(model, **options)


def translate_blocking(target, *said):
    with AttentionClient(target) as client:
        return translate(client, *said)


def translate_awaiting(target, *said):
    async def translated():
        async with AsyncAttentionClient(target) as client:
            return await translate_async(client, *said)

    return asyncio.run(translated())


either = pytest.mark.parametrize("translated", [translate_blocking, translate_awaiting], ids=["blocking", "asyncio"])


@either
def test_word_by_word(target, service, translated):
    """The text is sent once; each step asks with the words so far, for the last row alone, until the end."""
    translation = translated(target, "aloud", "a b c")
    assert str(translation) == "C B A"
    assert translation.words == ("C", "B", "A")
    assert translation.probabilities == (0.75,) * 3
    assert translation.memory_tokens == ("a", "b", "c")
    assert (translation.model, translation.version, translation.text) == ("aloud", 1, "a b c")
    assert translation.complete
    (created,) = service.created
    assert created.memory_text == "a b c"
    asked = [request.inputs[0] for request in service.requests]
    assert [sequence.text for sequence in asked] == ["", "C", "C B", "C B A"]
    assert service.requests[0].outputs[0].rows == [-1]
    assert all(request.version == 1 for request in service.requests)


def test_alignment(target):
    """Rows are words said, columns those of the text: by the head that aligns, another, or the mean of all."""
    with AttentionClient(target) as client:
        translation = translate(client, "aloud", "a b")
    assert translation.weights.shape == (2, 2, 2)
    np.testing.assert_array_equal(translation.alignment(), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(translation.alignment(0), np.full((2, 2), 0.5))
    with pytest.raises(InvalidRequest, match="no head 2; there are 0 to 1"):
        translation.alignment(2)
    with pytest.raises(InvalidRequest, match="no head -1"):
        translation.alignment(-1)


@pytest.mark.parametrize("figures", [{}, {"head": 2}, {"head": -1}])
def test_no_head_that_aligns(target, monkeypatch, figures):
    """Where the training names no head of the model, the alignment is the mean of all."""
    monkeypatch.setattr(AttentionClient, "model", described(training=pb.Training(figures=figures)))
    with AttentionClient(target) as client:
        translation = translate(client, "aloud", "a b")
    assert translation.head is None
    np.testing.assert_array_equal(translation.alignment(), [[0.25, 0.75], [0.75, 0.25]])


def test_the_longest_text(target, service):
    """A translation without an end is cut at the longest text that the model reads, after one more prediction."""
    with AttentionClient(target) as client:
        translation = translate(client, "aloud", "a b c d e f g")
        assert translation.words == ("G", "F", "E", "D", "C")
        assert not translation.complete
        assert translate(client, "aloud", "a b c d").complete


def test_a_bracket_is_part_of_a_word(target):
    """Only a label in brackets on both sides ends the translation."""
    with AttentionClient(target) as client:
        translation = translate(client, "aloud", "a] [b")
    assert (translation.words, translation.complete) == (("[B", "A]"), True)


def test_nothing_to_say(target):
    """A translation without words has no rows."""
    with AttentionClient(target) as client:
        translation = translate(client, "aloud", "")
    assert (str(translation), translation.complete) == ("", True)
    assert translation.alignment().shape == (0, 0)


@either
@pytest.mark.parametrize("model", ["dot-product", "multi-head"])
def test_models_that_do_not_translate(target, service, model, translated):
    """A model without a next word is refused before anything is sent to it."""
    with pytest.raises(InvalidRequest, match="does not translate") as caught:
        translated(target, model, "a b")
    assert caught.value.field == "model"
    assert service.created == []


def test_the_memory_is_lost_on_the_way(target, service):
    """Losing the memory before every word costs time, and changes nothing."""
    with Sabotaged(target) as client:
        assert str(translate(client, "aloud", "a b c")) == "C B A"
    assert len(service.created) == 5


@pytest.mark.parametrize("kind", [AttentionClient, Sabotaged])
def test_a_number(server, kind):
    """A trained model translates a number that it never saw, and its weights say which word came from which."""
    with kind(server.grpc) as client:
        translation = translate(client, "cross-attention", "four thousand twenty one")
    assert str(translation) == "vier tausend ein und zwanzig"
    assert translation.memory_tokens == ("four", "thousand", "twenty", "one", "[END]")
    looked_at = [translation.memory_tokens[key] for key in translation.alignment().argmax(-1)]
    aligned = dict(zip(translation.words, looked_at, strict=True))
    del aligned["und"]
    assert aligned == {"vier": "four", "tausend": "thousand", "ein": "one", "zwanzig": "twenty"}
    np.testing.assert_allclose(translation.weights.sum(-1), 1, rtol=1e-5)
    assert min(translation.probabilities) > 0.5


def test_generate_by_command(server):
    """The command goes on with the trained model of words, over its prompt as the source."""
    asked = ["generate", "twenty one", "--model", "cross-attention", "--greedy", "--target", server.grpc]
    said = CliRunner().invoke(app, asked)
    assert (said.exit_code, said.output) == (0, "ein und zwanzig\n")


def test_the_longest_number(numbers):
    """The longest number that the model reads is translated to its end."""
    translation = translate(numbers, "cross-attention", "one thousand one hundred twenty one")
    assert str(translation) == "ein tausend ein hundert ein und zwanzig"
    assert translation.complete


def test_steps_are_what_a_whole_call_says(numbers):
    """Word by word over a memory gives the weights that one call with the whole texts gives."""
    translation = translate(numbers, "cross-attention", "seventy six")
    text = " ".join(translation.words[:-1])
    whole = numbers.attend("cross-attention", text=text, memory_text="seventy six", outputs=["weights"])
    np.testing.assert_allclose(translation.weights.swapaxes(0, 1), whole.weights, atol=1e-6)


def test_words_it_does_not_know(numbers):
    """A word outside the vocabulary is refused by name."""
    with pytest.raises(InvalidRequest, match="'dozen'") as caught:
        translate(numbers, "cross-attention", "two dozen")
    assert caught.value.field == "memory_text"


def test_memories_of_the_real_server(numbers):
    """A memory has an id of its content, expires, is listed, forgotten, and made again when it is asked for."""
    memory = numbers.create_memory("cross-attention", memory_text="seven", ttl=60)
    assert numbers.create_memory("cross-attention", memory_text="seven").id == memory.id
    assert memory.id in [listed.id for listed in numbers.memories("cross-attention")]
    numbers.delete_memory(memory)
    with pytest.raises(NotFound):
        numbers.attend("cross-attention", text="", memory=memory.id)
    (prediction,) = numbers.attend("cross-attention", text="", memory=memory, outputs=["predictions"]).predictions
    assert prediction.label == "sieben"


def described(**changes):
    """Return a `model` method that answers with the served model, its manifest changed."""
    served = AttentionClient.model

    def model(self, *args, **options):
        found = served(self, *args, **options)
        for name, value in changes.items():
            getattr(found.manifest, name).CopyFrom(value)
        return found

    return model
