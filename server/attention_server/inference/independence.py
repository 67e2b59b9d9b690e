"""Probes that tell whether a graph computes each row, and each sequence of a batch, from its own inputs alone.

The server relies on it: it computes chosen rows alone, cuts long sequences into blocks of rows for idle slots, and runs
sequences of several requests as one batch. The answers of a graph that adds a position to its query, or normalizes over
rows, would depend on the rows chosen, on the number of slots and on the load.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Manifest

from attention_server.domain.messages import Array

Compute = Callable[[Mapping[str, Array]], Mapping[str, Array]]

SEQUENCES = 2
ROW_COUNT = 23  # a prime: no multiple of a kernel's block size, unlike any width
CUT = 5  # the first row of a second block; odd, so that even positions become odd ones
# Of a row's largest number: above the rounding of float32 (1e-6 in the embedded models), and of TF32 and int8 by row.
FLOAT32_TOLERANCE, COARSE_TOLERANCE = 1e-4, 1e-2
SMALL = 1e-3  # of the largest number of all rows: the error of a smaller row is relative to that
FIRST, LAST = slice(1), slice(-1, None)
# Each end, two parts, every third row, and all rows in another order.
BLOCKS = (FIRST, LAST, slice(CUT), slice(CUT, None), slice(None, None, 3), slice(None, None, -1))
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
        by_row: the inputs that have the rows of the outputs; empty where rows need not be independent.
        by_sequence: whether inputs and outputs have sequences on axis BATCH, SEQUENCES of them.
            Positions [T] have none.
        blocks: the rows that are computed by themselves.
    """

    name: str
    compute: Compute
    inputs: Mapping[str, Array]
    by_row: Sequence[str] = ()
    by_sequence: bool = True
    blocks: Sequence[slice] = BLOCKS


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
        _compare(probe, whole, {name: _row_axis(probe.inputs[name]) for name in probe.by_row}, block, tolerance)
    for sequence in (FIRST, LAST) if probe.by_sequence else ():
        batched = [name for name, array in probe.inputs.items() if array.ndim > 1]
        _compare(probe, whole, dict.fromkeys(batched, BATCH), sequence, tolerance)


def _row_axis(array: Array) -> int:
    """Return the axis of rows: the last of positions or tokens, [T] or [B, T]; otherwise the last but one."""
    return -1 if array.ndim <= 2 and array.dtype.kind == "i" else -2


def _compare(probe: Probe, whole: Mapping[str, Array], axes: Mapping[str, int], block: slice, tolerance: float) -> None:
    """Compute a block of rows or sequences by itself, and compare with the whole.

    Args:
        probe: the computation.
        whole: its outputs for all rows and sequences.
        axes: of the inputs that are cut.
        block: the rows or sequences that are kept.
        tolerance: the largest error, of a row's largest number.
    """
    parts = {name: _block(probe.inputs[name], axis, block) for name, axis in axes.items()}
    by_sequence = BATCH in axes.values()
    for name, found in probe.compute({**probe.inputs, **parts}).items():
        expected = _block(whole[name], BATCH if by_sequence else _row_axis(whole[name]), block)
        if found.shape != expected.shape:
            raise DependentRowsError(f"{probe.name}: {name} has a further axis that follows the number of rows")
        error = _largest_error(found, expected)
        if not error <= tolerance:  # `not <=`, for NaN is not <= anything
            raise DependentRowsError(_message(probe, name, error, by_sequence=by_sequence))


def _block(array: Array, axis: int, block: slice) -> Array:
    return np.take(array, np.arange(array.shape[axis])[block], axis)


def _largest_error(found: Array, expected: Array) -> float:
    """Return the largest difference, relative to the largest number of its row."""
    wanted = expected.astype(np.float64)
    size = np.maximum(np.abs(wanted).max(-1, keepdims=True), np.abs(wanted).max() * SMALL + 1e-30)
    return float((np.abs(found.astype(np.float64) - wanted) / size).max())


def _message(probe: Probe, output: str, error: float, *, by_sequence: bool) -> str:
    if by_sequence:
        return (
            f"{probe.name}: {output} of a sequence depends on the others of its batch: alone, it differs by "
            f"{error:.2g} of its largest number"
        )
    return (
        f"{probe.name}: a row of {output} depends on its position or on other rows: computed apart, it differs by "
        f"{error:.2g} of its largest number. The server computes rows apart, so a row has to follow from "
        f"{' and '.join(probe.by_row)} at its own position alone"
    )
