"""Measurement of an int8 version: error and speed against float32, with the server's graphs on a CPU."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from attention_proto.attention.v1.attention_pb2 import AttendGraph, Layer, Manifest, Quantization, QuantizationError
from attention_proto.folder import NEXT
from numpy.typing import NDArray

from attention_export.int8.examples import Example
from attention_export.int8.rounding import BITS, METHOD
from attention_export.verify import run, session

SECONDS_TO_TIME = 5.0
TIMED = 32  # sequences, spread over the data
FEWEST_ROUNDS, MOST_ROUNDS = 5, 101

Array = NDArray[Any]


def measure(folder: Path, written: Path, manifest: Manifest, examples: Sequence[Example]) -> Quantization:
    """Return the manifest's record of an int8 version.

    Args:
        folder: the float32 version's folder.
        written: the int8 version's folder.
        manifest: the int8 version's manifest, with the same layers and file names as float32's.
        examples: the sequences to measure on; at least one.
    """
    exact, rounded = _VersionRunner(folder, manifest), _VersionRunner(written, manifest)
    before, after = _seconds(exact, rounded, examples)
    return Quantization(
        method=METHOD,
        bits=BITS,
        source=f"{folder.parent.name}/{folder.name}",
        sequences=len(examples),
        positions=sum(example.positions for example in examples),
        errors=_errors(exact, rounded, manifest, examples),
        float32_seconds=before,
        int8_seconds=after,
        speedup=before / after,
    )


def cpu_graphs(layer: Layer) -> list[AttendGraph]:
    """Return the attention graphs for a CPU, the cheapest first."""
    return [graph for graph in layer.attend if not graph.devices or "cpu" in graph.devices]


class _VersionRunner:
    """A version's graphs on the CPU, one thread each, run in the server's order."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._text = manifest.text
        self._layers = manifest.layers
        files = [each.file for layer in manifest.layers for each in cpu_graphs(layer)]
        files += [segment.graph for segment in manifest.segments]
        files += [manifest.text.front, manifest.text.memory_front]
        self._segments = manifest.segments
        self._sessions = {file.name: session(folder / file.name) for file in files if file.name}

    def run(self, example: Example) -> None:
        """Compute the last layer's output with the cheapest graphs."""
        for _ in self.stages(example, every_graph=False):
            pass

    def stages(self, example: Example, *, every_graph: bool) -> Iterator[list[dict[str, Array]]]:
        """Yield, layer by layer, the outputs of each graph, or of the cheapest graph alone."""
        query, key, value = self._read(example)
        feeds = {"key": key, "value": value}
        for segment, layer in zip(self._segments, self._layers, strict=False):
            projected = self._run(segment.graph.name, **feeds)
            query = projected.pop(f"{NEXT}query", query)
            graphs = cpu_graphs(layer)[: None if every_graph else 1]
            found = [self._attend(graph, query, projected) for graph in graphs]
            yield found
            feeds = {"query": query, "output": found[0]["output"]}

    def _read(self, example: Example) -> tuple[Array, Array, Array]:
        """Return query, key and value: the given vectors, the front's output for tokens, or the defaults."""
        query, key, value = example.query, example.key, example.value
        if example.tokens is not None:
            front = self._run(self._text.front.name, tokens=example.tokens)
            query = front["query"]
            key, value = (front.get("key"), front.get("value")) if key is None else (key, value)
        if example.memory_tokens is not None:
            front = self._run(self._text.memory_front.name, tokens=example.memory_tokens)
            key, value = front["key"], front.get("value")
        assert query is not None
        key = query if key is None else key
        return query, key, key if value is None else value

    def _attend(self, graph: AttendGraph, query: Array, projected: dict[str, Array]) -> dict[str, Array]:
        """Run an attention graph, a masked one with a mask of zeros."""
        pairs = (1, 1, query.shape[1], projected["k"].shape[1])
        mask = {"mask": np.zeros(pairs, np.float32)} if graph.mask else {}
        return self._run(graph.file.name, query=query, **projected, **mask)

    def _run(self, name: str, **feeds: Array) -> dict[str, Array]:
        return run(self._sessions[name], feeds)


@dataclass
class _Error:
    """Running statistics of a stage's error."""

    largest: float = 0.0
    total: float = 0.0
    count: int = 0
    of: float = 0.0

    def add(self, exact: Array, found: Array) -> None:
        error = np.abs(found.astype(np.float64) - exact)
        self.largest = float(np.maximum(self.largest, error.max()))  # keeps a NaN, as max() does not
        self.total += float(error.sum())
        self.count += error.size
        self.of = max(self.of, float(np.abs(exact).max()))

    def record(self, layer: str, stage: str) -> QuantizationError:
        return QuantizationError(
            layer=layer,
            stage=stage,
            largest=self.largest,
            mean=self.total / self.count,
            relative=self.largest / self.of if self.largest else 0.0,
        )


def _errors(
    exact: _VersionRunner, rounded: _VersionRunner, manifest: Manifest, examples: Sequence[Example]
) -> list[QuantizationError]:
    """Compare the stages of every layer and graph; each version computes on with its own layers' outputs."""
    errors = {(layer.name, stage): _Error() for layer in manifest.layers for stage in ("output", "weights")}
    for example in examples:
        both = (runner.stages(example, every_graph=True) for runner in (exact, rounded))
        for layer, *found in zip(manifest.layers, *both, strict=True):
            for right, coarse in zip(*found, strict=True):
                for stage in right.keys() & {"output", "weights"}:
                    errors[layer.name, stage].add(right[stage], coarse[stage])
    return [error.record(layer, stage) for (layer, stage), error in errors.items()]


def _seconds(exact: _VersionRunner, rounded: _VersionRunner, examples: Sequence[Example]) -> tuple[float, float]:
    """Return each version's seconds a sequence: the mean of the sequences' medians, versions timed in turn."""
    timed = examples[:: -(-len(examples) // TIMED)]
    pair = (exact, rounded)
    warm_up = sum(_timed(runner, example) for example in timed for runner in pair)
    rounds = int(np.clip(SECONDS_TO_TIME / warm_up, FEWEST_ROUNDS, MOST_ROUNDS))
    medians = []
    for example in timed:
        times = [[_timed(runner, example) for runner in pair] for _ in range(rounds)]
        medians.append([statistics.median(each) for each in zip(*times, strict=True)])
    before, after = np.mean(medians, axis=0)
    return float(before), float(after)


def _timed(runner: _VersionRunner, example: Example) -> float:
    start = time.perf_counter()
    runner.run(example)
    return time.perf_counter() - start
