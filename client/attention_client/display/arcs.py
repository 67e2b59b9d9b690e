"""What one word looks at, as a figure: an arc a head, by matplotlib (the extra `plot`)."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from attention_client.display.picture import Picture, picture
from attention_client.display.plot import ACCENT, INK, MUTED, about, caption
from attention_client.result import Array, AttendResult

# The page's colours of heads (server/web/src/drawing/palette.ts).
_HEADS = ("#0068a8", "#b84e00", "#007a58", "#a8467d", "#2478ae", "#8a6100", "#5c4bb0", "#666600")
_DASHES = ("-", "--", ":", "-.")  # of heads that share a colour
_FAINTEST = 0.02  # of a weight that has an arc
_THICKEST = 7.0  # points, of a weight of 1
_LETTER = 0.105  # inches


def arcs(result: AttendResult, row: int, titles: Sequence[str] = ()) -> Figure:
    """Draw arcs from one word to those that each head looks at, as thick as the weight.

    Words of the key sequence stand in a row; where queries are another sequence, the word stands above these.
    The figure names model, version, layer, axes and scale.

    Args:
        result: has weights [H, T, S].
        row: the position of the query, in 0..T-1.
        titles: the names of the heads; `head 0`, `head 1`, .. when empty.

    Raises:
        NotRequested: the weights were not asked for.
    """
    drawn = picture(result)
    names = list(titles) or drawn.titles
    to_itself = drawn.queries == drawn.keys
    middles, width = _places(drawn.keys)
    drawing = Figure(figsize=(max(5.0, width + 0.6), 3.6), dpi=150, layout="constrained")
    panel = drawing.subplots()
    start = (middles[row], 0.0) if to_itself else (width / 2, 1.8)
    for head, weights in enumerate(drawn.weights[:, row]):
        _looks(panel, start, middles, weights, head, len(names), to_itself=to_itself)
    _write(panel, drawn, middles, None if not to_itself else row)
    if not to_itself:
        panel.text(
            start[0],
            start[1] + 0.08,
            drawn.queries[row],
            ha="center",
            va="bottom",
            color=ACCENT,
            fontsize=12,
            weight="bold",
        )
    panel.set(xlim=(-0.3, width + 0.3), ylim=(-0.4, 2.3))
    panel.set_axis_off()
    lines = [Line2D([], [], color=_colour(head), ls=_dash(head), lw=3) for head in range(len(names))]
    panel.legend(lines, names, loc="upper right", fontsize=8, frameon=False, ncols=max(1, len(names) // 4))
    drawing.suptitle(caption(result), color=INK, fontsize=11)
    scale = f"an arc is as thick as its weight: {_THICKEST:g} points for 1"
    drawing.supxlabel(f"{about(result)}; arcs from “{drawn.queries[row]}”\n{scale}", color=MUTED, fontsize=8)
    return drawing


def _places(words: Sequence[str]) -> tuple[list[float], float]:
    """Return the middles of words in a row, and the width of the row, in inches."""
    middles, at = [], 0.0
    for word in words:
        wide = max(0.35, len(word) * _LETTER + 0.2)
        middles.append(at + wide / 2)
        at += wide + 0.1
    return middles, at


def _looks(
    panel: Axes,
    start: tuple[float, float],
    middles: list[float],
    weights: Array,
    head: int,
    heads: int,
    *,
    to_itself: bool,
) -> None:
    """Draw one head's arcs."""
    shift = (head - (heads - 1) / 2) * 0.05
    for end, weight in zip(middles, weights, strict=True):
        if weight < _FAINTEST:
            continue
        x, y = start[0] + shift, start[1]
        high = min(2.0, 0.45 + abs(end - x) * 0.6) if to_itself else y / 2
        path = Path([(x, y), (x, high), (end + shift, high), (end + shift, 0.0)], [1, 4, 4, 4])
        style = {"edgecolor": _colour(head), "linestyle": _dash(head), "capstyle": "round"}
        width = max(0.6, float(weight) * _THICKEST)
        panel.add_patch(PathPatch(path, fill=False, lw=width, alpha=0.2 + 0.75 * float(weight), **style))


def _write(panel: Axes, drawn: Picture, middles: list[float], asking: int | None) -> None:
    for at, (word, middle) in enumerate(zip(drawn.keys, middles, strict=True)):
        chosen = at == asking
        colour, weight = (ACCENT, "bold") if chosen else (INK, "normal")
        panel.text(middle, -0.08, word, ha="center", va="top", fontsize=12, color=colour, weight=weight)


def _colour(head: int) -> str:
    return _HEADS[head % len(_HEADS)]


def _dash(head: int) -> str:
    return _DASHES[head // len(_HEADS) % len(_DASHES)]
