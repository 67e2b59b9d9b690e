"""The attention function that stands in for the source's own while the source is traced.

`transformers` hands each attention of a model to a function registered by name: after projections, rotation and
normalisation of q and k, before softmax. The stand-in computes nothing: it records the attention's parameters, and
leaves one node in the graph, at which the graph is cut.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attention_export.importing import ImportFailure

NAME = "attention_export"
DOMAIN = "attention_export"
OPERATOR = "Site"
INDEX = "index"  # attribute of the node: the site's number
BIAS = "attention_bias"  # attribute of a module: the ONNX graph of its bias
SINKS = "s_aux"  # the argument of attention sinks, [H]
DESCRIPTIVE = {"position_ids", "token_type_ids", "cache_position"}  # tensors that a model passes on, and none needs


@dataclass(frozen=True)
class SiteCall:
    """One call of the attention function: a site's parameters, named as in `SiteSpec`, and its module."""

    module: nn.Module
    path: str
    heads: int
    key_value_heads: int
    head_dim: int
    value_head_dim: int
    scale: float
    softcap: float
    causal: bool
    window: int
    sinks: bool = False  # whether the module has a parameter `sinks`, [H]


@dataclass
class SiteRecorder:
    """Records the calls of a model's attention in one pass.

    Attributes:
        paths: of the model's modules.
        calls: in order.
        outputs: names of the traced function's results.
    """

    paths: dict[nn.Module, str]
    calls: list[SiteCall] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Stand in for an attention: q [B,H,T,Dh], k [B,Hkv,S,Dh], v [B,Hkv,S,Dv] -> heads [B,T,H,Dv], no weights.

        Raises:
            ImportFailure: the attention takes an input that a site has not.
        """
        path = self.paths.get(module, type(module).__name__)
        if hasattr(module, BIAS):  # an adapter holds it as a graph
            kwargs.pop("position_bias", None)
        _refuse_unknown(path, query, attention_mask, kwargs)
        batch, heads, length, width = query.shape
        scale = kwargs.get("scaling")
        causal = kwargs.get("is_causal")
        call = SiteCall(
            module,
            path,
            heads,
            key.shape[1],
            width,
            value.shape[-1],
            float(width**-0.5 if scale is None else scale),
            float(kwargs.get("softcap") or 0),
            bool(getattr(module, "is_causal", False) if causal is None else causal),
            int(_window(kwargs.get("sliding_window"))),
            _has_sinks(module, path, kwargs),
        )
        self.calls.append(call)
        (result,) = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{OPERATOR}",
            [_packed(query), _packed(key), _packed(value)],
            attrs={INDEX: len(self.calls) - 1},
            dtypes=[torch.float32],
            shapes=[(batch, length, heads * call.value_head_dim)],
            version=1,
        )
        return result.reshape(batch, length, heads, call.value_head_dim), None


def _has_sinks(module: nn.Module, path: str, kwargs: dict[str, Any]) -> bool:
    """Whether an attention has sinks; they have to be its own parameter, which the version is to hold.

    Raises:
        ImportFailure: the sinks are computed.
    """
    given, own = kwargs.get(SINKS), getattr(module, "sinks", None)
    if given is None and own is None:
        return False
    if not isinstance(own, nn.Parameter) or own.dim() != 1 or (given is not None and given is not own):
        raise ImportFailure(f"{path} computes its attention sinks; only sinks that are a parameter of it are imported")
    return True


def _packed(tensor: Tensor) -> Tensor:
    """[B,H,T,D] -> [B,T,H*D]."""
    batch, heads, length, width = tensor.shape
    return tensor.transpose(1, 2).reshape(batch, length, heads * width)


def _window(window: Any) -> int:
    """Return a sliding window's width; the two sides of a pair are the same in `transformers`."""
    if isinstance(window, tuple):
        window = window[0]
    return max(0, window or 0)


def _refuse_unknown(path: str, query: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    if query.dtype != torch.float32:
        raise ImportFailure(f"{path} attends in {query.dtype}, not in float32")
    if mask is not None:
        raise ImportFailure(f"{path} has a mask of its own, made inside the model; a site has causal, window and bias")
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and name not in DESCRIPTIVE | {SINKS}:
            raise ImportFailure(f"{path} passes `{name}` to its attention; a site has causal, window and bias")
