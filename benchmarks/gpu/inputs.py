"""Random inputs of any graph of a version, by the names and shapes that the graph declares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

WIDTH = 24  # of vectors, in a graph that takes any
POSITIONS = ("position_ids", "query_positions", "key_positions")


@dataclass(frozen=True)
class Sizes:
    """The sizes of the dimensions that vary: sequences, queries, keys."""

    batch: int
    queries: int
    keys: int

    def of(self, dimension: str) -> int:
        """Return the size of a named dimension."""
        if dimension.startswith("mask_"):
            return 1
        named = {"B": self.batch, "T": self.queries, "S": self.keys, "N": self.queries, "P": 3}
        return named.get(dimension, WIDTH)


def random_feeds(content: bytes, sizes: Sizes, max_tokens: int = 0, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return inputs for a graph.

    Tokens are of the vocabulary, positions count from 0, the mask hides keys and one whole row, the rows of `pool` have
    the sum 1, and everything else is normal.

    Args:
        content: an ONNX file.
        sizes: of the dimensions that vary.
        max_tokens: the greatest length of a graph that takes tokens; 0 for any.
        seed: of the numbers.
    """
    graph = onnx.load_from_string(content).graph
    rng = np.random.default_rng(seed)
    if max_tokens and any(info.name == "tokens" for info in graph.input):
        sizes = Sizes(sizes.batch, min(sizes.queries, max_tokens), min(sizes.keys, max_tokens))
    return {info.name: _feed(info, graph, sizes, rng) for info in graph.input}


def _feed(info: onnx.ValueInfoProto, graph: onnx.GraphProto, sizes: Sizes, rng: np.random.Generator) -> NDArray[Any]:
    tensor = info.type.tensor_type
    shape = [dim.dim_value or sizes.of(dim.dim_param) for dim in tensor.shape.dim]
    if tensor.elem_type == onnx.TensorProto.INT64:
        return _integers(info.name, graph, shape, rng)
    if info.name == "mask":
        hidden = rng.random(shape) < 0.3
        hidden[..., shape[-2] // 2, :] = True
        return np.where(hidden, -np.inf, 0.0).astype(np.float32)
    if info.name == "pool":
        return rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)
    return rng.standard_normal(shape).astype(np.float32)


def _integers(name: str, graph: onnx.GraphProto, shape: list[int], rng: np.random.Generator) -> NDArray[np.int64]:
    if name in POSITIONS:
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(np.int64)
    rows = _table_rows(graph)
    return rng.integers(0, rows[name], shape) if name in rows else np.zeros(shape, np.int64)


def _table_rows(graph: onnx.GraphProto) -> Mapping[str, int]:
    """Return the rows of the table that each input indexes."""
    tables = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    lookups = [node.input for node in graph.node if node.op_type == "Gather" and node.input[0] in tables]
    return {lookup[1]: tables[lookup[0]] for lookup in lookups}
