"""A factor of older values as the preconditioner of newer ones, with every operator."""

import numpy as np
import pytest

from backsolve.errors import InvalidPatternError
from backsolve.types import TRANS, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.precond.stale import preconditioned
from engine.table import array, factor_of, matrix, numbers, op


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


def test_values_of_another_pattern_are_refused():
    factor = factor_of("superlu", matrix("csr", array("general", "float64")))
    with pytest.raises(InvalidPatternError, match="those before"):
        preconditioned(factor, Operand(matrix("csr", array("general", "float64", seed=5_512_098))))
