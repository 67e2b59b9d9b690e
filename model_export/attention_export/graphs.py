"""The ONNX graphs of a block, cut at the stages that a service returns, keeps or batches.

Between graphs, k and v have the heads side by side, [B, S, H * width]. ONNX's `Attention` takes this form without a
Reshape or Transpose, and a memory is kept in it. A stage by heads, [H, S, width], is a view.
"""

import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from attention_proto.attention.v1.attention_pb2 import AttendGraph, File
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.functional import pad

from attention_export.blocks import DotProduct, SelfAttention, join, split
from attention_export.model import Model
from attention_export.operators import keep_signatures

OPSET = 23  # the first with Attention; 25 expands it into its parts
WEIGHTS_AFTER_SOFTMAX = 3  # value of the attribute qk_matmul_output_mode

Shape = tuple[str | int, ...]

# Sizes of the varying dimensions in the examples that are traced: at least 2 and all different, or torch specialises.
EXAMPLE_SIZES = {"B": 2, "T": 5, "S": 7, "N": 3, "D": 11, "Dv": 13, "P": 4}


class ExportFailure(ValueError):
    """A part of a model cannot be exported to ONNX."""


@dataclass(frozen=True)
class Graph:
    """A module to export: its file, its inputs and outputs; varying dimensions by name."""

    file: str
    module: nn.Module
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]


class Project(nn.Module):
    """key [B, S, Dk], value [B, S, Dv] -> k, v."""

    def __init__(self, block: DotProduct) -> None:
        super().__init__()
        self.block = block

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return self.block.project(key, value)


class Combine(nn.Module):
    """heads [B, T, H * Dv] -> output [B, T, D]."""

    def __init__(self, block: DotProduct) -> None:
        super().__init__()
        self.block = block

    def forward(self, heads: Tensor) -> tuple[Tensor]:
        return (self.block.combine(heads),)


class Pool(nn.Module):
    """query [B, T, Dq], key [B, S, Dk], value [B, S, Dv], pool [P, T] -> output [B, P, D]."""

    def __init__(self, block: SelfAttention) -> None:
        super().__init__()
        self.block = block

    def forward(self, query: Tensor, key: Tensor, value: Tensor, pool: Tensor) -> Tensor:
        return self.block.pool(query, key, value, pool)


