"""Parameters are in memory while an operation takes them, and graphs that are too large are never written."""

import weakref
from pathlib import Path

import pytest
import torch
from attention_export.importing import ImportFailure
from attention_export.importing.transformer.values import ValuesOnUse, without_values
from attention_export.importing.transformer.version import VersionFolder
from export.tiny_checkpoints import tiny_model
from torch import Tensor

TOKENS = torch.arange(3, 17).unsqueeze(0)


def test_a_value_is_dropped_behind_its_operation() -> None:
    """A model of any number of layers gives the same bits, and no more than two values are in memory at a time."""
    model = tiny_model("bert", task="ForMaskedLM", num_hidden_layers=5).double()
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def value(name: str) -> Tensor:
        nonlocal most
        read = state[name].clone()
        alive.append(weakref.ref(read))
        most = max(most, sum(each() is not None for each in alive))
        return read

    state = model.state_dict()
    empty = without_values(model, torch.float64)
    with torch.no_grad(), ValuesOnUse(empty, value):
        found = empty(input_ids=TOKENS).logits
    with torch.no_grad():
        assert torch.equal(found, model(input_ids=TOKENS).logits)
    assert most <= 2 and len(alive) > 5 * 10


def test_a_parameter_that_is_read_beside_the_operations_is_found() -> None:
    """Without its values a model computes NaN, which no comparison lets pass."""
    empty = without_values(tiny_model("bert", task="ForMaskedLM"), torch.float32)
    with torch.no_grad():
        assert empty(input_ids=TOKENS).logits.isnan().all()


def test_a_graph_beyond_the_size_of_a_file_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph of more bytes than a protobuf message can have is refused by name, and no file is left of it."""
    monkeypatch.setattr("attention_export.importing.transformer.version.MOST_BYTES", 100)
    files = VersionFolder(tmp_path)
    files.add("front", bytes(100))
    with pytest.raises(ImportFailure, match=r"^segment-3 has .* GiB; a graph with its matrices may have 2 GiB"):
        files.add("segment-3", bytes(101))
    assert [path.name for path in tmp_path.iterdir()] == ["front.onnx"]
