"""Run a part of the tests with the oldest and the newest versions that the two distributions declare.

Each cell is a virtual environment of its own: a Python, and versions at one end of the declared ranges. What is run is
told beside what came of it, and so is what was not run, and why.

    python scripts/test_matrix.py
    python scripts/test_matrix.py --cells jax-oldest tensorflow-oldest --folder /tmp/matrix
    python scripts/test_matrix.py --torch declared --torch-index https://download.pytorch.org/whl/cpu

PyTorch's own packages for Linux on x86-64 are CUDA builds of gigabytes, so that by default every cell takes the version
pinned in constraints.txt; `--torch declared` takes the two ends of the range as well.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, final

ROOT: Final = Path(__file__).resolve().parent.parent
TOLD: Final = ("numpy", "scipy", "torch", "grpcio", "protobuf", "blake3", "jax", "tensorflow", "tensorflow-cpu")
TOOLS: Final = ("pytest", "pytest-timeout", "hypothesis")

SERVICE_TESTS: Final = (
    "tests/client",
    "tests/congruence/test_solves.py",
    "tests/congruence/test_rules.py",
    "tests/congruence/test_wire.py",
    "tests/engine/test_superlu.py",
    "tests/engine/test_cg.py",
    "tests/service/test_embedded.py",
    "tests/pytorch/test_gradients.py",
    "tests/pytorch/test_sparse.py",
    "tests/pytorch/test_func.py",
)
FRAMEWORK_TESTS: Final = ("tests/frameworks",)
TF_TESTS: Final = (*FRAMEWORK_TESTS, "tests/tf/test_graphs.py")
"""Graphs as well: forward mode in them is not told to operations by anything public of TensorFlow's."""
WIRE_TESTS: Final = (
    "tests/frameworks/test_costs.py",
    "tests/frameworks/test_errors.py",
    "tests/frameworks/test_transports.py",
)

ON_WIRE: Final = "(jax or tensorflow) and (http or grpc)"

End = Literal["oldest", "newest"]


@final
@dataclass(frozen=True)
class Cell:
    """One environment, and what is run in it.

    Attributes:
        name: on the command line.
        python: e.g. "3.11".
        end: of every declared range, the pinned PyTorch aside.
        extras: of the client, e.g. ("torch",).
        service: with the service; else tests call a server that runs under the interpreter of this script.
        tests: files and folders.
        select: for pytest's -k.
    """

    name: str
    python: str
    end: End
    extras: tuple[str, ...]
    service: bool
    tests: tuple[str, ...]
    select: str = ""


CELLS: Final = (
    Cell("oldest", "3.11", "oldest", ("torch",), True, SERVICE_TESTS),
    Cell("newest", "3.11", "newest", ("torch",), True, SERVICE_TESTS),
    Cell("jax-oldest", "3.11", "oldest", ("torch", "jax"), True, FRAMEWORK_TESTS, "jax"),
    Cell("jax-newest", "3.11", "newest", ("torch", "jax"), True, FRAMEWORK_TESTS, "jax"),
    Cell("tensorflow-oldest", "3.11", "oldest", ("torch", "tensorflow"), True, TF_TESTS, "tensorflow or graphs"),
    Cell("tensorflow-newest", "3.11", "newest", ("torch", "tensorflow"), True, TF_TESTS, "tensorflow or graphs"),
    Cell("client-3.12", "3.12", "newest", ("jax", "tensorflow"), False, WIRE_TESTS, ON_WIRE),
    Cell("client-3.13", "3.13", "newest", ("jax", "tensorflow"), False, WIRE_TESTS, ON_WIRE),
)


@final
@dataclass
class Outcome:
    """What came of a cell.

    Attributes:
        cell: which.
        said: passed and failed counts, or why nothing was run.
        ok: False where something failed; None where nothing was run.
        versions: of `TOLD`, as installed.
        failures: names of the first tests that failed, or the last lines of pip.
    """

    cell: Cell
    said: str = ""
    ok: bool | None = None
    versions: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def main() -> int:
    """Exit status 1 if anything that was run failed."""
    options = _arguments()
    chosen = [cell for cell in CELLS if not options.cells or cell.name in options.cells]
    folder = options.folder or Path(tempfile.mkdtemp(prefix="backsolve-matrix-"))
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for cell in chosen:
        print(f"{cell.name}: Python {cell.python}, {cell.end} versions", flush=True)
        outcomes.append(_run(cell, folder / cell.name, options))
        print(f"  {outcomes[-1].said}", flush=True)
        if not options.folder:
            shutil.rmtree(folder / cell.name, ignore_errors=True)
    print(table(outcomes))
    if options.json:
        options.json.write_text(json.dumps([_record(each) for each in outcomes], indent=1))
    return int(any(each.ok is False for each in outcomes))


