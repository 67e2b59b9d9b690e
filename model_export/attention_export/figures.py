"""A figure of a training run: the loss, and attention weights before and after."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attention_export.training import Illustration, Panel, TrainedModel

if TYPE_CHECKING:  # matplotlib is an optional dependency
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

CELL = 0.44  # inches; that of one weight
ROW_LABEL, COLUMN_LABEL, LOSS = 1.0, 1.4, 2.1  # inches beside, above and apart from the weights
INK, FAINT, LINE = "#1f2430", "#c9cdd6", "#2b5c8a"
COLOURS = "Blues"


def save_figure(trained: TrainedModel, path: Path | str) -> None:
    """Draw a model's loss curve, and below it the attention weights of its example, into a file; PNG or by suffix.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context  # noqa: PLC0415 - see above
    from matplotlib.figure import Figure  # noqa: PLC0415 - see above

    with rc_context({"font.size": 9, "axes.titlesize": 9, "text.color": INK, "axes.labelcolor": INK}):
        figure = Figure(figsize=_size(trained.illustration), layout="constrained")
        parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[LOSS, figure.get_figheight() - LOSS])
        _draw_losses(parts[0, 0].subplots(), trained.losses)
        _draw_panels(parts[1, 0], trained.illustration)
        figure.savefig(path, dpi=160)


def _size(illustration: Illustration) -> tuple[float, float]:
    """Return a size with room for every weight, for labels of any length."""
    width = len(illustration.panels) * (len(illustration.columns) * CELL + ROW_LABEL)
    height = max(len(panel.rows) for panel in illustration.panels) * CELL
    return width, LOSS + COLUMN_LABEL + height


def _draw_losses(axes: "Axes", losses: Sequence[float]) -> None:
    window = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    axes.semilogy(losses, color=FAINT, linewidth=0.6)
    axes.semilogy(np.arange(len(smooth)) + window / 2, smooth, color=LINE, linewidth=1.6)
    axes.set_title("Training loss", loc="left", weight="bold", size=10)
    axes.set_xlabel("step")
    axes.set_xlim(0, len(losses))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_panels(figure: "SubFigure", illustration: Illustration) -> None:
    figure.suptitle(f"Attention weights: {illustration.text}", x=0.01, ha="left", weight="bold", size=10)
    grid = figure.subplots(1, len(illustration.panels), squeeze=False)
    for axes, panel in zip(grid[0], illustration.panels, strict=True):
        _draw_weights(axes, panel, illustration.columns)


def _draw_weights(axes: "Axes", panel: Panel, columns: Sequence[str]) -> None:
    """Draw a cell for each weight, with its number from 0.05."""
    axes.imshow(panel.weights, cmap=COLOURS, vmin=0, vmax=1)
    axes.set_anchor("N")
    axes.set_title(panel.title, loc="left")
    axes.set_yticks(range(len(panel.rows)), panel.rows)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(panel.rows) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for (row, column), weight in np.ndenumerate(panel.weights):
        if weight >= 0.05:
            ink = "white" if weight > 0.5 else INK
            axes.text(column, row, f"{weight:.2f}", ha="center", va="center", size=7, color=ink)
