"""A pass of several sequences: the rows of all sequences, in a row, run through a segment together.

A segment's rows do not depend on each other, so nothing is padded and lengths are arbitrary. Sites compute one sequence
at a time, or several of one length.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_server.contexts.past import Continuation
from attention_server.inference.layer import Rows, Tensors
from attention_server.inference.masks import RequestMask, Vectors
from attention_server.inference.reductions import LayerReductions

Stages = dict[str, Vectors]  # of one layer, by name, each with a leading dimension B
Array = NDArray[Any]


@dataclass(slots=True, eq=False)
class SiteBatch:
    """Sequences of a pass that each site computes as one batch.

    Attributes:
        tensors: the inputs of the chain, [B, T, width]; receives the results of segments and sites.
        added: the request's mask, added to the scores of sites with T queries and S keys, [1 or H, T, S]; None for no
            mask.
        rows: the query rows of the last site to compute; None for all.
        pooling: the weights of means, [P, rows]: of the last site only the means of `output` are computed. Of a pass of
            one batch.
        continued: the prefix that each sequence goes on behind: of one sequence, or of several that have one query
            each; empty for none.
        reductions: the reductions of each site of one long sequence, by its place; None for short ones. Of a pass of
            one batch.
        stages: of each site that has run.
    """

    tensors: Tensors
    added: RequestMask = None
    rows: Rows | None = None
    pooling: Vectors | None = None
    continued: Sequence[Continuation] = ()
    reductions: Callable[[int], LayerReductions] | None = None
    stages: list[Stages] = field(default_factory=list)


def join_rows(arrays: Sequence[Array]) -> Array:
    """Join the rows of all sequences, each array [B, T, ..], as one sequence, [1, rows, ..]."""
    return np.concatenate([each.reshape(1, -1, *each.shape[2:]) for each in arrays], 1)


def split_rows(array: Array, shapes: Sequence[tuple[int, int]]) -> Iterator[Array]:
    """Yield the views of an array [1, rows, ..] that belong to sequences of shapes (B, T), each [B, T, ..]."""
    ends = accumulate((count * length for count, length in shapes), initial=0)
    for (begin, end), shape in zip(pairwise(ends), shapes, strict=True):
        yield array[0, begin:end].reshape(*shape, *array.shape[2:])
