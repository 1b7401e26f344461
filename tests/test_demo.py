"""The demo at its full length: it learns what it says it learns, factors once a step, and draws.

That its losses are the same on a server is shown by the commands of the README (`test_readme.py`).
"""

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from backsolve import Client
from scripts.remote_demo import TOLERANCE, worst_difference

ROOT = Path(__file__).resolve().parent.parent
STEPS = 300
FRAMEWORKS = ("torch", "jax", "tensorflow")
SHORT = 50


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


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Fewer steps, by each framework: the demo with another source of gradients."""
    return {framework: steps_by(framework, tmp_path_factory.mktemp(framework)) for framework in FRAMEWORKS}


def steps_by(framework: str, folder: Path) -> Run:
    command = [sys.executable, str(ROOT / "examples" / "heat_inverse.py"), "--framework", framework, "--no-plot"]
    command += ["--steps", str(SHORT), "--losses", str(folder / "losses.json")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKSOLVE_")}
    environment |= {"PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return Run(json.loads((folder / "losses.json").read_text()), done.stdout, folder)


@pytest.mark.parametrize("framework", FRAMEWORKS[1:])
def test_every_framework_loses_the_same(short: dict[str, Run], framework: str):
    losses = short[framework].losses
    assert len(losses) == SHORT
    assert losses[-1] < 0.01 * losses[0]
    worst = worst_difference(short["torch"].losses, losses)
    assert worst is not None
    assert worst <= TOLERANCE


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_framework_asks_for_as_much(short: dict[str, Run], framework: str):
    run = short[framework]
    assert printed_numbers(run, "solves  ") == [320 * SHORT, 20 * SHORT, 20 * SHORT, 8]
    assert printed_numbers(run, "factorizations") == [SHORT]


@pytest.fixture
def heat(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, in this process: its frameworks are imported once for all who use them."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("heat_inverse")


def test_the_elements_are_exact_for_linear_functions(heat: Any):
    """Their masses and energies are integrals that can be written down triangle by triangle."""
    mesh = heat.Mesh.airfoil()
    equation = heat.HeatEquation.assemble(mesh)
    corners = mesh.nodes[mesh.triangles]
    (ax, ay), (bx, by) = (corners[:, i].T - corners[:, 0].T for i in (1, 2))
    areas = np.abs(ax * by - ay * bx) / 2
    middles = (corners + np.roll(corners, 1, axis=1)) / 2  # exact for squares
    x, y = mesh.nodes.T
    assert equation.mass.sum() == pytest.approx(areas.sum(), rel=1e-12)
    assert x @ equation.mass @ y == pytest.approx(areas @ middles.prod(axis=2).mean(axis=1), rel=1e-12)
    assert np.array_equal(equation.mass.data, equation.mass_values)
    k = np.random.default_rng(337_190_825).uniform(0.5, 2, len(areas))
    shape = equation.pattern.shape
    stiffness = sparse.csr_array((equation.stiffness @ k, equation.pattern.indices, equation.pattern.indptr), shape)
    assert np.abs(stiffness.sum(axis=1)).max() < 1e-12 * np.abs(stiffness.data).max()
    assert x @ stiffness @ x == pytest.approx(k @ areas, rel=1e-9)
    assert y @ stiffness @ y == pytest.approx(k @ areas, rel=1e-9)
    assert abs(x @ stiffness @ y) < 1e-9 * (k @ areas)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_gradient_is_that_of_finite_differences(framework: str, heat: Any):
    """One central difference along a random direction, through the whole simulation."""
    mesh = heat.Mesh.airfoil()
    equation = heat.HeatEquation.assemble(mesh)
    with Client() as client:
        misfit = heat.misfit_of(framework, equation, heat.Experiment.run(mesh, equation, client), client)
        direction = np.random.default_rng(640_281_773).standard_normal(len(mesh.triangles))
        gradient = misfit(np.zeros(len(direction)))[1]
        difference = (misfit(1e-5 * direction)[0] - misfit(-1e-5 * direction)[0]) / 2e-5
    assert gradient @ direction == pytest.approx(difference, rel=1e-6)


def test_the_optimiser_is_adam(heat: Any):
    """Against PyTorch's own, with its own schedule, on a function whose gradient is written down here."""
    import torch

    scale = np.random.default_rng(902_774_165).uniform(0.1, 3, 40)
    ours, theirs = np.ones(40), torch.ones(40, dtype=torch.float64, requires_grad=True)
    adam, optimizer = heat.Adam(40, 60), torch.optim.Adam([theirs], lr=heat.LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    for _ in range(60):
        ours = ours + adam.step(np.sinh(scale * ours))
        theirs.grad = torch.sinh(torch.from_numpy(scale) * theirs.detach())
        optimizer.step()
        schedule.step()
    assert np.abs(ours - 1).max() > 0.5
    assert np.abs(ours - theirs.detach().numpy()).max() < 1e-12
