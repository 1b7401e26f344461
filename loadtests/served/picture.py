"""The pictures of a run: latency by percentile, throughput against goodput, the server's memory over time."""

from math import log10
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .rows import Row

COLOURS = {"http": "#b3402a", "grpc": "#2f6690"}
STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)))
FAINT = "#8a9099"
MIB = 1 << 20
_TICKS = {0.0: "0", 50.0: "50", 90.0: "90", 99.0: "99", 99.9: "99.9", 99.99: "99.99"}


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Write `latency.png` and `server.png` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "latency.png", folder / "server.png"]
    _latencies(rows, paths[0])
    _server(rows, paths[1])
    return paths


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _latencies(rows: list[Row], path: Path) -> None:
    """One panel a scenario; the horizontal axis stretches the tail as nines do: log of 1 / (1 - percentile)."""
    names = list(dict.fromkeys(row.scenario for row in rows))
    columns = min(len(names), 4)
    lines = -(-len(names) // columns)
    figure = _figure(3.4 * columns + 0.6, 2.9 * lines + 0.4)
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes, name in zip(panels.flat, names, strict=False):
        mine = [row for row in rows if row.scenario == name]
        parts = list(dict.fromkeys(row.part for row in mine))
        for row in mine:
            points = [(_nines(p), 1e3 * s) for p, s in row.curve if _nines(p) <= _most_nines(row.answered)]
            if points:
                style: Any = STYLES[parts.index(row.part) % len(STYLES)]
                axes.plot(
                    *zip(*points, strict=True),
                    color=COLOURS[row.transport],
                    linestyle=style,
                    linewidth=1.7,
                    label=f"{row.part}, {row.transport}",
                )
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks([_nines(p) for p in _TICKS], _TICKS.values())
        axes.set_title(name, loc="left", fontsize=11, fontweight="bold")
        axes.legend(frameon=False, fontsize=7.5, loc="lower right")
        _tidy(axes)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("percentile", fontsize=10)
    figure.supylabel("ms from the intended start", fontsize=10)
    figure.savefig(path)


def _nines(percent: float) -> float:
    return -log10(max(1 - percent / 100, 1e-9))


def _most_nines(count: int) -> float:
    """Beyond this a percentile of so few latencies is their maximum."""
    return _nines(100 * (1 - 1 / max(count, 2)))


def _server(rows: list[Row], path: Path) -> None:
    figure = _figure(13, max(0.34 * len(rows) + 1.2, 3.6))
    rates, memory = figure.subplots(1, 2, width_ratios=(1.25, 1))
    labels = [f"{row.scenario}: {row.part} ({row.transport})" for row in rows]
    places = range(len(rows))
    rates.barh(
        places, [row.throughput for row in rows], color=[COLOURS[r.transport] for r in rows], alpha=0.35, height=0.7
    )
    rates.barh(places, [row.goodput for row in rows], color=[COLOURS[r.transport] for r in rows], height=0.35)
    for place, row in zip(places, rows, strict=True):
        if row.rate is not None:
            rates.plot([row.rate] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1.4)
    rates.set_yticks(places, labels, fontsize=8)
    rates.invert_yaxis()
    rates.set_xscale("log")
    rates.set_xlabel("steps a second: answered (pale), within the limit (full), due (black)")
    for row in rows:
        if row.memory:
            times, sizes = zip(*row.memory, strict=True)
            memory.plot(
                times, [(s - sizes[0]) / MIB for s in sizes], color=COLOURS[row.transport], alpha=0.6, linewidth=1.2
            )
            memory.annotate(row.scenario, (times[-1], (sizes[-1] - sizes[0]) / MIB), fontsize=7, color=FAINT)
    memory.set_xlabel("seconds")
    memory.set_ylabel("server's memory beyond the start, MiB")
    for axes in (rates, memory):
        _tidy(axes)
    figure.savefig(path)


def _tidy(axes: Any) -> None:
    axes.grid(axis="both", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
