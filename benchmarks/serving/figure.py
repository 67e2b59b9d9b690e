"""The plot of each server's rate relative to the graphs in process."""

from pathlib import Path

import matplotlib as mpl

from benchmarks.serving import plan
from benchmarks.serving.results import Results

mpl.use("svg")

from matplotlib import pyplot as plt  # after the choice of the backend

INK = "#808890"  # legible on white and on black
SHOWN = {
    "streamed": ((plan.STREAMED.name,), "#1a9850"),
    "ragged": ((plan.RAGGED.name,), "#66bd63"),
    "unary": ((plan.UNARY.name,), "#4393c3"),
    "mosec, its best": ((plan.MOSEC.name, plan.MOSEC_BATCHED.name), "#f4a636"),
    "Triton": ((plan.TRITON.name,), "#d6604d"),
    "MLServer": ((plan.MLSERVER.name,), "#9970ab"),
}
WIDTH = 0.8  # of a case's group of bars


def draw(results: Results, path: Path) -> None:
    """Write the plot as SVG, without a background."""
    cases = [case for case in plan.SPEED if case.key in results.measured]
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "benchmarks",
        "font.family": "sans-serif",
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(9, 4))
        for place, (label, (names, colour)) in enumerate(SHOWN.items()):
            shares = [results.ratio(case.key, results.best(case.key, *names), plan.ONE_BY_ONE.name) for case in cases]
            step = WIDTH / len(SHOWN)
            at = [number - WIDTH / 2 + (place + 0.5) * step for number in range(len(cases))]
            axes.bar(at, [share or 0.0 for share in shares], 0.9 * step, label=label, color=colour)
        axes.axhline(1.0, color=INK, linewidth=0.8, linestyle="--")
        axes.set_xticks(range(len(cases)), [case.title for case in cases])
        axes.set_ylabel("1 = the same graphs in process, one by one")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.2))
        figure.savefig(path, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
