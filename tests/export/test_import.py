"""all-MiniLM-L6-v2, imported by the command, is served exactly: compared with float64 NumPy and with the library."""

import base64
import hashlib
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from attention_client import AttentionClient, OutputSpec
from attention_export.importing import ImportFailure, read_tensors
from attention_export.manifest import read_manifest
from numpy.typing import NDArray
from safetensors.torch import load_file
from serving import ROOT, Server, start_server
from tokenizers import Tokenizer

from tests.export.checkpoints import checkpoint, import_by_command

SENTENCES = Path(__file__).with_name("sentences.txt").read_text().splitlines()
FEW = SENTENCES[:6]
HEADS, LAYERS, WIDTH = 12, 6, 384
TOLERANCE = 1e-5


class LayerStages(NamedTuple):
    """The stages of one layer: weights [H, T, T], the attention's output and the layer's hidden state, both [T, D]."""

    weights: NDArray
    output: NDArray
    hidden: NDArray


def encode(tensors: dict[str, NDArray], ids: list[int]) -> list[LayerStages]:
    """Compute a BERT in float64 from its published description (Devlin et al., 2018)."""
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def affine(x: NDArray, name: str) -> NDArray:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(x: NDArray, name: str) -> NDArray:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return centred / deviation * t[f"{name}.weight"] + t[f"{name}.bias"]

    def heads(x: NDArray) -> NDArray:
        return x.reshape(len(x), HEADS, -1).transpose(1, 0, 2)

    positions = t["embeddings.position_embeddings.weight"][: len(ids)]
    types = t["embeddings.token_type_embeddings.weight"][0]
    x = norm(t["embeddings.word_embeddings.weight"][ids] + positions + types, "embeddings.LayerNorm")
    layers = []
    for index in range(LAYERS):
        at = f"encoder.layer.{index}"
        q, k, v = (heads(affine(x, f"{at}.attention.self.{name}")) for name in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        weights = powers / powers.sum(-1, keepdims=True)
        mixed = (weights @ v).transpose(1, 0, 2).reshape(len(ids), -1)
        output = affine(mixed, f"{at}.attention.output.dense")
        x = norm(x + output, f"{at}.attention.output.LayerNorm")
        wide = affine(x, f"{at}.intermediate.dense")
        wide = wide * 0.5 * (1 + torch.erf(torch.from_numpy(wide) / np.sqrt(2)).numpy())
        x = norm(x + affine(wide, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        layers.append(LayerStages(weights, output, x))
    return layers


def unpadded_tokenizer() -> Tokenizer:
    """Return the checkpoint's tokenizer, without its padding."""
    tokenizer = Tokenizer.from_file(str(checkpoint() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the checkpoint, imported by the command."""
    folder = tmp_path_factory.mktemp("minilm")
    result = import_by_command(checkpoint(), folder / "models", "minilm", "--license", "Apache-2.0")
    assert result.exit_code == 0, result.stderr
    assert "GiB for the export" in result.stderr
    return folder / "models"


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with start_server(repository) as started:
        yield started


@pytest.fixture(scope="module")
def pooled() -> list[NDArray]:
    """The mean of transformers' last hidden state of a few sentences, [D] each."""
    model = transformers.AutoModel.from_pretrained(checkpoint(), dtype=torch.float64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint())
    with torch.no_grad():
        found = (model(**tokenizer(text, return_tensors="pt")).last_hidden_state for text in FEW)
        return [hidden[0].mean(0).numpy() for hidden in found]


def close(found: Any, expected: NDArray) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=TOLERANCE)


def test_every_layer_is_served_exactly(server: Server) -> None:
    """One request returns weights, output and hidden of every layer of all-MiniLM-L6-v2, within 1e-5 of float64."""
    tensors = {name: tensor.numpy() for name, tensor in load_file(checkpoint() / "model.safetensors").items()}
    every_layer = [OutputSpec(stage, layers=["*"]) for stage in LayerStages._fields]
    with AttentionClient(server.grpc) as client:
        for sentence in FEW:
            result = client.attend("minilm", text=sentence, outputs=every_layer)
            encoding = unpadded_tokenizer().encode(sentence)
            assert len(result.tokens) == len(encoding.ids)
            for index, expected in enumerate(encode(tensors, encoding.ids)):
                for stage in LayerStages._fields:
                    close(result[f"{stage}@{index}"], getattr(expected, stage))


def test_the_reference_agrees_with_transformers() -> None:
    """The float64 reference of these tests agrees with `transformers` in all layers."""
    model = transformers.BertModel.from_pretrained(checkpoint(), attn_implementation="eager", dtype=torch.float64)
    tensors = {key: tensor.numpy() for key, tensor in load_file(checkpoint() / "model.safetensors").items()}
    for sentence in FEW:
        ids = unpadded_tokenizer().encode(sentence).ids
        with torch.no_grad():
            found = model(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
        for stages, weights, hidden in zip(
            encode(tensors, ids), found.attentions, found.hidden_states[1:], strict=True
        ):
            np.testing.assert_allclose(stages.weights, weights[0].numpy(), atol=1e-9)
            np.testing.assert_allclose(stages.hidden, hidden[0].numpy(), atol=1e-9)


# The embedding: the mean of `hidden` ---------------------------------------------------------------------------------


def test_the_manifest_says_how_an_embedding_is_made(repository: Path) -> None:
    """Pooling and normalization are those of modules.json; parity names the reference."""
    manifest = read_manifest(repository / "minilm/1")
    assert (manifest.text.pool, manifest.text.normalize, manifest.text.max_tokens) == ("mean", True, 512)
    assert manifest.parity.reference.startswith(f"transformers {transformers.__version__}, eager, float64")
    assert (manifest.architecture, manifest.license, manifest.source) == ("BertModel", "Apache-2.0", "model")
    assert manifest.doubled_bytes == 0


def test_the_embedding_over_grpc(server: Server, pooled: list[NDArray]) -> None:
    """The pooled mean of `hidden` is the mean of transformers' last hidden state; that of `output` is another."""
    outputs = [OutputSpec("hidden", pool="mean"), OutputSpec("output", pool="mean")]
    with AttentionClient(server.grpc) as client:
        for text, expected in zip(FEW, pooled, strict=True):
            result = client.attend("minilm", text=text, outputs=outputs)
            close(result["hidden"], expected)
            assert np.abs(result["output"] - expected).max() > 100 * TOLERANCE


def post(url: str, body: dict[str, Any]) -> Any:
    """Send JSON; return the answer's."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_the_embedding_over_rest(server: Server, pooled: list[NDArray]) -> None:
    """REST answers with the same embedding."""
    for text, expected in zip(FEW, pooled, strict=True):
        body = {"text": text, "outputs": [{"name": "hidden", "pool": "mean"}]}
        answer = post(f"{server.url}/v1/models/minilm:attend", body)
        close(answer["results"][0]["outputs"]["hidden"]["values"], expected)


def test_the_embedding_over_the_open_inference_protocol(server: Server, pooled: list[NDArray]) -> None:
    """A batch of texts of several lengths is answered with their embeddings, [B, D]."""
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [len(FEW)], "data": FEW}]
    outputs = [{"name": "hidden", "parameters": {"pool": "mean"}}]
    answer = post(f"{server.url}/v2/models/minilm/infer", {"inputs": inputs, "outputs": outputs})
    (output,) = answer["outputs"]
    assert output["shape"] == [len(FEW), WIDTH]
    close(np.reshape(output["data"], output["shape"]), np.stack(pooled))


def test_the_embedding_of_scored_files(server: Server, pooled: list[NDArray], tmp_path: Path) -> None:
    """`score` writes the embedding of each row."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in FEW))
    command = [Path(sys.executable).with_name("attention-client"), "score", source, target, "--model", "minilm"]
    subprocess.run([*command, "--target", server.grpc, "--outputs", "hidden:mean"], check=True, capture_output=True)
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    for row, expected in zip(rows, pooled, strict=True):
        close(row["hidden"], expected)


# The openai package --------------------------------------------------------------------------------------------------


def embed(server: Server, *requests: dict[str, Any], key: str = "none") -> list[dict[str, Any]]:
    """Return what the `openai` package answers to each request, in a process and an environment of its own."""
    command = [ROOT / ".venv-clients/bin/python", ROOT / "tests/openai_package/embed.py", server.url, key]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    env = {"PATH": "/usr/bin"}
    done = subprocess.run(command, input=lines, check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_openai_package_gets_the_embedding_of_sentence_transformers(server: Server, pooled: list[NDArray]) -> None:
    """Texts and token ids, one and several, as base64 and as numbers: mean and normalized, with the tokens counted."""
    ids = [unpadded_tokenizer().encode(text).ids for text in FEW]
    inputs: list[Any] = [FEW, ids, FEW[0], ids[0], [FEW[1]]]
    expected = [(pooled, ids), (pooled, ids), (pooled[:1], ids[:1]), (pooled[:1], ids[:1]), (pooled[1:2], ids[1:2])]
    for more in ({}, {"encoding_format": "float"}, {"encoding_format": "base64", "dimensions": WIDTH, "user": "me"}):
        answers = embed(server, *({"model": "minilm@1", "input": each} | more for each in inputs))
        for answer, (vectors, tokens) in zip(answers, expected, strict=True):
            assert (answer["object"], answer["model"]) == ("list", "minilm")
            assert [each["index"] for each in answer["data"]] == list(range(len(vectors)))
            count = sum(map(len, tokens))
            assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
            for each, vector in zip(answer["data"], vectors, strict=True):
                found = each["embedding"]
                if more.get("encoding_format") == "base64":  # the package decodes only what it chose itself
                    found = np.frombuffer(base64.b64decode(found), "<f4")
                close(found, vector / np.linalg.norm(vector))


def test_the_openai_package_reads_errors(server: Server) -> None:
    """Each error is of the package's class for it, with the parameter at fault and words that say what would do."""
    text = {"model": "minilm", "input": "a"}
    wrong = [
        (text | {"model": "other"}, "NotFoundError", "model_not_found", "model", "other"),
        (text | {"model": "minilm@7"}, "NotFoundError", "model_not_found", "version", "7"),
        (text | {"dimensions": 128}, "BadRequestError", "invalid_argument", "dimensions", "must be 384"),
        (text | {"input": []}, "BadRequestError", "invalid_argument", "input", "give a string"),
        (text | {"input": ["a", 3]}, "BadRequestError", "invalid_argument", "input[1]", "must be a string or"),
        (text | {"input": [[0], [10**6]]}, "BadRequestError", "invalid_argument", "input[1][0]", "1000000"),
        (text | {"input": "a " * 600}, "BadRequestError", "invalid_argument", "input", "602 tokens"),
        (text | {"extra_body": {"lenght": 3}}, "BadRequestError", "invalid_argument", "lenght", "no such field"),
    ]
    answers = embed(server, *(request for request, *_ in wrong))
    for answer, (_, kind, code, param, words) in zip(answers, wrong, strict=True):
        assert (answer["class"], answer["code"], answer["param"]) == (kind, code, param), answer
        assert answer["type"] == "invalid_request_error"
        assert re.search(words, answer["message"]), answer


def test_the_openai_package_shows_its_key(repository: Path, tmp_path: Path) -> None:
    """The key is a bearer token: a wrong one is refused, a limited one waits, a right one is counted by the metrics."""
    tokens = tmp_path / "tokens.toml"
    digests = {key: hashlib.sha256(key.encode()).hexdigest() for key in ("secret", "seldom")}
    lines = [f'[{key}]\nsha256 = "{digest}"\nrights = ["attend"]\n' for key, digest in digests.items()]
    tokens.write_text("".join(lines) + "requests_per_second = 0.0001\n")
    request = {"model": "minilm", "input": FEW}
    with start_server(repository, "--tokens", tokens) as guarded:
        (refused,) = embed(guarded, request, key="guess")
        assert (refused["class"], refused["code"]) == ("AuthenticationError", "invalid_api_key")
        _, refused = embed(guarded, request, request, key="seldom")
        told = (refused["class"], refused["status"], refused["type"], refused["code"])
        assert told == ("RateLimitError", 429, "rate_limit_error", "rate_limit_exceeded")
        (answer,) = embed(guarded, request, key="secret")
        assert len(answer["data"]) == len(FEW)
        asked = urllib.request.Request(f"{guarded.url}/metrics", headers={"Authorization": "Bearer secret"})
        with urllib.request.urlopen(asked) as metrics:
            counted = re.findall(r"attention_requests_total\{(.*CreateEmbeddings.*)\} (.+)", metrics.read().decode())
        assert {code: number for labels, number in counted for code in re.findall('code="(.+?)"', labels)} == {
            "OK": "2.0"
        }


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_file_with_code_is_refused(tmp_path: Path) -> None:
    """A pickled file of anything but tensors is an error with the file's name."""
    path = tmp_path / "evil.pt"
    torch.save({"x": Path}, path)
    with pytest.raises(ImportFailure, match=r"evil\.pt"):
        read_tensors(path)
