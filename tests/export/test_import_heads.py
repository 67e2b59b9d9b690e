"""Heads of imported checkpoints predict as the source does, and an import is refused in words."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers
from attention_client import AttentionClient, OutputSpec, Sample, TooLarge
from attention_export.cli import app
from attention_export.manifest import read_manifest
from attention_proto.attention.v1.attention_pb2 import Predictor
from attention_server.domain import messages
from attention_server.inference.sampling import draw
from numpy.typing import NDArray
from serving import Server, start_server
from transformers import AutoTokenizer, PreTrainedModel
from typer.testing import CliRunner

from tests.export.checkpoints import checkpoint, import_by_command, with_files
from tests.transports import Transport

Connect = Callable[[str, str, str], Transport]
LABELS = ["bad", "fair", "good"]
VOCABULARY = 30522
MOST_MIB = 2  # of scores and logits
ROWS_WITHIN = MOST_MIB * 2**20 // (4 * VOCABULARY)
TASKS = {
    "sequence-classification": transformers.BertForSequenceClassification,
    "token-classification": transformers.BertForTokenClassification,
    "masked-lm": transformers.BertForMaskedLM,
    "causal-lm": transformers.BertLMHeadModel,
}
VOCABULARIES = ("masked-lm", "causal-lm")


def save(folder: Path, kind: type[PreTrainedModel], **fields: object) -> PreTrainedModel:
    """Write a small BERT with wide random weights and MiniLM's tokenizer; return the model."""
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        id2label=dict(enumerate(LABELS)),
        is_decoder=kind is transformers.BertLMHeadModel,
        **fields,
    )
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    with_files(checkpoint(), folder, "tokenizer.json", "tokenizer_config.json")
    return model


class Served(NamedTuple):
    """The repository of imported tasks, its server with a client, and the sources by task."""

    models: Path
    server: Server
    client: AttentionClient
    sources: dict[str, PreTrainedModel]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of one model for each task, each imported by the command."""
    folder = tmp_path_factory.mktemp("tasks")
    sources = {task: save(folder / task, kind) for task, kind in TASKS.items()}
    for task in TASKS:
        result = import_by_command(folder / task, folder / "models", task)
        assert result.exit_code == 0, result.stderr
        assert "note:" not in result.stderr
    with (
        start_server(folder / "models", "--max-scores-mib", MOST_MIB) as server,
        AttentionClient(server.grpc) as client,
    ):
        yield Served(folder / "models", server, client, sources)


def logits_of(model: PreTrainedModel, text: str) -> torch.Tensor:
    """Return the source's logits, [labels] or [T, labels]."""
    with torch.no_grad():
        logits: torch.Tensor = model(**AutoTokenizer.from_pretrained(checkpoint())(text, return_tensors="pt")).logits
    return logits[0]


def probabilities(model: PreTrainedModel, text: str) -> NDArray:
    """Return the softmax of the source's logits, [labels] or [T, labels]."""
    return logits_of(model, text).double().softmax(-1).numpy()


@pytest.mark.parametrize("task", TASKS)
def test_predictions_are_those_of_the_source(task: str, served: Served) -> None:
    """The most probable labels of each row that the head reads, with ids and probabilities, are the source's."""
    ids = AutoTokenizer.from_pretrained(checkpoint()).get_vocab() if task in VOCABULARIES else {}
    names = list(ids) if ids else LABELS
    for text in ("the cat sat on the [MASK]", "no"):
        result = served.client.attend(task, text=text, outputs=[OutputSpec("predictions", top=3)])
        expected = np.atleast_2d(probabilities(served.sources[task], text))
        rows = range(len(expected))[-1:] if task == "causal-lm" else range(len(expected))
        assert [each.row for each in result.predictions] == list(rows)
        for prediction, row in zip(result.predictions, expected[rows], strict=True):
            best = np.argsort(-row, kind="stable")[:3]
            found = [(each.id, each.label) for each in prediction.top]
            assert found == [(index, _name(index, names, ids)) for index in best.tolist()]
            np.testing.assert_allclose([each.probability for each in prediction.top], row[best], rtol=1e-4, atol=1e-6)


def _name(index: int, names: list[str], ids: dict[str, int]) -> str:
    return next(token for token, number in ids.items() if number == index) if ids else names[index]


@pytest.mark.parametrize("task", ["token-classification", *VOCABULARIES])
@pytest.mark.parametrize("name", ["grpc", "rest-base64"])
def test_logits_are_those_of_the_source(task: str, name: str, served: Served, connect: Connect) -> None:
    """Logits of the rows chosen equal the source's, and predictions of these rows are their most probable labels."""
    transport = connect(name, served.server.rest, served.server.grpc)
    expected = logits_of(served.sources[task], "the cat sat on the [MASK]").numpy()
    rows = [6, -1, 0]
    asked = [{"name": "logits", "rows": rows}, {"name": "predictions", "rows": rows, "top": 3}]
    result = transport.one(task, text="the cat sat on the [MASK]", outputs=asked)
    found = result["outputs"]["logits"]
    assert found.shape == (3, expected.shape[1])
    np.testing.assert_allclose(found, expected[rows], rtol=0, atol=5e-5 * np.abs(expected).max())
    best = np.argsort(-expected[rows], axis=-1, kind="stable")[:, :3]
    assert [[each["id"] for each in one["top"]] for one in result["predictions"]] == best.tolist()
    assert [one["row"] for one in result["predictions"]] == [6, len(expected) - 1, 0]


