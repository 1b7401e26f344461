"""The picture: what became of the hard systems, a bar a method."""

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
    """Two panels, controls and hard systems; each bar has the parts of `COLOURS`.

    Args:
        shares: counts by panel, method and part.
        path: of the PNG.
    """
    figure = Figure(figsize=(12, 2 + 0.3 * len(next(iter(shares.values())))), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shares), sharey=True)
    for axes, (title, methods) in zip(panels, shares.items(), strict=True):
        names, left = list(methods), [0] * len(methods)
        for part, colour in COLOURS.items():
            widths = [methods[name].get(part, 0) for name in names]
            axes.barh(names, widths, left=left, color=colour, label=part, height=0.7)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("systems")
        axes.invert_yaxis() if axes is panels[0] else None
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
