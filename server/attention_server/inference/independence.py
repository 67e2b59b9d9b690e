"""Probes that tell whether a graph computes each row, and each sequence of a batch, from its own inputs alone.

The server relies on it: it computes chosen rows alone, cuts long sequences into blocks of rows for idle slots, and runs
sequences of several requests as one batch. The answers of a graph that adds a position to its query, or normalizes over
rows, would depend on the rows chosen, on the number of slots and on the load.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer, Manifest
from numpy.typing import NDArray

from attention_server.domain.messages import Array
from attention_server.inference.engine.protocol import Graph, Run

Compute = Callable[[Mapping[str, Array]], Mapping[str, Array]]

SEQUENCES = 2
QUERIES, KEYS = 13, 7  # primes: no multiple of a kernel's block size
LONG = 257  # rows: as many as a sequence has that is cut into blocks for idle slots, and a prime
CUT = 5  # the first row of a second block; odd, so that even positions become odd ones
TOKENS = 5
ANY_WIDTH = 8  # of a head, where a block takes any width
LOUD = 4.0  # the factor of one row, which shows a scale that is shared by all rows
# Of a row's largest number: above the rounding of float32 (1e-6 in the embedded models), and of TF32 and int8 by row.
FLOAT32_TOLERANCE, COARSE_TOLERANCE = 1e-4, 1e-2
SMALL = 1e-3  # of the largest number of all rows: the error of a smaller row is relative to that
FIRST, LAST = slice(1), slice(-1, None)
ROWS = -2  # the axis of rows in every input and output
BATCH = 0  # the axis of sequences


class DependentRowsError(ValueError):
    """A graph computes a row from further rows, from its position, or from further sequences of its batch."""


@dataclass(frozen=True)
class Probe:
    """A computation to be compared with itself on parts of its inputs.

    Attributes:
        name: of the graph, for the error.
        compute: returns the outputs by name.
        inputs: the inputs by name, drawn at random.
        by_row: the inputs that have the rows of the outputs, on axis ROWS; empty where rows need not be independent.
        by_sequence: whether inputs and outputs have sequences on axis BATCH, SEQUENCES of them.
        blocks: the blocks of rows that are computed by themselves.
    """

    name: str
    compute: Compute
    inputs: Mapping[str, Array]
    by_row: Sequence[str] = ()
    by_sequence: bool = True
    blocks: Sequence[slice] = (FIRST, LAST, slice(CUT), slice(CUT, None))


def tolerance_of(manifest: Manifest, device: str) -> float:
    """Return the largest error of rounding that a model's graphs may show on a device, of a row's largest number."""
    is_float32 = device == "cpu" and not manifest.HasField("quantization")
    return FLOAT32_TOLERANCE if is_float32 else COARSE_TOLERANCE


def check_independence(probe: Probe, tolerance: float = FLOAT32_TOLERANCE) -> None:
    """Compare a computation of all rows with computations of blocks of rows, and of each sequence.

    Raises:
        DependentRowsError: an output differs by more than the tolerance.
    """
    whole = probe.compute(probe.inputs)
    for block in probe.blocks if probe.by_row else ():
        _compare(probe, whole, probe.by_row, ROWS, block, tolerance)
    for sequence in (FIRST, LAST) if probe.by_sequence else ():
        _compare(probe, whole, tuple(probe.inputs), BATCH, sequence, tolerance)


def model_probes(
    manifest: Manifest, graphs: Mapping[str, Graph], vocabulary: Sequence[int], memory_vocabulary: Sequence[int]
) -> Iterator[Probe]:
    """Yield the probes of a model's graphs.

    Args:
        manifest: of the model.
        graphs: by file name; checked against the manifest.
        vocabulary: token ids of its text; empty where it takes none.
        memory_vocabulary: token ids of its memory text; empty where it takes none.
    """
    for layer in manifest.layers:
        yield from _layer_probes(layer, graphs)
    text = manifest.text
    for front, ids, max_tokens in (
        (text.front.name, vocabulary, text.max_tokens),
        (text.memory_front.name, memory_vocabulary, text.max_memory_tokens),
    ):
        if front:
            yield _front_probe(front, graphs[front], ids, max_tokens)
    if manifest.predictors:
        yield _head_probe(manifest.head.name, graphs[manifest.head.name], manifest.layers[-1].output_dim)


def _layer_probes(layer: Layer, graphs: Mapping[str, Graph]) -> Iterator[Probe]:
    """Yield the probes of a layer's graphs: each by row and by sequence, `after` by sequence alone.

    Variants of `attend` that are not among the graphs, which are those of the device, are left out.
    """
    rng = np.random.default_rng(0)
    query, key, value = _draw_inputs(layer, rng, SEQUENCES, QUERIES, KEYS)
    yield from _row_probes(layer, graphs, (query, key, value), Probe)
    # One of many rows alone shows a dependence on the position that a short sequence hides.
    one_of_many = partial(Probe, by_sequence=False, blocks=(FIRST, LAST))
    yield from _row_probes(layer, graphs, _draw_inputs(layer, rng, 1, LONG, LONG), one_of_many)
    if layer.HasField("pool"):
        inputs = {"query": query, "key": key, "value": value}
        yield Probe(layer.pool.name, _each_row(_compute(graphs[layer.pool.name])), inputs, ("query",))
    if layer.HasField("after"):
        inputs = {"query": query, "output": rng.standard_normal(query.shape, np.float32)}
        yield Probe(layer.after.name, _compute(graphs[layer.after.name]), inputs)


def _row_probes(
    layer: Layer, graphs: Mapping[str, Graph], vectors: Sequence[Array], make: Callable[..., Probe]
) -> Iterator[Probe]:
    """Yield a probe of `project` and of each variant of `attend`, for query, key and value."""
    query, key, value = vectors
    k, v = key, value
    if layer.HasField("project"):
        compute = _compute(graphs[layer.project.name])
        yield make(layer.project.name, compute, {"key": key, "value": value}, ("key", "value"))
        projected = compute({"key": key, "value": value})
        k, v = projected["k"], projected["v"]
    mask = _draw_mask(query.shape[BATCH], query.shape[ROWS], key.shape[ROWS])
    for attend in layer.attend:
        if attend.file.name in graphs:
            inputs = {"query": query, "k": k, "v": v} | ({"mask": mask} if attend.mask else {})
            rows = ("query", "mask") if attend.mask else ("query",)
            yield make(attend.file.name, _compute(graphs[attend.file.name]), inputs, rows)


def _front_probe(name: str, graph: Graph, ids: Sequence[int], max_tokens: int) -> Probe:
    """Return the probe of a front, which takes tokens [B, T]: by sequence alone, for a row may depend on all tokens."""
    shape = (SEQUENCES, min(TOKENS, max_tokens or TOKENS))
    tokens = np.random.default_rng(0).choice(np.array(ids, np.int64), shape)
    return Probe(name, _compute(graph), {"tokens": tokens})


def _head_probe(name: str, graph: Graph, width: int) -> Probe:
    """Return the probe of a head, which takes rows of the output, [N, width]."""
    output = np.random.default_rng(0).standard_normal((QUERIES, width), np.float32)
    return Probe(name, _compute(graph), {"output": output}, ("output",), by_sequence=False)


def _compute(graph: Graph) -> Compute:
    names = list(graph.outputs)
    return lambda inputs: dict(zip(names, graph.run(names, inputs, Run()), strict=True))


def _each_row(pool: Compute) -> Compute:
    """Return the computation of rows by a graph `pool`, of which each mean takes one row whole."""
    return lambda inputs: pool({**inputs, "pool": np.eye(inputs["query"].shape[ROWS], dtype=np.float32)})


def _draw_inputs(
    layer: Layer, rng: np.random.Generator, sequences: int, queries: int, keys: int
) -> list[NDArray[np.float32]]:
    """Draw query, key and value, [sequences, queries or keys, width], each with one loud row."""
    query = layer.query_dim or ANY_WIDTH * layer.heads
    key = layer.key_dim or query // layer.heads * layer.key_value_heads
    drawn = []
    for length, width in ((queries, query), (keys, key), (keys, layer.value_dim or key)):
        vectors = rng.standard_normal((sequences, length, width), np.float32)
        vectors[0, 0] *= np.float32(LOUD)
        drawn.append(vectors)
    return drawn


def _draw_mask(sequences: int, queries: int, keys: int) -> NDArray[np.float32]:
    """Draw biases of which some hide, [sequences, 1, queries, keys]; each query sees the first key."""
    rng, shape = np.random.default_rng(1), (sequences, 1, queries, keys)
    mask = np.where(rng.random(shape) < 0.3, np.float32(-np.inf), rng.standard_normal(shape, np.float32))
    mask[..., 0] = 0
    return mask


def _compare(
    probe: Probe, whole: Mapping[str, Array], cut: Sequence[str], axis: int, block: slice, tolerance: float
) -> None:
    """Compute a block of rows or sequences by itself, and compare with the whole."""
    parts = {name: _block(probe.inputs[name], axis, block) for name in cut}
    for name, found in probe.compute({**probe.inputs, **parts}).items():
        error = _largest_error(found, _block(whole[name], axis, block))
        if not error <= tolerance:  # `not <=`, for NaN is not <= anything
            raise DependentRowsError(_message(probe, name, axis, error))


def _block(array: Array, axis: int, block: slice) -> Array:
    return np.take(array, np.arange(array.shape[axis])[block], axis)


def _largest_error(found: Array, expected: Array) -> float:
    """Return the largest difference, relative to the largest number of its row."""
    wanted = expected.astype(np.float64)
    size = np.maximum(np.abs(wanted).max(-1, keepdims=True), np.abs(wanted).max() * SMALL + 1e-30)
    return float((np.abs(found.astype(np.float64) - wanted) / size).max())


def _message(probe: Probe, output: str, axis: int, error: float) -> str:
    if axis == BATCH:
        return (
            f"{probe.name}: {output} of a sequence depends on the others of its batch: alone, it differs by "
            f"{error:.2g} of its largest number"
        )
    return (
        f"{probe.name}: a row of {output} depends on its position or on other rows: computed apart, it differs by "
        f"{error:.2g} of its largest number. The server computes rows apart, so a row has to follow from "
        f"{' and '.join(probe.by_row)} at its own position alone"
    )
