"""Adapters: architectures with an attention beside the interface of `transformers`, routed through it.

An adapter is one function for one class of model. It replaces the `forward` of each attention of the model, which then
projects as before and passes q, k, v to the attention function given; a term that the architecture adds to the scores
becomes an ONNX graph, held by the attention's module (`attention_bias`, None for no term). The comparison with the
source, which runs without adapter, holds an adapter to account.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta_v2
from transformers.models.mpnet import modeling_mpnet as mpnet
from transformers.models.mt5 import modeling_mt5 as mt5
from transformers.models.t5 import modeling_t5 as t5
from transformers.models.umt5 import modeling_umt5 as umt5

from attention_export.graphs import OPSET
from attention_export.importing import ImportFailure
from attention_export.importing.transformer.interface import BIAS

Array = NDArray[Any]
Attend = Callable[..., tuple[Tensor, Any]]
"""A function of the attention interface: module, q, k, v [B, H, T, Dh], mask, `scaling` -> [B, T, H, Dv], weights."""

IR_VERSION = 10


def adapt(model: nn.Module, attend: Attend) -> None:
    """Route a model's attention through a function of the attention interface, in place, if there is an adapter for it.

    Args:
        model: a copy of the source, with or without a head; left as it is where no adapter is made for its class.
        attend: the function.

    Raises:
        ImportFailure: the adapter is not made for a setting in the model's config.
    """
    for module in list(model.modules()):
        for kind, adapter in ADAPTERS.items():
            if isinstance(module, kind):
                adapter(module, attend)


def bias_graph(module: nn.Module) -> bytes | None:
    """Return the ONNX graph of the bias that an adapted attention adds to its scores; None if it has none."""
    graph: bytes | None = getattr(module, BIAS, None)
    return graph


def adapt_mpnet(encoder: Any, attend: Attend) -> None:
    """Route MPNet's encoder: its bias is a table of the distance, constant beyond 128."""
    furthest = 128  # `max_distance` of relative_position_bucket
    buckets = encoder.relative_position_bucket(
        torch.arange(-furthest, furthest + 1), num_buckets=encoder.config.relative_attention_num_buckets
    )
    with torch.no_grad():
        bias = distance_bias(encoder.relative_attention_bias(buckets).T.numpy())
    encoder.compute_position_bias = lambda *_, **__: None
    for layer in encoder.layer:
        attention = layer.attention.attn
        setattr(attention, BIAS, bias)

        def forward(self: Any, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
            packed = [projection(hidden_states) for projection in (self.q, self.k, self.v)]
            return (self.o(_through(attend, self, packed, self.attention_head_size, 1)),)

        attention.forward = MethodType(forward, attention)


def adapt_deberta_v2(encoder: Any, attend: Attend) -> None:
    """Route DeBERTa's encoder, versions 2 and 3: content-to-position and position-to-content terms become the bias.

    Raises:
        ImportFailure: the model has a convolution beside its first layer.
    """
    if encoder.conv is not None:
        raise ImportFailure(
            "conv_kernel_size above 0 puts a convolution over tokens beside the first layer: a row of `hidden` then "
            "depends on its neighbours; models of DeBERTa without it can be imported"
        )
    with torch.no_grad():
        relative = encoder.get_rel_embedding()
        for layer in encoder.layer:
            attention = layer.attention.self
            terms = 1 + sum(term in attention.pos_att_type for term in ("c2p", "p2c"))
            if relative is not None and terms > 1:
                setattr(attention, BIAS, _disentangled_bias(attention, relative, terms))

            def forward(
                self: Any, hidden_states: Tensor, *_: Any, terms: int = terms, **__: Any
            ) -> tuple[Tensor, Tensor | None]:
                packed = [projection(hidden_states) for projection in (self.query_proj, self.key_proj, self.value_proj)]
                return _through(attend, self, packed, self.attention_head_size, terms), None

            attention.forward = MethodType(forward, attention)
    encoder.get_rel_embedding = encoder.get_rel_pos = encoder.get_attention_mask = lambda *_, **__: None


def adapt_deberta_v2_embeddings(embeddings: Any, _: Attend) -> None:
    """Leave out the mask of DeBERTa's embeddings, which is one at every token that is no padding."""
    original = embeddings.forward

    def forward(*_: Any, mask: Tensor | None = None, **inputs: Any) -> Any:
        del mask
        return original(**inputs)

    embeddings.forward = forward


def adapt_t5(stack: Any, _: Attend) -> None:
    """Hold T5's bias as a table of the distance, constant beyond `relative_attention_max_distance`.

    Layers without a table have that of the layer before; a cross attention has none.
    """
    bias = None
    for block in stack.block:
        attention = block.layer[0].SelfAttention
        if attention.has_relative_attention_bias:
            bias = distance_bias(_t5_table(attention))
            attention.compute_bias = lambda *_, **__: torch.zeros(1, 1, 1, 1)
        setattr(attention, BIAS, bias)
        if stack.is_decoder:
            setattr(block.layer[1].EncDecAttention, BIAS, None)


def _t5_table(attention: Any) -> Array:
    """Return the bias by the distance key - query, [H, 2R + 1]."""
    reach = attention.relative_attention_max_distance + 1
    with torch.no_grad():
        bias = attention.compute_bias(reach, reach)[0]
    return np.asarray(torch.cat([bias[:, 1:, 0].flip(1), bias[:, 0]], dim=1).numpy())


ADAPTERS: dict[type[nn.Module], Callable[[Any, Attend], None]] = {
    mpnet.MPNetEncoder: adapt_mpnet,
    deberta_v2.DebertaV2Encoder: adapt_deberta_v2,
    deberta_v2.DebertaV2Embeddings: adapt_deberta_v2_embeddings,
    **dict.fromkeys((t5.T5Stack, mt5.MT5Stack, umt5.UMT5Stack), adapt_t5),
}
ADAPTED = "MPNet, DeBERTa v2 and v3, and T5's family"


def _through(attend: Attend, module: nn.Module, packed: list[Tensor], width: int, terms: int) -> Tensor:
    """Pass q, k, v, [B, T, H * Dh] each, to the attention function; return its heads side by side."""
    shape = (*packed[0].shape[:-1], -1, width)
    q, k, v = (each.view(shape).transpose(1, 2) for each in packed)
    heads, _ = attend(module, q, k, v, None, scaling=(width * terms) ** -0.5, is_causal=False)
    return heads.reshape(*packed[0].shape[:-1], -1)


def distance_bias(table: Array) -> bytes:
    """Return the graph of a bias that is a table of the distance.

    Args:
        table: [H, 2R + 1], by the distance key - query from -R to R; further keys have the value of the end.
    """
    furthest = table.shape[1] // 2
    nodes = [
        *_distances("key"),
        _node("Clip", ["distance", "nearest", "furthest"], "clipped"),
        _node("Add", ["clipped", "furthest"], "index"),
        _node("Gather", ["table", "index"], "by_head", axis=1),
        _node("Unsqueeze", ["by_head", "first"], "bias"),
    ]
    constants = {
        "table": table.astype(np.float32),
        "nearest": np.array(-furthest),
        "furthest": np.array(furthest),
        "first": np.array([0]),
        "last": np.array([-1]),
    }
    return _graph(nodes, constants, table.shape[0])


def _disentangled_bias(attention: Any, relative: Tensor, terms: int) -> bytes:
    """Return the graph of DeBERTa's terms of content and position (He et al., 2021, equation 4), scaled.

    Args:
        attention: the source's `DisentangledSelfAttention`.
        relative: embeddings of relative positions, [2 * span, D].
        terms: the number of terms in a score, by which the scale is reduced.
    """
    span = attention.pos_ebd_size
    relative = relative[: 2 * span]
    scale = (attention.attention_head_size * terms) ** -0.5
    shared = attention.share_att_key
    constants: dict[str, Array] = {
        "buckets": _buckets(attention, span),
        "split": np.array([0, -1, attention.num_attention_heads, attention.attention_head_size]),
        "last": np.array([-1]),
    }
    constants["furthest"] = np.array(len(constants["buckets"]) // 2)
    constants["nearest"] = -constants["furthest"]
    nodes = [
        *_distances("query"),
        _node("Clip", ["distance", "nearest", "furthest"], "clipped"),
        _node("Add", ["clipped", "furthest"], "offset"),
        _node("Gather", ["buckets", "offset"], "index"),
    ]
    added = []
    if "c2p" in attention.pos_att_type:
        projection = attention.key_proj if shared else attention.pos_key_proj
        constants["c2p_positions"] = _by_head(projection(relative), attention) * scale
        nodes += _position_term("c2p", "q", "index")
        added.append("c2p_term")
    if "p2c" in attention.pos_att_type:
        projection = attention.query_proj if shared else attention.pos_query_proj
        constants["p2c_positions"] = _by_head(projection(relative), attention) * scale
        # Position i to the content of key j: the row of key j, in the column of the distance i - j, turned round.
        nodes += [_node("Transpose", ["index"], "turned", perm=[1, 0]), *_position_term("p2c", "k", "turned")]
        nodes.append(_node("Transpose", ["p2c_term"], "p2c_turned", perm=[0, 1, 3, 2]))
        added.append("p2c_turned")
    nodes.append(_node("Sum", added, "bias"))
    return _graph(nodes, constants, attention.num_attention_heads, attention.all_head_size)


def _buckets(attention: Any, span: int) -> Array:
    """Return the row of relative embeddings for each distance query - key from -R to R; constant beyond."""
    furthest = attention.max_relative_positions + 1
    distances = torch.arange(-furthest, furthest + 1)
    if attention.position_buckets > 0:
        distances = deberta_v2.make_log_bucket_position(
            distances, attention.position_buckets, attention.max_relative_positions
        ).long()
    return np.asarray(torch.clamp(distances + span, 0, 2 * span - 1).numpy())


def _by_head(projected: Tensor, attention: Any) -> Array:
    """[2 * span, H * Dh] -> [1, H, Dh, 2 * span], to be multiplied by rows."""
    rows, width = len(projected), attention.attention_head_size
    split = projected.view(rows, attention.num_attention_heads, width)
    return np.asarray(split.permute(1, 2, 0).unsqueeze(0).numpy(), np.float32)


def _position_term(name: str, rows: str, index: str) -> list[onnx.NodeProto]:
    """Return nodes: rows [B, N, H * Dh] by the positions at an index [N, M] -> `{name}_term` [B, H, N, M]."""
    return [
        _node("Reshape", [rows, "split"], f"{name}_split"),
        _node("Transpose", [f"{name}_split"], f"{name}_rows", perm=[0, 2, 1, 3]),
        _node("MatMul", [f"{name}_rows", f"{name}_positions"], f"{name}_all"),
        _node("Shape", [f"{name}_all"], f"{name}_sizes", start=0, end=2),
        _node("Shape", [index], f"{name}_pairs"),
        _node("Concat", [f"{name}_sizes", f"{name}_pairs"], f"{name}_shape", axis=0),
        _node("Expand", [index, f"{name}_shape"], f"{name}_index"),
        _node("GatherElements", [f"{name}_all", f"{name}_index"], f"{name}_term", axis=3),
    ]


def _distances(minuend: str) -> list[onnx.NodeProto]:
    """Return nodes that make `distance` [T, S]: of queries minus keys, or of keys minus queries."""
    order = ["query_column", "key_positions"]
    if minuend == "key":
        order.reverse()
    return [_node("Unsqueeze", ["query_positions", "last"], "query_column"), _node("Sub", order, "distance")]


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], **attributes)


def _graph(nodes: list[onnx.NodeProto], constants: dict[str, Array], heads: int, width: int = 0) -> bytes:
    """Return the file of a bias: positions and, with a width, those of `q` and `k` that the nodes read -> `bias`."""
    read = {name for node in nodes for name in node.input}
    inputs = [
        helper.make_tensor_value_info("query_positions", TensorProto.INT64, ["T"]),
        helper.make_tensor_value_info("key_positions", TensorProto.INT64, ["S"]),
    ]
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", length, width])
        for name, length in (("q", "T"), ("k", "S"))
        if name in read
    ]
    batch = "B" if read & {"q", "k"} else 1
    outputs = [helper.make_tensor_value_info("bias", TensorProto.FLOAT, [batch, heads, "T", "S"])]
    graph = helper.make_graph(
        nodes, "bias", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
