"""The heat equation on a mesh around an airfoil, and the experiment whose data `heat_inverse.py` learns from.

Linear finite elements and backward Euler steps:

    (M + dt K(k)) u[t+1] = M u[t]

`M` is the mass matrix and `K(k)` the stiffness matrix, linear in the conductivities `k`. The arrays are
NumPy's and SciPy's; `simulate` steps through time in the operations of any framework.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from pyamg.gallery import load_example
from scipy import sparse

import backsolve

SEED = 518_207_643
EXPERIMENTS = 8
TIME_STEPS = 20
DT = 0.01

Floats = NDArray[np.float64]
Product = Callable[[Any], Any]
Misfit = Callable[[Floats], tuple[float, Floats]]
"""From `log_k` to the mean-square misfit of the temperatures, and its gradient."""


@final
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


@final
@dataclass(frozen=True)
class Operations:
    """What a framework gives to `simulate`, differentiable there.

    Attributes:
        exp: of every entry.
        mass: `M u`, for `u` of `[n, experiments]`.
        values: the values of `M + dt K(k)` on the pattern, `[nnz]`, from `k`, `[m]`.
        solve: `x` from the values on the pattern and the right-hand sides.
    """

    exp: Callable[[Any], Any]
    mass: Product
    values: Product
    solve: Callable[[Any, Any], Any]


def simulate(operations: Operations, log_k: Any, start: Any) -> list[Any]:
    """Temperatures after each of `TIME_STEPS` steps from `start`, all `[n, experiments]`."""
    values = operations.values(operations.exp(log_k))
    u, history = start, []
    for _ in range(TIME_STEPS):
        u = operations.solve(values, operations.mass(u))
        history.append(u)
    return history


@final
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
    mass: sparse.coo_array
    mass_values: Floats
    stiffness: sparse.coo_array

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
            mass=sparse.coo_array((mass_values, (entry // n, entry % n)), shape=(n, n)),
            mass_values=mass_values,
            stiffness=_added(slot, triangle, local_stiffness.ravel(), (len(entry), m)),
        )


def _added(row: Any, column: Any, values: Floats, shape: tuple[int, int]) -> sparse.coo_array:
    """Entries in one place added up, sorted by row, then column."""
    return sparse.csr_array(sparse.coo_array((values, (row, column)), shape=shape)).tocoo()


@final
@dataclass(frozen=True)
class Experiment:
    """What was measured, and the truth behind it.

    Attributes:
        true_log_k: `[m]` logarithm of the conductivity that made the data.
        start: `[n, EXPERIMENTS]` temperatures at time 0.
        seen: `[n // 2]` nodes that carry a thermometer.
        data: `[TIME_STEPS, n // 2, EXPERIMENTS]` temperatures there.
    """

    true_log_k: Floats
    start: Floats
    seen: NDArray[np.int64]
    data: Floats

    @classmethod
    def run(cls, mesh: Mesh, equation: HeatEquation, client: backsolve.Client) -> "Experiment":
        """Heat every node in one of the experiments, and watch half of the nodes in all of them."""
        rng = np.random.default_rng(SEED)
        n = len(mesh.nodes)
        centre = mesh.nodes[mesh.triangles].mean(axis=1) - [0.5, 0.0]
        # In (log radius, angle) the triangles are about equally large, so waves look alike everywhere.
        radius, angle = np.log(np.hypot(*centre.T)), np.arctan2(centre[:, 1], centre[:, 0])
        true = np.sin(2 * angle + 1.1 * radius) + 0.5 * np.cos(3.1 * radius - angle)
        heated = rng.permutation(n) % EXPERIMENTS
        start = np.eye(EXPERIMENTS)[heated]
        seen = np.sort(rng.permutation(n)[: n // 2])
        history = simulate(_in_numpy(equation, client), true, start)
        return cls(true, start, seen, np.stack(history)[:, seen])


def _in_numpy(equation: HeatEquation, client: backsolve.Client) -> Operations:
    """No derivatives: what the data are made with."""
    pattern = equation.pattern

    def solve(values: Floats, rhs: Floats) -> Floats:
        A = sparse.csr_array((values, pattern.indices, pattern.indptr), shape=pattern.shape)
        return client.solve(A, rhs).x

    return Operations(
        exp=np.exp,
        mass=lambda u: equation.mass @ u,
        values=lambda k: equation.mass_values + DT * (equation.stiffness @ k),
        solve=solve,
    )
