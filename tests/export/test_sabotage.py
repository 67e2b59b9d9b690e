"""A version that differs from its source anywhere is refused, and the first site that differs is named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attention_export.importing.transformer.comparison import WHOLE, Mismatch, compare
from attention_export.importing.transformer.sites import SiteShape
from attention_export.importing.transformer.source import load_source
from attention_export.manifest import add_file, read_manifest, write_manifest
from attention_proto.attention.v1.attention_pb2 import Layer, Manifest
from export.checkpoints import import_by_command
from export.tiny_checkpoints import tiny_model, write_checkpoint
from export.tiny_versions import TinyVersions
from transformers import PreTrainedModel

KINDS = ("bert", "roberta", "modernbert", "clip_text_model")


class Honest:
    """A checkpoint of each kind and the version imported of it."""

    def __init__(self, made: TinyVersions) -> None:
        self.checkpoint = made.checkpoint
        self.versions = {kind: made.version(kind) for kind in KINDS}

    def sabotaged_folder(self, kind: str, change: Callable[[Manifest, Path], object], target: Path) -> Path:
        """Copy the version and change its manifest; return the copy."""
        folder = shutil.copytree(self.versions[kind], target / "1")
        manifest = read_manifest(folder)
        change(manifest, folder)
        write_manifest(folder, manifest)
        return folder

    def refusal(self, kind: str, version: Path) -> Mismatch:
        """Compare a version with the source of a kind; return the refusal."""
        return refusal(self.checkpoint(kind), version)


def refusal(checkpoint: Path, version: Path) -> Mismatch:
    """Compare a version with a source, whole and with a parameter in memory at a time; return the refusal."""
    refusals = []
    for whole in (WHOLE, 0):
        with pytest.raises(Mismatch) as refused:
            compare(load_source(checkpoint), version, lambda _: None, whole=whole)
        refusals.append(refused.value)
    assert (refusals[0].site, refusals[0].stage) == (refusals[1].site, refusals[1].stage)
    return refusals[0]


@pytest.fixture(scope="module")
def honest(tiny_versions: TinyVersions) -> Honest:
    return Honest(tiny_versions)


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_version_passes(kind: str, honest: Honest) -> None:
    """A version is equal to its source in every case, whole or a parameter at a time, and the manifest records it."""
    parity = compare(load_source(honest.checkpoint(kind)), honest.versions[kind], lambda _: None)
    assert parity.cases >= 6
    assert {"embeddings", "weights", "hidden"} <= set(parity.max_abs_error)
    assert parity.reference.startswith("transformers ") and "eager, float64" in parity.reference
    assert read_manifest(honest.versions[kind]).parity.cases == parity.cases
    said: list[str] = []
    large = compare(load_source(honest.checkpoint(kind)), honest.versions[kind], said.append, whole=0)
    assert parity.cases - 2 <= large.cases <= parity.cases and large.reference == parity.reference
    assert set(large.max_abs_error) == set(parity.max_abs_error)
    assert any("one is in memory at a time" in line for line in said)


def test_positions_that_begin_one_later_are_refused(honest: Honest, tmp_path: Path) -> None:
    """The embeddings differ, before the first site."""

    def later(manifest: Manifest, _: Path) -> None:
        manifest.text.position_base += 1

    for kind in ("bert", "roberta"):
        version = honest.sabotaged_folder(kind, later, tmp_path / kind)
        refusal = honest.refusal(kind, version)
        assert (refusal.site, refusal.stage) == ("0", "embeddings")


@pytest.mark.parametrize("step", [1, -1])
def test_a_window_that_is_off_by_one_is_refused(step: int, honest: Honest, tmp_path: Path) -> None:
    """The weights of the first site with a window differ; the sites before it do not."""
    first = next(layer.name for layer in read_manifest(honest.versions["modernbert"]).layers if layer.window)
    assert first != "0"

    def moved(manifest: Manifest, _: Path) -> None:
        for layer in manifest.layers:
            layer.window += step * bool(layer.window)

    refusal = honest.refusal("modernbert", honest.sabotaged_folder("modernbert", moved, tmp_path))
    assert (refusal.site, refusal.stage) == (first, "weights")


def test_is_causal_that_is_ignored_is_refused(honest: Honest, tmp_path: Path) -> None:
    """A model that hides the future, served without its mask, differs at its first site."""

    def uncover(manifest: Manifest, _: Path) -> None:
        assert all(layer.causal for layer in manifest.layers)
        for layer in manifest.layers:
            layer.causal = False

    refusal = honest.refusal("clip_text_model", honest.sabotaged_folder("clip_text_model", uncover, tmp_path))
    assert (refusal.site, refusal.stage) == ("0", "weights")


def test_a_scale_that_is_off_by_a_hundredth_is_refused(honest: Honest, tmp_path: Path) -> None:
    """Graphs with another scale differ at their site; graphs that differ from the manifest's scale are refused too."""

    def rescale(manifest: Manifest, folder: Path) -> None:
        layer = manifest.layers[1]
        layer.scale *= 1.01
        graphs = list(_shape(layer).graphs())
        del layer.attend[:]
        layer.attend.extend(each.entry(add_file(folder, f"off-{each.file}", each.content)) for each in graphs)

    refusal = honest.refusal("bert", honest.sabotaged_folder("bert", rescale, tmp_path / "graphs"))
    assert (refusal.site, refusal.stage) == ("1", "weights")

    def say_otherwise(manifest: Manifest, _: Path) -> None:
        manifest.layers[1].scale *= 1.01

    refusal = honest.refusal("bert", honest.sabotaged_folder("bert", say_otherwise, tmp_path / "manifest"))
    assert refusal.site == "1" and refusal.stage in {"heads", "weights"}


