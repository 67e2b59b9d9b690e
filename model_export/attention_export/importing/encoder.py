"""A BERT-like encoder (Devlin et al., 2018) from a local checkpoint: one of its layers, or all, with a text front."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from attention_export.blocks import Dims, MultiHead
from attention_export.graphs import Attend
from attention_export.importing import ImportFailure, fill, read_tensors, take
from attention_export.model import EarlierLayer, Model, TextFront

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}
PREFIXES = ("", "bert.", "roberta.", "electra.", "model.", "encoder.")
WORDS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class EncoderConfig:
    """What the tensors alone do not say.

    Attributes:
        heads: of each layer.
        epsilon: of the layer normalisations.
        activation: of the feed-forward network; a key of `ACTIVATIONS`.
        first_position: the position of the first token: 0, or behind the padding token in RoBERTa.
    """

    heads: int
    epsilon: float = 1e-12
    activation: str = "gelu"
    first_position: int = 0

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ImportFailure(f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")


class Affine(nn.Module):
    """x.M + b, with M [in, out]."""

    def __init__(self, tensors: dict[str, Tensor], name: str) -> None:
        super().__init__()
        self.matrix = nn.Parameter(take(tensors, f"{name}.weight").T.contiguous())
        self.bias = nn.Parameter(take(tensors, f"{name}.bias"))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix + self.bias


class After(nn.Module):
    """What follows attention in a layer: residual, normalisation, feed-forward network, residual, normalisation."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str, config: EncoderConfig) -> None:
        super().__init__()
        self.attention_norm = _norm(tensors, f"{prefix}.attention.output.LayerNorm", config)
        self.widen = Affine(tensors, f"{prefix}.intermediate.dense")
        self.narrow = Affine(tensors, f"{prefix}.output.dense")
        self.output_norm = _norm(tensors, f"{prefix}.output.LayerNorm", config)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, query: Tensor, output: Tensor) -> tuple[Tensor]:
        x = self.attention_norm(query + output)
        return (self.output_norm(x + self.narrow(self.activation(self.widen(x)))),)


class EncoderFront(nn.Module):
    """tokens (B, T) -> query (B, T, D): the embeddings, and the layers below the one that is served."""

    def __init__(self, tensors: dict[str, Tensor], config: EncoderConfig, below: list[EarlierLayer]) -> None:
        super().__init__()
        self.words = nn.Parameter(take(tensors, WORDS))
        # All tokens are of the first type, so its embedding is part of every position's.
        positions = take(tensors, "embeddings.position_embeddings.weight")[config.first_position :]
        types = tensors.get("embeddings.token_type_embeddings.weight", torch.zeros(1, positions.shape[1]))
        if self.words.shape[1] != positions.shape[1]:
            raise ImportFailure(
                f"word embeddings are {self.words.shape[1]} wide and positions {positions.shape[1]}: a projection "
                "stands between them, which is not imported"
            )
        self.positions = nn.Parameter(positions + types[0])
        self.norm = _norm(tensors, "embeddings.LayerNorm", config)
        self.below = nn.ModuleList(_FusedLayer(layer) for layer in below)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        x = self.norm(functional.embedding(tokens, self.words) + self.positions[: tokens.shape[1]])  # (B, T, D)
        for layer in self.below:
            x = layer(x)
        return (x,)


