"""The comparison of libraries runs with what is installed, and its figures are ours where it says so."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ["backsolve (torch)", "backsolve (jax)", "backsolve (tensorflow)"]
WITHIN = {"x": 1e-10, "gradient": 1e-9, "HVP": 1e-8, "jvp": 1e-9, "vmap b": 1e-10, "vmap A": 1e-10}


@dataclass(frozen=True)
class Run:
    rows: dict[str, dict]
    printed: str
    markdown: str


def compare(folder: Path, *more: str, path: str = "") -> Run:
    """The script as a user starts it, on some libraries."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKSOLVE_")}
    environment |= {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, str(ROOT / "examples" / "compare_libraries.py"), *more]
    command += ["--json", str(folder / "cells.json"), "--markdown", str(folder / "made" / "table.md")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    rows = {row["library"]: row for row in json.loads((folder / "cells.json").read_text())}
    return Run(rows, done.stdout, (folder / "made" / "table.md").read_text())


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return compare(tmp_path_factory.mktemp("ours"), "--only", *OURS, "lineax")


@pytest.mark.parametrize("library", OURS)
def test_our_figures_are_within_tolerance(ours: Run, library: str):
    cells = ours.rows[library]["cells"]
    assert ours.rows[library]["ended"] is None
    assert {name: cells[name]["raised"] for name in WITHIN} == dict.fromkeys(WITHIN)
    assert {name: cells[name]["error"] for name in WITHIN if not cells[name]["error"] <= WITHIN[name]} == {}
    assert not any(cell["warned"] for cell in cells.values())


@pytest.mark.parametrize("library", OURS)
def test_what_has_no_answer_raises_with_its_reason(ours: Run, library: str):
    cells = ours.rows[library]["cells"]
    assert "exactly singular" in cells["singular A"]["raised"]
    assert "b holds NaN" in cells["NaN in b"]["raised"]


@pytest.mark.parametrize("library", OURS)
def test_one_gradient_is_counted(ours: Run, library: str):
    assert ours.rows[library]["cells"]["one gradient"]["text"] == "factorized 1, solved 2"


def test_another_library_is_asked_the_same(ours: Run):
    cells = ours.rows["lineax"]["cells"]
    assert cells.keys() == ours.rows["backsolve (torch)"]["cells"].keys()
    assert cells["gradient"]["error"] < 1e-9
    assert "non-finite" in cells["singular A"]["raised"]
    assert "getrf" in cells["one gradient"]["text"]


def test_the_table_has_a_row_for_each_and_is_written(ours: Run):
    assert ours.markdown == ours.printed
    table = [line for line in ours.printed.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(ours.rows)
    assert len({line.count("|") for line in table}) == 1
    noted = {number for line in table for number in re.findall(r"\[\d+\]", line)}
    assert noted == set(re.findall(r"^\[\d+\]", ours.printed, re.MULTILINE))


def fake(folder: Path, body: str) -> str:
    """A distribution that calls itself torch-sla; gives what to put on Python's path."""
    (folder / "torch_sla.py").write_text(body)
    (folder / "torch_sla-9.7.dist-info").mkdir()
    (folder / "torch_sla-9.7.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch-sla\nVersion: 9.7\n"
    )
    return str(folder)


@pytest.mark.skipif(find_spec("torch_sla") is not None, reason="torch-sla is installed")
def test_an_absent_library_is_said_to_be_absent(tmp_path: Path):
    run = compare(tmp_path, "--only", "torch-sla")
    row = run.rows["torch-sla"]
    assert (row["version"], row["cells"]) == (None, {})
    assert "not installed" in run.printed
    assert "pip install torch-sla" in run.printed


def test_a_crash_ends_one_library_and_keeps_what_it_answered(tmp_path: Path):
    dies_on_the_third = """
import os, torch
class SparseTensor:
    made = 0
    def __init__(self, values, rows, columns, shape):
        SparseTensor.made += 1
        if SparseTensor.made > 2:
            os._exit(71)
        self.full = torch.zeros(shape, dtype=values.dtype).index_put((rows, columns), values)
    def solve(self, b):
        return torch.linalg.solve(self.full, b)
"""
    path = fake(tmp_path, dies_on_the_third)
    run = compare(tmp_path, "--only", "torch-sla", "backsolve (torch)", path=path)
    row = run.rows["torch-sla"]
    assert list(row["cells"]) == ["x", "gradient"]
    assert row["cells"]["gradient"]["error"] < 1e-9
    assert "ended with 71" in row["ended"]
    assert "no answer" in run.printed
    assert run.rows["backsolve (torch)"]["cells"]["NaN in b"]["raised"]


def test_wrong_derivatives_and_silence_are_seen(tmp_path: Path):
    wrong = """
import warnings, torch
class SparseTensor:
    def __init__(self, values, rows, columns, shape):
        self.full = torch.zeros(shape, dtype=values.dtype).index_put((rows, columns), values)
    def solve(self, b):
        x = torch.linalg.solve(self.full.nan_to_num() + 1e-30, torch.nan_to_num(b))
        if b.requires_grad:  # the gradient, and not the Hessian-vector product
            warnings.warn("half of it")
        return x + 0.5 * (x.detach() - x)
"""
    run = compare(tmp_path, "--only", "torch-sla", path=fake(tmp_path, wrong))
    cells = run.rows["torch-sla"]["cells"]
    assert cells["x"]["error"] < 1e-10
    assert cells["gradient"]["error"] == pytest.approx(0.5, abs=1e-9)
    assert cells["gradient"]["warned"] == ["UserWarning: half of it"]
    assert re.search(r"\| WRONG: 5.0e-01 \[\d\]", run.printed)
    assert re.search(r"\| WRONG, silently: \d.\de[-+]0\d +\|", run.printed)
    assert cells["NaN in b"]["text"] == "numbers"
