"""int8 versions: written only within the bounds of error and speed, recorded in the manifest, and served."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from attention_client import AttentionClient
from attention_export import verify as verifying
from attention_export.blocks import Dims, MultiHead
from attention_export.cli import app
from attention_export.export import export
from attention_export.graphs import project_graph, to_onnx
from attention_export.int8 import BadData, BoundExceeded, Bounds, measuring, quantize, to_int8
from attention_export.manifest import ManifestError, read_manifest
from attention_export.model import Model
from attention_export.tasks.sentences import ARTICLE, sentences, split_pairs
from attention_export.training import reproducible
from serving import ROOT, start_server
from typer.testing import CliRunner

MODELS = ROOT / "models"
MULTI_HEAD = MODELS / "multi-head/1"
WIDTH, HEADS = 48, 4
ANY_SPEED = Bounds(speedup=0)  # tests do not depend on the machine's speed
TEXT = " ".join(ARTICLE.words)


@pytest.fixture(autouse=True)
def _timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SECONDS_TO_TIME", 0.1)


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 version of a block with random weights, without the long verification."""
    with reproducible(0), pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifying, "LENGTHS", ((2, 7),))
        made = MultiHead(Dims(query=WIDTH, heads=HEADS))
        return export(Model(made, "drawn"), tmp_path_factory.mktemp("models"), "block", 1)


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).standard_normal((6, 9, WIDTH)).astype(np.float32)
    np.save(tmp_path / "data.npy", array)
    return tmp_path / "data.npy"


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    written = [" ".join(sentence.words) for sentence in sentences(split_pairs(0)[1], 12, 1)]
    return write_rows(tmp_path / "texts.jsonl", *({"text": text} for text in [TEXT, *written]))


def test_a_block_of_vectors_is_served_close_to_float32(block: Path, vectors: Path, tmp_path: Path) -> None:
    """A real server loads the version by its hashes; errors of answers are within the manifest's."""
    models = tmp_path / "models"
    shutil.copytree(block, models / "block/1")
    written = quantize(models / "block/1", vectors, 2, bounds=ANY_SPEED)
    assert written == models / "block/2"
    assert_close_when_served(models, "block", {"query": np.load(vectors)[0]})


def test_a_text_model_is_served_close_to_float32(texts: Path, tmp_path: Path) -> None:
    """A trained int8 model reads text, and keeps its largest weights and its predictions."""
    models = tmp_path / "models"
    shutil.copytree(MULTI_HEAD, models / "multi-head/1")
    quantize(models / "multi-head/1", texts, 2, bounds=ANY_SPEED)
    exact, rounded = assert_close_when_served(models, "multi-head", {"text": TEXT})
    assert [each.label for each in rounded.predictions] == [each.label for each in exact.predictions]


def assert_close_when_served(models: Path, name: str, sequence: dict[str, Any]) -> list[Any]:
    found = read_manifest(models / name / "2").quantization
    bounds = {error.stage: error.largest for error in found.errors}
    with start_server(models) as server, AttentionClient(server.grpc) as client:
        answers = [
            client.attend(name, **sequence, version=version, outputs=["weights", "output"]) for version in (1, 2)
        ]
        asked_plainly = [client.attend(name, **sequence, version=version) for version in (1, 2)]
    for stage in ("weights", "output"):
        error = np.abs(answers[0][stage] - answers[1][stage]).max()
        assert 1e-5 < error <= bounds[stage] + 1e-6
    return asked_plainly


def test_the_manifest_has_the_measurement(block: Path, vectors: Path, tmp_path: Path) -> None:
    """The manifest has method, data, errors and both times, and no longer the parity of float32."""
    manifest = read_manifest(quantize(block, vectors, 2, repository=tmp_path, bounds=ANY_SPEED))
    found = manifest.quantization
    assert (found.bits, found.source, found.sequences, found.positions) == (8, "block/1", 6, 54)
    assert "int8" in found.method
    assert found.speedup == pytest.approx(found.float32_seconds / found.int8_seconds)
    assert {(error.layer, error.stage) for error in found.errors} == {("0", "output"), ("0", "weights")}
    for error in found.errors:
        assert 0 < error.mean < error.largest
        assert 0 < error.relative < 0.05
    assert not manifest.HasField("parity")


def test_only_the_block_is_rounded_and_not_for_cuda(texts: Path, tmp_path: Path) -> None:
    """Front, head, tokenizer, matrices and the graph for CUDA are the float32 version's files."""
    written = quantize(MULTI_HEAD, texts, 2, repository=tmp_path, bounds=ANY_SPEED)
    changed = {file.name for file in written.iterdir() if file.read_bytes() != (MULTI_HEAD / file.name).read_bytes()}
    graphs = {"project.onnx", "attend.onnx", "attend-masked.onnx", "explain.onnx", "explain-masked.onnx"}
    assert changed == {*graphs, "manifest.json"}
    for name in graphs:
        kinds = [node.op_type for node in onnx.load(written / name).graph.node]
        assert "MatMul" not in kinds
        assert kinds.count("MatMulInteger") == 2


