"""What any picture of a result shows, whatever draws it: named rows and columns, each head's weights, where to look."""

from collections.abc import Sequence
from dataclasses import dataclass

from attention_client.result import Array, AttendResult


@dataclass(frozen=True, eq=False)
class Picture:
    """The weights of one sequence, ready to draw.

    Attributes:
        queries: T row names: the query's tokens, or positions.
        keys: S column names.
        weights: [H, T, S].
        focus: the row from which all predictions were read; None when there is no such row.
    """

    queries: list[str]
    keys: list[str]
    weights: Array
    focus: int | None


def picture(result: AttendResult) -> Picture:
    """Name the rows and columns of a result's weights.

    Raises:
        NotRequested: the weights were not asked for.
    """
    _, queries, keys = result.weights.shape
    whole = not result.tokens or len(result.tokens) == queries
    return Picture(
        queries=_names(result.tokens, queries),
        keys=_names(result.key_tokens, keys),
        weights=result.weights,
        focus=_focus(result) if whole else None,
    )


def printable(token: str) -> str:
    """Return a token as it can stand in a table: a line break or a control character is escaped."""
    return token if token.isprintable() else ascii(token)[1:-1]


def _names(tokens: Sequence[str], count: int) -> list[str]:
    """Take the tokens, or positions where there are none or the request chose some rows only."""
    return [printable(token) for token in tokens] if len(tokens) == count else [str(i) for i in range(count)]


def _focus(result: AttendResult) -> int | None:
    rows = {prediction.row for prediction in result.predictions}
    return rows.pop() if len(rows) == 1 else None
