"""Learn the conductivity of every triangle of a mesh from temperatures at half of its nodes.

The plate around an airfoil (322 nodes, 582 triangles) is heated at scattered spots in eight
experiments. Each temperature field then follows the heat equation (`heat_problem.py`), whose matrix
is linear in the conductivities that we look for. One step of the optimiser has one matrix, 20 x 8
right-hand sides forward and as many in the backward pass: 320 solves that share one factorization.
The data are simulated from a known conductivity without noise, so that the answer can be judged.

The framework gives the loss and its gradient alone; physics and optimiser are the same for each.

    python examples/heat_inverse.py
    python examples/heat_inverse.py --framework jax        # or tensorflow: the same losses
    BACKSOLVE_URL=http://127.0.0.1:8080 python examples/heat_inverse.py    # the same on a server
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final, final

import numpy as np
from tqdm import tqdm

import backsolve
from heat_picture import Scene, draw
from heat_problem import EXPERIMENTS, Experiment, Floats, HeatEquation, Mesh, Misfit

LEARNING_RATE = 0.1
FRAMEWORKS: Final = ("torch", "jax", "tensorflow")


@final
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

    log_k: Floats
    losses: list[float]
    errors: list[float]
    stats: Mapping[str, float]
    seconds: float


@final
class Adam:
    """Adam, with steps that fall along half a cosine to nothing.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1; Loshchilov
    and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, equation 5.

    Args:
        size: how many parameters.
        steps: how many will be taken.
    """

    DECAY: Final = (0.9, 0.999)
    TINY: Final = 1e-8

    def __init__(self, size: int, steps: int) -> None:
        self.steps = steps
        self.taken = 0
        self.mean, self.square = np.zeros(size), np.zeros(size)

    def step(self, gradient: Floats) -> Floats:
        """What to add to the parameters."""
        rate = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * self.taken / self.steps))
        self.taken += 1
        first, second = self.DECAY
        self.mean = first * self.mean + (1 - first) * gradient
        self.square = second * self.square + (1 - second) * gradient**2
        mean, square = self.mean / (1 - first**self.taken), self.square / (1 - second**self.taken)
        return np.asarray(-rate * mean / (np.sqrt(square) + self.TINY))


def misfit_of(framework: str, equation: HeatEquation, experiment: Experiment, client: backsolve.Client) -> Misfit:
    """The loss and its gradient by one of `FRAMEWORKS`; the others are not imported."""
    made: Misfit = import_module(f"heat_{framework}").misfit(equation, experiment, client)
    return made


def train(misfit: Misfit, true_log_k: Floats, client: backsolve.Client, steps: int) -> Result:
    """Fit the logarithms of the conductivities, from a uniform field."""
    log_k = np.zeros_like(true_log_k)
    optimizer = Adam(log_k.size, steps)
    losses, errors, unit = [], [], 0.0
    before, began = dict(client.stats()), time.perf_counter()
    with tqdm(total=steps, desc="learning", unit="step") as progress:
        for _ in range(steps):
            value, gradient = misfit(log_k)
            unit = unit or value
            losses.append(value / unit)
            errors.append(float(np.median(np.abs(log_k - true_log_k))))
            log_k = log_k + optimizer.step(gradient / unit)
            progress.set_postfix_str(f"loss {losses[-1]:.1e}, median |log k error| {errors[-1]:.3f}", refresh=False)
            progress.update()
    seconds = time.perf_counter() - began
    stats = {name: value - before.get(name, 0.0) for name, value in client.stats().items()}
    return Result(log_k, losses, errors, stats, seconds)


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
    mesh = Mesh.airfoil()
    equation = HeatEquation.assemble(mesh)
    with backsolve.Client() as client:
        experiment = Experiment.run(mesh, equation, client)
        truth = experiment.true_log_k
        result = train(misfit_of(options.framework, equation, experiment, client), truth, client, options.steps)
    print(summary(result, os.environ.get("BACKSOLVE_URL") or "this process (embedded)"))
    if options.losses:
        options.losses.parent.mkdir(parents=True, exist_ok=True)
        options.losses.write_text(json.dumps(result.losses))
    if not options.no_plot:
        scene = Scene(mesh.nodes, mesh.triangles, experiment.seen, truth, result.log_k, result.losses, result.errors)
        draw(scene, options.out)
        print(f"  {'picture':<26}{options.out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learn a conductivity through remote solves.")
    parser.add_argument("--steps", type=int, default=300, help="steps of the optimiser (default: %(default)s)")
    parser.add_argument("--framework", choices=FRAMEWORKS, default="torch", help="gives the gradients (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/demo.png"), help="picture (default: %(default)s)")
    parser.add_argument("--losses", type=Path, help="also write the loss of every step, as JSON")
    parser.add_argument("--no-plot", action="store_true", help="do not draw")
    return parser.parse_args()


if __name__ == "__main__":
    main()
