"""The alignment of queries with keys: of each row of weights, the key with the largest one."""

import numpy as np

from attention_server.domain.messages import Alignment, Link
from attention_server.inference.masks import Vectors


def align(weights: Vectors, rows: "np.typing.NDArray[np.intp]") -> Alignment:
    """Return the link of each row: the key with the largest weight, of equal ones the first; none of a hidden row.

    Args:
        weights: the mean over heads, [rows, S].
        rows: the query position of each row.
    """
    keys = weights.argmax(-1)
    seen = np.take_along_axis(weights, keys[:, None], -1)[:, 0] > 0
    return Alignment(tuple(map(Link, keys[seen].tolist(), rows[seen].tolist())))