class _FusedLayer(nn.Module):
    """A whole layer; exported, its attention is one ONNX operator, which torch itself cannot compute."""

    def __init__(self, layer: EarlierLayer) -> None:
        super().__init__()
        self.block, self.after = layer.block, layer.after
        self.attend = Attend(layer.block, weights=False, mask=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            output = self.attend(x, *self.block.project(x, x))[-1]
        else:
            output = self.block(x).output
        (following,) = self.after(x, output)
        return following  # type: ignore[no-any-return] # torch's modules are untyped when called


def read_config(folder: Path, heads: int | None) -> EncoderConfig:
    """Read `config.json`; without one, take the heads given and BERT's usual constants.

    Raises:
        ImportFailure: there is neither, or the model is of a kind that differs from BERT in its layers.
    """
    path = folder / "config.json"
    if not path.exists():
        if heads is None:
            raise ImportFailure(f"{folder} has no config.json: say how many heads a layer has")
        return EncoderConfig(heads)
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        counted = int(content["num_attention_heads"])
    except (KeyError, TypeError, ValueError) as error:
        raise ImportFailure(f"{path} says no num_attention_heads: {error}") from error
    if heads not in (None, counted):
        raise ImportFailure(f"{path} says {counted} heads, not {heads}")
    if content.get("is_decoder"):
        raise ImportFailure(
            f"{path} says is_decoder: its layers hide the future, and would be served as if they did not"
        )
    if content.get("position_embedding_type", "absolute") != "absolute":
        raise ImportFailure(f"position_embedding_type {content['position_embedding_type']!r} is not supported")
    return EncoderConfig(
        heads=counted,
        epsilon=content.get("layer_norm_eps", 1e-12),
        activation=content.get("hidden_act", "gelu"),
        first_position=_first_position(content),
    )


def _first_position(content: dict[str, Any]) -> int:
    """Return the position of the first token: RoBERTa counts from behind its padding token's number."""
    if content.get("model_type") not in ("roberta", "camembert", "xlm-roberta"):
        return 0
    padding = content.get("pad_token_id")
    return (1 if padding is None else int(padding)) + 1


def import_encoder(
    folder: Path, *, layer: int | None = None, heads: int | None = None, license_: str = "", source: str = ""
) -> Model:
    """Make a model of a checkpoint: text goes in, and attention of one layer, or of every layer, comes out.

    Args:
        folder: with `model.safetensors` (or `pytorch_model.bin`), `tokenizer.json` and, unless `heads` is given,
            `config.json`.
        layer: the one to serve, from 0; all when None.
        heads: of each layer, where there is no `config.json`.
        license_: of the weights, an SPDX expression.
        source: where they come from.

    Raises:
        ImportFailure: a file or tensor is missing or unlike BERT's, or there is no such layer.
    """
    tensors = _without_prefix(read_tensors(_weights_file(folder)))
    config = read_config(folder, heads)
    count = 0
    while f"encoder.layer.{count}.attention.self.query.weight" in tensors:
        count += 1
    if not count:
        raise ImportFailure("there is no encoder.layer.0.attention.self.query: the layers are not named as BERT's")
    if layer is not None and not 0 <= layer < count:
        raise ImportFailure(f"there is no layer {layer}; there are {count}, from 0")
    last = count - 1 if layer is None else layer
    layers = [_layer(tensors, index, config) for index in range(last + 1)]
    below, served = (layers[:-1], []) if layer is not None else ([], layers[:-1])
    front = EncoderFront(tensors, config, below)
    which = f"layer {layer}" if layer is not None else f"all {count} layers"
    return Model(
        block=layers[-1].block,
        description=f"Self-attention of {which} of an imported encoder.",
        text=TextFront(_tokenizer(folder), front, allow_unknown=True, max_tokens=front.positions.shape[0]),
        license=license_,
        source=source,
        earlier=served,
        layer_names=[str(layer)] if layer is not None else [],
    )


def _layer(tensors: dict[str, Tensor], index: int, config: EncoderConfig) -> EarlierLayer:
    prefix = f"encoder.layer.{index}"
    names = {"Q": "attention.self.query", "K": "attention.self.key", "V": "attention.self.value"}
    names["O"] = "attention.output.dense"
    width = take(tensors, f"{prefix}.{names['Q']}.weight").shape[1]
    block = MultiHead(Dims(query=width, heads=config.heads))
    matrices = {f"M_{letter}": take(tensors, f"{prefix}.{name}.weight").T for letter, name in names.items()}
    biases = {f"b_{letter}": take(tensors, f"{prefix}.{name}.bias") for letter, name in names.items()}
    fill(block, matrices | biases)
    return EarlierLayer(block, After(tensors, prefix, config))


def _norm(tensors: dict[str, Tensor], name: str, config: EncoderConfig) -> nn.LayerNorm:
    weight = take(tensors, f"{name}.weight")
    norm = nn.LayerNorm(weight.shape[0], eps=config.epsilon)
    fill(norm, {"weight": weight, "bias": take(tensors, f"{name}.bias")})
    return norm


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if prefix + WORDS in tensors:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    raise ImportFailure(f"there is no {WORDS}: the tensors are not named as BERT's")


def _weights_file(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return folder / name
    raise ImportFailure(f"{folder} has neither model.safetensors nor pytorch_model.bin")


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise ImportFailure(f"{folder} has no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
