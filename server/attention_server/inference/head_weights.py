"""Weights of long sequences without a mask, of one head after another.

The weights of some rows of one head fit the processor's cache while they are reduced, where those of all heads do not;
and no head's result, weights times v, is computed. docs/decisions/blocks-of-rows.md has the figures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer
from numpy.typing import NDArray

from attention_server.domain.messages import Array
from attention_server.inference.engine.onnx_file import Node, onnx_file
from attention_server.inference.engine.protocol import Engine, Graph, Run
from attention_server.inference.layer import LoadedLayer
from attention_server.inference.planner import choose_graph
from attention_server.inference.scores import split_heads
from attention_server.inference.site_changes import NO_CHANGE, query_of
from attention_server.inference.validation import no_overflow

Vectors = NDArray[np.float32]
LEAST_QUERIES, LEAST_KEYS = 129, 512  # of a site that is computed so
ROWS = 128  # of a block
SURELY_FINITE = 1e38  # a bound of scores below which neither they nor their sums overflow float32
AXIS = -1  # of the keys, over which weights sum to 1
AXES = {"q": "TD", "k": "DS"}  # k is transposed once for all blocks


def open_head_weights(engine: Engine) -> Graph:
    """Open the graph of any head's weights: softmax(q k)."""
    nodes = [Node("MatMul", ("q", "k"), ("scores",)), Node("Softmax", ("scores",), ("weights",), {"axis": AXIS})]
    return engine.open(onnx_file("head_weights", nodes, AXES, "weights"))


def is_by_head(layer: LoadedLayer, queries: int, keys: int) -> bool:
    """Return whether a site of this shape, without a mask, is computed so where weights alone are asked for."""
    is_long = queries >= LEAST_QUERIES and keys >= LEAST_KEYS and layer.block_rows(queries, keys) < queries
    return is_long and layer.softmax is not None and layer.change == NO_CHANGE


@dataclass(frozen=True)
class HeadWeights:
    """The weights of a site, by blocks of rows and by heads.

    Attributes:
        about: the site.
        graph: of attention; of a fused one the query's projection runs.
        softmax: gives the weights of one head.
        k: of each head, transposed, [Hkv, Dh, S].
        longest: the norm of the longest key of each head, [Hkv]: it bounds the scores.
    """

    about: Layer
    graph: Graph
    softmax: Graph
    k: Vectors
    longest: NDArray[np.float64]

    @classmethod
    def of(cls, layer: LoadedLayer, k: Vectors) -> "HeadWeights":
        """Return those of a site with `softmax`, and k [1, S, Hkv * Dh]."""
        assert layer.softmax is not None
        (heads,) = split_heads(k, layer.about.key_value_heads)
        transposed = np.ascontiguousarray(heads.transpose(0, 2, 1))
        graph = layer.graphs[choose_graph(layer.about, layer.device, weights=False, mask=False).file.name]
        return cls(layer.about, graph, layer.softmax, transposed, _norms(transposed, 1))

    def of_rows(self, feeds: Mapping[str, Array], run: Run, path: str) -> Iterator[Vectors]:
        """Yield the weights of each head, [r, S].

        Args:
            feeds: q or the query of the rows; k and v.
            run: the computation that this is a part of.
            path: of the sequence, for the error.

        Raises:
            InvalidRequest: a score overflows float32.
        """
        about = self.about
        (q,) = split_heads(query_of(self.graph, feeds, run), about.heads)
        scaled = q * np.float32(about.scale or q.shape[-1] ** -0.5)
        bounds = _norms(scaled, 2)
        for head, rows in enumerate(np.ascontiguousarray(scaled)):
            group = head * about.key_value_heads // about.heads
            k = self.k[group]
            if not bounds[head] * self.longest[group] < SURELY_FINITE:  # `not <` also catches NaN
                with np.errstate(over="ignore", invalid="ignore"):
                    no_overflow(rows @ k, path)
            (weights,) = self.softmax.run(("weights",), {"q": rows, "k": k}, run)
            yield weights  # type: ignore[misc] # all graphs give float32


def _norms(vectors: Vectors, axis: int) -> NDArray[np.float64]:
    """Return the norm of the longest vector of each head; the axis has its numbers."""
    with np.errstate(over="ignore"):  # an infinite bound has the scores looked at
        squares = np.einsum("hds,hds->hs" if axis == 1 else "hrd,hrd->hr", vectors, vectors)
    norms: NDArray[np.float64] = np.sqrt(squares.max(-1), dtype=np.float64)
    return norms