def test_labels_are_drawn_from_the_logits_of_the_source(served: Served) -> None:
    """A draw of a seed is the one that follows from the source's logits by the filters."""
    text = "the cat sat on the [MASK]"
    expected = logits_of(served.sources["masked-lm"], text).numpy()
    sample = Sample(temperature=1.5, top_k=50, top_p=0.9, seed=11)
    result = served.client.attend("masked-lm", text=text, outputs=[OutputSpec("predictions", sample=sample)])
    filters = messages.Sample(1.5, 50, 0.9)
    assert [each.id for each in result.predictions] == [draw(x, filters, 11, row) for row, x in enumerate(expected)]
    assert [each.id for each in result.predictions] != expected.argmax(-1).tolist()


def test_rows_of_a_vocabulary_are_bounded(served: Served) -> None:
    """Logits and predictions of more rows than the limit allows are refused in words; of rows chosen they are made."""
    text = " ".join(["cat"] * 2 * ROWS_WITHIN)
    for name in ("logits", "predictions"):
        with pytest.raises(TooLarge, match=r"logits and predictions .* rows x labels x 4; .* choose rows"):
            served.client.attend("masked-lm", text=text, outputs=[name])
    result = served.client.attend("masked-lm", text=text, outputs=[OutputSpec("logits", rows=[-1, 3])])
    assert result["logits"].shape == (2, VOCABULARY)


def test_the_manifest_tells_the_rows_and_labels_of_a_head(served: Served) -> None:
    """A classifier reads the first row and has its labels in the manifest; a vocabulary stays in the tokenizer.

    A causal language model predicts the token behind the last row.
    """
    found = {task: read_manifest(served.models / task / "1").predictors[0] for task in TASKS}
    assert [(found[task].name, found[task].rows) for task in TASKS] == [
        ("label", Predictor.ROWS_FIRST),
        ("label", Predictor.ROWS_ALL),
        ("token", Predictor.ROWS_ALL),
        ("token", Predictor.ROWS_LAST),
    ]
    assert list(found["sequence-classification"].labels) == LABELS
    assert all(found[task].vocabulary and not found[task].labels for task in VOCABULARIES)
    widths = {task: read_manifest(served.models / task / "1").logits_dim for task in TASKS}
    assert widths == {"sequence-classification": 0, "token-classification": 3} | dict.fromkeys(VOCABULARIES, VOCABULARY)


def test_a_tied_matrix_is_counted(served: Served) -> None:
    """The embedding that a masked language model's head uses again stands in two files, and is counted once."""
    embedding = served.sources["masked-lm"].get_input_embeddings().weight
    assert read_manifest(served.models / "masked-lm/1").doubled_bytes == 4 * embedding.numel()
    assert read_manifest(served.models / "token-classification/1").doubled_bytes == 0


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"problem_type": "multi_label_classification"}, "labels that exclude each other"),
        ({"problem_type": "regression"}, "it is a regression"),
    ],
)
def test_a_head_of_another_kind_is_left_out_and_said(fields: dict[str, object], note: str, tmp_path: Path) -> None:
    """Labels that do not exclude each other, and numbers, are left out with the reason; the model is written."""
    save(tmp_path / "checkpoint", transformers.BertForSequenceClassification, **fields)
    result = import_by_command(tmp_path / "checkpoint", tmp_path / "models", "model", "--pool", "first")
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert "note: the head of BertForSequenceClassification is left out" in said
    assert note in said
    manifest = read_manifest(tmp_path / "models/model/1")
    assert not manifest.predictors and manifest.text.pool == "first"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "translation"), "--task translation is none of base"),
        (("--pool", "max"), "--pool 'max' is none of mean, first, last"),
        (("--version", "1"), "versions are never overwritten"),
        ((), "has no tokenizer"),
    ],
    ids=["task", "pool", "version", "tokenizer"],
)
def test_a_refusal_leaves_nothing(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    """A refused import ends with one line and status 1, and leaves no folder in the repository."""
    save(tmp_path / "checkpoint", transformers.BertModel)
    models = tmp_path / "models"
    if "--version" in options:
        (models / "model/1").mkdir(parents=True)
    if not options:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / "checkpoint" / name).unlink()
    before = sorted(models.rglob("*"))
    result = import_by_command(tmp_path / "checkpoint", models, "model", *options)
    assert result.exit_code == 1
    assert words in result.stderr
    assert sorted(models.rglob("*")) == before


def test_an_imported_version_is_neither_verified_nor_quantized(served: Served) -> None:
    """`verify` and `quantize` say in words that an imported version is not for them."""
    folder = str(served.models / "masked-lm/1")
    verified = CliRunner().invoke(app, ["verify", folder])
    assert verified.exit_code == 1
    assert "compared with its checkpoint when it was imported (transformers" in verified.stderr
    data = str(Path(__file__).with_name("sentences.txt"))
    quantized = CliRunner().invoke(app, ["quantize", folder, "--data", data, "--version", "2"])
    assert quantized.exit_code == 1
    assert "imported BertForMaskedLM: only versions of the blocks that this project defines" in quantized.stderr
