"""Kinds of models that are not imported are refused, each in words that say why."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from attention_export.importing import ImportFailure
from attention_export.importing.transformer import import_transformer
from attention_export.importing.transformer.cut import cut_source
from attention_export.importing.transformer.source import load_source
from attention_export.importing.transformer.trace import _refusal
from attention_export.verify import Mismatch
from export.tiny_checkpoints import (
    BESIDE,
    REFUSED,
    ROTARY,
    WORDS,
    random_model,
    tiny_model,
    word_tokenizer,
    write_checkpoint,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def refusal(checkpoint: Path, models: Path, **options: Any) -> str:
    """Import a checkpoint; return the words of the refusal. Nothing may be written."""
    with pytest.raises((ImportFailure, Mismatch)) as refused:
        import_transformer(checkpoint, models, "refused", 1, **options)
    assert not list(models.rglob("manifest.json"))
    return str(refused.value)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [(kind, fields, words) for kind, (fields, words) in REFUSED.items()],
)
def test_a_kind_that_is_not_imported_is_refused(kind: str, fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    """The attention, the input or the layer in the way is named."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", random_model(kind, **fields))
    assert words in refusal(checkpoint, tmp_path / "models")


def test_a_mixture_of_experts_that_cannot_be_traced_is_named() -> None:
    """The refusal names the experts, whose choice depends on the numbers."""
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    error = _refusal(random_model("mixtral", **ROTARY, **experts), RuntimeError("data-dependent"))
    assert re.search(
        r"MixtralModel, a mixture of experts \(Mixtral\w+\), cannot be traced .* data-dependent", str(error)
    )
    assert "experts" not in str(_refusal(tiny_model("bert"), RuntimeError("data-dependent")))


def change_config(checkpoint: Path, **fields: Any) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | fields))


def bring_code(checkpoint: Path) -> None:
    change_config(checkpoint, auto_map={"AutoModel": "modeling_mine.MyModel"})
    (checkpoint / "modeling_mine.py").write_text("raise SystemExit('code of a checkpoint was run')")


def quantize(checkpoint: Path) -> None:
    change_config(checkpoint, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})


def lose_a_tensor(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["encoder.layer.1.attention.self.key.weight"]
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})


def lose_the_file(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()


def widen_the_config(checkpoint: Path) -> None:
    change_config(checkpoint, intermediate_size=52)


def name_no_model(checkpoint: Path) -> None:
    change_config(checkpoint, model_type="never-heard-of")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (bring_code, "auto_map"),
        (quantize, "quantization_config"),
        (lose_a_tensor, "encoder.layer.1.attention.self.key.weight"),
        (lose_the_file, "model.safetensors"),
        (widen_the_config, "does not fit"),
        (name_no_model, "never-heard-of"),
    ],
)
def test_a_spoiled_checkpoint_is_refused(spoil: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    """The field, tensor or file in the way is named; code that a checkpoint brings is not run."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_model("bert"))
    spoil(checkpoint)
    assert words in refusal(checkpoint, tmp_path / "models")


def test_fewer_layers_than_the_file_has_are_refused(tmp_path: Path) -> None:
    """Tensors of the base model that its config has no place for are named."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_model("bert"))
    change_config(checkpoint, num_hidden_layers=1)
    assert "encoder.layer.1" in refusal(checkpoint, tmp_path / "models")


# An architecture of the test's own, as a library beside transformers may register one --------------------------------


class OwnConfig(PretrainedConfig):
    """The config of an architecture with two layers.

    Args:
        beside: the layers that compute attention beside the interface.
    """

    model_type = "own-encoder"

    def __init__(self, beside: tuple[int, ...] = (), told: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size, self.num_attention_heads = WORDS, 32, 4
        self.max_position_embeddings = 40
        self.beside, self.told = list(beside), told


class OwnAttention(nn.Module):
    def __init__(self, config: OwnConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.is_causal = config, layer, False
        self.packed, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        q, k, v = (each.view(*x.shape[:2], 4, 8).transpose(1, 2) for each in self.packed(x).chunk(3, -1))
        interface: Any = written_out
        if self.layer not in self.config.beside:
            interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, written_out)
        heads, weights = interface(self, q, k, v, None, scaling=8**-0.5)
        return self.out(heads.reshape(x.shape)), weights


def written_out(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    weights = torch.softmax(q @ k.transpose(-1, -2) * scaling, -1)
    return (weights @ v).transpose(1, 2), weights


class OwnModel(PreTrainedModel):
    """An encoder that calls transformers' attention interface in the layers that its config does not except."""

    config_class = OwnConfig
    base_model_prefix = "own"
    _supports_attention_backend = True

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(WORDS, 32)
        self.places = nn.Embedding(40, 32)
        self.layers = nn.ModuleList(OwnAttention(config, layer) for layer in range(2))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def _init_weights(self, module: nn.Module) -> None:
        if hasattr(module, "weight"):
            nn.init.normal_(module.weight, std=0.4)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        **_: Any,
    ) -> BaseModelOutput:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1]).unsqueeze(0)
        x = self.words(input_ids) + self.places(position_ids)
        states, attentions = [x], []
        for layer in self.layers:
            output, weights = layer(x)
            x = torch.tanh(x + output)
            states.append(x)
            if self.config.told or layer.layer not in self.config.beside:
                attentions.append(weights)
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


