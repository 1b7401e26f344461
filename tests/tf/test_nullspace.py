"""Derivatives of both orders within a family of matrices whose null space is the constants."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy.sparse import csr_array

from backsolve import Client, Pattern
from backsolve.tensorflow import solve, spsolve
from engine.test_nullspace import EDGES, laplacian
from support.tf_tensors import close, gradients, numbers, places, products, reference

PATTERN = Pattern.from_csr(csr_array(laplacian([1.0] * len(EDGES))))
N = PATTERN.n


def _laplacian(weights: Any) -> Any:
    """With complex weights it is complex symmetric."""
    pairs = np.concatenate([EDGES, np.flip(EDGES, axis=1)])
    around = tf.scatter_nd(pairs, tf.concat([-weights, -weights], 0), [N, N])
    return around - tf.linalg.diag(tf.reduce_sum(around, axis=1))


@pytest.mark.parametrize(("sparse", "dtype", "trans"), [(True, "float64", "N"), (False, "complex128", "T")])
def test_derivatives_within_the_family(embedded: Client, sparse: bool, dtype: str, trans: Any) -> None:
    """Cotangents of an adjoint have parts outside of the range, which a solve would refuse."""
    weights = numbers(441_902_117, (len(EDGES),), dtype)
    weights = tf.cast(tf.abs(weights) + 0.5, dtype) + weights / 4
    b = numbers(50_119_224, (N,), dtype)
    b = b - tf.reduce_mean(b)
    options: dict[str, Any] = {"nullspace": "constant", "trans": trans, "client": embedded}

    def ours(weights: Any, b: Any) -> Any:
        A = _laplacian(weights)
        if sparse:
            return spsolve(tf.gather_nd(A, places(PATTERN)), PATTERN, b, method="superlu", **options)
        return solve(A, b, method="lu", **options)

    def truth(weights: Any, b: Any) -> Any:
        """The pseudo-inverse: what is added gives the constants, which are taken away again, the eigenvalue 1."""
        return reference(_laplacian(weights) + tf.ones([N, N], dtype) / N, b, trans) - tf.reduce_mean(b)

    close(ours(weights, b), truth(weights, b))
    close(gradients(ours, weights, b), gradients(truth, weights, b), rtol=1e-9)
    close(products(ours, weights, b), products(truth, weights, b), rtol=1e-8)
