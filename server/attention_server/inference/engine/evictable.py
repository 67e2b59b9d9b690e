"""A graph that can be closed to free its memory, and opened again."""

from collections.abc import Mapping, Sequence
from typing import NoReturn, Protocol

from attention_server.domain.messages import Array
from attention_server.inference.engine.protocol import Graph, Run


class RunGraph(Protocol):
    """A graph's `run` or `run_path`."""

    def __call__(self, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Array]:
        """Compute outputs; see `Graph`."""
        ...


class EvictableGraph:
    """A graph whose inputs and outputs stay known while it is closed.

    `run` and `run_path` are the open graph's own methods, so a run costs nothing more.

    Args:
        graph: the open graph.
    """

    run: RunGraph
    run_path: RunGraph

    def __init__(self, graph: Graph) -> None:
        self.inputs = graph.inputs
        self.outputs = graph.outputs
        self.nodes = graph.nodes
        self.open(graph)

    def open(self, graph: Graph) -> None:
        """Compute with another graph of the same file."""
        self.graph: Graph | None = graph
        self.run, self.run_path = graph.run, graph.run_path

    def close(self) -> Graph | None:
        """Compute no more until it is opened; return the graph, which is freed with its last reference."""
        graph, self.graph = self.graph, None
        self.run = self.run_path = _closed
        return graph


def _closed(*_: object, **__: object) -> NoReturn:
    """Refuse to compute.

    Raises:
        RuntimeError: always: a graph is closed while nothing holds its version.
    """
    raise RuntimeError("the graph is closed")
