"""A checkpoint folder is read as `transformers` reads it, or refused in words."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from attention_export.importing import ImportFailure
from attention_export.importing.transformer.pooling import read_pooling
from attention_export.importing.transformer.source import load_source
from export.tiny_checkpoints import save_model
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def assert_equal_values(folder: Path, expected: transformers.PreTrainedModel) -> None:
    source = load_source(folder)
    for name, value in expected.state_dict().items():
        assert torch.equal(source.value(name), value), name


def test_values_are_read_by_the_names_of_the_model(tmp_path: Path) -> None:
    """Each parameter is read from safetensors, one file or shards, or from a PyTorch file."""
    model = save_model(tmp_path / "one", "bert")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    for folder in ("one", "shards", "pickled"):
        assert_equal_values(tmp_path / folder, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_values_of_other_precisions_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    """Values of half or double precision are given as float32."""
    model = save_model(tmp_path, "bert").to(dtype)
    model.save_pretrained(tmp_path)
    value = load_source(tmp_path).value("pooler.dense.weight")
    assert value.dtype == torch.float32
    assert torch.equal(value, model.pooler.dense.weight.detach().float())


def test_old_names_and_prefixes_are_those_of_transformers(tmp_path: Path) -> None:
    """`bert.` before names, and gamma and beta in place of weight and bias, are understood."""
    model = save_model(tmp_path, "bert")

    def old(tensors: Tensors) -> Tensors:
        renamed = {}
        for name, tensor in tensors.items():
            scale = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)
            renamed["bert." + re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", scale)] = tensor
        return renamed

    change_tensors(tmp_path, old)
    assert_equal_values(tmp_path, model)


def test_a_converted_value_is_read(tmp_path: Path) -> None:
    """A matrix that a file holds packed with two more is read alone."""
    model = save_model(tmp_path, "nomic_bert")
    assert any("Wqkv" in name for name in load_file(tmp_path / "model.safetensors"))
    assert_equal_values(tmp_path, model)


def test_the_task_is_that_of_the_class_in_the_config(tmp_path: Path) -> None:
    """The task is read from `architectures`; a head that is left out is named."""
    save_model(tmp_path, "bert", task="ForMaskedLM")
    assert load_source(tmp_path).task == "masked-lm"
    (note,) = load_source(tmp_path, "base").notes
    assert "cls.predictions" in note


def test_a_missing_value_is_refused_where_it_is_read(tmp_path: Path) -> None:
    """A head that the checkpoint lacks is never drawn at random."""
    save_model(tmp_path, "bert", task="ForMaskedLM")
    source = load_source(tmp_path, "sequence-classification")
    with pytest.raises(ImportFailure, match=r"no classifier\.weight.*would be random"):
        source.value("classifier.weight")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "code of its own": ({"auto_map": {"AutoModel": "modeling.Bert"}}, "`auto_map`.*never run"),
    "a type that is not known": ({"model_type": "bertha"}, "not a config that transformers"),
    "quantized": ({"quantization_config": {"quant_method": "fp8"}}, "`quantization_config`"),
    "fewer layers than tensors": ({"num_hidden_layers": 1}, r"encoder\.layer\.1\..* is in the checkpoint and not in"),
    "another width": ({"intermediate_size": 96}, "does not fit BertModel"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_field(case: str, tmp_path: Path) -> None:
    """A config that is not imported is refused, with the field that is in the way."""
    fields, words = REFUSED[case]
    save_model(tmp_path, "bert")
    change_config(tmp_path, **fields)
    with pytest.raises(ImportFailure, match=words):
        load_source(tmp_path)


def test_a_tensor_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    """A tensor left over inside a layer means another computation; one outside the model is a note."""
    save_model(tmp_path, "bert")
    change_tensors(tmp_path, lambda tensors: tensors | {"encoder.layer.0.attention.self.slope": torch.ones(4)})
    with pytest.raises(ImportFailure, match=r"slope is in the checkpoint and not in BertModel"):
        load_source(tmp_path)


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    """Models of pixels are refused with what they take."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(
        tmp_path / "vit"
    )
    with pytest.raises(ImportFailure, match="`pixel_values`"):
        load_source(tmp_path / "vit")


def test_unreadable_folders_are_refused(tmp_path: Path) -> None:
    """A folder without config or weights, and a file that holds more than tensors, are refused."""
    with pytest.raises(ImportFailure, match=r"config\.json cannot be read"):
        load_source(tmp_path)
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ImportFailure, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_source(tmp_path)
    torch.save({"weight": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ImportFailure, match=r"cannot be read as tensors alone: it holds \S*Path, and only tensors"):
        load_source(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"garbage")
    with pytest.raises(ImportFailure, match=r"it is no file of PyTorch, or holds more than tensors$"):
        load_source(tmp_path)


def test_refusals_are_short(tmp_path: Path) -> None:
    """A config that nests without end, or is of an unknown type, is refused in one line."""
    for content in ("[" * 100_000, '{"model_type": "unheard-of"}', '{"model_type": "bert", "hidden_size": "x"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ImportFailure) as refused:
            load_source(tmp_path)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < len(str(tmp_path)) + 450


@pytest.mark.parametrize("content", ["[1]", "[" * 100_000, '[{"type": "x.Pooling", "path": "own"}]'])
def test_modules_that_say_no_pooling(tmp_path: Path, content: str) -> None:
    """A modules.json of another form is refused in words; a pooling that is no name is left out."""
    (tmp_path / "modules.json").write_text(content)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text('{"pooling_mode": 5}')
    if "own" in content:
        assert read_pooling(tmp_path).pool == ""
    else:
        with pytest.raises(ImportFailure, match=r"modules\.json"):
            read_pooling(tmp_path)
