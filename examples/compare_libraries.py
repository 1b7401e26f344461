"""Ask every library of differentiable linear solves that is installed the same questions, and print the answers.

One nonsymmetric matrix, default settings: is the gradient right, and the Hessian-vector product? Can the solve
be mapped, and differentiated forward? What becomes of a singular matrix, and of a NaN? How much is factorized and
solved for one gradient? Every cell is computed while this runs; the reference is a dense float64 solve, differentiated
by the same framework. Each library runs in a process of its own, so that none can end the others.

    python examples/compare_libraries.py
    python examples/compare_libraries.py --only "backsolve (torch)" torch-sla --markdown out/libraries.md
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, final

from compare_system import QUESTIONS, Cell, Frame, Library, System, ask

SILENT = 1e-2
"""From here on a number is called wrong: more than a percent off, by libraries that work in float64."""


@final
@dataclass(frozen=True)
class Entry:
    """Where a library is found.

    Attributes:
        module, frame, library: the file beside this one, and two classes in it.
        needs: modules to import; without one of them the library is not installed.
        pip: how to install it.
        package: the distribution whose version is told.
    """

    module: str
    frame: str
    library: str
    needs: tuple[str, ...]
    pip: str
    package: str


def _torch(library: str, needs: str, pip: str, package: str) -> Entry:
    return Entry("compare_torch", "TorchFrame", library, ("torch", needs), pip, package)


def _jax(library: str, needs: str, pip: str, package: str) -> Entry:
    return Entry("compare_jax", "JaxFrame", library, ("jax", needs), pip, package)


LIBRARIES: Final[dict[str, Entry]] = {
    "backsolve (torch)": _torch(
        "Backsolve", "backsolve_service", "pip install -e client[torch] -e service", "backsolve"
    ),
    "backsolve (jax)": _jax("Backsolve", "backsolve.jax", "pip install -e client[jax] -e service", "backsolve"),
    "backsolve (tensorflow)": Entry(
        "compare_tensorflow",
        "TensorFlowFrame",
        "Backsolve",
        ("tensorflow", "backsolve.tensorflow", "backsolve_service"),
        "pip install -e client[tensorflow] -e service",
        "backsolve",
    ),
    "torch-sla": _torch("TorchSla", "torch_sla", "pip install torch-sla", "torch-sla"),
    "torchsparsegradutils": _torch(
        "TorchSparseGradUtils", "torchsparsegradutils", "pip install torchsparsegradutils", "torchsparsegradutils"
    ),
    "torchsparsegradutils, bicgstab": _torch(
        "TorchSparseGradUtilsBicgstab",
        "torchsparsegradutils",
        "pip install torchsparsegradutils",
        "torchsparsegradutils",
    ),
    "torchsparsegradutils, bicgstab twice": _torch(
        "TorchSparseGradUtilsTransposed",
        "torchsparsegradutils",
        "pip install torchsparsegradutils",
        "torchsparsegradutils",
    ),
    "jax spsolve": _jax("JaxSpsolve", "scipy", "pip install jax scipy", "jax"),
    "jax gmres": _jax("JaxGmres", "jax.experimental.sparse", "pip install jax", "jax"),
    "jax bicgstab": _jax("JaxBicgstab", "jax.experimental.sparse", "pip install jax", "jax"),
    "lineax": _jax("Lineax", "lineax", "pip install lineax", "lineax"),
    "klujax": _jax("Klujax", "klujax", "pip install klujax", "klujax"),
}


@final
@dataclass
class Row:
    """One library's answers.

    Attributes:
        library: its name.
        version: of its distribution; None if it is not installed.
        cells: by question; those of a process that ended early are missing.
        ended: what cut the run short, or why there was none.
    """

    library: str
    version: str | None = None
    cells: dict[str, Cell] = field(default_factory=dict)
    ended: str | None = None


def main() -> int:
    """Exit status 0 whatever the libraries answer."""
    options = _arguments()
    if options.child:
        _answer(options.child, options.into)
        return 0
    rows = [_run(name, options.timeout) for name in options.only or LIBRARIES]
    text = table(rows)
    print(text)
    for path, content in (
        (options.markdown, text + "\n"),
        (options.json, json.dumps([asdict(row) for row in rows], indent=1, allow_nan=True)),
    ):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    return 0


def _run(name: str, timeout: float) -> Row:
    """Ask one library in a process of its own; what it answered before an early end is kept."""
    row, entry = Row(name), LIBRARIES[name]
    if missing := [need for need in entry.needs if not _found(need)]:
        row.ended = f"not installed ({', '.join(missing)}): {entry.pip}"
        return row
    row.version = version(entry.package)
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "cells"
        command = [sys.executable, __file__, "--child", name, "--into", str(into)]
        environment = os.environ | {
            "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=timeout
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no word"])[-1]
                row.ended = f"its process ended with {done.returncode}: {last}"
        except subprocess.TimeoutExpired:
            row.ended = f"no answer within {timeout:g} seconds"
        for line in into.read_text().splitlines() if into.exists() else []:
            question, cell = json.loads(line)
            row.cells[question] = Cell(**{**cell, "warned": tuple(cell["warned"])})
    return row


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _answer(name: str, into: Path) -> None:
    """All questions to one library, each answer written as soon as it is there."""
    entry, system = LIBRARIES[name], System.convection()
    module = import_module(entry.module)
    frame: Frame = getattr(module, entry.frame)(system)
    library: Library = getattr(module, entry.library)(system)
    with into.open("w") as lines:
        for question in QUESTIONS:
            lines.write(json.dumps([question, asdict(ask(question, frame, library))]) + "\n")
            lines.flush()


def table(rows: list[Row]) -> str:
    """Markdown: a row a library, a column a question; exceptions and warnings below, by number."""
    notes: list[str] = []
    lines = [["library", *QUESTIONS]]
    for row in rows:
        name = f"{row.library} {row.version}" if row.version else row.library
        cells = [_shown(row.cells.get(question), notes) for question in QUESTIONS]
        if row.version is None:
            cells = ["not installed", *[""] * (len(cells) - 1)]
        lines.append([f"{name} {_note(row.ended, notes)}" if row.ended else name, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    written = ["| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    written.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    legend = [f"* {question}: {meaning}" for question, meaning in QUESTIONS.items()]
    legend.append(
        f"* WRONG, silently: off by more than {SILENT:.0%}, or numbers where there is no answer, and no warning"
    )
    return "\n".join([*written, "", *legend, *([""] if notes else []), *notes])


def _shown(cell: Cell | None, notes: list[str]) -> str:
    if cell is None:
        return "no answer"
    text = cell.text
    if cell.raised:
        return f"{text} {_note(cell.raised, notes)}"
    if cell.error is not None and cell.error > SILENT:
        text = f"WRONG: {text}" if cell.warned else f"WRONG, silently: {text}"
    return " ".join([text, *(_note(f"warns: {each}", notes) for each in cell.warned)])


def _note(text: str, notes: list[str]) -> str:
    """The number of a note; one text has one number."""
    for number, note in enumerate(notes, 1):
        if note == f"[{number}] {text}":
            return f"[{number}]"
    notes.append(f"[{len(notes) + 1}] {text}")
    return f"[{len(notes)}]"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare libraries of differentiable linear solves.")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        choices=[*LIBRARIES],
        metavar="LIBRARY",
        help=f"of: {', '.join(LIBRARIES)}",
    )
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    parser.add_argument("--json", type=Path, help="also write every cell here")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one library (default: %(default)s)")
    parser.add_argument("--child", choices=[*LIBRARIES], help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
