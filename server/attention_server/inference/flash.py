"""Attention of long sequences without weights: onnxruntime's `MultiHeadAttention`, which makes no matrix of scores.

It takes no mask and no bias, and gives heads alone. docs/decisions/flash-without-weights.md has the figures.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer

from attention_server.domain.messages import Array
from attention_server.inference.engine.onnx_file import Node, onnx_file
from attention_server.inference.engine.protocol import Engine, Graph, Run, Shape
from attention_server.inference.site_changes import query_of, result_of

LEAST_QUERIES, LEAST_KEYS = 1024, 1024  # of a site that is computed by it
LEAST_WIDTH = 16  # of a head; narrower ones take longer than in blocks with scores
LEAST_ROWS, MOST_ROWS = 512, 2048  # of a block, which transposes k and v for itself
BLOCKS = 8  # of a sequence between these bounds, for idle slots
AXES = {"q": "BTQ", "k": "BSK", "v": "BSV"}

Constants = tuple[int, float]  # heads, and the scale of scores; 0 for 1 / sqrt(Dh)


def flash_constants(layer: Layer) -> Constants | None:
    """Return the constants of a site's graph; None for narrow heads, and where masks, softcap or sinks need scores."""
    is_masked = layer.causal or layer.window or layer.HasField("bias")
    is_narrow = 0 < min(layer.head_dim, layer.value_head_dim) < LEAST_WIDTH
    if is_masked or is_narrow or layer.softcap or layer.sinks or layer.zero_key:
        return None
    return layer.heads, layer.scale


def open_flash(layers: Iterable[Layer], engine: Engine) -> dict[Constants, Graph]:
    """Open the graphs of the sites that can be computed so, each once; none on a GPU."""
    found = dict.fromkeys(map(flash_constants, layers)) if engine.device == "cpu" else {}
    return {each: engine.open(_file(*each)) for each in found if each is not None}


def _file(heads: int, scale: float) -> bytes:
    attributes: dict[str, float] = {"num_heads": heads} | ({"scale": scale} if scale else {})
    node = Node("MultiHeadAttention", tuple(AXES), ("heads",), attributes, "com.microsoft")
    return onnx_file("flash", [node], AXES, "heads")


def is_flash(queries: int, keys: int) -> bool:
    """Return whether a site of this shape, without mask and weights, is computed so."""
    return queries >= LEAST_QUERIES and keys >= LEAST_KEYS


def flash_rows(queries: int) -> int:
    """Return the number of rows that are computed together."""
    return min(max(queries // BLOCKS, LEAST_ROWS), MOST_ROWS)


def flash_bytes(layer: Layer, rows: int, keys: int, widths: tuple[int, int, int]) -> int:
    """Return the bytes that a block takes while it is computed: k and v, and the rows of q and heads, transposed.

    Args:
        layer: the site.
        rows: of the block.
        keys: S.
        widths: Dh, Dv and D.
    """
    head, value, _ = widths
    transposed = (keys + 2 * rows) * (layer.heads > 1)  # the layouts of one head are the same
    shared = keys * (layer.key_value_heads < layer.heads)
    return 4 * layer.heads * (transposed + shared) * (head + value)


@dataclass(frozen=True)
class FlashAttention:
    """A site's graph without weights, computed by `MultiHeadAttention`; of a fused graph the query's projection runs.

    Attributes:
        about: the site.
        graph: the graph that it stands for.
        flash: computes heads from q, k and v.
    """

    about: Layer
    graph: Graph
    flash: Graph

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """The inputs of the graph."""
        return self.graph.inputs

    @property
    def outputs(self) -> Mapping[str, Shape]:
        """The outputs of the graph, without weights and the output of M_O."""
        kept = ("q", result_of(self.graph))
        return {name: shape for name, shape in self.graph.outputs.items() if name in kept}

    @property
    def nodes(self) -> Mapping[str, Mapping[str, int]]:
        """The nodes of the graph that computes the heads."""
        return self.flash.nodes

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Array]:
        """Compute outputs by name; see `Graph.run`."""
        q = query_of(self.graph, feeds, run)
        found = {"q": q}
        if (result := result_of(self.graph)) in outputs:
            k, v = (self._of_all_heads(feeds[name]) for name in "kv")
            (found[result],) = self.flash.run(("heads",), {"q": q, "k": k, "v": v}, run)
        return [found[name] for name in outputs]

    run_path = run

    def _of_all_heads(self, packed: Array) -> Array:
        """Return k or v of each head, [B, S, H * width], where several share one."""
        groups = self.about.key_value_heads
        if groups == self.about.heads:
            return packed
        split = packed.reshape(*packed.shape[:2], groups, -1)
        return np.repeat(split, self.about.heads // groups, 2).reshape(*packed.shape[:2], -1)
