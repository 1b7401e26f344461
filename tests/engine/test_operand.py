"""Norms of dense matrices, which are read block by block."""

import numpy as np
import pytest

from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern
from backsolve_service.engine.operand import Operand

RNG = np.random.default_rng(36)


def operand(a):
    return Operand(Matrix(DensePattern(a.shape[-2:]), a))


def norms(a):
    """`[systems, 2]` by NumPy."""
    each = a if a.ndim == 3 else a[None]
    return np.array([[np.linalg.norm(one, 1), np.linalg.norm(one, np.inf)] for one in each])


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (3, 5), (900, 900), (2, 600_000), (600_000, 2), (7, 300, 300), (2, 800, 800)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_norms_of_dense_matrices(shape):
    """Of one block and of several, of rows and of systems, and of a single row that is more than a block."""
    a = RNG.standard_normal(shape)
    np.testing.assert_allclose(operand(a).norm_table, norms(a), rtol=1e-13)


def test_norms_of_complex_matrices():
    a = RNG.standard_normal((2, 600, 600)) + 1j * RNG.standard_normal((2, 600, 600))
    np.testing.assert_allclose(operand(a).norm_table, norms(a), rtol=1e-13)


def test_what_is_not_a_number_is_no_norm():
    a = RNG.standard_normal((900, 900))
    a[899, 0] = np.nan
    assert np.isnan(operand(a).norm_table).all()
