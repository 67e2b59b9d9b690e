"""One row on its way: what was read, and what came of it."""

from dataclasses import dataclass
from typing import Any

from attention_client import Sequence

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
