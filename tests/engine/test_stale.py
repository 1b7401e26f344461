"""A factor of older values as the preconditioner of newer ones, with every operator."""

import numpy as np
import pytest

from backsolve.errors import InvalidPatternError
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import TRANS, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.precond.stale import preconditioned
from backsolve_service.engine.registry import solver
from engine.table import array, factor_of, matrix, numbers, op
from loadtests.engine.problems import grid


def sparse(a):
    a.sort_indices()
    return Matrix(Pattern.from_csr(a), a.data)


@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_values_it_was_made_from_take_one_iteration(trans, dtype):
    """Only with the operator of the solve itself: A⁻¹ is a poor preconditioner of Aᴴ."""
    a = array("general", dtype)
    factor = factor_of("superlu", matrix("csr", a))
    b = numbers((40, 2), dtype, 66_102_873)
    got = answer(preconditioned(factor, Operand(matrix("csr", a))), b, trans, Controls(rtol=1e-10))
    assert got.statuses == ((Status.OK,) * 2,)
    assert got.iterations == (1,)
    np.testing.assert_allclose(got.x, np.linalg.solve(op(a, trans), b), rtol=0, atol=1e-10)


@pytest.mark.parametrize("trans", TRANS)
def test_a_factor_in_single_precision_serves_as_well_as_one_in_double(trans):
    """It is not one fixed matrix: what it makes of a combination of vectors is not that combination."""
    rng, problem = np.random.default_rng(417_098_223), grid((9, 9, 9))
    weights = np.exp(0.5 * rng.standard_normal(problem.edges))
    drift = np.exp(0.05 * rng.standard_normal(problem.edges))
    older, newer = (sparse(problem.member(each)) for each in (weights, weights * drift))
    b = rng.standard_normal((problem.n, 1))
    taken = []
    for precision in ("float64", "float32"):
        spec = FactorSpec("superlu", None, precision, "cpu")
        symbolic = solver("superlu").analyze(older.pattern, spec)
        factor = solver("superlu").factorize(symbolic, Operand(older), spec)
        assert factor.narrow == (precision == "float32")
        got = answer(preconditioned(factor, Operand(newer)), b, trans, Controls(rtol=1e-12))
        assert got.statuses == ((Status.OK,),)
        taken += got.iterations
    assert taken[1] <= taken[0] + 1


def test_values_of_another_pattern_are_refused():
    factor = factor_of("superlu", matrix("csr", array("general", "float64")))
    with pytest.raises(InvalidPatternError, match="those before"):
        preconditioned(factor, Operand(matrix("csr", array("general", "float64", seed=5_512_098))))
