"""The benchmark's picture: multiples of the work by hand, against the size of the system."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"embedded": "#2f6690", "http": "#b3402a", "grpc": "#d9a13b"}
TITLES = {"solve": "client.solve", "handle": "client.factorized(A).solve", "vjp": "client.vjp"}
FAINT = "#8a9099"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel an operation, one line a way; 1 is SciPy's factor kept by hand."""
    figure = Figure(figsize=(11, 3.8), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(TITLES), sharey=True)
    for axes, (operation, title) in zip(panels, TITLES.items(), strict=True):
        for way, colour in COLOURS.items():
            chosen = sorted((r["n"], r["ratio"]) for r in rows if (r["operation"], r["way"]) == (operation, way))
            axes.loglog(*zip(*chosen, strict=True), "o-", color=colour, label=way, linewidth=1.8, markersize=5)
        axes.axhline(1, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("n")
        axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("time / time by hand")
    panels[-1].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
