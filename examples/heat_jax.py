"""The misfit of `heat_inverse.py` and its gradient, by JAX, compiled."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.sparse import BCOO

import backsolve
from backsolve.jax import spsolve
from heat_problem import DT, Experiment, Floats, HeatEquation, Misfit, Operations, simulate

jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]


def misfit(equation: HeatEquation, experiment: Experiment, client: backsolve.Client) -> Misfit:
    """A function of `log_k` that gives both."""
    mass, stiffness = BCOO.from_scipy_sparse(equation.mass), BCOO.from_scipy_sparse(equation.stiffness)
    operations = Operations(
        exp=jnp.exp,
        mass=lambda u: mass @ u,
        values=lambda k: equation.mass_values + DT * (stiffness @ k),
        solve=lambda values, rhs: spsolve(values, equation.pattern, rhs, client=client),
    )
    start = jnp.asarray(experiment.start)

    def loss(log_k: Array) -> Array:
        u = jnp.stack(simulate(operations, log_k, start))
        return jnp.mean((u[:, experiment.seen] - experiment.data) ** 2)

    compiled = jax.jit(jax.value_and_grad(loss))

    def value_and_gradient(log_k: Floats) -> tuple[float, Floats]:
        value, gradient = compiled(jnp.asarray(log_k))
        return float(value), np.asarray(gradient)

    return value_and_gradient
