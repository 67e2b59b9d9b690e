"""Speed and error of int8 matrices in one multi-head block, `project` and `attend`, on one thread.

    taskset -c 1 .venv-dev/bin/python benchmarks/quantization.py

Three methods take turns with float32: by row (`attention_export.int8`); by tensor (onnxruntime's `quantize_dynamic`)
with 7 bits of the matrices; and the latter with 8 bits. Prints a Markdown table.
"""

import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from attention_export.blocks import Dims, MultiHead
from attention_export.graphs import attend_graphs, project_graph, to_onnx
from attention_export.int8 import to_int8
from attention_export.verify import run
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from rich.console import Console

SIZES = ((384, 12), (768, 12))  # width, heads
LENGTHS = {4: 300, 32: 150, 128: 60, 512: 16}  # positions, rounds
SEED = 0

Vectors = NDArray[np.float32]


class Block(NamedTuple):
    """The graphs of a block: `attend` for time, `explain` for errors."""

    project: ort.InferenceSession
    attend: ort.InferenceSession
    explain: ort.InferenceSession

    def stages(self, x: Vectors) -> dict[str, Vectors]:
        return run(self.explain, {"query": x, **run(self.project, {"key": x, "value": x})})

    def seconds(self, x: Vectors) -> float:
        start = time.perf_counter()
        run(self.attend, {"query": x, **run(self.project, {"key": x, "value": x})})
        return time.perf_counter() - start


def by_tensor(content: bytes, *, reduce_range: bool) -> bytes:
    with TemporaryDirectory() as folder:
        before, after = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(content)
        quantize_dynamic(
            before,
            after,
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
        )
        return after.read_bytes()


METHODS: dict[str, Callable[[bytes], bytes]] = {
    "float32": bytes,
    "by row": to_int8,
    "by tensor": lambda content: by_tensor(content, reduce_range=True),
    "by tensor, 8 bits": lambda content: by_tensor(content, reduce_range=False),
}


def session(content: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def make_blocks(width: int, heads: int) -> dict[str, Block]:
    """Make a block with random weights, in float32 and by each method."""
    torch.manual_seed(SEED)
    block = MultiHead(Dims(query=width, heads=heads))
    project = project_graph(block)
    assert project is not None
    graphs = {graph.file: graph for graph, _ in attend_graphs(block)}
    contents = [to_onnx(graph) for graph in (project, graphs["attend.onnx"], graphs["explain.onnx"])]
    return {name: Block(*(session(convert(content)) for content in contents)) for name, convert in METHODS.items()}


def measure(blocks: dict[str, Block], x: Vectors, rounds: int) -> list[str]:
    """Return a row's cells: float32's milliseconds, then each method's speed-up, and errors of output and weights."""
    times = [[block.seconds(x) for block in blocks.values()] for _ in range(rounds + 1)][1:]
    exact, *rounded = (block.stages(x) for block in blocks.values())
    cells = [f"{1e3 * statistics.median(each[0] for each in times):.3f}"]
    for method, found in enumerate(rounded, 1):
        # The ratio is taken within a round, since the machine's load changes between rounds.
        speedup = statistics.median(each[0] / each[method] for each in times)
        output = np.abs(found["output"] - exact["output"]).max() / np.abs(exact["output"]).max()
        weights = np.abs(found["weights"] - exact["weights"]).max()
        cells.append(f"{speedup:.2f} x, {output:.1%}, {weights:.4f}")
    return cells


def main() -> None:
    logging.disable(logging.CRITICAL)  # onnxruntime prints advice about every graph
    console = Console(width=200, highlight=False)
    console.print(f"| d | T | float32, ms | {' | '.join(list(METHODS)[1:])} |")
    console.print("|---|---|---|---|---|---|")
    rng = np.random.default_rng(SEED)
    for width, heads in SIZES:
        blocks = make_blocks(width, heads)
        for length, rounds in LENGTHS.items():
            x = rng.standard_normal((1, length, width)).astype(np.float32)
            console.print(f"| {width} | {length} | {' | '.join(measure(blocks, x, rounds))} |")


if __name__ == "__main__":
    main()
