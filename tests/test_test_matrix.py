"""The script behind `make test-matrix`: it reads the declared ranges, and says what it has not run."""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts.test_matrix import CELLS, TOLD, Cell, Outcome, _interpreter, _limits, _lower_ends, _run, table

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = argparse.Namespace(torch="pinned", torch_index=None, failures=10)


def declared() -> dict[str, str]:
    """Requirements that both distributions always have, as they are written."""
    projects = [
        tomllib.loads((ROOT / part / "pyproject.toml").read_text())["project"] for part in ("client", "service")
    ]
    return {re.split(r"[\[<>=;]", each)[0].lower(): each for project in projects for each in project["dependencies"]}


def test_every_requirement_has_a_lower_end():
    ends, wanted = _lower_ends(), declared()
    assert {name for name in wanted if name not in ends} == {"backsolve"}
    assert all(f">={ends[name]}" in text for name, text in wanted.items() if name != "backsolve")
    assert {"jax", "tensorflow"} <= ends.keys()


def test_oldest_versions_are_pinned_and_newest_are_left_to_pip():
    cells = {cell.name: cell for cell in CELLS}
    ends = _lower_ends()
    oldest, newest = _limits(cells["oldest"], "pinned"), _limits(cells["newest"], "pinned")
    assert {f"{name}=={ends[name]}" for name in ("numpy", "scipy", "grpcio", "protobuf")} <= set(oldest)
    assert not any(line.startswith(("numpy", "scipy", "grpcio")) for line in newest)
    pin = next(line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("torch=="))
    assert pin in oldest
    assert pin in newest
    assert f"torch=={ends['torch']}" in _limits(cells["oldest"], "declared")
    assert not any(line.startswith("torch==") for line in _limits(cells["newest"], "declared"))


def test_what_the_cells_run_exists():
    assert {path for cell in CELLS for path in cell.tests if not (ROOT / path).exists()} == set()
    assert len({cell.name for cell in CELLS}) == len(CELLS)


def test_a_python_that_is_not_here_is_said_not_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cell = Cell("future", "3.99", "newest", (), False, ("tests/test_proto.py",))
    outcome = _run(cell, tmp_path / "future", OPTIONS)
    assert outcome.ok is None
    assert outcome.said.startswith("not run: no python3.99")
    monkeypatch.setenv("PYTHON399", "/opt/some/python")
    assert _interpreter("3.99") == "/opt/some/python"


def test_the_table_tells_versions_and_failures():
    ran = Outcome(CELLS[0], "1 failed, 3 passed", False, {"numpy": "1.26.0"}, ["FAILED tests/a.py::b"])
    text = table([ran, Outcome(CELLS[1], "not run: no python")])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(name in lines[0] for name in TOLD)
    assert "1.26.0" in lines[2]
    assert "FAILED: 1 failed, 3 passed" in lines[2]
    assert "passed" not in lines[3]
    assert "  FAILED tests/a.py::b" in text


ABSENT = """
import sys
sys.modules.update(dict.fromkeys({absent!r}))  # importing one of these is an ImportError
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "-k", {select!r}, *{tests!r}]))
"""


@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_a_cell_collects_its_tests_without_the_other_frameworks(framework: str) -> None:
    (cell,) = (each for each in CELLS if each.name == f"{framework}-oldest")
    absent = [name for name in ("jax", "tensorflow") if name not in cell.extras]
    code = ABSENT.format(absent=absent, select=cell.select, tests=cell.tests)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"test_values_and_derivatives[{framework}" in done.stdout