def test_the_same_version_gives_the_same_bytes(block: Path, vectors: Path, tmp_path: Path) -> None:
    """Quantizing twice gives equal files, except for the measured times."""
    first, second = (
        quantize(block, vectors, 2, repository=tmp_path / name, bounds=ANY_SPEED) for name in ("first", "second")
    )
    for file in first.glob("*.onnx"):
        assert file.read_bytes() == (second / file.name).read_bytes(), file
    manifests = [read_manifest(folder) for folder in (first, second)]
    for manifest in manifests:
        for timed in ("float32_seconds", "int8_seconds", "speedup"):
            manifest.quantization.ClearField(timed)
    assert manifests[0] == manifests[1]


def rounded_projection(*, bias: bool) -> ort.InferenceSession:
    graph = project_graph(MultiHead(Dims(query=WIDTH, heads=HEADS), bias=bias))
    assert graph is not None
    return ort.InferenceSession(to_int8(to_onnx(graph)), providers=["CPUExecutionProvider"])


def test_no_sequence_depends_on_its_batch() -> None:
    """A sequence or position of large norm changes no other row, since each row has its own scale."""
    session = rounded_projection(bias=True)
    quiet = np.random.default_rng(0).standard_normal((1, 5, WIDTH)).astype(np.float32)
    batch = np.concatenate([quiet, 1000 * quiet])
    loud = quiet.copy()
    loud[:, -1] *= 1000
    alone, beside, before = (session.run(None, {"key": x, "value": x})[0][0] for x in (quiet, batch, loud))
    np.testing.assert_array_equal(alone, beside)
    np.testing.assert_array_equal(alone[:-1], before[:-1])


def test_a_row_of_zeros_stays_one() -> None:
    """A row of zeros gives zeros, without a division by zero."""
    session = rounded_projection(bias=False)
    nothing = np.zeros((1, 3, WIDTH), np.float32)
    for found in session.run(None, {"key": nothing, "value": nothing}):
        np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize(
    "bounds", [Bounds(weight_error=1e-6, speedup=0), Bounds(output_error=1e-6, speedup=0), Bounds(speedup=1000)]
)
def test_past_a_bound_nothing_is_written(block: Path, vectors: Path, tmp_path: Path, bounds: Bounds) -> None:
    """An exceeded bound of weights, outputs or speed writes no version; the error has every figure."""
    with pytest.raises(BoundExceeded, match=r"weights are off by .* outputs by .*% .* int8 is .* x .* ms a sequence"):
        quantize(block, vectors, 2, repository=tmp_path / "models", bounds=bounds)
    assert not (tmp_path / "models/block").exists()


def test_the_command_refuses_a_slower_version_unless_allowed(block: Path, vectors: Path, tmp_path: Path) -> None:
    """A slower version is exit status 1 with the figures; --allow-slower writes it and shows the figures."""
    command = ["quantize", str(block), "--data", str(vectors), "--version", "2", "--models", str(tmp_path / "models")]
    runner = CliRunner()
    refused = runner.invoke(app, [*command, "--min-speedup", "1000"])
    assert refused.exit_code == 1
    assert "bound 1000" in refused.stderr
    written = runner.invoke(app, [*command, "--min-speedup", "1000", "--allow-slower"])
    assert written.exit_code == 0, written.stderr
    assert "as fast as" in " ".join(written.stdout.split())
    assert (tmp_path / "models/block/2/manifest.json").exists()


def test_verify_names_the_float32_version(block: Path, vectors: Path, tmp_path: Path) -> None:
    """`verify` of an int8 version does not compare, and names the float32 version instead."""
    written = quantize(block, vectors, 2, repository=tmp_path, bounds=ANY_SPEED)
    with pytest.raises(ManifestError, match=r"is int8, made from block/1.*attention-export quantize.*`quantization`"):
        verifying.verify(written)


def test_an_invalid_source_is_refused(block: Path, vectors: Path, tmp_path: Path) -> None:
    """An int8 source, a block without matrices, an existing version and a changed file are refused."""
    written = quantize(block, vectors, 2, repository=tmp_path, bounds=ANY_SPEED)
    with pytest.raises(ManifestError, match="int8 already"):
        quantize(written, vectors, 3)
    with pytest.raises(ManifestError, match="no matrices"):
        quantize(MODELS / "dot-product/1", vectors, 2, repository=tmp_path)
    with pytest.raises(FileExistsError, match="never overwritten"):
        quantize(block, vectors, 2, repository=tmp_path)
    shutil.copytree(block, tmp_path / "changed/1")
    (tmp_path / "changed/1/attend.onnx").write_bytes(b"another")
    with pytest.raises(ManifestError, match="SHA-256"):
        quantize(tmp_path / "changed/1", vectors, 2)


def test_a_memory_comes_as_text_or_vectors(tmp_path: Path) -> None:
    """Cross-attention is measured between two sequences; fields for training are ignored."""
    number = {"text": "ein und", "memory_text": "twenty one", "label": "zwanzig"}
    drawn = {"vectors": np.ones((2, 64)).tolist(), "memory_vectors": np.eye(3, 64).tolist()}
    data = write_rows(tmp_path / "data.jsonl", number, "", drawn)
    written = quantize(MODELS / "cross-attention/1", data, 2, repository=tmp_path, bounds=Bounds(1, 1, 0))
    assert read_manifest(written).quantization.sequences == 2


BAD_ROWS = [
    ("{", r"data.jsonl:2 is no JSON"),
    ("[1]", r"data.jsonl:2 must be an object"),
    ({}, r"data.jsonl:2: give either text or vectors; it has neither"),
    ({"text": TEXT, "vectors": [[0.0] * WIDTH]}, "either text or vectors; it has text, vectors"),
    ({"text": 3}, "data.jsonl:2: text must be a string, not int"),
    ({"text": "I gave my zebra a toy"}, "data.jsonl:2: text: 'zebra' is not in the vocabulary"),
    ({"text": ""}, "data.jsonl:2: text has 0 tokens; it needs 1 to 17"),
    ({"text": "I " * 18}, "text has 18 tokens"),
    ({"text": TEXT, "memory_text": "I"}, "data.jsonl:2: the model reads no memory_text; give memory_vectors"),
    ({"vectors": [[0.0, 1.0]]}, r"data.jsonl:2: vectors has the shape \[1, 2\]; it must be \[1 or more, 48\]"),
    ({"vectors": [[0.0], [1.0, 2.0]]}, "data.jsonl:2: vectors is no list of equally long vectors"),
    ({"vectors": []}, r"data.jsonl:2: vectors has the shape \[0\]"),
    ({"vectors": [[0.0] * 47 + [float("nan")]]}, r"data.jsonl:2: vectors has .* not finite, at \[0, 47\]"),
    ({"vectors": [[1e39] * 48]}, r"data.jsonl:2: vectors has .* not finite, at \[0, 0\]"),
    ({"vectors": [[0.0] * 48], "value_vectors": [[0.0] * 48]}, "data.jsonl:2: give memory_text, or memory_vectors and"),
    (
        {"vectors": [[0.0] * 48], "memory_vectors": [[0.0] * 48], "value_vectors": [[0.0] * 48] * 2},
        "data.jsonl:2: there are 1 memory_vectors and 2 value_vectors",
    ),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=[message[-30:] for _, message in BAD_ROWS])
def test_a_row_that_the_model_cannot_take_is_named(row: Any, message: str, tmp_path: Path) -> None:
    """An invalid row is an error with the row, the field and a valid alternative."""
    data = write_rows(tmp_path / "data.jsonl", {"text": TEXT}, row)
    with pytest.raises(BadData, match=message):
        quantize(MULTI_HEAD, data, 2, repository=tmp_path / "models")


def test_widths_that_differ_need_vectors_of_their_own(tmp_path: Path) -> None:
    """Keys and values have to be given if widths are unequal."""
    with reproducible(0), pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifying, "LENGTHS", ((2, 7),))
        made = MultiHead(Dims(query=8, key=6, value=4, heads=2))
        folder = export(Model(made, "drawn"), tmp_path, "unequal", 1)
    query, key, value = ([[0.1] * width] * 3 for width in (8, 6, 4))
    data = tmp_path / "data.jsonl"
    for row, message in [
        ({"vectors": query}, "keys are not as wide as queries; give memory_vectors"),
        ({"vectors": query, "memory_vectors": key}, "values are not as wide as keys"),
    ]:
        with pytest.raises(BadData, match=message):
            quantize(folder, write_rows(data, row), 2)
    whole = {"vectors": query, "memory_vectors": key, "value_vectors": value}
    assert quantize(folder, write_rows(data, whole), 2, bounds=ANY_SPEED).is_dir()


def test_arrays_are_checked_too(block: Path, tmp_path: Path) -> None:
    """Wrong rank or width, objects, queries alone for cross-attention and an empty array are errors."""
    data = tmp_path / "data.npy"
    for array, message in [
        (np.zeros(3), r"it must be \[N, T, D\] or \[T, D\]"),
        (np.zeros((2, 3, 5)), r"data.npy\[0\]: vectors has the shape \[3, 5\]"),
        (np.zeros((0, 3, WIDTH)), "has no sequences"),
    ]:
        np.save(data, array)
        with pytest.raises(BadData, match=message):
            quantize(block, data, 2, repository=tmp_path)
    data.write_text("no array")
    with pytest.raises(BadData, match=r"is no \.npy of numbers"):
        quantize(block, data, 2, repository=tmp_path)
    np.save(data, np.zeros((3, 64)))
    with pytest.raises(BadData, match="cross_attention attends to another sequence"):
        quantize(MODELS / "cross-attention/1", data, 2, repository=tmp_path)
