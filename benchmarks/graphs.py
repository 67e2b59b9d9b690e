"""Cost of weights and of a mask in ONNX's Attention, the reason for a graph of each combination.

    taskset -c 1 .venv-dev/bin/python benchmarks/graphs.py

12 heads, d = 384, one thread; the graphs take turns. Prints a Markdown table, and the time and memory of a session.
"""

import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort
import torch
from attention_export.blocks import Dims, DotProduct
from attention_export.graphs import attend_graphs, to_onnx
from attention_export.verify import session
from numpy.typing import NDArray
from rich.console import Console

HEADS, WIDTH = 12, 384
LENGTHS = {8: 2000, 32: 600, 128: 80, 512: 8}  # positions: runs a round
ROUNDS = 7
SESSIONS = 20
FORMS = {"attend": "neither", "explain": "weights", "attend-masked": "mask", "explain-masked": "both"}


def main() -> None:
    torch.set_num_threads(1)
    block = DotProduct(Dims(query=WIDTH, key=WIDTH, value=WIDTH, heads=HEADS), scale=(WIDTH / HEADS) ** -0.5)
    wanted = {f"{name}.onnx" for name in FORMS}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for graph, _ in attend_graphs(block):
            if graph.file in wanted:
                (folder / graph.file).write_bytes(to_onnx(graph))
        say = Console().print
        say("| T | neither, ms | weights | mask | both |", "|---|---|---|---|---|", *rows(folder), sep="\n")
        say(costs(folder / "explain-masked.onnx"))


def rows(folder: Path) -> Iterator[str]:
    sessions = {form: session(folder / f"{name}.onnx") for name, form in FORMS.items()}
    for length, runs in LENGTHS.items():
        best = dict.fromkeys(FORMS.values(), float("inf"))
        for _, (form, graph) in product(range(ROUNDS), sessions.items()):
            best[form] = min(best[form], seconds(graph, feeds(graph, length), runs))
        ratios = " | ".join(f"{best[form] / best['neither']:.2f}" for form in ("weights", "mask", "both"))
        yield f"| {length} | {best['neither'] * 1e3:.3f} | {ratios} |"


def feeds(graph: ort.InferenceSession, length: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    shapes = {"mask": (1, 1, length, length)}
    names = [node.name for node in graph.get_inputs()]
    vectors = {name: rng.standard_normal((1, length, WIDTH), np.float32) for name in names if name not in shapes}
    return vectors | {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name in names}


def seconds(graph: ort.InferenceSession, inputs: dict[str, NDArray[np.float32]], runs: int) -> float:
    begin = time.perf_counter()
    for _ in range(runs):
        graph.run(None, inputs)
    return (time.perf_counter() - begin) / runs


def costs(path: Path) -> str:
    begin, before = time.perf_counter(), resident_mib()
    kept = [session(path) for _ in range(SESSIONS)]
    took, grew = (time.perf_counter() - begin) / len(kept), (resident_mib() - before) / len(kept)
    return f"a session: {took * 1e3:.2f} ms to open, {grew:.2f} MiB resident"


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024


if __name__ == "__main__":
    main()
