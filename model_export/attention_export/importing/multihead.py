"""`torch.nn.MultiheadAttention`: its state dict as a multi-head or cross-attention block."""

from collections.abc import Collection

import torch
from torch import Tensor

from attention_export.blocks import CrossAttention, Dims, MultiHead
from attention_export.importing import ImportFailure, fill, take

PACKED = "in_proj_weight"
PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
OUTPUT = "out_proj.weight"
UNSUPPORTED = ("bias_k", "bias_v")
NAMED_PREFIXES = 24  # in an error: those of `nn.Transformer` with its defaults are 18


def import_multihead(
    tensors: dict[str, Tensor], heads: int, *, prefix: str = "", cross: bool = False, zero_key: bool = False
) -> MultiHead:
    """Make a block of a state dict.

    Args:
        tensors: of `nn.MultiheadAttention`, projections packed or, with kdim or vdim, separate; bias or none. A module
            that holds one has its tensors behind a prefix, such as `self_attn.` in `nn.TransformerEncoderLayer`.
        heads: which a state dict does not say.
        prefix: of the names of the tensors.
        cross: whether keys and values come from another sequence.
        zero_key: whether it was made with `add_zero_attn`, which a state dict does not say.

    Raises:
        ImportFailure: no attention stands at the prefix, a tensor is missing, or `bias_k` and `bias_v` (an extra key
            and value) are there.
    """
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    prefixes = attention_prefixes(tensors)
    if prefix not in prefixes and (prefixes or prefix):
        raise ImportFailure(_no_attention(prefix, prefixes))
    for name in UNSUPPORTED:
        if name in own:
            raise ImportFailure(f"{prefix}{name} adds a key that no caller sent; blocks have none")
    query, key, value = _projections(own)
    output = take(own, OUTPUT)
    bias = "in_proj_bias" in own
    dims = Dims(query=query.shape[1], key=key.shape[1], value=value.shape[1], heads=heads, output=output.shape[0])
    block = (CrossAttention if cross else MultiHead)(dims, bias=bias)
    block.zero_key = zero_key
    matrices = {"M_Q": query.T, "M_K": key.T, "M_V": value.T, "M_O": output.T}
    fill(block, matrices | (_biases(own) if bias else {}))
    return block


def attention_prefixes(names: Collection[str]) -> list[str]:
    """Return each prefix at which the tensors of an `nn.MultiheadAttention` stand, sorted; "" where it is the root."""
    prefixes = {name.removesuffix(end) for end in (PACKED, PROJECTIONS[0]) for name in names if name.endswith(end)}
    return sorted(prefix for prefix in prefixes if f"{prefix}{OUTPUT}" in names)


def _no_attention(prefix: str, prefixes: list[str]) -> str:
    where = f"at the prefix {prefix!r}" if prefix else "at the root of the names"
    if not prefixes:
        return f"no nn.MultiheadAttention stands {where}, nor at any other; its tensors are {PACKED}, {OUTPUT}, .."
    more = f" and {len(prefixes) - NAMED_PREFIXES} more" if len(prefixes) > NAMED_PREFIXES else ""
    named = ", ".join(repr(each) for each in prefixes[:NAMED_PREFIXES])
    return f"no nn.MultiheadAttention stands {where}; give --prefix, one of {named}{more}"


def _projections(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    if PACKED in tensors:
        query, key, value = tensors[PACKED].chunk(3)
        return query, key, value
    query, key, value = (take(tensors, name) for name in PROJECTIONS)
    return query, key, value


def _biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    query, key, value = tensors["in_proj_bias"].chunk(3)
    return {"b_Q": query, "b_K": key, "b_V": value, "b_O": tensors.get("out_proj.bias", torch.zeros(0))}
