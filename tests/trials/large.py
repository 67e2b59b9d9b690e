"""A checkpoint of 1.1 billion random parameters, written tensor by tensor."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from export.tiny_checkpoints import word_tokenizer
from safetensors.torch import save_file
from torch import Tensor
from transformers import ModernBertConfig, ModernBertModel

SHARD_BYTES = 2**28


def large_config() -> ModernBertConfig:
    """Return a config of an encoder of 20 layers, 2048 wide."""
    return ModernBertConfig(
        architectures=["ModernBertModel"],
        vocab_size=32768,
        hidden_size=2048,
        num_hidden_layers=20,
        num_attention_heads=32,
        intermediate_size=5632,
        max_position_embeddings=512,
        local_attention=16,
        pad_token_id=0,
        bos_token_id=2,
        cls_token_id=2,
        eos_token_id=3,
        sep_token_id=3,
    )


def write_large_checkpoint(folder: Path) -> int:
    """Write shards in BF16, their index, config and tokenizer; return the number of parameters."""
    folder.mkdir(parents=True)
    config = large_config()
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ModernBertModel(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(shapes, generator)):
        name = f"model-{number:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config.save_pretrained(folder)
    word_tokenizer(most=512).save_pretrained(folder)
    return sum(shape.numel() for shape in shapes.values())


def _shards(shapes: dict[str, torch.Size], generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        width = 0.5 if "embed" in name else 0.04
        drawn = torch.randn(shape, generator=generator) * width if len(shape) > 1 else torch.ones(shape)
        shard[name] = drawn.bfloat16()
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard
