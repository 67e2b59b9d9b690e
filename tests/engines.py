"""onnxruntime with a function that a test puts before every run of a graph."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.inference.engine.protocol import Graph, Run


@dataclass
class ObservedGraph:
    """A graph that calls a function before each run."""

    graph: Graph
    before: Callable[[Run], None]

    @property
    def inputs(self) -> Mapping[str, Any]:
        return self.graph.inputs

    @property
    def outputs(self) -> Mapping[str, Any]:
        return self.graph.outputs

    @property
    def nodes(self) -> Mapping[str, Mapping[str, int]]:
        return self.graph.nodes

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any], run: Run) -> list[Any]:
        self.before(run)
        return self.graph.run(outputs, feeds, run)

    def run_path(self, outputs: Sequence[str], feeds: Mapping[str, Any], run: Run) -> list[Any]:
        self.before(run)
        return self.graph.run_path(outputs, feeds, run)


class ObservedEngine(OnnxRuntime):
    """onnxruntime on the CPU; every graph calls a function before each run.

    Args:
        before: takes the run; it may wait, and the run fails by what it raises.
    """

    def __init__(self, before: Callable[[Run], None]) -> None:
        super().__init__("cpu", threads=1)
        self.before = before

    def open(self, content: bytes) -> ObservedGraph:
        return ObservedGraph(super().open(content), self.before)
