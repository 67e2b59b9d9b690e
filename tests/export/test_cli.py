"""The command `attention-export`: what cannot be done is refused at once, in one line."""

import re
from pathlib import Path

import pytest
import torch
from attention_export import cli
from attention_export.graphs import Graph, to_onnx
from torch import Tensor, nn
from typer.testing import CliRunner


class Branching(nn.Module):
    """Does one thing or another, as the numbers are: ONNX has no form for it."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 3 else -x


class Singular(nn.Module):
    """Uses an operator that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svd(x).U


@pytest.mark.parametrize("command", [["train", "numbers", "--models"], ["embedded"]], ids=" ".join)
def test_a_version_that_exists_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Not after it: nobody waits for a model that cannot be written."""
    (tmp_path / "cross-attention/1").mkdir(parents=True)
    for name in ("_train", "export"):
        monkeypatch.setattr(cli, name, lambda *_, **__: pytest.fail("it began"))
    result = CliRunner().invoke(cli.app, [*command, str(tmp_path)])
    assert result.exit_code == 1
    assert "cross-attention/1 exists; versions are never overwritten" in result.stderr


@pytest.mark.parametrize(
    ("module", "said"), [(Branching(), "data-dependent"), (Singular(), "_linalg_svd")], ids=["traced", "converted"]
)
def test_what_has_no_form_in_onnx_is_told_in_a_line(
    module: nn.Module, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file, and what the exporter stumbled over; not its page of advice."""
    graph = Graph("front.onnx", module, {"x": ("B", "T")}, {"query": ("B", "T")})
    with pytest.raises(SystemExit), cli.reported():
        to_onnx(graph)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"attention-export: front\.onnx cannot be exported to ONNX: .*{said}.*", line)


def test_an_error_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """What stands in square brackets is no markup."""
    with pytest.raises(SystemExit), cli.reported():
        raise ValueError("[unk] has the shape [s, 3]")
    assert capsys.readouterr().err == "attention-export: [unk] has the shape [s, 3]\n"
