"""Attention weights as a figure, by matplotlib (the extra `plot`)."""

import math
from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attention_client.api.translate import Translation
from attention_client.display.picture import Picture, alignment_picture, picture
from attention_client.display.viewer import layer_weights
from attention_client.result import Array, AttendResult

# The page's colours (server/web/src/drawing/palette.ts): from no weight to all of it.
_RAMP = LinearSegmentedColormap.from_list("weights", ["#ffffff", "#a9cbe6", "#2f7fbc", "#08306b"])
INK = "#1c2027"
MUTED = "#5c6470"
ACCENT = "#b34700"
_MAX_WIDTH = 15.0  # inches, of all panels of one row
_MAX_NUMBERS = 12  # positions; with more of them the number in a cell is too small to read
_MAX_NAMES = 32
_MAX_CAPTION = 90  # characters
_MAX_PREDICTIONS = 4  # in the caption
_HEAD = 0.75  # inches, of a head in an atlas
_ROUNDS_TO_ZERO = 0.005  # below it a weight is printed as .00


def figure(result: AttendResult, titles: Sequence[str] = ()) -> Figure:
    """Draw a heat map for each head: query positions down, keys across; the row predictions were read from is framed.

    The figure names model, version, layer and axes, and has the scale of its colours.

    Args:
        result: has weights.
        titles: the names of the heads; `head 0`, `head 1`, .. when empty.

    Raises:
        NotRequested: the weights were not asked for.
    """
    drawn = picture(result)
    return _draw(replace(drawn, titles=list(titles)) if titles else drawn, caption(result), about(result))


def atlas(result: AttendResult) -> Figure:
    """Draw the heads of all layers as small heat maps: a row a layer, a column a head.

    Args:
        result: has weights of several layers, as `layers=["*"]` returns them.

    Raises:
        NotRequested: the result has no weights, or some of several shapes.
    """
    layers = layer_weights(result)
    columns = max(len(weights) for weights in layers.values())
    size = (max(5.0, columns * _HEAD + 1.4), len(layers) * _HEAD + 1.5)
    drawing = Figure(figsize=size, dpi=150, layout="constrained")
    panels = drawing.subplots(len(layers), columns, squeeze=False)
    for row, (layer, weights) in zip(panels, layers.items(), strict=True):
        row[0].set_ylabel(layer, color=MUTED, fontsize=9, rotation=0, ha="right", va="center")
        for head, panel in enumerate(row):
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set(color=MUTED, linewidth=0.5)
            if head >= len(weights):
                panel.spines[:].set_visible(False)
                continue
            panel.imshow(weights[head], cmap=_RAMP, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for head, panel in enumerate(panels[0]):
        panel.set_title(str(head), color=MUTED, fontsize=9)
    words = " ".join(result.tokens) or f"{result.model} {result.version}"
    drawing.suptitle(words if len(words) <= _MAX_CAPTION else f"{words[: _MAX_CAPTION - 1]}…", color=INK, fontsize=11)
    _explain(drawing, f"{result.model}, version {result.version}; a row a layer, a column a head")
    return drawing


def about(result: AttendResult) -> str:
    """Return the model, version and layer of a result's weights."""
    layer = result.layers.get("weights", "")
    return f"{result.model}, version {result.version}" + (f", layer {layer}" if layer else "")


def _explain(drawing: Figure, words: str) -> None:
    """Write below a figure what it is of, and the scale of its colours."""
    drawing.supxlabel(f"{words}; rows look at columns", color=MUTED, fontsize=8)
    scale = ScalarMappable(Normalize(0, 1), _RAMP)
    bar = drawing.colorbar(scale, ax=drawing.axes, fraction=0.02, pad=0.01, aspect=30, ticks=[0, 0.5, 1])
    bar.set_label("weight", color=MUTED, fontsize=8)
    bar.ax.tick_params(labelsize=7, colors=MUTED, length=0)
    bar.outline.set_visible(False)


def alignment(translation: Translation, head: int | None = None) -> Figure:
    """Draw the alignment of a translation with its text: by one head, or by the mean of all heads.

    Raises:
        InvalidRequest: there is no such head.
    """
    words = f"{translation.model}, version {translation.version}"
    return _draw(alignment_picture(translation, head), f"{translation.text}\n{translation}", words)


def _draw(drawn: Picture, caption: str, words: str) -> Figure:
    heads, queries, keys = drawn.weights.shape
    columns = min(heads, int(_MAX_WIDTH // _inches(keys)))
    rows = math.ceil(heads / columns)
    size = (columns * _inches(keys) + 0.8, rows * (_inches(queries) + 0.6) + 0.6)
    drawing = Figure(figsize=size, dpi=150, layout="constrained")
    panels = drawing.subplots(rows, columns, squeeze=False, sharey=True).flat
    for head, panel in enumerate(panels):
        if head < heads:
            _heat_map(panel, drawn, drawn.weights[head], drawn.titles[head])
        else:
            panel.set_axis_off()
    drawing.suptitle(caption, color=INK, fontsize=11)
    _explain(drawing, words)
    return drawing


def _inches(positions: int) -> float:
    """Return the side of a panel: wide enough for numbers or names in the cells, within bounds."""
    return min(max(2.2, positions * (0.42 if positions <= _MAX_NUMBERS else 0.16)), 5.0)


def caption(result: AttendResult) -> str:
    """Return what a result predicts, in a line; its model where it predicts nothing."""
    said = [f"{each.name}: {each.label} {each.probability:.2f}" for each in result.predictions]
    return "   ".join(said[:_MAX_PREDICTIONS]) or f"{result.model} {result.version}"


def _heat_map(panel: Axes, drawn: Picture, weights: Array, title: str) -> None:
    panel.imshow(weights, cmap=_RAMP, vmin=0, vmax=1, aspect="auto")
    panel.set_title(title, color=INK, fontsize=10)
    panel.tick_params(length=0, labelsize=9, colors=INK)
    panel.spines[:].set_visible(False)
    if max(weights.shape) <= _MAX_NAMES:
        panel.set_xticks(range(len(drawn.keys)), drawn.keys, rotation=45, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(len(drawn.queries)), drawn.queries)
    if max(weights.shape) <= _MAX_NUMBERS:
        _write_numbers(panel, weights)
    if drawn.focus is not None:
        _frame_row(panel, drawn.focus, len(drawn.keys))


def _write_numbers(panel: Axes, weights: Array) -> None:
    for row, values in enumerate(weights):
        for key, value in enumerate(values):
            if value >= _ROUNDS_TO_ZERO:
                ink = "white" if value > 0.5 else INK
                panel.text(key, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)


def _frame_row(panel: Axes, row: int, keys: int) -> None:
    frame = Rectangle((-0.5, row - 0.5), keys, 1, fill=False, edgecolor=ACCENT, linewidth=1.8, clip_on=False, zorder=3)
    panel.add_patch(frame)
    for name in panel.get_yticklabels()[row : row + 1]:
        name.set(color=ACCENT, fontweight="bold")
