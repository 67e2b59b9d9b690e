"""`torch.nn.MultiheadAttention`: its state dict as a multi-head or cross-attention block."""

import torch
from torch import Tensor

from attention_export.blocks import CrossAttention, Dims, MultiHead
from attention_export.importing import ImportFailure, fill, take

PACKED = "in_proj_weight"
PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
UNSUPPORTED = ("bias_k", "bias_v")


def import_multihead(tensors: dict[str, Tensor], heads: int, *, cross: bool = False) -> MultiHead:
    """Make a block of a state dict.

    Args:
        tensors: of `nn.MultiheadAttention`, projections packed or, with kdim or vdim, separate; bias or none.
        heads: which a state dict does not say.
        cross: whether keys and values come from another sequence.

    Raises:
        ImportFailure: a tensor is missing, or `bias_k` and `bias_v` (an extra key and value) are there.
    """
    for name in UNSUPPORTED:
        if tensors.get(name) is not None:
            raise ImportFailure(f"{name} adds a key that no caller sent; blocks have none")
    query, key, value = _projections(tensors)
    output = take(tensors, "out_proj.weight")
    bias = "in_proj_bias" in tensors
    dims = Dims(query=query.shape[1], key=key.shape[1], value=value.shape[1], heads=heads, output=output.shape[0])
    block = (CrossAttention if cross else MultiHead)(dims, bias=bias)
    matrices = {"M_Q": query.T, "M_K": key.T, "M_V": value.T, "M_O": output.T}
    fill(block, matrices | (_biases(tensors) if bias else {}))
    return block


def _projections(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    if PACKED in tensors:
        query, key, value = tensors[PACKED].chunk(3)
        return query, key, value
    query, key, value = (take(tensors, name) for name in PROJECTIONS)
    return query, key, value


def _biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    query, key, value = tensors["in_proj_bias"].chunk(3)
    return {"b_Q": query, "b_K": key, "b_V": value, "b_O": tensors.get("out_proj.bias", torch.zeros(0))}
