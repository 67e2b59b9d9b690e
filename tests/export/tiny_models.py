"""Tiny random models of `transformers`, wide enough that attention is far from uniform, as checkpoint folders."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 100
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
DISTILBERT = {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
DEBERTA = {"max_relative_positions": 16, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


def config_of(name: str, **changes: object) -> Callable[[], transformers.PretrainedConfig]:
    return lambda: getattr(transformers, f"{name}Config")(**(SIZES | changes))


SERVED: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "Bert": config_of("Bert"),
    "Roberta": config_of("Roberta"),
    "DistilBert": lambda: transformers.DistilBertConfig(**DISTILBERT, max_position_embeddings=64),
    "Albert": config_of("Albert", embedding_size=16),
    "Electra": config_of("Electra", embedding_size=16),
    "ModernBert": config_of("ModernBert", local_attention=8, **SPECIAL),
    "NomicBert": config_of("NomicBert"),
    "Esm": config_of("Esm", pad_token_id=0, mask_token_id=1, position_embedding_type="rotary", token_dropout=True),
    "MPNet": config_of("MPNet"),
    "DebertaV2": config_of("DebertaV2", relative_attention=True, position_buckets=8, **DEBERTA),
    "XLMRobertaXL": config_of("XLMRobertaXL"),
    "EuroBert": config_of("EuroBert", num_key_value_heads=2, **SPECIAL),
}
CONFIGS = SERVED | {"MegatronBert": config_of("MegatronBert"), "Llama": config_of("Llama"), "Bart": config_of("Bart")}


def save_model(folder: Path, kind: str, ending: str = "Model", **changes: object) -> PreTrainedModel:
    """Make a model and save it; return it in eval mode."""
    config = CONFIGS[kind]()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = widen(getattr(transformers, f"{kind}{ending}")(config).eval())
    model.save_pretrained(folder)
    return model


def widen(model: PreTrainedModel) -> PreTrainedModel:
    """Draw matrices and biases so wide that weights are far from uniform and that each parameter matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                scale = 0.5 if "embed" in name else 0.3
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model
