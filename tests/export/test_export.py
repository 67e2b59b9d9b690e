"""An export is exact, reproducible and atomic."""

import json
import re
from pathlib import Path

import onnx
import pytest
import torch
from attention_client import AttentionClient
from attention_export import export as export_module
from attention_export import verify as verify_module
from attention_export.blocks import Dims, MultiHead, SelfAttention
from attention_export.export import export
from attention_export.graphs import Graph, project_graph
from attention_export.manifest import ManifestError, add_file, read_manifest, write_manifest
from attention_export.model import Model
from attention_export.verify import ATOL, Mismatch, verify
from attention_proto.folder import MANIFEST
from serving import ROOT, start_server

EMBEDDED = sorted(path.parent for path in (ROOT / "models").glob("*/*/manifest.json"))


def block() -> MultiHead:
    torch.manual_seed(1)
    return MultiHead(Dims(query=8, heads=2))


LENGTHS = ((2, 7), (7, 2))  # of these exports; those of the embedded models are verified at all lengths


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_module, "LENGTHS", LENGTHS)
        return export(Model(block(), "a block"), tmp_path_factory.mktemp("repository"), "block", 1)


def test_the_same_block_gives_the_same_bytes(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two exports of one block have equal files, the manifest included."""
    monkeypatch.setattr(verify_module, "LENGTHS", LENGTHS)
    again = export(Model(block(), "a block"), tmp_path, "other", 3)
    names = sorted(path.name for path in exported.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (exported / name).read_bytes() == (again / name).read_bytes(), name


def test_graphs_have_no_paths_or_traces(exported: Path) -> None:
    """Graphs contain no path, stack trace or metadata of the exporter."""
    for path in exported.glob("*.onnx"):
        content = path.read_bytes()
        assert not re.search(rb"/[a-z]+/[A-Za-z_/]+\.py|site-packages|Traceback", content), path.name
        model = onnx.load(path)
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_dimensions_vary_by_name(exported: Path) -> None:
    """Batch and lengths are named free dimensions in every graph; widths are fixed."""
    graph = onnx.load(exported / "explain-masked.onnx").graph
    shapes = {
        info.name: [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*graph.input, *graph.output)
    }
    assert shapes["query"] == ["B", "T", 8]
    assert shapes["mask"] == ["mask_B", "mask_H", "T", "S"]
    assert shapes["weights"] == ["B", 2, "T", "S"]


@pytest.mark.usefixtures("few_graphs")
def test_a_mismatch_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph with slightly wrong numbers is refused, and no file remains."""
    monkeypatch.setattr(export_module, "project_graph", _project_of_another_block)
    with pytest.raises(Mismatch, match=r"project\.onnx"):
        export(Model(block(), "a block"), tmp_path, "block", 1)
    assert not (tmp_path / "block").exists()


def _project_of_another_block(block: MultiHead) -> Graph | None:
    other = MultiHead(block.dims)
    other.load_state_dict({name: x + (1e-3 if name == "b_V" else 0) for name, x in block.state_dict().items()})
    return project_graph(other)


@pytest.mark.usefixtures("few_graphs")
def test_heads_wider_than_the_query_divided_are_served(tmp_path: Path) -> None:
    """A query width that is no multiple of the heads is valid if the heads have their own width."""
    dims = Dims(query=10, heads=4, head=8)
    export(Model(SelfAttention(dims), "wide heads"), tmp_path, "wide", 1)
    with start_server(tmp_path) as server, AttentionClient(server.grpc) as client:
        result = client.attend("wide", query=torch.ones(3, 10).numpy(), outputs=["output", "heads"])
    assert result.output.shape == (3, 32)
    assert result["heads"].shape == (4, 3, 8)


def test_a_version_is_never_overwritten(exported: Path) -> None:
    """A second export to the same version is refused."""
    with pytest.raises(FileExistsError, match="never overwritten"):
        export(Model(block(), "a block"), exported.parents[1], "block", 1)


@pytest.mark.parametrize(("name", "version"), [("../out", 1), ("my model", 1), ("", 1), ("x", 0), ("x", 10**9)])
def test_an_invalid_name_or_version_is_not_written(name: str, version: int, tmp_path: Path) -> None:
    """An invalid name (with a path or space) or version is refused before any file is written."""
    with pytest.raises(ManifestError, match=r"is no (name|version)"):
        export(Model(block(), "a block"), tmp_path / "models", name, version)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", EMBEDDED, ids=lambda folder: folder.parent.name)
def test_an_embedded_model_verifies(folder: Path) -> None:
    """Each shipped version matches PyTorch, with the errors recorded in its manifest."""
    recorded, parity = read_manifest(folder).parity, verify(folder)
    assert parity.cases == recorded.cases > 400
    for stage in ("output", "weights"):
        assert parity.max_abs_error[stage] == pytest.approx(recorded.max_abs_error[stage], abs=ATOL)


def test_the_embedded_models_are_small() -> None:
    """The embedded models together have a few megabytes."""
    assert sum(path.stat().st_size for path in (ROOT / "models").rglob("*") if path.is_file()) < 4e6


def test_verify_finds_a_changed_matrix(exported: Path, tmp_path: Path) -> None:
    """A changed file is found by its hash, and with a changed manifest by its numbers."""
    folder = tmp_path / "1"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model = onnx.load(folder / "attend.onnx")
    matrix = next(each for each in model.graph.initializer if each.name.endswith("M_O"))
    numbers = onnx.numpy_helper.to_array(matrix) * 1.01
    matrix.CopyFrom(onnx.numpy_helper.from_array(numbers, matrix.name))
    onnx.save(model, folder / "attend.onnx")
    with pytest.raises(ManifestError, match=r"attend\.onnx.*SHA-256"):
        verify(folder)
    manifest = read_manifest(folder)
    manifest.layers[0].attend[0].file.CopyFrom(add_file(folder, "attend.onnx", model.SerializeToString()))
    write_manifest(folder, manifest)
    with pytest.raises(Mismatch, match=r"attend\.onnx.*output"):
        verify(folder)


def test_no_manifest_no_verification(exported: Path, tmp_path: Path) -> None:
    """A folder without a manifest, or with one of another format, is refused with the file's name."""
    with pytest.raises(ManifestError, match="cannot be read"):
        verify(tmp_path)
    content = json.loads((exported / MANIFEST).read_text()) | {"format": 99}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ManifestError, match="format 99"):
        verify(tmp_path)


def test_every_kind_of_mask_and_length_is_tried() -> None:
    """Verification covers lengths from 1 to 512, equal and unequal, and each kind of mask."""
    lengths = {length for pair in verify_module.LENGTHS for length in pair}
    assert lengths == {1, 2, 7, 64, 512}
    assert any(queries != keys for queries, keys in verify_module.LENGTHS)
    kinds = [kind for kind, _ in verify_module.masks(verify_module.np.random.default_rng(0), 2, 3, 4)]
    assert len(kinds) == len(set(kinds)) == 9
