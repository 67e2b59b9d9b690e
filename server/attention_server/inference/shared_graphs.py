"""The measurement of which graphs give a row the same bits in a run of many sequences as in a run of its own.

That rows are independent does not suffice: a kernel may be chosen by the number of rows, and round in another order.
"""

import time
from collections.abc import Mapping
from itertools import accumulate, pairwise

import numpy as np

from attention_server.domain.messages import Array
from attention_server.inference.engine.protocol import Graph
from attention_server.inference.independence import Probe
from attention_server.scheduling.cost_model import LONGEST_PACKED

# Lengths of sequences, 256 rows together: all small ones, for which kernels differ, at many offsets. A pack has each
# twice: as many rows as a pass has at most.
PIECES = (5, 1, 16, 2, 47, 3, 12, 64, 4, 7, 23, 1, 8, 6, 13, 32, 12)
SMALLER = (86, LONGEST_PACKED)  # rows of smaller packs, or of one sequence
SECONDS = 2.0  # of all measurements of a model: a graph that is not measured is not shared


class SharedGraphs:
    """The graphs of one model that run on the rows of several sequences.

    Args:
        graphs: the model's graphs by file name.

    Attributes:
        names: of the graphs measured so far that do.
    """

    def __init__(self, graphs: Mapping[str, Graph]) -> None:
        self._graphs = graphs
        self._seconds = 0.0
        self._measured: dict[str, bool] = {}  # by operators and shapes, which choose the kernels: layers are alike
        self.names: set[str] = set()

    def measure(self, probe: Probe) -> None:
        """Measure the graph of a probe, if all of its inputs have the rows of its outputs."""
        arrays = probe.inputs.values()
        if (
            set(probe.by_row) != set(probe.inputs) or not probe.by_sequence or min(each.ndim for each in arrays) < 2
        ):  # [B, T]
            return
        graph = self._graphs[probe.name]
        structure = repr((graph.inputs, graph.outputs, graph.nodes))
        if structure not in self._measured and self._seconds < SECONDS:
            begun = time.perf_counter()
            self._measured[structure] = keeps_bits(probe)
            self._seconds += time.perf_counter() - begun
        if self._measured.get(structure, False):
            self.names.add(probe.name)


def keeps_bits(probe: Probe) -> bool:
    """Return whether the rows of sequences that run together are equal to the bit to those of each sequence alone."""
    length = sum(PIECES)
    taken = np.tile(np.random.default_rng(0).permutation(length), 2)
    pack: dict[str, Array] = {}
    for name, array in probe.inputs.items():
        rows = array.reshape(-1, *array.shape[2:])
        pack[name] = rows[taken % len(rows)][None]
    ends = list(accumulate(PIECES, initial=0))
    whole = _rows(probe, pack, 0, 2 * length)
    if any(found.ndim != 3 or found.shape[1] != 2 * length for found in whole.values()):  # [B, T, width]
        return False
    if any(not np.array_equal(found[:, :length], found[:, length:]) for found in whole.values()):
        return False
    return all(
        np.array_equal(rows, whole[name][:, begin:end])
        for begin, end in (*pairwise(ends), *((0, smaller) for smaller in SMALLER))
        for name, rows in _rows(probe, pack, begin, end).items()
    )


def _rows(probe: Probe, pack: Mapping[str, Array], begin: int, end: int) -> Mapping[str, Array]:
    return probe.compute({name: rows[:, begin:end] for name, rows in pack.items()})
