"""Attention weights in a terminal: a heat map for each head, beside the model's predictions.

Shades need a terminal with colours. Every cell also has its number, for pipes and screen readers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from attention_client.api.translate import Translation
from attention_client.display.picture import Picture, alignment_picture, picture, printable
from attention_client.result import Array, AttendResult, OutputValue, summary

# From 0 to 1, through colours that remain distinct for colour-blind readers and in greyscale.
_RAMP = np.array([(33, 39, 54), (37, 72, 112), (33, 128, 141), (120, 188, 112), (253, 214, 92)])
_ROUNDS_TO_ZERO = 0.005  # below it a weight is printed as .00
_MIN_CELL = 4  # a cell that holds .99 and a gap
_TOP_KEYS = 3
_MAX_ROWS = 16


class _HeatMap(NamedTuple):
    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Array  # [R, C]
    marked: int | None = None


def render(result: AttendResult, width: int, *, whole: bool = True) -> RenderableType:
    """Draw one result on `width` columns: the predictions and their rows, each head's weights, the other outputs.

    Args:
        result: the result.
        width: of the terminal.
        whole: whether `weights` has all heads and rows of a layer; else it is printed as the other outputs are.
    """
    drawn = picture(result) if whole and "weights" in result.outputs else None
    others = {name: value for name, value in result.outputs.items() if drawn is None or name != "weights"}
    parts = [*_predictions_and_weights(result, drawn, width - 1), *_heads(drawn, width - 1), *_other_outputs(others)]
    return Padding(Group(*parts), (1, 0, 0, 1))


def render_translation(translation: Translation, width: int, head: int | None = None) -> RenderableType:
    """Draw a translation on `width` columns: its words, and the weights of each word.

    Raises:
        InvalidRequest: there is no such head.
    """
    drawn = alignment_picture(translation, head)
    said = Text(" ".join(drawn.queries) or "no words", "bold")
    if not translation.complete:
        said.append(" … the model reads no longer text", "dim")
    return Padding(Group(said, "", *_heads(drawn, width - 1)), (1, 0, 0, 1))


def _predictions_and_weights(result: AttendResult, drawn: Picture | None, width: int) -> Iterator[RenderableType]:
    """Draw the predictions; where all were read from one row, beside the weights of each head in that row."""
    if not result.predictions:
        return
    if drawn is None or drawn.focus is None:
        yield _side_by_side(_predictions(result, result.tokens))
    else:
        looked_at = _HeatMap(
            f"from {drawn.queries[drawn.focus]}", drawn.titles, drawn.keys, drawn.weights[:, drawn.focus]
        )
        yield _side_by_side(_table(looked_at, width), _predictions(result))


def _predictions(result: AttendResult, tokens: Sequence[str] = ()) -> Table:
    """List the predictions; with tokens, also the token that each was read from."""
    table = Table("predicted", "", "", "", box=None, padding=(0, 1, 0, 0), header_style="bold")
    for each in result.predictions:
        place = f"at {printable(tokens[each.row])}" if each.row is not None and each.row < len(tokens) else ""
        label = Text(printable(each.label), "bold")
        table.add_row(Text(each.name), label, f"{each.probability:.2f}", Text(place, "dim"))
        for other in each.top[1:]:
            table.add_row("", Text(printable(other.label)), f"{other.probability:.2f}", "")
    return table


def _heads(drawn: Picture | None, width: int) -> Iterator[RenderableType]:
    if drawn is not None:
        maps = [
            _HeatMap(title, drawn.queries, drawn.keys, weights, drawn.focus)
            for title, weights in zip(drawn.titles, drawn.weights, strict=True)
        ]
        yield _side_by_side(*(_table(one, width) for one in maps))


def _side_by_side(*tables: Table) -> Columns:
    """Put tables side by side, as many as fit."""
    return Columns([Padding(table, (0, 0, 1, 0)) for table in tables], padding=(0, 3))


def _table(drawn: _HeatMap, width: int) -> Table:
    """Draw a heat map where it fits, else the largest weights of each row."""
    names = max(cell_len(name) for name in [drawn.title, *drawn.rows])
    cells = [max(_MIN_CELL, cell_len(column) + 1) for column in drawn.columns]
    return _shaded(drawn, cells) if names + 1 + sum(cells) <= width else _largest(drawn)


def _shaded(drawn: _HeatMap, widths: Sequence[int]) -> Table:
    table = Table(box=None, padding=0, pad_edge=False, header_style="bold")
    table.add_column(Text(drawn.title + " "))
    for column, width in zip(drawn.columns, widths, strict=True):
        table.add_column(Text(_centered(column, width)), width=width)
    for row, values in enumerate(drawn.values):
        table.add_row(_row_name(drawn, row), *map(_cell, values, widths))
    return table


def _cell(value: float, width: int) -> Text:
    number = "·" if value < _ROUNDS_TO_ZERO else "1.0" if value >= 1 - _ROUNDS_TO_ZERO else f"{value:.2f}"[1:]
    return Text(_centered(number, width), _shade(value))


def _centered(text: str, width: int) -> str:
    """Pad on both sides; an odd space goes to the left, so that adjacent cells never touch."""
    spare = width - cell_len(text)
    return " " * ((spare + 1) // 2) + text + " " * (spare // 2)


def _shade(value: float) -> str:
    """Return the style of a weight in 0..1: the ramp's colour, under ink of the opposite brightness."""
    stops = np.linspace(0, 1, len(_RAMP))
    red, green, blue = (round(np.interp(value, stops, channel)) for channel in _RAMP.T)
    ink = "black" if value > 0.5 else "white" if value >= _ROUNDS_TO_ZERO else "bright_black"
    return f"{ink} on rgb({red},{green},{blue})"


def _largest(drawn: _HeatMap) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(Text(drawn.title))
    table.add_column(Text("looks most at"))
    for row, values in enumerate(drawn.values[:_MAX_ROWS]):
        order = np.argsort(-values, kind="stable")[:_TOP_KEYS]
        keys = "  ".join(f"{drawn.columns[key]} {values[key]:.2f}" for key in order)
        table.add_row(_row_name(drawn, row), Text(keys))
    if len(drawn.rows) > _MAX_ROWS:
        table.add_row("…", Text(f"{len(drawn.rows) - _MAX_ROWS} more rows; --json has them all", "dim"))
    return table


def _row_name(drawn: _HeatMap, row: int) -> Text:
    return Text(f"{drawn.rows[row]} ", "bold" if row == drawn.marked else "")


def _other_outputs(outputs: Mapping[str, OutputValue]) -> Iterator[RenderableType]:
    with np.printoptions(precision=3, suppress=True, threshold=64, edgeitems=2):
        for name, value in outputs.items():
            yield Text(f"{name} {summary(value)}\n{value}\n")
