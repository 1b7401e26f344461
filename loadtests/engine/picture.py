"""The picture of a run: how many times faster than each reference, with the target as a tick."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .cases import Row

MET, MISSED, FREE, INK = "#2f6690", "#b3402a", "#8a9099", "#20242a"


def draw(rows: Sequence[Row], path: Path) -> None:
    """One bar a comparison, on a logarithmic axis whose 1 is the reference."""
    figure = Figure(figsize=(10.5, 0.9 + 0.34 * len(rows)), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, row in enumerate(rows):
        colour = FREE if row.target is None else MISSED if row.missed else MET
        axes.barh(place, row.ratio - 1, left=1, height=0.62, color=colour)
        if row.target is not None:
            axes.plot([row.target] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=1.6)
        axes.annotate(
            f"{row.ratio:.3g}x", (max(row.ratio, 1), place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_xscale("log")
    axes.axvline(1, color=FREE, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), [f"{row.case} · {row.problem} · {row.reference}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("times faster than the reference (tick: target; red: missed)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
