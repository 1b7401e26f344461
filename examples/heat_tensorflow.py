"""The misfit of `heat_inverse.py` and its gradient, by TensorFlow, as a graph."""

from typing import Any

import numpy as np
import tensorflow as tf
from scipy import sparse

import backsolve
from backsolve.tensorflow import spsolve
from heat_problem import DT, Experiment, Floats, HeatEquation, Misfit, Operations, simulate


def misfit(equation: HeatEquation, experiment: Experiment, client: backsolve.Client) -> Misfit:
    """A function of `log_k` that gives both."""
    mass, stiffness = _tensor(equation.mass), _tensor(equation.stiffness)
    product = tf.sparse.sparse_dense_matmul
    operations = Operations(
        exp=tf.exp,
        mass=lambda u: product(mass, u),
        values=lambda k: equation.mass_values + DT * product(stiffness, k[:, None])[:, 0],
        solve=lambda values, rhs: spsolve(values, equation.pattern, rhs, client=client),
    )
    start = tf.constant(experiment.start)

    def loss_and_gradient(log_k: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(log_k)
            u = tf.stack(simulate(operations, log_k, start))
            loss = tf.reduce_mean((tf.gather(u, experiment.seen, axis=1) - experiment.data) ** 2)
        return loss, tape.gradient(loss, log_k)

    traced = tf.function(loss_and_gradient)

    def value_and_gradient(log_k: Floats) -> tuple[float, Floats]:
        loss, gradient = traced(tf.constant(log_k))
        return float(loss), np.asarray(gradient)

    return value_and_gradient


def _tensor(matrix: sparse.coo_array) -> Any:
    return tf.sparse.reorder(
        tf.SparseTensor(np.stack(matrix.coords, axis=1).astype(np.int64), matrix.data, matrix.shape)
    )
