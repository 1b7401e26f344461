"""The picture: what became of the systems that each method was sent, a bar a method."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {
    "solved": "#2f6690",
    "flagged by a status": "#d9a13b",
    "refused by an error": "#8a9099",
    "wrong, unflagged": "#b3402a",
}


def draw(shares: Mapping[str, Mapping[str, Mapping[str, int]]], path: Path) -> None:
    """Panels side by side; each bar is the whole of what a method was sent there, how much that is beside it.

    Args:
        shares: counts by panel, method and part of `COLOURS`.
        path: of the PNG.
    """
    methods = list(next(iter(shares.values())))
    figure = Figure(figsize=(11, 1.3 + 0.24 * len(methods)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shares), sharey=True)
    for axes, (title, counts) in zip(panels, shares.items(), strict=True):
        sent = [max(sum(counts[name].values()), 1) for name in methods]
        left = [0.0] * len(methods)
        for part, colour in COLOURS.items():
            widths = [100 * counts[name].get(part, 0) / many for name, many in zip(methods, sent, strict=True)]
            axes.barh(methods, widths, left=left, color=colour, label=part, height=0.72)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for place, name in enumerate(methods):
            axes.text(101, place, f"{sum(counts[name].values())}", va="center", fontsize=7, color="#555555")
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("percent of the systems sent (their number at the right)", fontsize=9)
        axes.set_xlim(0, 100)
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.tick_params(labelsize=8, length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
