"""Texts as callers send them: pairs, texts that are too long, and tokens as they stand in the text."""

import asyncio
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import requests
from attention_client import AsyncAttentionClient, AttentionClient, InvalidRequest, TooLarge
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_server.inference.tokenizer import TextTokenizer
from serving import start_server
from tokenizers import Tokenizer

from tests.refusals import refused
from tests.server import tokenizers_of_tests
from tests.server.tokenizers_of_tests import KINDS, LONGEST, embeddings
from tests.transports import TRANSPORTS

SHORT = (
    "Hello dog",
    "Fox",
    "café",
    "caf\u0065\u0301",
    "🙂",
    "x 🙃",
    "שלום",
    "مر",
    "a\u0000b\u0007",
    "e\u0301\u0301",
    "  Fox  ",
    "fi ﬁ",
)
LONG = (
    "Hello world, the quick brown fox jumps over the lazy dogs.",
    "Players playing: café naïve 🙂🙃 שלום مرحبا " * 2,
    "ﬁne\u0000\u0007\u200b\u202e x\u0301\u0301 👩\u200d👩\u200d👧 " * 5,
)
PAIRS = [
    ("Fox", "dog"),
    ("Fox", ""),
    ("", "Fox"),
    ("dog", LONG[0]),
    (LONG[0], "dog"),
    (LONG[0], LONG[1]),
    (LONG[2], LONG[0]),
]
SIDES = ("right", "left")
VISIBLE = {*range(33, 127), *range(161, 173), *range(174, 256)}  # bytes that GPT-2's alphabet writes as themselves
BYTE_OF = {chr(each): each for each in VISIBLE}
BYTE_OF |= {chr(256 + place): each for place, each in enumerate(sorted(set(range(256)) - VISIBLE))}


@dataclass
class Texts:
    """A server of small transformers, one for each tokenizer, and these."""

    folder: Path
    rest: str
    grpc: str
    tokenizers: dict[str, Tokenizer]

    def expected(self, kind, text, pair=None, side=None):
        """Return what the tokenizers library makes of a text, cut to the longest by itself."""
        own = Tokenizer.from_str(self.tokenizers[kind].to_str())
        if side:
            own.enable_truncation(LONGEST, strategy="longest_first", direction=side)
        return own.encode(text, pair)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    tokenizers = {kind: tokenizers_of_tests.write(folder, kind) for kind in KINDS}
    with start_server(folder) as running:
        yield Texts(folder, running.rest, running.grpc, tokenizers)


@pytest.fixture(params=TRANSPORTS)
def transport(request, texts, connect):
    return connect(request.param, texts.rest, texts.grpc)


@pytest.fixture(scope="module")
def client(texts):
    with AttentionClient(texts.grpc) as made:
        yield made


def check(kind, text, pair, result, expected, dropped):
    """Compare an answer with the library's encoding: vectors of ids and types, places, tokens, the number dropped."""
    np.testing.assert_allclose(
        result["outputs"]["embeddings"], embeddings(kind, expected.ids, expected.type_ids), atol=1e-6
    )
    assert result["token_offsets"] == expected.offsets
    assert result["truncated_tokens"] == dropped
    for token, name, (start, end), index in zip(
        result["tokens"], expected.tokens, expected.offsets, expected.sequence_ids, strict=True
    ):
        if index is None:
            assert token == name
        elif start < end:
            assert token == (text, pair)[index][start:end]
        else:
            assert token == name.replace("Ġ", " ").replace("▁", " ")


def ask(transport, kind, **sequence):
    return transport.one(kind, **sequence, outputs=["embeddings"], token_offsets=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_read_as_the_library_reads_it(transport, texts, kind):
    """Ids, types and places of usual and unusual texts are the library's; a token is shown as it stands in the text."""
    for text in SHORT:
        expected = texts.expected(kind, text)
        if len(expected) <= LONGEST:
            check(kind, text, None, ask(transport, kind, text=text), expected, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_too_long(transport, texts, kind):
    """It is refused with both numbers; asked for, its end or its beginning is dropped, as the library truncates."""
    for text in LONG:
        whole = len(texts.expected(kind, text))
        with refused("INVALID_ARGUMENT", None, f"{whole} tokens", str(LONGEST), "truncate") as caught:
            ask(transport, kind, text=text)
        assert caught.value.field == transport.at("text")
        for side in SIDES:
            expected = texts.expected(kind, text, side=side)
            assert len(expected) == LONGEST
            check(kind, text, None, ask(transport, kind, text=text, truncate=side), expected, whole - LONGEST)


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "unigram"])
def test_pairs(transport, texts, kind):
    """A pair has the special tokens and types of the tokenizer's template; the longer text is cut first."""
    for text, pair in PAIRS:
        whole = len(texts.expected(kind, text, pair))
        for side in ("right",) if whole <= LONGEST else SIDES:
            expected = texts.expected(kind, text, pair, side)
            result = ask(transport, kind, text=text, text_pair=pair, truncate=side)
            check(kind, text, pair, result, expected, whole - len(expected))
        if whole > LONGEST:
            with refused("INVALID_ARGUMENT", None, f"{whole} tokens", str(LONGEST)):
                ask(transport, kind, text=text, text_pair=pair)


