"""The picture that `heat_inverse.py` writes: true field, learned field, error, and how the loss fell."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation
from numpy.typing import NDArray

INK, FAINT, ACCENT, SECOND = "#22262b", "#8a9099", "#b3402a", "#2f6690"
FIELD_COLOURS, ERROR_COLOURS = "RdYlBu_r", "magma_r"
WINDOW = (-0.9, 1.9, -1.05, 1.05)
BAR: dict[str, Any] = {"location": "bottom", "fraction": 0.035, "pad": 0.03, "shrink": 0.6, "aspect": 45}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Scene:
    """What is drawn.

    Attributes:
        nodes: `[n, 2]` coordinates, in chord lengths.
        triangles: `[m, 3]` corners, as rows of `nodes`.
        seen: indices of the observed nodes.
        true: `[m]` true log-conductivity.
        learned: `[m]` learned log-conductivity.
        losses: one for each step.
        errors: median |log k error| of each step.
    """

    nodes: NDArray[np.float64]
    triangles: NDArray[np.int64]
    seen: NDArray[np.int64]
    true: NDArray[np.float64]
    learned: NDArray[np.float64]
    losses: list[float]
    errors: list[float]


def draw(scene: Scene, path: Path) -> None:
    """Write the picture to `path`, in the format that its suffix names."""
    with mpl.rc_context(STYLE):
        # No pyplot: a figure of its own needs no display and leaves no global state.
        layout = ConstrainedLayoutEngine(w_pad=0.18, h_pad=0.16, wspace=0.03, hspace=0.03)
        figure = Figure(figsize=(11.5, 10.2), dpi=130, layout=layout, facecolor="white")
        FigureCanvasAgg(figure)
        (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(2, 2)
        reach = float(np.quantile(np.abs(scene.true), 0.98))
        field = _field(top_left, scene, scene.true, FIELD_COLOURS, (-reach, reach))
        top_left.plot(*scene.nodes[scene.seen].T, ".", color=INK, markersize=2.6)
        _title(top_left, "True conductivity", "near the airfoil; dots: half of the nodes are observed")
        _field(top_right, scene, scene.learned, FIELD_COLOURS, (-reach, reach))
        _title(top_right, "Learned conductivity", f"{len(scene.true)} triangles, from a uniform start")
        _bar(figure.colorbar(field, ax=[top_left, top_right], extend="both", **BAR), "log conductivity, one scale")

        error = np.abs(scene.learned - scene.true)
        worst = float(np.quantile(error, 0.98))
        field = _field(bottom_left, scene, error, ERROR_COLOURS, (0.0, worst))
        _title(bottom_left, "Error", f"median {np.median(error):.3f}, nine of ten below {np.quantile(error, 0.9):.2f}")
        _bar(figure.colorbar(field, ax=bottom_left, extend="max", ticks=MaxNLocator(5), **BAR), "|log k error|")
        _history(bottom_right, scene)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _field(
    axes: Axes, scene: Scene, values: NDArray[np.float64], colours: str, limits: tuple[float, float]
) -> PolyCollection:
    drawn = axes.tripcolor(
        Triangulation(scene.nodes[:, 0], scene.nodes[:, 1], scene.triangles),
        facecolors=values,
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        edgecolors="face",
        linewidth=0.2,
    )
    axes.set(xlim=WINDOW[:2], ylim=WINDOW[2:], aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return drawn


def _history(axes: Axes, scene: Scene) -> None:
    steps = np.arange(1, len(scene.losses) + 1)
    for name, curve, colour in (("loss", scene.losses, ACCENT), ("median |log k error|", scene.errors, SECOND)):
        axes.semilogy(steps, curve, color=colour, linewidth=1.8)
        end = (steps[-1], curve[-1])
        axes.annotate(name, end, (-4, 12), textcoords="offset points", color=colour, ha="right")
    axes.set_xlabel("optimiser step, one factorization each")
    axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    fold = float(f"{scene.losses[0] / scene.losses[-1]:.2g}")
    _title(axes, "Learning", f"the loss falls {fold:,.0f}-fold")


def _title(axes: Axes, title: str, note: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=20)
    axes.annotate(note, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color=FAINT, fontsize=9.5)


def _bar(bar: Colorbar, label: str) -> None:
    bar.set_label(label, color=FAINT, fontsize=9.5)
    bar.ax.tick_params(length=0, labelsize=8.5)
    bar.outline.set_visible(False)
