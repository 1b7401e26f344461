"""Learn the conductivity of every triangle of a mesh from temperatures at half of its nodes.

The plate around an airfoil (322 nodes, 582 triangles) is heated at scattered spots in eight
experiments. Each temperature field then follows the heat equation, here in linear finite
elements and backward Euler steps:

    (M + dt K(k)) u[t+1] = M u[t]

`M` is the mass matrix and `K(k)` the stiffness matrix, linear in the conductivities `k` that we
look for. One step of the optimiser has one matrix, 20 x 8 right-hand sides forward and as many
in the backward pass: 320 solves that share one factorization. The data are simulated from a
known conductivity without noise, so that the answer can be judged.

    python examples/heat_inverse.py
    BACKSOLVE_URL=http://127.0.0.1:8080 python examples/heat_inverse.py    # the same on a server
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pyamg.gallery import load_example
from torch import Tensor
from tqdm import tqdm

import backsolve
from backsolve.torch import spsolve
from heat_picture import Scene, draw

SEED = 518_207_643
EXPERIMENTS = 8
TIME_STEPS = 20
DT = 0.01
LEARNING_RATE = 0.1

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mesh:
    """Linear triangles.

    Attributes:
        nodes: `[n, 2]` coordinates, in chord lengths of the airfoil.
        triangles: `[m, 3]` corners of each triangle, as rows of `nodes`.
    """

    nodes: Floats
    triangles: NDArray[np.int64]

    @classmethod
    def airfoil(cls) -> "Mesh":
        """The mesh that ships inside pyamg."""
        example = load_example("airfoil")
        return cls(np.asarray(example["vertices"], np.float64), np.asarray(example["elements"], np.int64))


@dataclass(frozen=True)
class HeatEquation:
    """All of one mesh's discretisation that does not depend on the conductivity.

    Attributes:
        pattern: where `M` and `K` have entries (the same places).
        mass: `[n, n]` sparse, `M`.
        mass_values: `[nnz]`, the values of `M` on `pattern`.
        stiffness: `[nnz, m]` sparse; `stiffness @ k` are the values of `K(k)` on `pattern`.
    """

    pattern: backsolve.Pattern
    mass: Tensor
    mass_values: Tensor
    stiffness: Tensor

    @classmethod
    def assemble(cls, mesh: Mesh) -> "HeatEquation":
        """Sum the 3x3 matrices of all triangles into one pattern.

        Source: Braess, "Finite Elements", 3rd edition, chapter II, section 8.
        """
        n, m = len(mesh.nodes), len(mesh.triangles)
        corner = mesh.nodes[mesh.triangles]
        # The edge that faces each corner, turned by 90 degrees over twice the area, is the
        # gradient of that corner's hat function.
        edge = np.roll(corner, 1, axis=1) - np.roll(corner, -1, axis=1)
        area = 0.5 * np.abs(edge[:, 0, 0] * edge[:, 1, 1] - edge[:, 0, 1] * edge[:, 1, 0])
        local_stiffness = np.einsum("mid,mjd->mij", edge, edge) / (4 * area[:, None, None])
        local_mass = area[:, None, None] * (np.ones((3, 3)) + np.eye(3)) / 12

        row = np.repeat(mesh.triangles, 3, axis=1).ravel()
        column = np.tile(mesh.triangles, 3).ravel()
        # Sorted by row, then column, which is CSR order; `slot` tells where a local entry is added.
        entry, slot = np.unique(row * n + column, return_inverse=True)
        indptr = np.searchsorted(entry, n * np.arange(n + 1))
        triangle = np.repeat(np.arange(m), 9)
        mass_values = np.bincount(slot, local_mass.ravel()).astype(np.float64)
        return cls(
            pattern=backsolve.Pattern(indptr, entry % n, (n, n)),
            mass=_sparse(entry // n, entry % n, mass_values, (n, n)),
            mass_values=torch.from_numpy(mass_values),
            stiffness=_sparse(slot, triangle, local_stiffness.ravel(), (len(entry), m)),
        )

    def simulate(self, log_k: Tensor, start: Tensor, client: backsolve.Client) -> Tensor:
        """Temperatures `[TIME_STEPS, n, experiments]` after `start`, `[n, experiments]`."""
        values = self.mass_values + DT * (self.stiffness @ log_k.exp())
        u, history = start, []
        for _ in range(TIME_STEPS):
            u = spsolve(values, self.pattern, self.mass @ u, client=client)
            history.append(u)
        return torch.stack(history)


def _sparse(row: NDArray[np.int64], column: NDArray[np.int64], values: Floats, shape: tuple[int, int]) -> Tensor:
    index = torch.from_numpy(np.stack([row, column]))
    return torch.sparse_coo_tensor(index, torch.from_numpy(values), shape, check_invariants=True).coalesce()


@dataclass(frozen=True)
class Experiment:
    """What was measured, and the truth behind it.

    Attributes:
        true_log_k: `[m]` logarithm of the conductivity that made the data.
        start: `[n, EXPERIMENTS]` temperatures at time 0.
        seen: `[n // 2]` nodes that carry a thermometer.
        data: `[TIME_STEPS, n // 2, EXPERIMENTS]` temperatures there.
    """

    true_log_k: Tensor
    start: Tensor
    seen: Tensor
    data: Tensor

    @classmethod
    def run(cls, mesh: Mesh, equation: HeatEquation, client: backsolve.Client) -> "Experiment":
        """Heat every node in one of the experiments, and watch half of the nodes in all of them."""
        rng = np.random.default_rng(SEED)
        n = len(mesh.nodes)
        centre = mesh.nodes[mesh.triangles].mean(axis=1) - [0.5, 0.0]
        # In (log radius, angle) the triangles are about equally large, so waves look alike everywhere.
        radius, angle = np.log(np.hypot(*centre.T)), np.arctan2(centre[:, 1], centre[:, 0])
        true = torch.from_numpy(np.sin(2 * angle + 1.1 * radius) + 0.5 * np.cos(3.1 * radius - angle))
        heated = rng.permutation(n) % EXPERIMENTS
        start = torch.from_numpy(np.eye(EXPERIMENTS)[heated])
        seen = torch.from_numpy(np.sort(rng.permutation(n)[: n // 2]))
        with torch.no_grad():
            data = equation.simulate(true, start, client)[:, seen]
        return cls(true, start, seen, data)


@dataclass(frozen=True)
class Result:
    """What was learned.

    Attributes:
        log_k: `[m]`.
        losses: mean-square misfit before each step, as a fraction of the first.
        errors: median |log k - truth| at the same moments.
        stats: how the client's counters grew.
        seconds: wall time of the training loop.
    """

    log_k: Tensor
    losses: list[float]
    errors: list[float]
    stats: Mapping[str, float]
    seconds: float


def train(equation: HeatEquation, experiment: Experiment, client: backsolve.Client, steps: int) -> Result:
    """Fit the logarithms of the conductivities with Adam, from a uniform field."""
    log_k = torch.zeros_like(experiment.true_log_k, requires_grad=True)
    optimizer = torch.optim.Adam([log_k], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, errors, unit = [], [], 0.0
    before, began = dict(client.stats()), time.perf_counter()
    with tqdm(total=steps, desc="learning", unit="step") as progress:
        for _ in range(steps):
            optimizer.zero_grad()
            u = equation.simulate(log_k, experiment.start, client)
            misfit = (u[:, experiment.seen] - experiment.data).square().mean()
            unit = unit or misfit.item()
            loss = misfit / unit
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
            errors.append((log_k.detach() - experiment.true_log_k).abs().median().item())
            optimizer.step()
            schedule.step()
            progress.set_postfix_str(f"loss {losses[-1]:.1e}, median |log k error| {errors[-1]:.3f}", refresh=False)
            progress.update()
    seconds = time.perf_counter() - began
    stats = {name: value - before.get(name, 0.0) for name, value in client.stats().items()}
    return Result(log_k.detach(), losses, errors, stats, seconds)


def summary(result: Result, way: str) -> str:
    """A table of what was learned, and of what it cost."""
    stats = result.stats
    calls = f"{stats['solves']:.0f} forward and {stats['adjoint_solves']:.0f} adjoint calls of {EXPERIMENTS} columns"
    phases = ("hash", "queue", "analyze", "factor", "solve")
    rows = [
        ("loss", f"{result.losses[0]:.3g} -> {result.losses[-1]:.3g}, {result.losses[0] / result.losses[-1]:.3g}-fold"),
        ("median |log k error|", f"{result.errors[0]:.3f} -> {result.errors[-1]:.3f}"),
        ("solves", f"{stats['columns']:.0f} ({calls})"),
        ("factorizations", f"{stats['factorizations']:.0f}"),
        ("solves per factorization", f"{stats['columns'] / max(stats['factorizations'], 1):.0f}"),
        ("cache hits", f"{stats['cache_hits_factor']:.0f} factor, {stats['cache_hits_symbolic']:.0f} symbolic"),
        ("seconds", ", ".join(f"{phase} {stats['seconds_' + phase]:.2f}" for phase in phases)),
        ("wall seconds", f"{result.seconds:.1f} ({len(result.losses)} steps)"),
        ("solved by", way),
    ]
    return "\n".join(f"  {name:<26}{text}" for name, text in rows)


def main() -> None:
    """Run the whole job: simulate the data, learn, report, draw."""
    options = _arguments()
    torch.set_default_dtype(torch.float64)
    mesh = Mesh.airfoil()
    equation = HeatEquation.assemble(mesh)
    with backsolve.Client() as client:
        experiment = Experiment.run(mesh, equation, client)
        result = train(equation, experiment, client, options.steps)
    print(summary(result, os.environ.get("BACKSOLVE_URL") or "this process (embedded)"))
    if options.losses:
        options.losses.parent.mkdir(parents=True, exist_ok=True)
        options.losses.write_text(json.dumps(result.losses))
    if not options.no_plot:
        truth, learned, seen = experiment.true_log_k.numpy(), result.log_k.numpy(), experiment.seen.numpy()
        draw(Scene(mesh.nodes, mesh.triangles, seen, truth, learned, result.losses, result.errors), options.out)
        print(f"  {'picture':<26}{options.out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learn a conductivity through remote solves.")
    parser.add_argument("--steps", type=int, default=300, help="steps of the optimiser (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/demo.png"), help="picture (default: %(default)s)")
    parser.add_argument("--losses", type=Path, help="also write the loss of every step, as JSON")
    parser.add_argument("--no-plot", action="store_true", help="do not draw")
    return parser.parse_args()


if __name__ == "__main__":
    main()
