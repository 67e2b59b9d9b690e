"""The alignment of queries with keys: of each row of weights, the key with the largest one."""

import numpy as np

from attention_server.domain.messages import Alignment, Link
from attention_server.inference.masks import Vectors

NO_KEY = -1  # of a row that may attend to none


def largest_keys(weights: Vectors, first: int = 0) -> "np.typing.NDArray[np.intp]":
    """Return the key with the largest weight of each row, of equal ones the first, [rows, S] -> [rows], or NO_KEY.

    `first` is the key of the first column.
    """
    keys = weights.argmax(-1)
    seen = np.take_along_axis(weights, keys[:, None], -1)[:, 0] > 0
    return np.where(seen, first + keys, NO_KEY)


def align(keys: "np.typing.NDArray[np.intp]", rows: "np.typing.NDArray[np.intp]") -> Alignment:
    """Return the link of each row; none of a hidden row.

    Args:
        keys: of each row the one with the largest mean weight of the heads, or NO_KEY.
        rows: the query position of each row.
    """
    seen = keys != NO_KEY
    return Alignment(tuple(map(Link, keys[seen].tolist(), rows[seen].tolist())))
