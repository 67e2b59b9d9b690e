"""One row on its way: what was read, and what came of it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from attention_client import Sequence
from numpy.typing import NDArray

FIELDS = ("id", "text", "query", "key", "value", "memory_text")
VECTORS = ("query", "key", "value")
TEXTS = ("text", "memory_text")


@dataclass(frozen=True, slots=True)
class Failed:
    """A row that has no answer, as the dead-letter file tells it.

    Attributes:
        file: the input's name.
        row: its number in that file, from 0.
        id: of the row; None where it could not be read.
        field: at fault; empty when it is the row as a whole.
        reason: what is wrong.
    """

    file: str
    row: int
    id: Any
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row that was read.

    Attributes:
        file, row, id: as in `Failed`.
        sequence: what to ask about.
        size: bytes of its vectors and texts.
    """

    file: str
    row: int
    id: Any
    sequence: Sequence
    size: int

    def failed(self, field: str, reason: str) -> Failed:
        """Say that this row has no answer."""
        return Failed(self.file, self.row, self.id, field, reason)


@dataclass(frozen=True, slots=True)
class Scored:
    """A row's answer.

    Attributes:
        id: of the row.
        values: one for each column of the output.
        tokens: query positions.
    """

    id: Any
    values: tuple[Any, ...]
    tokens: int


class Widths(NamedTuple):
    """How wide a model's vectors are; 0 is any."""

    query: int
    key: int
    value: int


def fault(sequence: Sequence, widths: Widths) -> tuple[str, str] | None:
    """Return the field and the reason for which a server would refuse a row; None for one worth sending.

    What only the server knows (its vocabulary, its limits) it says itself.
    """
    for name in TEXTS:
        text = getattr(sequence, name)
        if text is not None and not text.strip():
            return name, "has no words in it; send at least one"
    for name in VECTORS:
        array = getattr(sequence, name)
        if array is not None and (reason := _vectors_fault(array, getattr(widths, name))):
            return name, reason
    return None


def _vectors_fault(array: NDArray[Any], width: int) -> str | None:
    if array.ndim != 2:
        return f"must have shape [length, width], not {list(array.shape)}"
    if not array.size:
        return f"must not be empty, but has shape {list(array.shape)}"
    if width and array.shape[1] != width:
        return f"must be {width} wide, but has shape {list(array.shape)}"
    good = np.isfinite(array)
    if good.all():
        return None
    where = [int(index) for index in np.unravel_index(int((~good).argmax()), good.shape)]
    return f"must be finite, but is {array[tuple(where)]} at {where}"
