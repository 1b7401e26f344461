"""Time the engine in this process against SciPy's users, as ratios in one run on one thread.

Two references: `spsolve(A)` and `spsolve(A.T)`, a factorization each, and a careful user who keeps one
`splu` for both. A target that is missed is printed as missed.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from backsolve_service.engine.registry import methods
from loadtests.micro.__main__ import environment

from . import cases
from .cases import Row
from .picture import draw
from .problems import Problem, circuit, grid

Case = Callable[[], Iterator[Row]]


def main() -> None:
    """Measure, print the table, write `out/engine.json` and `out/engine.png`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results (default: %(default)s)")
    parser.add_argument("--only", nargs="+", action="extend", choices=CASES, help="cases to run (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each case (default: %(default)s)")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds for SciPy's splu on the largest system")
    options = parser.parse_args()
    rows = [row for name in options.only or CASES for row in CASES[name](options.rounds, options.patience)]
    print(table(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    listed = [{**asdict(row), "ratio": row.ratio, "missed": row.missed} for row in rows]
    (options.out / "engine.json").write_text(json.dumps({"environment": environment(), "rows": listed}, indent=1))
    draw(rows, options.out / "engine.png")
    print(f"\nwritten: {options.out / 'engine.json'}, {options.out / 'engine.png'}")


def _cached(rounds: int, patience: float) -> Iterator[Row]:
    del patience
    for problem in (grid((100, 100)), _circuit(), grid((316, 316)), grid((30, 30, 30))):
        yield from cases.cached(problem, rounds, (20, 10))


def _new_values(rounds: int, patience: float) -> Iterator[Row]:
    del patience
    yield from cases.new_values(grid((100, 100)), rounds, (4, None))
    yield from cases.new_values(grid((316, 316)), rounds, (2, None))
    yield from cases.new_values(grid((30, 30, 30)), rounds, (5, None))
    # By KLU where it is installed.
    yield from cases.new_values(_circuit(), rounds, (20 if "klu" in methods() else None, None))
    yield from cases.new_values(_circuit(), rounds, (None, None), method="superlu")


def _refactored(rounds: int, patience: float) -> Iterator[Row]:
    del patience
    for problem in (grid((100, 100)), _circuit(), grid((316, 316)), grid((30, 30, 30))):
        yield from cases.refactored(problem, rounds)


def _first_sight(rounds: int, patience: float) -> Iterator[Row]:
    del patience
    for problem in (grid((100, 100)), _circuit(), grid((316, 316)), grid((30, 30, 30))):
        yield from cases.first_sight(problem, rounds, (1.9, 0.9))


def _large(rounds: int, patience: float) -> Iterator[Row]:
    yield from cases.large_definite(grid((50, 50, 50)), min(rounds, 3), patience)


def _drifting(rounds: int, patience: float) -> Iterator[Row]:
    del patience
    yield from cases.drifting(grid((30, 30, 30)), 4 * rounds, 2.0)
    yield from cases.drifting(grid((30, 30, 30)), 4 * rounds, 2.0, precision="mixed")
    yield from cases.drifting(grid((30, 30, 30)), 4 * rounds, 2.0, method="superlu")


CASES: dict[str, Callable[[int, float], Iterator[Row]]] = {
    "cached": _cached,
    "new-values": _new_values,
    "refactored": _refactored,
    "first-sight": _first_sight,
    "large": _large,
    "drifting": _drifting,
}


def _circuit() -> Problem:
    return circuit(10_000, np.random.default_rng(240_917_755))


def table(rows: Sequence[Row]) -> str:
    """Seconds of both sides, the ratio, and the target."""
    lines = [f"{'case':<26}{'matrix':<20}{'against':<28}{'ours':>10}{'theirs':>11}{'ratio':>9}  target"]
    for row in rows:
        target = "" if row.target is None else f"{row.target:g}x {'MISSED' if row.missed else 'met'}"
        lines.append(
            f"{row.case:<26}{row.problem:<20}{row.reference:<28}{1e3 * row.ours:>7.1f} ms{1e3 * row.theirs:>8.0f} ms"
            f"{row.ratio:>8.2f}x  {target}"
        )
        if row.note:
            lines.append(f"{'':<26}{row.note}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