def test_models_that_take_no_pairs(transport):
    """A tokenizer that puts nothing between two texts takes no pair; and a pair has a first text."""
    with refused("INVALID_ARGUMENT", None, "no pairs") as caught:
        transport.attend("plain", text="Fox", text_pair="dog")
    assert caught.value.field == transport.at("text_pair")
    with refused("INVALID_ARGUMENT", None, "goes with text") as caught:
        transport.attend("wordpiece", token_ids=[1, 2], text_pair="dog")
    assert caught.value.field == transport.at("text_pair")
    spans = {"fox": {"begin": 0, "end": 3, "characters": True}}
    with refused("INVALID_ARGUMENT", "outputs[0].spans", "of a pair of texts count tokens"):
        transport.attend("wordpiece", text="Fox", text_pair="dog", outputs=[{"name": "weights", "spans": spans}])


def test_what_is_not_cut(transport):
    """Vectors and ids are not cut: they take no `truncate`, on their first way and on the quick one of known shapes."""
    query = np.ones((2, 8), np.float32)
    transport.attend("wordpiece", query=query)
    for sequence in ({"query": query}, {"token_ids": [1, 2]}):
        with refused("INVALID_ARGUMENT", None, "goes with text") as caught:
            transport.attend("wordpiece", **sequence, truncate="left")
        assert caught.value.field == transport.at("truncate")
    with refused("INVALID_ARGUMENT"):
        transport.attend("wordpiece", query=query, text_pair="dog")


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_a_vocabulary(transport, texts, kind):
    """Labels are text: a token that begins a word has its space, a part of a character is U+FFFD, ids are exact."""
    result = transport.one(kind, text="Fox", outputs=[{"name": "predictions", "top": tokenizers_of_tests.ROWS}])
    tokenizer = texts.tokenizers[kind]
    for candidate in result["predictions"][0]["top"]:
        token, label = tokenizer.id_to_token(candidate["id"]), candidate["label"]
        if token is None or token.startswith(("[", "<")):
            assert label == (token or "")
        elif kind == "unigram":
            assert label == token.replace("▁", " ")
        elif kind == "wordpiece":
            assert label == token
        else:
            assert label == bytes(BYTE_OF[letter] for letter in token).decode("utf-8", "replace")


def test_a_very_long_text(transport):
    """A text of more characters than any tokens have is refused before it is tokenized, cut or not."""
    for pair in ({}, {"text_pair": "x" * 2**20}):
        with refused("INVALID_ARGUMENT", None, "characters") as caught:
            transport.attend("wordpiece", text="x" * (2**20 if not pair else 1), truncate="right", **pair)
        assert caught.value.field == transport.at("text_pair" if pair else "text")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"text": "\\ud83d"}', "valid JSON"),
        (b'{"text": "a", "text_pair": "\\udc00 \\ud800"}', "valid JSON"),
        (b'{"text": "\xff"}', "valid JSON"),
        (b'{"text": "a", "truncate": "middle"}', "none, right, left"),
        (b'{"text": "a", "truncate": 1}', "a string"),
        (b'{"text": "a", "text_pair": ["b"]}', "a string"),
    ],
)
def test_json_that_is_no_text(texts, body, words):
    """A lone surrogate is no text, and neither are bytes that are not UTF-8; options have their words."""
    answer = requests.post(f"http://{texts.rest}/v1/models/wordpiece:attend", data=body, timeout=60)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_both_clients(texts, client):
    """Both clients send pairs and cuts, read the number dropped, and refuse what has no form on the wire."""

    async def ask_async():
        async with AsyncAttentionClient(texts.grpc) as made:
            return await made.attend("wordpiece", text=LONG[0], text_pair="dog", truncate="left")

    found = client.attend("wordpiece", text=LONG[0], text_pair="dog", truncate="left")
    assert found.truncated_tokens == len(texts.expected("wordpiece", LONG[0], "dog")) - LONGEST
    np.testing.assert_array_equal(asyncio.run(ask_async()).output, found.output)
    for wrong in ({"text": "\ud800"}, {"text": "a", "text_pair": "\udfff"}, {"text": "a", "truncate": "middle"}):
        with pytest.raises(InvalidRequest):
            client.attend("wordpiece", **wrong)