def _run(cell: Cell, folder: Path, options: argparse.Namespace) -> Outcome:
    outcome = Outcome(cell)
    interpreter = _interpreter(cell.python)
    if interpreter is None:
        outcome.said = f"not run: no python{cell.python} found (PYTHON{cell.python.replace('.', '')} may name one)"
        return outcome
    python = folder / "bin" / "python"
    try:
        _install(cell, interpreter, folder, options)
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or error.stdout or "").splitlines() if line.strip()]
        outcome.ok, outcome.failures = False, [line for line in lines if not line.startswith("WARNING")][-12:]
        outcome.said = "cannot be installed"
        return outcome
    outcome.versions = _versions(python)
    command = [str(python), "-m", "pytest", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
    # Older libraries are warned about by newer ones: here a warning is not an error.
    command += ["-W", "default", "-m", "not containers and not gpu", *cell.tests]
    command += ["-k", cell.select] if cell.select else []
    environment = {name: at for name, at in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"OMP_NUM_THREADS": "1", "BACKSOLVE_SERVER_PYTHON": sys.executable if not cell.service else ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
    outcome.said, outcome.ok = lines[-1].strip("= "), done.returncode == 0
    outcome.failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))][: options.failures]
    (folder / "pytest.txt").write_text(done.stdout + done.stderr)
    return outcome


def _install(cell: Cell, interpreter: str, folder: Path, options: argparse.Namespace) -> None:
    """A fresh environment with both distributions, or the client alone, as `pip` resolves them."""
    _call([interpreter, "-m", "venv", "--clear", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    limits = folder / "limits.txt"
    limits.write_text("\n".join(_limits(cell, options.torch)) + "\n")
    if cell.service:
        index = ["--index-url", options.torch_index] if options.torch_index else []
        _call([*pip, "-c", str(limits), *index, "torch"])
    client = f"{ROOT / 'client'}[{','.join(cell.extras)}]"
    wanted = ["-e", client, *(["-e", str(ROOT / "service")] if cell.service else ["scipy"])]
    _call([*pip, "-c", str(limits), *wanted, *TOOLS])


def _limits(cell: Cell, torch: str) -> list[str]:
    """Constraints for pip: the lower ends of all ranges, or none, and pins of PyTorch and of the tools of the tests."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    limits = [f"{tool}=={pins[tool]}" for tool in TOOLS]
    for name, lower in _lower_ends().items():
        if name == "torch" and torch == "pinned":
            limits.append(f"torch=={pins['torch']}")
        elif cell.end == "oldest":
            limits.append(f"{name}=={lower}")
    return limits


def _lower_ends() -> dict[str, str]:
    """The oldest version of each dependency that either distribution declares, extras of the client included."""
    ends: dict[str, str] = {}
    for part in ("client", "service"):
        project = tomllib.loads((ROOT / part / "pyproject.toml").read_text())["project"]
        extras = project.get("optional-dependencies", {}) if part == "client" else {}
        for requirement in [*project["dependencies"], *(each for extra in extras.values() for each in extra)]:
            if found := re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)", requirement):
                ends[found[1].lower()] = found[2]
    return ends


def _interpreter(version: str) -> str | None:
    """A Python of a version: the one that PYTHON311 (for 3.11) names, else one on the path, or of pyenv."""
    if named := os.environ.get(f"PYTHON{version.replace('.', '')}"):
        return named
    pyenv = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python"))
    for candidate in (f"python{version}", *map(str, pyenv)):
        try:
            asked = [candidate, "-c", "import sys; print('{}.{}'.format(*sys.version_info))"]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        if done.stdout.strip() == version:
            return candidate
    return None


def _versions(python: Path) -> dict[str, str]:
    code = "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    installed = json.loads(_call([str(python), "-c", code]))
    alike = {name.lower().replace("_", "-"): version for name, version in installed}
    return {name: alike[name] for name in TOLD if name in alike}


def _call(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table(outcomes: list[Outcome]) -> str:
    """Markdown, and below it what failed."""
    lines = [["cell", "Python", *TOLD, "tests"]]
    for each in outcomes:
        told = [each.versions.get(name, "") for name in TOLD]
        verdict = {True: "passed", False: "FAILED", None: ""}[each.ok]
        lines.append([each.cell.name, each.cell.python, *told, f"{verdict}: {each.said}" if verdict else each.said])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    written = ["| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    written.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    for each in outcomes:
        if each.failures:
            written += ["", f"{each.cell.name}:", *(f"  {line}" for line in each.failures)]
    return "\n".join(written)


def _record(outcome: Outcome) -> dict[str, object]:
    cell = outcome.cell
    return {"cell": cell.name, "python": cell.python, "end": cell.end, "said": outcome.said, "ok": outcome.ok} | {
        "versions": outcome.versions,
        "failures": outcome.failures,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a part of the tests at both ends of the declared versions.")
    names = [cell.name for cell in CELLS]
    parser.add_argument(
        "--cells", nargs="+", action="extend", choices=names, metavar="CELL", help=f"of: {', '.join(names)}"
    )
    parser.add_argument("--folder", type=Path, help="keep the environments and what pytest said here")
    parser.add_argument("--torch", choices=("pinned", "declared"), default="pinned", help="(default: %(default)s)")
    parser.add_argument("--torch-index", help="where to take PyTorch from, e.g. its CPU-only index")
    parser.add_argument("--failures", type=int, default=10, help="how many failed tests to name (%(default)s)")
    parser.add_argument("--json", type=Path, help="also write all outcomes here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
