"""The demo at its full length: it learns what it says it learns, factors once a step, and draws.

That its losses are the same on a server is shown by the commands of the README (`test_readme.py`).
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.remote_demo import TOLERANCE, worst_difference

ROOT = Path(__file__).resolve().parent.parent
STEPS = 300


@dataclass(frozen=True)
class Run:
    losses: list[float]
    printed: str
    picture: Path


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The script as a user starts it, but for the place of its files; warnings are errors."""
    folder = tmp_path_factory.mktemp("full")
    losses, picture = folder / "losses.json", folder / "made" / "demo.png"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKSOLVE_")}
    environment |= {"PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / "heat_inverse.py")]
    command += ["--losses", str(losses), "--out", str(picture)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return Run(json.loads(losses.read_text()), done.stdout, picture)


def printed_numbers(run: Run, row: str) -> list[float]:
    line = next(line for line in run.printed.splitlines() if line.strip().startswith(row))
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)]


def test_it_learns(full: Run):
    assert len(full.losses) == STEPS
    assert full.losses[0] == 1.0
    assert full.losses[0] / full.losses[-1] > 1e4
    before, after = printed_numbers(full, "median |log k error|")
    assert before == pytest.approx(0.6, abs=0.05)
    assert after < 0.12


def test_each_step_factors_once_and_solves_320_times(full: Run):
    total, forward, adjoint, columns = printed_numbers(full, "solves  ")
    assert (forward, adjoint, columns) == (20 * STEPS, 20 * STEPS, 8)
    assert total == 320 * STEPS
    assert printed_numbers(full, "factorizations") == [STEPS]
    assert printed_numbers(full, "solves per factorization") == [320]


def test_it_draws(full: Run):
    assert full.picture.read_bytes().startswith(b"\x89PNG")


def test_other_losses_would_be_noticed(full: Run):
    other = [*full.losses[:-1], full.losses[-1] * (1 + 1e-7)]
    assert worst_difference(full.losses, full.losses) == 0
    assert worst_difference(full.losses, other) > TOLERANCE
    assert worst_difference(full.losses, other[:-1]) is None


def test_the_gradient_is_that_of_finite_differences():
    """One central difference along a random direction, through the whole simulation."""
    code = """
import numpy as np, torch
import backsolve, heat_inverse as heat
torch.set_default_dtype(torch.float64)
mesh = heat.Mesh.airfoil()
equation = heat.HeatEquation.assemble(mesh)
with backsolve.Client() as client:
    experiment = heat.Experiment.run(mesh, equation, client)
    def loss(log_k):
        u = equation.simulate(log_k, experiment.start, client)[:, experiment.seen]
        return (u - experiment.data).square().mean()
    direction = torch.from_numpy(np.random.default_rng(640_281_773).standard_normal(len(mesh.triangles)))
    log_k = torch.zeros(len(mesh.triangles), requires_grad=True)
    loss(log_k).backward()
    with torch.no_grad():
        difference = (loss(1e-5 * direction) - loss(-1e-5 * direction)) / 2e-5
    print((log_k.grad @ direction).item(), difference.item())
"""
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "examples"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    gradient, difference = map(float, done.stdout.split())
    assert gradient == pytest.approx(difference, rel=1e-6)