def test_the_open_inference_protocol(texts):
    """Pairs are an input, the cut a parameter, and the numbers dropped an output [B]."""
    url = f"http://{texts.rest}/v2/models/wordpiece"
    listed = {each["name"] for each in requests.get(url, timeout=60).json()["inputs"]}
    assert "text_pair" in listed
    assert "text_pair" not in {
        each["name"] for each in requests.get(url.replace("wordpiece", "plain"), timeout=60).json()["inputs"]
    }
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [2], "data": data}
        for name, data in (("text", ["Fox", LONG[0]]), ("text_pair", ["dog", "dog"]))
    ]
    outputs = [{"name": name} for name in ("embeddings", "tokens", "truncated_tokens")]
    sent = {"inputs": inputs, "outputs": outputs, "parameters": {"truncate": "right"}}
    answer = requests.post(f"{url}/infer", json=sent, timeout=60).json()
    found = {each["name"]: np.reshape(each["data"], each["shape"]) for each in answer["outputs"]}
    whole = len(texts.expected("wordpiece", LONG[0], "dog"))
    assert found["truncated_tokens"].tolist() == [0, whole - LONGEST]
    cut = texts.expected("wordpiece", LONG[0], "dog", "right")
    np.testing.assert_allclose(found["embeddings"][1], embeddings("wordpiece", cut.ids, cut.type_ids), atol=1e-6)
    sent["parameters"]["truncate"] = "middle"
    assert "parameters.truncate" in requests.post(f"{url}/infer", json=sent, timeout=60).json()["error"]


# --- Tokenize ---


def tokenize(texts, kind, **document):
    answer = requests.post(f"http://{texts.rest}/v1/models/{kind}:tokenize", json=document, timeout=60)
    return answer.status_code, answer.json()


@pytest.mark.parametrize("kind", KINDS)
def test_tokenize(texts, client, kind):
    """Ids, types, places and special tokens are the library's; they are the same over gRPC and REST, cut or whole."""
    sent = [*SHORT[:5], *([] if kind == "plain" else PAIRS)]
    found = client.tokenize(kind, sent, truncate="right")
    for each, result in zip(sent, found, strict=True):
        pair = (each, None) if isinstance(each, str) else each
        expected = texts.expected(kind, *pair, side="right")
        assert result.token_ids == tuple(expected.ids)
        assert result.token_types == tuple(expected.type_ids)
        assert result.token_offsets == tuple(expected.offsets)
        assert result.special == tuple(map(bool, expected.special_tokens_mask))
        assert result.truncated_tokens == len(texts.expected(kind, *pair)) - len(expected)
        answer = client.attend(kind, text=pair[0], text_pair=pair[1], truncate="right", outputs=["embeddings"])
        assert answer.tokens == result.tokens
    inputs = [
        {"text": each} if isinstance(each, str) else dict(zip(("text", "text_pair"), each, strict=True))
        for each in sent
    ]
    status, document = tokenize(texts, kind, inputs=inputs, truncate="right")
    assert status == 200
    for each, result in zip(document["results"], found, strict=True):
        assert each == {
            "token_ids": list(result.token_ids),
            "tokens": list(result.tokens),
            "token_offsets": [{"start": start, "end": end} for start, end in result.token_offsets],
            "token_types": list(result.token_types),
            "special": list(result.special),
            "truncated_tokens": result.truncated_tokens,
        }


def test_ids_of_tokenize_give_what_the_text_gives(client):
    """What `Tokenize` returns is taken as `token_ids`."""
    (tokens,) = client.tokenize("byte-level", ["Fox 🙂"])
    of_ids = client.attend("byte-level", token_ids=tokens.token_ids)
    np.testing.assert_array_equal(of_ids.output, client.attend("byte-level", text="Fox 🙂").output)


def test_tokenize_in_protobuf_over_rest_and_by_version(texts):
    """Protobuf in and out, and a chosen version, as `:attend` has them."""
    url = f"http://{texts.rest}/v1/models/wordpiece/versions/1:tokenize"
    kind = "application/x-protobuf"
    body = pb.TokenizeRequest(inputs=[pb.TokenizeInput(text="Fox")]).SerializeToString()
    answer = requests.post(url, data=body, headers={"content-type": kind, "accept": kind}, timeout=60)
    found = pb.TokenizeResponse.FromString(answer.content)
    assert (found.model, found.version) == ("wordpiece", 1)
    assert list(found.results[0].token_ids) == texts.expected("wordpiece", "Fox").ids
    status, document = tokenize(texts, "wordpiece", text="Fox", text_pair="dog")
    assert status == 200
    assert document["results"][0]["token_ids"] == texts.expected("wordpiece", "Fox", "dog").ids


