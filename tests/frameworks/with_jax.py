"""JAX for the suite of all frameworks; its users ask for 64-bit types by `jax.enable_x64`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.jax import lstsq, solve, spsolve
from frameworks.adapters import Adapter, Function
from frameworks.cases import Case


class Jax(Adapter):
    name = "jax"

    def array(self, numbers: np.ndarray) -> jax.Array:
        return jnp.asarray(numbers)

    def spsolve(self, values: Any, case: Case, b: Any, **options: Any) -> jax.Array:
        return spsolve(values, case.pattern, b, **options)

    def dense_solve(self, values: Any, case: Case, b: Any, **options: Any) -> jax.Array:
        return solve(values, b, **options)

    def reference(self, case: Case) -> Function:
        def f(values: Any, b: Any) -> jax.Array:
            if case.sparse:
                n = case.pattern.n
                full = jnp.zeros((*values.shape[:-1], n, n), values.dtype)
                values = full.at[..., case.pattern.rows, case.pattern.indices].set(values)
            A = {"N": values, "T": values.mT, "H": values.mT.conj()}[case.trans]
            return jnp.linalg.solve(A, b) if case.columns else jnp.linalg.solve(A, b[..., None])[..., 0]

        return f

    def minimise(self, **options: Any) -> Function:
        return lambda A, b: lstsq(A, b, **options)

    def normal_equations(self) -> Function:
        return lambda A, b: jnp.linalg.solve(A.mT.conj() @ A, A.mT.conj() @ b)

    def _loss(self, f: Function, case: Case) -> Any:
        fourth, first = case.weights

        def loss(values: Any, b: Any) -> Any:
            x = f(values, b)
            return jnp.sum(fourth * (x * x.conj()).real ** 2 + first * x.real)

        return loss

    def _inputs(self, case: Case, values: np.ndarray | None) -> tuple[Any, Any]:
        return self.array(case.values if values is None else values), self.array(case.b)

    def grad(self, f: Function, case: Case, values: np.ndarray | None = None) -> list[np.ndarray]:
        found = jax.grad(self._loss(f, case), argnums=(0, 1))(*self._inputs(case, values))
        return [np.asarray(g) for g in found]

    def hvp(self, f: Function, case: Case, values: np.ndarray | None = None) -> list[np.ndarray]:
        gradient = jax.grad(self._loss(f, case), argnums=(0, 1))
        directions = self.array(case.values_direction), self.array(case.b_direction)

        def along(values: Any, b: Any) -> Any:
            return sum(jnp.sum((g * d).real) for g, d in zip(gradient(values, b), directions, strict=True))

        return [np.asarray(g) for g in jax.grad(along, argnums=(0, 1))(*self._inputs(case, values))]

    def jvp(self, f: Function, case: Case) -> np.ndarray:
        directions = self.array(case.values_direction), self.array(case.b_direction)
        return np.asarray(jax.jvp(f, self._inputs(case, None), directions)[1])

    def vmap(self, f: Function, values: np.ndarray, b: np.ndarray, mapped: tuple[bool, bool]) -> np.ndarray:
        axes = tuple(0 if each else None for each in mapped)
        return np.asarray(jax.vmap(f, in_axes=axes)(self.array(values), self.array(b)))

    def compiled(self, f: Function) -> Function:
        return jax.jit(f)
