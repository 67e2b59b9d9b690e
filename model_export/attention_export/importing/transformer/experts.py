"""Mixtures of experts, computed without choosing rows: each expert computes each row, and the router's share weighs it.

`transformers` gathers the rows of each expert, which depends on the numbers, so that it cannot be traced. Experts that
the router did not choose have the share 0, so that the sum is the same.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "attention_export"
EAGER = "eager"


def set_experts(model: PreTrainedModel, name: str) -> None:
    """Let a model compute its experts by a function, registered by name; `EAGER` is that of the model's own class."""
    if model._can_set_experts_implementation():  # noqa: SLF001 # asks without a warning
        model.set_experts_implementation(name)


def all_experts(module: Any, rows: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """Compute the experts of `transformers`' interface.

    Args:
        module: the experts; its parameters have a leading dimension E.
        rows: [N, D].
        chosen: the experts of each row, [N, K].
        shares: their shares, [N, K].

    Returns:
        [N, D].
    """
    experts = torch.nn.functional.one_hot(chosen, module.num_experts).to(shares.dtype)
    by_expert = (experts * shares.unsqueeze(-1)).sum(1).transpose(0, 1).unsqueeze(-1)  # [E, N, 1]
    name = "gate_up_proj" if module.has_gate else "up_proj"
    projected = _linear(module, name, rows.unsqueeze(0))
    activated = module._apply_gate(projected) if module.has_gate else module.act_fn(projected)  # noqa: SLF001
    results = _linear(module, "down_proj", activated)
    if module.has_post_expert_norm:
        results = module.post_expert_norm(results)
    total: Tensor = (results * by_expert).sum(0)
    return total


def _linear(module: Any, name: str, rows: Tensor) -> Tensor:
    """[E or 1, N, in] -> [E, N, out], by the matrices of all experts."""
    matrices = getattr(module, name)
    result = rows @ (matrices if module.is_transposed else matrices.transpose(-1, -2))
    biased: Tensor = result + getattr(module, f"{name}_bias").unsqueeze(1) if module.has_bias else result
    return biased


ALL_EXPERTS_FUNCTIONS.register(NAME, all_experts)