def _shape(layer: Layer) -> SiteShape:
    sizes = (layer.heads, layer.key_value_heads, layer.head_dim, layer.value_head_dim)
    return SiteShape(*sizes, layer.scale, layer.softcap)


def drop_token_type(model: PreTrainedModel) -> None:
    types = model.embeddings.token_type_embeddings.weight
    types[1] = types[0]


def drop_query_bias(model: PreTrainedModel) -> None:
    model.encoder.layer[1].attention.self.query.bias.zero_()


def drop_output_bias(model: PreTrainedModel) -> None:
    model.encoder.layer[0].attention.output.dense.bias.zero_()


def drop_dense_bias(model: PreTrainedModel) -> None:
    model.encoder.layer[0].output.dense.bias.zero_()


def swap_two_heads(model: PreTrainedModel) -> None:
    """Swap heads 1 and 2 of layer 1: every hidden state stays as it was."""
    layer = model.encoder.layer[1].attention
    order = torch.arange(32).view(4, 8)[[0, 2, 1, 3]].flatten()
    for linear in (layer.self.query, layer.self.key, layer.self.value):
        linear.weight.copy_(linear.weight[order])
        linear.bias.copy_(linear.bias[order])
    layer.output.dense.weight.copy_(layer.output.dense.weight[:, order])


def another_gelu(model: PreTrainedModel) -> None:
    model.config.hidden_act = "gelu_new"


@pytest.mark.parametrize(
    ("change", "site", "stages"),
    [
        (another_gelu, "0", {"hidden"}),
        (drop_token_type, "0", {"embeddings"}),
        (drop_query_bias, "1", {"weights"}),
        (drop_output_bias, "0", {"output", "hidden"}),
        (drop_dense_bias, "0", {"hidden"}),
        (swap_two_heads, "1", {"weights"}),
    ],
)
def test_a_changed_model_is_refused(
    change: Callable[[PreTrainedModel], None], site: str, stages: set[str], honest: Honest, tmp_path: Path
) -> None:
    """A version differs from another model than its source at the first stage that the change reaches."""
    model = tiny_model("bert")
    with torch.no_grad():
        change(model)
    refused = refusal(write_checkpoint(tmp_path, model), honest.versions["bert"])
    assert refused.site == site and refused.stage in stages
    assert f"site {site} (" in str(refused) and refused.stage in str(refused)


def test_a_refused_import_writes_nothing(honest: Honest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the comparison finds a difference, the command says it, and no folder is left, the repository's neither."""
    monkeypatch.setattr(SiteShape, "of", classmethod(_off_by_a_hundredth))
    result = import_by_command(honest.checkpoint("bert"), tmp_path / "models", "bert")
    assert result.exit_code == 1
    assert "site 0 " in result.stderr
    assert not (tmp_path / "models").exists()


def _off_by_a_hundredth(cls: type[SiteShape], site: object) -> SiteShape:
    return cls(site.heads, site.key_value_heads, site.head_dim, site.value_head_dim, site.scale * 1.01, site.softcap)
