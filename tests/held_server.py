"""The server of `attention_server.app`, over graphs that run for as long as a test says: HELD_SERVER FILE [FLAG...].

While the file exists no run of a graph ends, and the first one that waits makes FILE.reached; without it each takes a
hundredth of a second and more, so that no request is one of the short ones, which the loop computes.
"""

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_server.app import main
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.inference.engine.protocol import Graph, Run

LEAST_SECONDS = 0.01


@dataclass
class HeldGraph:
    """A graph with runs that take some time and do not end while a file exists."""

    graph: Graph
    file: Path

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
        threading.Event().wait(LEAST_SECONDS)
        while self.file.exists():
            self.file.with_name(f"{self.file.name}.reached").touch()
            threading.Event().wait(LEAST_SECONDS)
        return self.graph.run(outputs, feeds, run)


class HeldEngine(OnnxRuntime):
    """onnxruntime with graphs that a file holds up."""

    def __init__(self, file: Path) -> None:
        super().__init__("cpu", threads=1)
        self.file = file

    def open(self, content: bytes) -> HeldGraph:
        return HeldGraph(super().open(content), self.file)


if __name__ == "__main__":
    engine = HeldEngine(Path(sys.argv.pop(1)))
    main(engine)