AutoConfig.register("own-encoder", OwnConfig)
AutoModel.register(OwnConfig, OwnModel)


def own_checkpoint(folder: Path, **options: Any) -> Path:
    model = OwnModel(OwnConfig(attn_implementation="eager", **options)).eval()
    model.save_pretrained(folder)
    word_tokenizer(most=40).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("beside", "told", "words"),
    [((0, 1), True, BESIDE), ((1,), True, BESIDE), ((0,), True, BESIDE), ((0,), False, BESIDE), ((1,), False, BESIDE)],
)
def test_an_attention_beside_the_interface_is_found(
    beside: tuple[int, ...], told: bool, words: str, tmp_path: Path
) -> None:
    """A registered class that computes some of its attention by itself is refused, also where it keeps that silent."""
    checkpoint = own_checkpoint(tmp_path / "checkpoint", beside=beside, told=told)
    assert words in refusal(checkpoint, tmp_path / "models")


def test_the_same_class_is_imported_when_it_calls_the_interface(tmp_path: Path) -> None:
    """No list of names decides: a class that this program has never seen is imported."""
    checkpoint = own_checkpoint(tmp_path / "checkpoint")
    assert (import_transformer(checkpoint, tmp_path / "models", "own", 1) / "manifest.json").exists()


class CountingConfig(OwnConfig):
    """The config of an encoder that counts its tokens inside.

    Args:
        unsqueezed: whether the numbers are [1,T], not [T].
    """

    model_type = "counting-encoder"

    def __init__(self, unsqueezed: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unsqueezed = unsqueezed


class CountingModel(OwnModel):
    """An encoder that takes no positions."""

    config_class = CountingConfig

    def forward(self, input_ids: Tensor, **options: Any) -> BaseModelOutput:
        numbers = torch.arange(input_ids.shape[1])
        return super().forward(input_ids, numbers.unsqueeze(0) if self.config.unsqueezed else numbers, **options)


AutoConfig.register("counting-encoder", CountingConfig)
AutoModel.register(CountingConfig, CountingModel)


@pytest.mark.parametrize("unsqueezed", [True, False])
def test_positions_of_each_sequence_reach_a_model_that_counts_inside(unsqueezed: bool, tmp_path: Path) -> None:
    """A front reads the positions of each sequence of a batch where its model counts its tokens by itself."""
    model = CountingModel(CountingConfig(attn_implementation="eager", unsqueezed=unsqueezed)).eval()
    model.save_pretrained(tmp_path)
    (chain,) = cut_source(load_source(tmp_path)).chains
    tokens, positions = np.array([[5, 6, 7], [7, 5, 9]]), np.array([[0, 1, 2], [20, 21, 39]])
    front = ort.InferenceSession(chain.front(), providers=["CPUExecutionProvider"])
    (found,) = front.run(None, {"tokens": tokens, "position_ids": positions})
    words, places = (each.weight.detach().numpy() for each in (model.words, model.places))
    np.testing.assert_allclose(found, words[tokens] + places[positions], rtol=1e-6)
