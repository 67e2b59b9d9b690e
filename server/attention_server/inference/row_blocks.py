"""A graph of independent rows, run in blocks of rows on idle slots."""

from collections.abc import Mapping, Sequence

import numpy as np

from attention_server.domain.messages import Array
from attention_server.inference.engine.protocol import LEAST_ROWS, Graph, Run


def run_rows(
    graph: Graph, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run, whole: Sequence[str] = ()
) -> list[Array]:
    """Run a graph on a CPU, for long sequences in blocks of rows: a block in each idle slot.

    Args:
        graph: computes each row of an output from the same row of its inputs.
        outputs: the names of outputs to compute.
        feeds: inputs by name; the first one has the rows of the outputs.
        run: the computation that this is a part of.
        whole: inputs that each block needs whole.
    """
    batch, rows = next(iter(feeds.values())).shape[:2]
    parts = run.parts(rows) if rows >= 2 * LEAST_ROWS and batch == 1 else ()
    if len(parts) < 2:
        return graph.run(outputs, feeds, run)
    cut = [name for name in feeds if name not in whole]

    def part(rows: slice) -> list[Array]:
        return graph.run(outputs, {**feeds, **{name: _block(feeds[name], rows) for name in cut}}, run)

    return [np.concatenate(each, _axis(each[0])) for each in zip(*run.map(part, parts), strict=True)]


def _block(array: Array, rows: slice) -> Array:
    return array[:, rows] if array.ndim == 2 else array[..., rows, :]


def _axis(array: Array) -> int:
    """Return the axis of rows: the last of [B, T], otherwise the last but one."""
    return 1 if array.ndim == 2 else -2
