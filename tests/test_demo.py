"""The demo, shortened: it learns, factors once a step, draws, and loses the same wherever it solves."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from scripts.remote_demo import TOLERANCE, worst_difference
from support.servers import ServerProcess

ROOT = Path(__file__).resolve().parent.parent
STEPS = 16


@dataclass(frozen=True)
class Run:
    losses: list[float]
    printed: str
    picture: Path


def demo(folder: Path, url: str | None, *arguments: str) -> Run:
    """Run the script as a user does, with warnings as errors."""
    losses, picture = folder / "losses.json", folder / "made" / "demo.png"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKSOLVE_")}
    environment |= {"PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"} | ({"BACKSOLVE_URL": url} if url else {})
    command = [sys.executable, str(ROOT / "examples" / "heat_inverse.py"), "--steps", str(STEPS)]
    command += ["--losses", str(losses), "--out", str(picture), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return Run(json.loads(losses.read_text()), done.stdout, picture)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return demo(tmp_path_factory.mktemp("embedded"), None)


def printed_numbers(run: Run, row: str) -> list[float]:
    line = next(line for line in run.printed.splitlines() if line.strip().startswith(row))
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)]


def test_it_learns(embedded: Run):
    assert len(embedded.losses) == STEPS
    assert embedded.losses[0] == 1.0
    assert embedded.losses[-1] < 0.1
    before, after = printed_numbers(embedded, "median |log k error|")
    assert after < 0.5 * before


def test_each_step_factors_once_and_solves_320_times(embedded: Run):
    total, forward, adjoint, columns = printed_numbers(embedded, "solves  ")
    assert (forward, adjoint, columns) == (20 * STEPS, 20 * STEPS, 8)
    assert total == 320 * STEPS
    assert printed_numbers(embedded, "factorizations") == [STEPS]
    assert printed_numbers(embedded, "solves per factorization") == [320]


def test_it_draws(embedded: Run):
    assert embedded.picture.read_bytes().startswith(b"\x89PNG")


def test_no_plot_draws_nothing(tmp_path: Path):
    assert not demo(tmp_path, None, "--no-plot", "--steps", "2").picture.exists()


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_the_same_losses_on_a_server(transport: str, embedded: Run, server: ServerProcess, tmp_path: Path):
    remote = demo(tmp_path, getattr(server, f"{transport}_url"), "--no-plot")
    np.testing.assert_allclose(remote.losses, embedded.losses, rtol=1e-8)


def test_other_losses_would_be_noticed(embedded: Run):
    other = [*embedded.losses[:-1], embedded.losses[-1] * (1 + 1e-7)]
    assert worst_difference(embedded.losses, embedded.losses) == 0
    assert worst_difference(embedded.losses, other) > TOLERANCE
    assert worst_difference(embedded.losses, other[:-1]) is None


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
