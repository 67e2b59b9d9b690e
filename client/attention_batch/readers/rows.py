"""One row of the input, before and after scoring."""

from dataclasses import dataclass
from typing import Any

from attention_client import Sequence

SOURCES = ("text", "query", "token_ids")  # of which a row has one
VECTORS = ("query", "key", "value")
TEXTS = ("text", "text_pair", "memory_text", "truncate", "prefix")
IDS = ("token_ids", "memory_token_ids")
OPTIONAL = ("text_pair", "truncate", "prefix")  # a row may have a null in place of these
CHOSEN = ("prefix",)  # only where the user names its column
FIELDS = ("id", *TEXTS, *VECTORS, *IDS)


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row without an answer, as a line of the dead-letter file.

    Attributes:
        file: the input file's name.
        row: its number in that file, from 0.
        id: of the row; None where it could not be read.
        field: the field at fault; empty for a fault of the row as a whole.
        reason: the fault, in words.
    """

    file: str
    row: int
    id: Any
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read.

    Attributes:
        file, row, id: as in `FailedRow`.
        sequence: the input of the attention block.
        size: bytes of its vectors, and characters of its texts.
        prefix: the text of the context that stands before it; None for none.
    """

    file: str
    row: int
    id: Any
    sequence: Sequence
    size: int
    prefix: str | None = None

    def failed(self, field: str, reason: str) -> FailedRow:
        """Return this row as a failed one."""
        return FailedRow(self.file, self.row, self.id, field, reason)


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row with its answer.

    Attributes:
        id: of the row.
        values: one for each column of the output.
        tokens: number of query positions, T.
    """

    id: Any
    values: tuple[Any, ...]
    tokens: int
