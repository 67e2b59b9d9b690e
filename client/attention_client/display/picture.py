"""The content of a picture of weights, for every way of drawing: titles, row and column names, weights, focus."""

from collections.abc import Sequence
from dataclasses import dataclass

from attention_client.api.translate import Translation
from attention_client.result import Array, AttendResult


@dataclass(frozen=True, eq=False)
class Picture:
    """The weights of one sequence, ready to draw.

    Attributes:
        titles: H names, of the heads.
        queries: T row names: the query's tokens, or positions.
        keys: S column names.
        weights: [H, T, S].
        focus: the row from which all predictions were read; None when there is no such row.
    """

    titles: list[str]
    queries: list[str]
    keys: list[str]
    weights: Array
    focus: int | None


def picture(result: AttendResult) -> Picture:
    """Name the rows and columns of a result's weights.

    Raises:
        NotRequested: the weights were not asked for.
    """
    heads, queries, keys = result.weights.shape
    query_tokens, key_tokens = result.axes("weights")
    return Picture(
        titles=[f"head {head}" for head in range(heads)],
        queries=axis_names(query_tokens, queries),
        keys=axis_names(key_tokens, keys),
        weights=result.weights,
        focus=focused_row(result, queries),
    )


def alignment_picture(translation: Translation, head: int | None = None) -> Picture:
    """Name the rows and columns of a translation's alignment: translated words down, source words across.

    Raises:
        InvalidRequest: there is no such head.
    """
    shown = translation.head if head is None else head
    return Picture(
        titles=["mean of heads" if shown is None else f"head {shown}"],
        queries=[printable(word) for word in translation.words],
        keys=[printable(token) for token in translation.memory_tokens],
        weights=translation.alignment(head)[None],
        focus=None,
    )


def printable(token: str) -> str:
    """Return a token for a table cell: line breaks and control characters are escaped."""
    return token if token.isprintable() else ascii(token)[1:-1]


def axis_names(tokens: Sequence[str], count: int) -> list[str]:
    """Return the tokens as names; the positions where there is not one token for each of `count` rows."""
    return [printable(token) for token in tokens] if len(tokens) == count else [str(i) for i in range(count)]


def focused_row(result: AttendResult, queries: int) -> int | None:
    """Return the one row that all predictions were read from; None without one, or where rows are left out."""
    whole = not result.tokens or len(result.tokens) == queries
    rows = {prediction.row for prediction in result.predictions}
    return rows.pop() if whole and len(rows) == 1 else None


def row_of(drawn: Picture, word: str) -> int:
    """Return the row of a word that stands once in the query sequence, or of a position.

    Raises:
        ValueError: there is no such word or position, or there are several.
    """
    rows = [row for row, name in enumerate(drawn.queries) if name == word]
    if len(rows) == 1:
        return rows[0]
    if rows:
        raise ValueError(f"{word!r} stands at {', '.join(map(str, rows))}: give the position")
    if word.isascii() and word.isdigit() and int(word) < len(drawn.queries):
        return int(word)
    raise ValueError(f"no token is {word!r}; there is {' '.join(drawn.queries[:40])}")
