"""The picture of the training steps: how much of the time by hand each takes, beside its target."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

OURS, MARK, FAINT = "#2f6690", "#b3402a", "#8a9099"


def draw(bars: Sequence[tuple[str, float, float | None]], path: Path) -> None:
    """One bar a workload: ours over by hand; a mark where the target lies.

    Args:
        bars: name, ratio and target of each.
        path: where to.
    """
    figure = Figure(figsize=(8, 1.2 + 0.38 * len(bars)), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, (_, ratio, target) in enumerate(reversed(bars)):
        axes.barh(row, ratio, height=0.6, color=OURS)
        axes.text(max(ratio, target or 0.0) * 1.08, row, f"{ratio:.2g}", va="center", fontsize=9)
        if target is not None:
            axes.plot([target, target], [row - 0.38, row + 0.38], color=MARK, linewidth=2)
    axes.axvline(1, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(bars)), [name for name, _, _ in reversed(bars)])
    axes.set_xscale("log")
    axes.set_xlim(right=max([1.0, *(ratio for _, ratio, _ in bars)]) * 2)
    axes.set_xlabel("time of a step on a server / time by hand (red: target)")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
