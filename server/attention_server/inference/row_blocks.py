"""Blocks of rows: how many rows they have, and a graph of independent rows that runs in them on idle slots."""

from collections.abc import Mapping, Sequence

import numpy as np

from attention_server.domain.messages import Array
from attention_server.inference.engine.protocol import LEAST_ROWS, Graph, Run

MAX_WHOLE_ROWS = 256  # of a sequence that is computed at once
BLOCK_ROWS = 128  # of a longer one, at most
LEAST_BLOCK_ROWS = 16
KEYS_OF_ROW = 4  # that each row sees, at least, for each row of a block: of its keys a row sees four fifths
BLOCK_BYTES = 48 * 2**20  # of the scores of a block, of which there are several arrays where weights are asked for
BLOCK_BYTES_WITHOUT_WEIGHTS = 192 * 2**20  # of the one array that a graph then has


def block_rows(heads: int, queries: int, keys: int, seen: int, *, weights: bool) -> int:
    """Return the number of rows of a site that are computed together; less than the queries of a long sequence.

    The shape and the mask decide, and whether weights or scores are asked for. A block computes the keys that one of
    its rows sees: where these are few for each row, blocks are small.

    Args:
        heads: H.
        queries: T.
        keys: S.
        seen: the most keys that a row sees by causality and windows.
        weights: whether weights or scores are asked for.
    """
    most = min(BLOCK_ROWS, max(LEAST_BLOCK_ROWS, _power_of_two(seen // KEYS_OF_ROW)))
    row_bytes = 4 * heads * min(keys, seen + most)
    if queries <= MAX_WHOLE_ROWS and queries <= BLOCK_BYTES // row_bytes:
        return queries
    fitting = (BLOCK_BYTES if weights else BLOCK_BYTES_WITHOUT_WEIGHTS) // row_bytes
    return max(LEAST_BLOCK_ROWS, min(most, _power_of_two(fitting)))


def _power_of_two(number: int) -> int:
    """Return the largest power of two up to a number; 1 for none."""
    return 1 << max(number.bit_length() - 1, 0)


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
