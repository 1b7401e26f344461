"""The JAX side of `compare_libraries.py`: its transforms, and one small class for each library."""

import re
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import backsolve
from compare_system import Floats, Frame, Library, Solve, System, counted, counters

jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]


@final
class JaxFrame(Frame):
    """`jax.grad`, `jax.jvp`, `jax.vmap`; the Hessian-vector product is forward over reverse, as JAX's manual has it."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.values, self.b, self.weights = (jnp.asarray(a) for a in (system.values, system.b, system.weights))

    def dense_solve(self, values: Array, b: Array) -> Array:
        n = self.system.n
        full = jnp.zeros((n, n), values.dtype).at[self.system.rows, self.system.indices].set(values)
        return jnp.asarray(jnp.linalg.solve(full, b))

    def loss(self, solve: Solve) -> Callable[[Array, Array], Array]:
        """The loss as a function of the values and b."""
        return lambda values, b: jnp.sum(self.weights * solve(values, b) ** 3)

    def answer(self, solve: Solve, values: Floats, b: Floats) -> Floats:
        return np.asarray(solve(jnp.asarray(values), jnp.asarray(b)), np.float64)

    def gradient(self, solve: Solve) -> Floats:
        parts = jax.grad(self.loss(solve), argnums=(0, 1))(self.values, self.b)
        return np.asarray(jnp.concatenate(parts), np.float64)

    def hvp(self, solve: Solve) -> Floats:
        gradient = jax.grad(self.loss(solve))
        direction = jnp.asarray(self.system.values_direction)
        product = jax.jvp(lambda values: gradient(values, self.b), (self.values,), (direction,))[1]
        return np.asarray(product, np.float64)

    def jvp(self, solve: Solve) -> Floats:
        directions = jnp.asarray(self.system.values_direction), jnp.asarray(self.system.b_direction)
        return np.asarray(jax.jvp(solve, (self.values, self.b), directions)[1], np.float64)

    def vmap_b(self, solve: Solve, many: Floats) -> Floats:
        return np.asarray(jax.vmap(lambda b: solve(self.values, b))(jnp.asarray(many)), np.float64)

    def vmap_values(self, solve: Solve, many: Floats) -> Floats:
        return np.asarray(jax.vmap(lambda values: solve(values, self.b))(jnp.asarray(many)), np.float64)


def compiled_calls(system: System, solve: Solve) -> str:
    """Which routines outside XLA one compiled gradient calls, read from the program that XLA made."""
    frame = JaxFrame(system)
    gradient = jax.jit(jax.grad(frame.loss(solve), argnums=(0, 1)))
    program = gradient.lower(frame.values, frame.b).compile().as_text()
    calls = Counter(re.findall(r'custom_call_target="([^"]+)"', program or ""))
    return ", ".join(f"{name} {times}" for name, times in sorted(calls.items())) or "no routine outside XLA"


@final
class Backsolve(Library):
    """`backsolve.jax.spsolve(values, pattern, b)`, solved where BACKSOLVE_URL says, else in this process."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.module = import_module("backsolve.jax")
        self.client = backsolve.Client()
        self.pattern = backsolve.Pattern(system.indptr, system.indices, (system.n, system.n))

    def solve(self, values: Array, b: Array) -> Array:
        return jnp.asarray(self.module.spsolve(values, self.pattern, b, client=self.client))

    def work(self, gradient: Callable[[], Any]) -> str:
        return counters(self.client, gradient)


@final
class JaxSpsolve(Library):
    """`jax.experimental.sparse.linalg.spsolve(data, indices, indptr, b)`: direct; SciPy's on a CPU."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.module = import_module("jax.experimental.sparse.linalg")

    def solve(self, values: Array, b: Array) -> Array:
        system = self.system
        return jnp.asarray(self.module.spsolve(values, jnp.asarray(system.indices), jnp.asarray(system.indptr), b))

    def work(self, gradient: Callable[[], Any]) -> str:
        with counted((import_module("scipy.sparse.linalg"), "spsolve")) as calls:
            gradient()
        return f"scipy spsolve {calls['spsolve']}"


class _JaxKrylov(Library):
    """An iterative solver of `jax.scipy.sparse.linalg`, of a BCOO matrix, with its default tolerance of 1e-5."""

    name = ""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.sparse = import_module("jax.experimental.sparse")
        self.solver = getattr(import_module("jax.scipy.sparse.linalg"), self.name)

    def solve(self, values: Array, b: Array) -> Array:
        place = jnp.stack([jnp.asarray(self.system.rows), jnp.asarray(self.system.indices)], axis=1)
        A = self.sparse.BCOO((values, place), shape=(self.system.n, self.system.n), indices_sorted=True)
        return jnp.asarray(self.solver(lambda x: A @ x, b)[0])


@final
class JaxGmres(_JaxKrylov):
    """GMRES, for general matrices."""

    name = "gmres"


@final
class JaxBicgstab(_JaxKrylov):
    """BiCGStab, for general matrices."""

    name = "bicgstab"


@final
class Lineax(Library):
    """`lineax.linear_solve(MatrixLinearOperator(A), b).value`; it has no sparse matrices, so A is dense."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.module = import_module("lineax")

    def solve(self, values: Array, b: Array) -> Array:
        n = self.system.n
        full = jnp.zeros((n, n), values.dtype).at[self.system.rows, self.system.indices].set(values)
        return jnp.asarray(self.module.linear_solve(self.module.MatrixLinearOperator(full), b).value)

    def work(self, gradient: Callable[[], Any]) -> str:
        del gradient
        return compiled_calls(self.system, self.solve)


@final
class Klujax(Library):
    """`klujax.solve(rows, columns, values, b)`: SuiteSparse's KLU."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.module = import_module("klujax")

    def solve(self, values: Array, b: Array) -> Array:
        rows, columns = jnp.asarray(self.system.rows), jnp.asarray(self.system.indices)
        return jnp.asarray(self.module.solve(rows, columns, values, b))

    def work(self, gradient: Callable[[], Any]) -> str:
        del gradient
        return compiled_calls(self.system, self.solve)