class Attend(nn.Module):
    """query, k, v [, mask] -> [q,] [heads,] output [, weights].

    `explicit` spells out the products and the softmax, for devices whose `Attention` kernel returns no weights.
    """

    def __init__(self, block: DotProduct, *, weights: bool, mask: bool, explicit: bool = False) -> None:
        super().__init__()
        self.block, self.weights, self.mask, self.explicit = block, weights, mask, explicit
        self.learned, self.combined = hasattr(block, "M_Q"), hasattr(block, "M_O")

    def forward(self, query: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        q = self.block.queries(query)
        heads, weights = (self._explicit_attention if self.explicit else self._onnx_attention)(q, k, v, mask)
        found = {"q": q, "heads": heads, "output": self.block.combine(heads), "weights": weights}
        return tuple(stage for name in self.outputs() if (stage := found[name]) is not None)

    def inputs(self) -> dict[str, Shape]:
        """Return the inputs' shapes; see `_declare_shapes` for the mask."""
        query, _, _ = _widths(self.block)
        k, v = _projected_widths(self.block)
        shapes: dict[str, Shape] = {"query": ("B", "T", query), "k": ("B", "S", k), "v": ("B", "S", v)}
        return shapes | ({"mask": (1, 1, "T", "S")} if self.mask else {})

    def outputs(self) -> dict[str, Shape]:
        """Return the outputs' shapes. A stage that is an input, or the same as the output, is left out."""
        heads = self.block.dims.heads
        k, v = _projected_widths(self.block)
        joined = v if isinstance(v, str) else v // shared_heads(self.block) * heads
        offered: dict[str, tuple[bool, Shape]] = {
            "q": (self.learned, ("B", "T", k)),
            "heads": (self.combined, ("B", "T", joined)),
            "output": (True, ("B", "T", self.block.dims.output if self.combined else joined)),
            "weights": (self.weights, ("B", heads, "T", "S")),
        }
        return {name: shape for name, (there, shape) in offered.items() if there}

    def entry(self, file: File) -> AttendGraph:
        """Return the entry of the graph in the manifest."""
        # The explicit graph runs on every device, but slower; CUDA needs it, because its kernel returns no weights.
        devices = ["cuda"] if self.explicit else ["cpu"] if self.weights or self.mask else []
        return AttendGraph(file=file, weights=self.weights, mask=self.mask, devices=devices)

    def _onnx_attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        dims, shared = self.block.dims, shared_heads(self.block)
        if self.block.zero_key:
            k, v = pad(k, (0, 0, 0, 1)), pad(v, (0, 0, 0, 1))
            mask = None if mask is None else pad(mask, (0, 1))
        batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
        attributes: dict[str, Any] = {
            "q_num_heads": dims.heads,
            "kv_num_heads": shared,
            "scale": float(self.block.scale),
            "softcap": float(self.block.softcap),
        }
        shapes: list[tuple[int, ...]] = [(batch, queries, v.shape[-1] // shared * dims.heads)]
        if self.weights:
            attributes["qk_matmul_output_mode"] = WEIGHTS_AFTER_SOFTMAX
            shapes += [(batch, shared, keys, q.shape[-1]), (batch, shared, keys, v.shape[-1])]
            shapes += [(batch, dims.heads, queries, keys)]
        # Not torch.onnx.ops.attention: it infers that values are as wide as queries.
        heads, *rest = torch.onnx.ops.symbolic_multi_out(
            "Attention",
            [x for x in (q, k, v, mask) if x is not None],
            attrs=attributes,
            dtypes=[torch.float32] * len(shapes),
            shapes=shapes,
            version=OPSET,
        )
        if rest and self.block.zero_key:
            # Not a slice: the exporter infers a wrong size after Attention, and drops a slice that keeps it.
            return heads, rest[-1].split([keys - 1, 1], -1)[0]
        return heads, rest[-1] if rest else None

    def _explicit_attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        dims, shared = self.block.dims, shared_heads(self.block)
        stages = self.block.attend(split(q, dims.heads), split(k, shared), split(v, shared), mask)
        return join(stages.heads), stages.weights


def shared_heads(block: DotProduct) -> int:
    """Return the heads of k and v."""
    return block.dims.key_value_heads or block.dims.heads


def attend_graphs(block: DotProduct) -> list[tuple[Graph, Attend]]:
    """Return the attention graphs, the cheapest first."""
    modules = {
        "attend": Attend(block, weights=False, mask=False),
        "attend-masked": Attend(block, weights=False, mask=True),
        "explain": Attend(block, weights=True, mask=False),
        "explain-masked": Attend(block, weights=True, mask=True),
        "explain-explicit": Attend(block, weights=True, mask=True, explicit=True),
    }
    return [
        (Graph(f"{name}.onnx", module, module.inputs(), module.outputs()), module) for name, module in modules.items()
    ]


def project_graph(block: DotProduct) -> Graph | None:
    """Return the graph that projects k and v; None for a block without projections."""
    if not hasattr(block, "M_K"):
        return None
    _, key, value = _widths(block)
    k, v = _projected_widths(block)
    inputs: dict[str, Shape] = {"key": ("B", "S", key), "value": ("B", "S", value)}
    return Graph("project.onnx", Project(block), inputs, {"k": ("B", "S", k), "v": ("B", "S", v)})


def pool_graph(block: DotProduct) -> Graph | None:
    """Return the graph that averages rows of the output; None for a block without M_V or with a zero key."""
    if not isinstance(block, SelfAttention) or block.zero_key:
        return None
    query, key, value = _widths(block)
    inputs: dict[str, Shape] = {"query": ("B", "T", query), "key": ("B", "S", key), "value": ("B", "S", value)}
    width = Attend(block, weights=False, mask=False).outputs()["output"][-1]
    return Graph("pool.onnx", Pool(block), inputs | {"pool": ("P", "T")}, {"output": ("B", "P", width)})


def front_graphs(model: Model) -> list[Graph]:
    """Return the graphs that turn tokens into vectors: one for the query, and one for the memory if separate."""
    if model.text is None:
        return []
    fronts: list[tuple[str, nn.Module, str, tuple[str, ...]]] = [
        ("front", model.text.front, "T", ("query", "key", "value"))
    ]
    if model.text.memory_front is not None:
        fronts.append(("memory-front", model.text.memory_front, "S", ("key", "value")))
    return [
        Graph(f"{file}.onnx", module, {"tokens": ("B", length)}, _front_outputs(module, length, names))
        for file, module, length, names in fronts
    ]


def _front_outputs(module: nn.Module, length: str, names: tuple[str, ...]) -> dict[str, Shape]:
    with torch.no_grad():
        vectors = module(torch.zeros(1, 1, dtype=torch.int64))
    return {name: ("B", length, vector.shape[-1]) for name, vector in zip(names, vectors, strict=False)}


def combine_graph(block: DotProduct) -> Graph | None:
    """Return the graph that combines heads, for the contribution of each; None for a block without M_O."""
    if not hasattr(block, "M_O"):
        return None
    heads = Attend(block, weights=False, mask=False).outputs()["heads"]
    return Graph("combine.onnx", Combine(block), {"heads": heads}, {"output": ("B", "T", block.dims.output)})


def head_graph(model: Model) -> Graph | None:
    """Return the graph from output rows to predictions; None for a model without a head."""
    if model.head is None:
        return None
    outputs: dict[str, Shape] = {p.name: ("N", len(p.labels)) for p in model.predictors}
    return Graph("head.onnx", model.head, {"output": ("N", model.block.dims.output or model.block.dims.value)}, outputs)


def to_onnx(graph: Graph) -> bytes:
    """Export a graph; the same weights give the same bytes.

    Raises:
        ExportFailure: PyTorch cannot export it, or exports an invalid model.
    """
    try:
        model = _traced(graph)
        _declare_shapes(model, graph)
        strip(model)
        onnx.checker.check_model(model, full_check=True)
    except (torch.onnx.OnnxExporterError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        # The exporter's message is a page of advice; the cause has the error itself.
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ExportFailure(f"{graph.file} cannot be exported to ONNX: {reason}") from error
    return model.SerializeToString(deterministic=True)


def strip(model: onnx.ModelProto) -> None:
    """Remove stack traces and paths of the exporting machine, so that the bytes are equal everywhere."""
    del model.metadata_props[:]
    parts: Iterable[Any] = (
        model.graph,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    )
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]


def _traced(graph: Graph) -> onnx.ModelProto:
    examples = {name: _example(name, shape) for name, shape in graph.inputs.items()}
    dims = {name: Dim(name) for name in EXAMPLE_SIZES}
    dynamic = {
        name: {axis: dims[dim] for axis, dim in enumerate(shape) if isinstance(dim, str)}
        for name, shape in graph.inputs.items()
    }
    with _quiet():
        keep_signatures()
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(examples.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=tuple(dynamic.values()),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _example(name: str, shape: Shape) -> Tensor:
    sizes = [EXAMPLE_SIZES[dim] if isinstance(dim, str) else dim for dim in shape]
    return torch.zeros(sizes, dtype=torch.int64 if name == "tokens" else torch.float32)


def _declare_shapes(model: onnx.ModelProto, graph: Graph) -> None:
    """Write the declared shapes over the traced ones, which lose the names of dimensions behind a custom operator."""
    del model.graph.value_info[:]
    shapes = {**graph.inputs, **graph.outputs}
    for info in (*model.graph.input, *model.graph.output):
        shape = shapes[info.name]
        if info.name == "mask":
            # Traced with sizes of 1, or torch.export would tie its sizes to the query's; ONNX broadcasts the actual
            # mask.
            shape = ("mask_B", "mask_H", *shape[2:])
        info.type.CopyFrom(onnx.helper.make_tensor_type_proto(info.type.tensor_type.elem_type, shape))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's warnings: missing torchvision, renamed dimensions, internal deprecations.

    Also suppressed is the source code that it prints on a failure; the exception has the reason.
    """
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _widths(block: DotProduct) -> tuple[str | int, str | int, str | int]:
    """Return the widths of query, key and value; a dimension name for any width."""
    dims = block.dims
    return dims.query or "D", dims.key or dims.query or "D", dims.value or dims.key or "Dv"


def _projected_widths(block: DotProduct) -> tuple[str | int, str | int]:
    """Return the widths of k and v, heads side by side."""
    if not hasattr(block, "M_K"):
        return _widths(block)[1:]
    return block.dims.heads * block.dims.head, block.dims.heads * block.dims.value_head
