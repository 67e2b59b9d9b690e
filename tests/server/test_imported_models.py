"""Imported models of many architectures, served without torch, give the numbers of `transformers`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from attention_client import AttendResult, AttentionClient, OutputSpec
from export.checkpoints import import_by_command
from export.tiny_checkpoints import (
    FAR_FROM_UNIFORM,
    KINDS,
    sharpness,
    tiny_model,
    word_tokenizer,
    write_checkpoint,
)
from export.tiny_versions import TinyVersions
from numpy.typing import NDArray
from safetensors.torch import load_file
from serving import start_server
from transformers import PreTrainedModel

from tests.server.eager import TOLERANCE, distance

TEXTS = ("w7", "w31 w8 w99 <mask> w5 w7 w7 w64 w12 w90 w33 w41 w58", " ".join(f"w{5 + 7 * i % 95}" for i in range(29)))
# Each differs from a further one in its name alone, or in a detail of its embeddings; the trials have all.
ALIKE = ("xlm-roberta", "camembert", "ernie", "xlm-roberta-xl", "bert-generation", "splinter", "jina_embeddings_v3")
EVERY_SITE = [OutputSpec("weights", layers=["*"]), OutputSpec("hidden")]


@dataclass
class Imported:
    """The imported models, a client of the server that serves all of them, and the words of those that were refused."""

    folder: Path
    client: AttentionClient
    refused: dict[str, str]

    def answers(self, name: str, text: str, outputs: list[OutputSpec] = EVERY_SITE) -> AttendResult:
        return self.client.attend(name, text=text, outputs=outputs)

    def files(self, name: str) -> list[str]:
        """Return the names of a version's graphs and the hashes of the files, in order."""
        return files(self.folder / name)


@pytest.fixture(scope="module")
def imported(
    request: pytest.FixtureRequest, tiny_versions: TinyVersions, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Imported]:
    """One server of the models that are asked in this run."""
    models = tmp_path_factory.mktemp("imported")
    refused = {}
    asked = {item.callspec.params.get("kind") for item in request.session.items if hasattr(item, "callspec")}
    for kind in [kind for kind in KINDS if kind in asked or kind not in ALIKE]:
        try:
            tiny_versions.serve_in(models, kind, kind)
        except AssertionError as error:
            refused[kind] = str(error)
    with start_server(models) as server, AttentionClient(server.grpc) as client:
        yield Imported(models, client, refused)


def eager(model: PreTrainedModel, text: str) -> tuple[list[NDArray], NDArray]:
    """Return every attention's weights [H, T, T] and the last hidden state [T, D] of a text."""
    assert model.config._attn_implementation == "eager"
    tokens = torch.tensor([word_tokenizer().encode(text)])
    with torch.no_grad():
        result = model(input_ids=tokens, output_attentions=True, return_dict=True)
    return [weights[0].numpy() for weights in result.attentions], result.last_hidden_state[0].numpy()


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.long) if kind in ALIKE else kind for kind in KINDS]
)
def test_every_site_and_the_last_hidden_state_are_those_of_eager(kind: str, imported: Imported) -> None:
    """Over gRPC, each site's weights and the last hidden state of texts of several lengths equal the source's."""
    assert kind not in imported.refused, imported.refused[kind]
    model = tiny_model(kind)
    assert sharpness(model) > FAR_FROM_UNIFORM
    for text in TEXTS:
        answer = imported.answers(kind, text)
        weights, hidden = eager(model, text)
        names = [name for name in answer.outputs if name.startswith("weights@")]
        assert len(names) == len(weights)
        for name, expected in zip(names, weights, strict=True):
            assert distance(answer[name], expected) < TOLERANCE, name
        assert distance(answer["hidden"], hidden) < TOLERANCE


def test_shared_layers_stand_once(imported: Imported) -> None:
    """ALBERT's layers share matrices; the segments between its sites are one file."""
    files = imported.files("albert")
    assert len(files) == 1 + KINDS["albert"]["num_hidden_layers"]
    assert len(set(files[1:-1])) == 1 and len(set(files)) == 3


# Spellings of one checkpoint -----------------------------------------------------------------------------------------


def files(model: Path) -> list[str]:
    """Return the hashes of the files of a model's graphs, in order."""
    manifest = json.loads((model / "1/manifest.json").read_text())
    return [segment["graph"]["sha256"] for segment in manifest["segments"]]


def spell_anew(folder: Path) -> None:
    """Write a checkpoint as shards of PyTorch in bfloat16, with the older names of a normalization's parameters."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        shards.setdefault(f"pytorch_model-{number % 3}.bin", {})[older(name)] = tensor.to(torch.bfloat16)
    for file, held in shards.items():
        torch.save(held, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def older(name: str) -> str:
    return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta-v2"])
def test_a_pair_has_the_types_that_the_source_takes(kind: str, imported: Imported) -> None:
    """A pair's weights and hidden states are the source's, with token types where its forward takes them."""
    assert kind not in imported.refused, imported.refused[kind]
    first, second = TEXTS[1], TEXTS[0]
    outputs = [OutputSpec("weights", layers=["*"]), OutputSpec("hidden")]
    answer = imported.client.attend(kind, text=first, text_pair=second, outputs=outputs)
    model = tiny_model(kind)
    encoded = word_tokenizer()(first, second, return_tensors="pt")
    takes_types = getattr(model.config, "type_vocab_size", 0) > 1
    types = {"token_type_ids": encoded["token_type_ids"]} if takes_types else {}
    with torch.no_grad():
        result = model(input_ids=encoded["input_ids"], **types, output_attentions=True, return_dict=True)
    for index, expected in enumerate(result.attentions):
        assert distance(answer[f"weights@{index}"], expected[0].numpy()) < TOLERANCE
    assert distance(answer["hidden"], result.last_hidden_state[0].numpy()) < TOLERANCE


def test_spellings_of_a_checkpoint_are_one_model(tmp_path: Path) -> None:
    """Shards, a prefix with gamma and beta, PyTorch's files and bfloat16 give the same graphs."""
    model = tiny_model("bert").to(torch.bfloat16).float()  # values that bfloat16 holds exactly
    for name, change in {"as-saved": lambda _: None, "anew": spell_anew}.items():
        checkpoint = write_checkpoint(tmp_path / "checkpoints" / name, model)
        change(checkpoint)
        result = import_by_command(checkpoint, tmp_path / "models", name)
        assert result.exit_code == 0, result.output
    assert files(tmp_path / "models/anew") == files(tmp_path / "models/as-saved")


def test_a_data2vec_of_few_positions_is_served_rightly(imported: Imported) -> None:
    """Positions begin behind the padding token, and a text fills the table of positions to its end."""
    assert "data2vec-text" not in imported.refused, imported.refused["data2vec-text"]
    text = " ".join(f"w{5 + i}" for i in range(36))
    answer = imported.answers("data2vec-text", text)
    weights, hidden = eager(tiny_model("data2vec-text"), text)
    assert len(answer.tokens) == 38
    for index, expected in enumerate(weights):
        assert distance(answer[f"weights@{index}"], expected) < TOLERANCE
    assert distance(answer["hidden"], hidden) < TOLERANCE
