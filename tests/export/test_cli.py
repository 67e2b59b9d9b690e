"""The command `attention-export`: an impossible request fails at once, in one line."""

import json
import re
import subprocess
import sys
from inspect import Parameter, signature
from pathlib import Path

import pytest
import torch
from attention_export import cli
from attention_export.blocks import Dims, SelfAttention
from attention_export.console import exit_on_user_error
from attention_export.graphs import Graph, to_onnx
from attention_export.manifest import read_block, read_manifest
from attention_export.model import Model
from click.testing import Result
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner


class Branching(nn.Module):
    """A module with a branch on its data, which cannot be exported to ONNX."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 3 else -x


class Singular(nn.Module):
    """A module with an operator that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svd(x).U


@pytest.mark.parametrize("command", [["train", "numbers", "--models"], ["embedded"]], ids=" ".join)
def test_a_version_that_exists_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """An existing version is an error before the training, not after it."""
    (tmp_path / "cross-attention/1").mkdir(parents=True)
    for name in ("_train", "export"):
        monkeypatch.setattr(cli, name, lambda *_, **__: pytest.fail("it began"))
    result = CliRunner().invoke(cli.app, [*command, str(tmp_path)])
    assert result.exit_code == 1
    assert "cross-attention/1 exists; versions are never overwritten" in result.stderr


@pytest.mark.parametrize(
    ("module", "said"), [(Branching(), "data-dependent"), (Singular(), "_linalg_svd")], ids=["traced", "converted"]
)
def test_an_export_failure_is_one_line(module: nn.Module, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An export failure prints the file and the cause in one line, without the exporter's page of advice."""
    graph = Graph("front.onnx", module, {"x": ("B", "T")}, {"query": ("B", "T")})
    with pytest.raises(SystemExit), exit_on_user_error():
        to_onnx(graph)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"attention-export: front\.onnx cannot be exported to ONNX: .*{said}.*", line)


def test_an_error_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets in an error message are printed, not read as markup."""
    with pytest.raises(SystemExit), exit_on_user_error():
        raise ValueError("[unk] has the shape [s, 3]")
    assert capsys.readouterr().err == "attention-export: [unk] has the shape [s, 3]\n"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(each) for each in arguments])


@pytest.mark.usefixtures("few_lengths")
def test_a_block_of_given_matrices_is_exported_and_verified(tmp_path: Path) -> None:
    """`block` exports the given matrices as the given version and license; `verify` prints the errors."""
    torch.manual_seed(0)
    block = SelfAttention(Dims(query=6))
    save_file(block.state_dict(), tmp_path / "matrices.safetensors")
    options = ("--width", 6, "--weights", tmp_path / "matrices.safetensors", "--license", "MIT", "--models", tmp_path)
    made = invoke("block", "self_attention", "--name", "mine", "--version", 3, "--json", *options)
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout) == {"folder": str(tmp_path / "mine/3"), "model": "mine", "version": 3}
    manifest = read_manifest(tmp_path / "mine/3")
    assert manifest.license == "MIT"
    assert torch.equal(read_block(tmp_path / "mine/3", manifest, manifest.layers[0]).M_V, block.M_V)
    verified = invoke("verify", tmp_path / "mine/3")
    assert verified.exit_code == 0
    assert re.search(r"weights +│ +\d\.\d+e-0\d", verified.stdout)
    document = json.loads(invoke("verify", tmp_path / "mine/3", "--json").stdout)
    assert document["cases"] == manifest.parity.cases
    assert 0 < document["max_abs_error"]["weights"] < document["atol"]


def test_matrices_of_linear_modules_are_turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--layout out-in` takes the weights of `nn.Linear`, square ones too; without `--weights` it is an error."""
    torch.manual_seed(0)
    linear = {name: nn.Linear(4, 4) for name in "QKV"}
    matrices = {f"M_{name}": module.weight for name, module in linear.items()}
    save_file(matrices | {f"b_{name}": module.bias for name, module in linear.items()}, tmp_path / "x.safetensors")
    exported: list[Model] = []
    monkeypatch.setattr(cli, "export", lambda model, *_, **__: exported.append(model) or tmp_path / "x/1")
    options = ("block", "self_attention", "--name", "x", "--width", 4, "--layout", "out-in")
    made = invoke(*options, "--weights", tmp_path / "x.safetensors")
    assert made.exit_code == 0, made.stderr
    x = torch.randn(1, 3, 4)
    torch.testing.assert_close(exported[0].block.queries(x), linear["Q"](x))
    refused = invoke(*options)
    assert refused.exit_code == 1
    assert "--layout: only with --weights" in refused.stderr


@pytest.mark.usefixtures("few_graphs")
def test_an_imported_multihead_attention_without_bias_is_written(tmp_path: Path) -> None:
    """`import multihead` accepts kdim, vdim and no bias, and exports a verified version."""
    theirs = nn.MultiheadAttention(8, 2, bias=False, kdim=5, vdim=3)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    options = ("--name", "theirs", "--heads", 2, "--cross", "--models", tmp_path)
    made = invoke("import", "multihead", tmp_path / "theirs.safetensors", *options)
    assert made.exit_code == 0, made.stderr
    layer = read_manifest(tmp_path / "theirs/1").layers[0]
    assert (layer.query_dim, layer.key_dim, layer.value_dim) == (8, 5, 3)


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (b"no tensors", ("--width", 6), "cannot be read as tensors"),
        (None, ("--width", 8), "size mismatch"),
        (None, ("--width", 6, "--heads", 4), "does not divide"),
    ],
    ids=["no-tensors", "other-width", "heads"],
)
def test_matrices_that_do_not_fit_are_refused_in_a_line(
    tmp_path: Path, content: bytes | None, options: tuple[object, ...], said: str
) -> None:
    """An unreadable file of matrices and matrices of wrong widths are errors of one line, without a traceback."""
    path = tmp_path / "matrices.safetensors"
    save_file(SelfAttention(Dims(query=6)).state_dict(), path) if content is None else path.write_bytes(content)
    refused = invoke("block", "self_attention", "--name", "x", "--weights", path, "--models", tmp_path, *options)
    assert refused.exit_code == 1
    assert said in " ".join(refused.stderr.split())
    assert refused.exception is None or isinstance(refused.exception, SystemExit)


def test_no_default_is_the_tracked_repository() -> None:
    """Each command that writes a version writes to `served-models`, or to the folder that is named."""
    commands = [*cli.app.registered_commands, *cli.imports.registered_commands]
    named = {each.name or each.callback.__name__: signature(each.callback).parameters for each in commands}
    defaults = {name: given["models"].default for name, given in named.items() if "models" in given}
    assert defaults.pop("embedded") is Parameter.empty
    assert set(defaults) == {"block", "train", "quantize", "multihead", "transformer"}
    assert set(defaults.values()) == {Path("served-models")}


def test_the_command_tells_its_version() -> None:
    """`--version` alone tells the program's version, beside that of a subcommand, which is the version to write."""
    command = Path(sys.executable).with_name("attention-export")
    told = subprocess.run([command, "--version"], check=True, capture_output=True, text=True)
    assert told.stdout.startswith("attention-export ")
