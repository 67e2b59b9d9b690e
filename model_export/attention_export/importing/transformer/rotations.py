"""Rotary positions with frequencies that depend on the length of the sequence, fixed at the original length.

`dynamic` and `longrope` have new frequencies for a sequence beyond the length of the training, so that a row would
depend on the number of rows behind. Up to that length, the longest that a version takes, frequencies are fixed.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PretrainedConfig

LONGROPE = "longrope"
CHANGING = ("dynamic", LONGROPE)
FIXED = "default"  # the type of a rotation that reads its frequencies from a buffer


def longest(config: PretrainedConfig) -> int:
    """Return the greatest number of positions with fixed frequencies; 0 where the config tells none."""
    most: int = getattr(config, "max_position_embeddings", None) or 0
    original = [each.get("original_max_position_embeddings") for each in _changing(config) if _type(each) == LONGROPE]
    return min([most, *(int(each) for each in original if each)])


def rotation_notes(config: PretrainedConfig) -> list[str]:
    """Return a sentence on texts that are too long."""
    kinds = sorted({_type(each) for each in _changing(config)})
    return [
        f"rope_type {kind!r} changes with the length of a text: imported for texts of up to {longest(config)} tokens"
        for kind in kinds
    ]


def fix_rotations(model: nn.Module) -> None:
    """Rotate with the frequencies of the original length at every length; changes the model in place."""
    for module in model.modules():
        kind: Any = getattr(module, "rope_type", None)
        if isinstance(kind, dict):  # by type of layer
            module.rope_type = {name: _fixed(each) for name, each in kind.items()}  # type: ignore[assignment]
        elif isinstance(kind, str):
            module.rope_type = _fixed(kind)  # type: ignore[assignment]


def _fixed(kind: str) -> str:
    return FIXED if kind in CHANGING else kind


def _changing(config: PretrainedConfig) -> Iterator[dict[str, Any]]:
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested = [each for each in parameters.values() if isinstance(each, dict)]
    return (each for each in [parameters, *nested] if _type(each) in CHANGING)


def _type(parameters: dict[str, Any]) -> str:
    return str(parameters.get("rope_type"))