@pytest.mark.parametrize(
    ("kind", "document", "status", "field"),
    [
        ("wordpiece", {}, 400, "inputs"),
        ("wordpiece", {"inputs": []}, 400, "inputs"),
        ("wordpiece", {"inputs": ["a"]}, 400, "inputs[0]"),
        ("wordpiece", {"inputs": [{"text": "a"}, {}]}, 400, "inputs[1].text"),
        ("wordpiece", {"inputs": [{"text": "a"}], "text": "b"}, 400, "text"),
        ("wordpiece", {"text_pair": "b"}, 400, "text"),
        ("wordpiece", {"text": "a", "memory": True}, 400, "memory"),
        ("wordpiece", {"text": "a", "memory": 1}, 400, "memory"),
        ("wordpiece", {"text": LONG[0]}, 400, "text"),
        ("wordpiece", {"inputs": [{"text": "a"}, {"text": LONG[0]}]}, 400, "inputs[1].text"),
        ("wordpiece", {"text": "a", "truncate": "both"}, 400, "truncate"),
        ("wordpiece", {"text": "a", "outputs": []}, 400, "outputs"),
        ("plain", {"text": "a", "text_pair": "b"}, 400, "text_pair"),
        ("wordpiece", {"text": "a", "version": 7}, 404, None),
        ("none", {"text": "a"}, 404, None),
        ("wordpiece", {"text": "x" * 2**20, "truncate": "left"}, 400, "text"),
        ("wordpiece", {"inputs": [{"text": "a"}] * 5000}, 413, "inputs"),
    ],
)
def test_what_is_not_tokenized(texts, kind, document, status, field):
    """A fault is refused by the path of its field."""
    found, answer = tokenize(texts, kind, **document)
    assert found == status
    assert field is None or answer["error"].get("field") == field


def test_both_clients_tokenize(texts, client):
    """The asyncio client is a twin; a text alone, and what has no form on the wire, is refused before it is sent."""

    async def ask_async():
        async with AsyncAttentionClient(texts.grpc) as made:
            return await made.tokenize("unigram", ["Fox"], version=1)

    assert asyncio.run(ask_async()) == client.tokenize("unigram", ["Fox"])
    for wrong in ("Fox", [1], ["\ud800"], [("a", "b", "c")], [("a", 1)]):
        with pytest.raises(InvalidRequest):
            client.tokenize("wordpiece", wrong)
    with pytest.raises(InvalidRequest):
        client.tokenize("wordpiece", ["Fox"], truncate="middle")
    with pytest.raises(TooLarge):
        client.tokenize("wordpiece", ["Fox"] * 5000)


def test_tokenize_by_the_server_of_grpcio(texts, client):
    """Both gRPC servers have the method, and bound the tokens of an answer."""
    flags = ("--grpc-server", "grpcio", "--max-answer-mib", 1)
    with start_server(texts.folder, *flags) as running, AttentionClient(running.grpc) as other:
        assert other.tokenize("wordpiece", [PAIRS[0]]) == client.tokenize("wordpiece", [PAIRS[0]])
        assert len(other.tokenize("wordpiece", ["Fox"] * 250)) == 250
        with pytest.raises(TooLarge, match="1024 tokens"):
            other.tokenize("wordpiece", ["Fox fox"] * 300)


@pytest.mark.parametrize("side", SIDES)
def test_a_target_that_is_cut_keeps_its_start(texts, side):
    """Of the target of an encoder-decoder, which has a start token and no further special one, the rest is cut."""
    content = texts.tokenizers["unigram"].to_str().encode()
    plain = Tokenizer.from_buffer(content).encode(LONG[0], add_special_tokens=False).ids
    reader = TextTokenizer(content, allow_unknown=True, max_tokens=5, start=0)
    tokens = reader.read(LONG[0], "text", truncate=side)
    assert tokens.ids.tolist() == [0, *(plain[:4] if side == "right" else plain[-4:])]
    assert (tokens.truncated, tokens.special) == (len(plain) - 4, (True, False, False, False, False))


def test_every_pair_of_lengths_is_cut_as_by_the_library():
    """Whatever the lengths of both texts and of the longest, the tokens kept are the library's."""
    tokenizer = tokenizers_of_tests.wordpiece()
    content = tokenizer.to_str().encode()
    for most, side in itertools.product(range(4, 10), SIDES):
        tokenizer.enable_truncation(most, strategy="longest_first", direction=side)
        reader = TextTokenizer(content, allow_unknown=True, max_tokens=most)
        for first, second in itertools.product(range(8), repeat=2):
            pair = ("fox " * first, "dog " * second)
            tokens, expected = reader.read(pair[0], "text", truncate=side, pair=pair[1]), tokenizer.encode(*pair)
            assert (tokens.ids.tolist(), tokens.types.tolist()) == (expected.ids, expected.type_ids)
            assert [tuple(span) for span in tokens.spans] == expected.offsets
