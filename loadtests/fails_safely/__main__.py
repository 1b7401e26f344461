"""Send hard systems to every method, count what becomes of them, and look for wrong answers that do not say so."""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import backsolve
from backsolve_service.engine.registry import DEFAULT_PRECONDITIONER, ROWS, methods, preconditioners

from .judge import OK, WRONG, Verdict, judge
from .picture import draw
from .systems import COUNT, System, systems

Case = tuple[str, str, str | None]
"""Method, layout, preconditioner."""


def cases() -> Iterator[Case]:
    """Every method with every layout of entries that it takes, and every preconditioner it may have."""
    for layout in ("dense", "csr"):
        yield "auto", layout, None
    for method in methods():
        for layout in sorted(ROWS[method].layouts - {"structured"}):
            for preconditioner in preconditioners() if "preconditioner" in ROWS[method].options else (None,):
                yield method, layout, preconditioner


def share(case: Case, count: int) -> Sequence[int]:
    """Which of the systems a case is sent: all of them, if its method is direct.

    An iteration is the same on both layouts, which share the systems; preconditioners beside the
    default see a fifth of them.
    """
    method, layout, preconditioner = case
    if method == "auto" or ROWS[method].direct:
        return range(count)
    order = np.random.default_rng(250_993_118).permutation(count).tolist()
    return list(order[int(layout == "csr") :: 2 if preconditioner in (None, DEFAULT_PRECONDITIONER) else 5])


def main() -> None:
    """Solve, print the table, write `out/fails_safely.json` and `out/fails_safely.png`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results (default: %(default)s)")
    parser.add_argument("--count", type=int, default=COUNT, help="number of systems (default: %(default)s)")
    options = parser.parse_args()
    listed, chosen = list(systems(options.count)), list(cases())
    with backsolve.Client("embedded") as client:
        rows = [
            _row(case, system, judge(client, system, case[1], case[0], case[2]))
            for case in tqdm(chosen, unit="case")
            for system in (listed[index] for index in share(case, options.count))
        ]
    names = sorted({row["method"] for row in rows}, key=[_name(case) for case in chosen].index)
    print(table(rows, names))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "fails_safely.json").write_text(json.dumps(rows, indent=1))
    draw({title: _shares(rows, control) for title, control in PANELS}, options.out / "fails_safely.png")
    print(f"\nwritten: {options.out / 'fails_safely.json'}, {options.out / 'fails_safely.png'}")


PANELS = (("harmless systems", True), ("hard systems", False))


def _name(case: Case) -> str:
    method, layout, preconditioner = case
    return f"{method} ({layout}{f', {preconditioner}' if preconditioner else ''})"


def _row(case: Case, system: System, verdict: Verdict) -> dict[str, Any]:
    return {
        "method": _name(case),
        "kind": system.kind,
        "control": system.control,
        "trans": system.trans,
        "dtype": system.a.dtype.name,
        "n": system.a.shape[0],
        "outcome": verdict.outcome,
        "backward_error": verdict.backward_error,
    }


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """One line a method: how often it solved, which statuses and errors it gave, and the wrong answers."""
    lines = [f"{'method':<34}{'solved':>8}{'WRONG':>7}  flagged"]
    for name in names:
        counted = Counter(row["outcome"] for row in rows if row["method"] == name)
        flagged = ", ".join(f"{what} {many}" for what, many in counted.most_common() if what not in (OK, WRONG))
        lines.append(f"{name:<34}{counted[OK]:>8}{counted[WRONG]:>7}  {flagged}")
    return "\n".join(lines)


def _shares(rows: list[dict[str, Any]], control: bool) -> dict[str, dict[str, int]]:
    """Counts by method and part, whatever the layout and the preconditioner; the table has these apart."""
    found: dict[str, Counter[str]] = {row["method"].partition(" ")[0]: Counter() for row in rows}
    for row in rows:
        if row["control"] is control:
            found[row["method"].partition(" ")[0]][_part(row["outcome"])] += 1
    return {name: dict(counted) for name, counted in found.items()}


def _part(outcome: str) -> str:
    if outcome in (OK, WRONG):
        return "solved" if outcome == OK else "wrong, unflagged"
    return "flagged by a status" if outcome.isupper() else "refused by an error"


if __name__ == "__main__":
    main()
