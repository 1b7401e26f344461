"""The picture of the targets: each figure as a multiple of its bound, the good side to the left."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loadtests.target import Target

MET, MISSED, FAINT = "#2f6690", "#b3402a", "#8a9099"


def draw(targets: Sequence[Target], path: Path) -> None:
    """One bar a target; what ends left of 1 is met."""
    figure = Figure(figsize=(9, 0.32 * len(targets) + 1.2), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = [t.value / t.bound if t.at_most else t.bound / t.value for t in targets]
    axes.barh(range(len(targets)), shares, color=[MET if t.met else MISSED for t in targets], height=0.62)
    axes.set_yticks(range(len(targets)), [t.name for t in targets], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel("share of what is allowed (left of 1: met)")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
