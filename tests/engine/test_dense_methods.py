"""LDLᵀ and QR of dense matrices: what they take, and how they say that a matrix is singular."""

import numpy as np
import pytest

from backsolve.errors import InvalidOptionError, InvalidPatternError, SingularMatrixError
from backsolve.types import TRANS, Options, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver
from backsolve_service.engine.select import choose
from backsolve_service.engine.structure import inspect, inspect_pattern
from engine.table import array, factor_of, matrix, numbers, op


def choice(a, **options):
    m = matrix("dense", a)
    return choose(inspect(inspect_pattern(m.pattern), Operand(m)), Options(**options), has_x0=False, device="cpu")


@pytest.mark.parametrize("method", ["ldl", "qr"])
def test_sparse_patterns_are_refused(method):
    with pytest.raises(InvalidPatternError, match="takes dense matrices"):
        solver(method).analyze(matrix("csr", np.eye(3)).pattern)


@pytest.mark.parametrize("structure", ["indefinite", "symmetric", "definite"])
def test_ldl_is_chosen_by_name_where_it_fits(structure):
    assert choice(array(structure, "complex128"), method="ldl").spec.method == "ldl"


def test_ldl_refuses_what_is_not_symmetric():
    a = array("general", "complex128")
    with pytest.raises(InvalidOptionError, match="Hermitian or complex symmetric"):
        choice(a, method="ldl")
    with pytest.raises(InvalidOptionError, match="Hermitian or complex symmetric"):
        factor_of("ldl", matrix("dense", a))
    both = np.stack([array("indefinite", "complex128"), array("symmetric", "complex128")])
    with pytest.raises(InvalidOptionError, match="Hermitian or complex symmetric"):
        factor_of("ldl", matrix("dense", both))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_ldl_names_the_zero_block(dtype):
    a = np.diag([1.0, -2.0, 0.0, 3.0]).astype(dtype)
    with pytest.raises(SingularMatrixError, match="column 2") as caught:
        factor_of("ldl", matrix("dense", a))
    assert caught.value.details["column"] == "2"


@pytest.mark.parametrize("structure", ["indefinite", "symmetric"])
@pytest.mark.parametrize("trans", TRANS)
def test_ldl_solves_a_batch_with_one_singular_system(structure, trans):
    a = np.stack([array(structure, "complex128", n=9, seed=seed) for seed in (71_002, 71_003, 71_004)])
    a[1, 4] = a[1, :, 4] = 0
    b = numbers((3, 9, 2), "complex128", 40_871)
    got = answer(factor_of("ldl", matrix("dense", a)), b, trans, Controls())
    assert got.statuses[1] == (Status.SINGULAR_NUMERIC,) * 2
    assert np.isnan(got.x[1]).all()
    for s in (0, 2):
        np.testing.assert_allclose(got.x[s], np.linalg.solve(op(a[s], trans), b[s]), rtol=1e-9, atol=1e-11)


def test_ldl_of_a_saddle_point_needs_pivots_of_two_rows():
    """Zeros on the whole diagonal: LDL without pivoting has nothing to divide by."""
    made = factor_of("ldl", matrix("dense", array("saddle", "float64")))
    assert (made.form.pivots < 0).any()


def test_qr_names_a_dependent_column():
    a = array("general", "float64", n=12)
    a[:, 7] = a[:, 2] - 2 * a[:, 5]
    with pytest.raises(SingularMatrixError, match="column 7 depends") as caught:
        factor_of("qr", matrix("dense", a))
    assert caught.value.details["column"] == "7"


@pytest.mark.parametrize("power", [-1, 1])
def test_qr_does_not_take_a_scale_for_a_dependence(power):
    """Columns of very different length, and an ill-conditioned matrix that still has digits."""
    a = array("general", "float64") * 10.0 ** (power * np.linspace(0, 150, 40))
    assert factor_of("qr", matrix("dense", a)).statuses == (Status.OK,)
    hilbert = 1 / (np.arange(9)[:, None] + np.arange(9) + 1.0)
    got = answer(factor_of("qr", matrix("dense", hilbert)), np.ones((9, 1)), "N", Controls())
    assert got.statuses == ((Status.OK,),)
    assert got.condition > 1e11


def test_qr_reports_what_is_nearly_singular():
    a = array("general", "float64")
    a[:, 7] = a[:, 2] * (1 + 1e-14 * np.cos(np.arange(40)))
    got = answer(factor_of("qr", matrix("dense", a)), numbers((40, 1), "float64", 20_199), "N", Controls())
    assert got.statuses == ((Status.ILL_CONDITIONED,),)


def test_qr_does_not_grow_where_lu_does():
    """Wilkinson's matrix, on which partial pivoting doubles the last column at each step."""
    n = 60
    a = np.eye(n) - np.tril(np.ones((n, n)), -1)
    a[:, -1] = 1
    b = numbers((n, 1), "float64", 660_291)
    plain = Controls(refine=0)
    assert answer(factor_of("qr", matrix("dense", a)), b, "N", plain).backward_error.max() < 1e-15
    assert answer(factor_of("lu", matrix("dense", a)), b, "N", plain).backward_error.max() > 1e-8


def test_memory_is_foretold():
    for method in ("ldl", "qr"):
        m = matrix("dense", array("indefinite", "complex64"))
        predicted = solver(method).analyze(m.pattern).predicted_nbytes("complex64")
        assert factor_of(method, m).nbytes == pytest.approx(predicted, rel=0.02)
