"""Outputs of several layers that are made one."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from attention_proto.stages import STAGES

from attention_server.domain.messages import OutputValue
from attention_server.inference.key_spans import Ranges, sums_over
from attention_server.inference.masks import Vectors
from attention_server.inference.planner import OutputPlan
from attention_server.inference.reading import Hidden, Part, Reading
from attention_server.inference.reduction import Reduction, Sums

FINISHED_ROWS = 128  # of a matrix that stands whole
TINY = np.float32(1e-19)  # products of smaller numbers are denormal, and take several times as long


class Stacked(Reduction):
    """An output of which the matrix stands whole, since each layer changes all rows of it.

    Args:
        reading: the rows and heads.
        then: takes the rows of the matrix in the end.
    """

    def __init__(self, reading: Reading, then: Reduction) -> None:
        super().__init__(reading)
        self._then = then
        self._shape = (len(reading.rows), reading.keys if STAGES[reading.spec.name].is_pairwise else 1)
        self._hidden: Hidden | None = None

    def result(self) -> OutputValue:
        """Return the output."""
        sums, matrix = self._then.sums(), self._whole()
        for begin in range(0, len(matrix), FINISHED_ROWS):
            rows = slice(begin, min(begin + FINISHED_ROWS, len(matrix)))
            hidden = None if self._hidden is None else self._hidden[None, rows]
            self._then._add(0, Part(rows, [0], matrix[None, rows], hidden, slice(0, self._then.reading.keys)), sums)  # noqa: SLF001 # of its own kind
        self._then.close([sums])
        return self._then.result()

    @abstractmethod
    def _whole(self) -> Vectors:
        """Return the matrix."""


class OverLayers(Stacked):
    """The mean or maximum over layers, or over heads of several layers.

    Args:
        reading: the rows and heads.
        then: takes the rows of the matrix in the end.
        largest: whether it is the maximum.
    """

    def __init__(self, reading: Reading, then: Reduction, *, largest: bool) -> None:
        super().__init__(reading, then)
        self._largest = largest
        self._matrix = np.full(self._shape, -np.inf if largest else 0, np.float32)
        self._hidden = np.ones(self._shape, np.bool_) if reading.spec.top_k else None

    def _whole(self) -> Vectors:
        return self._matrix

    def _add(self, layer: int, part: Part, sums: Sums) -> None:  # noqa: ARG002 # as every reduction
        part = part.widened(self.reading.keys) if part.numbers.shape[-1] < self._matrix.shape[-1] else part
        (numbers,) = part.numbers
        if self._largest:
            self._matrix[part.places] = np.maximum(self._matrix[part.places], numbers)
        else:
            self._matrix[part.places] += numbers * self.reading.share(layer)
        if self._hidden is not None:
            self._hidden[part.places] &= np.False_ if part.hidden is None else part.hidden[0]


class Rollout(Stacked):
    """The product over layers of (A + I) / 2 with rows that sum to 1, A the mean over heads.

    Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv:2005.00928. A row that may attend to no
    key passes its own token on. All rows of each layer but the last are read.

    Args:
        reading: the rows and heads.
        then: takes the rows of the product in the end.
        output: its plan.
        ranges: of keys that are summed in the end; None for each key by itself.
    """

    def __init__(self, reading: Reading, then: Reduction, output: OutputPlan, ranges: Ranges | None) -> None:
        super().__init__(reading, then)
        self._ranges = ranges
        self._last, self._left = output.layer, len(output.folded)
        self._before: Vectors | None = None  # the product of the layers before
        self._product = self._next()

    def close(self, strips: Sequence[Sums]) -> None:  # noqa: ARG002 # as every reduction
        """Go on to the next layer."""
        self._before = self._product
        self._left -= 1
        if self._left:
            self._product = self._next()

    def _whole(self) -> Vectors:
        return self._product if self._ranges is None else sums_over(self._product[None], self._ranges)[0]

    def _next(self) -> Vectors:
        rows = self._shape[0] if self._left == 1 else self._shape[1]
        return np.empty((rows, self._shape[1]), np.float32)

    def _add(self, layer: int, part: Part, sums: Sums) -> None:  # noqa: ARG002 # as every reduction
        part = part.widened(self.reading.keys)
        (numbers,) = part.numbers
        own = self.reading.rows[part.places] if layer == self._last else np.arange(self.reading.keys)[part.places]
        numbers[np.arange(len(numbers)), own] += 1
        numbers /= numbers.sum(-1, keepdims=True)
        numbers[numbers < TINY] = 0
        if self._before is not None:
            numbers = numbers @ self._before
            numbers[numbers < TINY] = 0
        self._product[part.places] = numbers
