"""Imported models of many architectures, served without torch, give the numbers of `transformers`."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from attention_client import AttendResult, AttentionClient, OutputSpec
from attention_export import cli
from export.tiny_checkpoints import (
    FAR_FROM_UNIFORM,
    KINDS,
    SMALL,
    sharpness,
    tiny_model,
    word_tokenizer,
    write_checkpoint,
)
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from serving import start_server
from transformers import PreTrainedModel
from typer.testing import CliRunner

TOLERANCE = 5e-5  # of the largest value
FEW_POSITIONS = SMALL | {"vocab_size": 400, "max_position_embeddings": 40, "pad_token_id": 1, "initializer_range": 0.5}
VARIANTS = {  # further models: kind and fields of the config
    "albert-4": ("albert", {"num_hidden_layers": 4}),
    "data2vec-40": ("data2vec-text", FEW_POSITIONS),
}
TEXTS = ("w7", "w31 w8 w99 <mask> w5 w7 w7 w64 w12 w90 w33 w41 w58", " ".join(f"w{5 + 7 * i % 95}" for i in range(29)))
EVERY_SITE = [OutputSpec("weights", layers=["*"]), OutputSpec("hidden")]


def import_checkpoint(checkpoint: Path, models: Path, name: str) -> None:
    """Import a checkpoint by the command."""
    arguments = ["import", "transformer", str(checkpoint), "--name", name, "--models", str(models)]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output


def make(folder: Path, name: str, kind: str, fields: Mapping[str, object]) -> None:
    """Write a checkpoint of a kind, and import it."""
    torch.set_num_threads(1)
    checkpoint = write_checkpoint(folder / "checkpoints" / name, tiny_model(kind, **fields))
    import_checkpoint(checkpoint, folder / "models", name)


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
        manifest = json.loads((self.folder / "models" / name / "1/manifest.json").read_text())
        return [segment["graph"]["sha256"] for segment in manifest["segments"]]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Imported]:
    """One server of all models; checkpoints are imported on every core, each process on one."""
    folder = tmp_path_factory.mktemp("imported")
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        made = {kind: pool.submit(make, folder, kind, kind, {}) for kind in KINDS}
        made |= {name: pool.submit(make, folder, name, *variant) for name, variant in VARIANTS.items()}
        made["spellings"] = pool.submit(make_spellings, folder)
        refused = {kind: str(error) for kind, each in made.items() if (error := each.exception())}
    with start_server(folder / "models") as server, AttentionClient(server.grpc) as client:
        yield Imported(folder, client, refused)


def eager(model: PreTrainedModel, text: str) -> tuple[list[NDArray], NDArray]:
    """Return every attention's weights [H, T, T] and the last hidden state [T, D] of a text."""
    assert model.config._attn_implementation == "eager"
    tokens = torch.tensor([word_tokenizer().encode(text)])
    with torch.no_grad():
        result = model(input_ids=tokens, output_attentions=True, return_dict=True)
    return [weights[0].numpy() for weights in result.attentions], result.last_hidden_state[0].numpy()


def distance(found: NDArray, expected: NDArray) -> float:
    """Return the largest difference, as a part of the largest value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
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
    assert len(files) == 1 + SMALL["num_hidden_layers"]
    assert "albert-4" not in imported.refused, imported.refused["albert-4"]
    four = imported.files("albert-4")
    assert len(set(four)) < len(four)


# Spellings of one checkpoint -----------------------------------------------------------------------------------------


def as_saved(folder: Path, model: PreTrainedModel) -> None:
    write_checkpoint(folder, model)


def in_shards_with_gamma_and_beta(folder: Path, model: PreTrainedModel) -> None:
    """Write shards, with a prefix and the older names of a normalization's parameters."""
    write_checkpoint(folder, model, max_shard_size="20KB")
    shards = list(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        save_file({older(name): tensor for name, tensor in load_file(shard).items()}, shard, {"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {older(name): shard for name, shard in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def older(name: str) -> str:
    return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def as_pytorch_in_bfloat16(folder: Path, model: PreTrainedModel) -> None:
    write_checkpoint(folder, model.to(torch.bfloat16))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


SPELLINGS: dict[str, Callable[[Path, PreTrainedModel], None]] = {
    each.__name__.replace("_", "-"): each for each in (as_saved, in_shards_with_gamma_and_beta, as_pytorch_in_bfloat16)
}


def make_spellings(folder: Path) -> None:
    """Import one BERT, with values that bfloat16 holds exactly, in each spelling."""
    torch.set_num_threads(1)
    for name, write in SPELLINGS.items():
        model = tiny_model("bert").to(torch.bfloat16).float()
        checkpoint = folder / "checkpoints" / name
        write(checkpoint, model)
        import_checkpoint(checkpoint, folder / "models", name)


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


@pytest.mark.parametrize("spelling", [name for name in SPELLINGS if name != "as-saved"])
def test_spellings_of_a_checkpoint_are_one_model(spelling: str, imported: Imported) -> None:
    """Shards, a prefix with gamma and beta, PyTorch's file and bfloat16 give the same graphs."""
    assert "spellings" not in imported.refused, imported.refused["spellings"]
    assert imported.files(spelling) == imported.files("as-saved")


def test_a_data2vec_of_few_positions_is_served_rightly(imported: Imported) -> None:
    """Positions begin behind the padding token, and a text fills the table of positions to its end."""
    assert "data2vec-40" not in imported.refused, imported.refused["data2vec-40"]
    text = " ".join(f"w{5 + i}" for i in range(36))
    answer = imported.answers("data2vec-40", text)
    weights, hidden = eager(tiny_model("data2vec-text", **FEW_POSITIONS), text)
    assert len(answer.tokens) == 38
    for index, expected in enumerate(weights):
        assert distance(answer[f"weights@{index}"], expected) < TOLERANCE
    assert distance(answer["hidden"], hidden) < TOLERANCE
