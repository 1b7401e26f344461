"""Dense methods on a device prove their answers there; "cpu:0" stands for it, with the same torch code."""

import numpy as np
import pytest

from backsolve.types import TRANS, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.certify import measure, reference
from backsolve_service.engine.direct import dense_factor
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver
from engine.table import DTYPES, TOLERANCE, array, matrix, numbers, op

DEVICE = "cpu:0"
KINDS = {"lu": "general", "qr": "general", "cholesky": "definite", "triangular": "triangular"}

each_method = pytest.mark.parametrize("method", KINDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_trans = pytest.mark.parametrize("trans", TRANS)


def factor(method, a, precision=None):
    m, chosen = matrix("dense", a), solver(method, DEVICE)
    spec = FactorSpec(method, None, precision or m.dtype.name, DEVICE)
    return chosen.factorize(chosen.analyze(m.pattern, spec), Operand(m), spec)


def batch(kind, dtype):
    return np.stack([array(kind, dtype, seed=seed) for seed in (118_203, 550_914, 83_206)])


@pytest.fixture
def no_products(monkeypatch):
    """The host multiplies by no matrix."""

    def refused(*arguments):
        raise AssertionError("a product on the host")

    monkeypatch.setattr(Operand, "products", refused)
    monkeypatch.setattr(Operand, "product", refused)


@each_method
@each_dtype
@each_trans
@pytest.mark.parametrize("many", [False, True])
def test_the_proof_is_that_of_the_host(method, dtype, trans, many, monkeypatch):
    monkeypatch.setattr(dense_factor, "_WIDENED", 300)  # a few rows at a time
    a = batch(KINDS[method], dtype) if many else array(KINDS[method], dtype)
    b = numbers((*a.shape[:-1], 3), dtype, 390_551_208)
    b[..., 2] = 0
    outcome = factor(method, a).solve(b, trans, Controls())
    operand = Operand(matrix("dense", a))
    stacked = (lambda x: x) if many else (lambda x: x[None])
    expected = measure(operand, reference(operand, stacked(b), trans), stacked(outcome.x), trans)
    for name in ("relative", "backward", "condition"):
        # Of double precision, residuals are rounding noise: only their size is reproducible.
        np.testing.assert_allclose(
            getattr(outcome.proof, name), getattr(expected, name), rtol=1e-6 if "32" in dtype else 0.5, atol=2e-15
        )


@each_method
@each_trans
@pytest.mark.parametrize("k", [1, 5])
def test_answers_are_certified_without_a_product_on_the_host(method, trans, k, no_products):
    a, b = array(KINDS[method], "complex128"), numbers((40, k), "complex128", 62_780_115)
    got = answer(factor(method, a), b, trans, Controls())
    assert got.statuses == ((Status.OK,) * k,)
    expected = np.linalg.solve(op(a, trans), b)
    np.testing.assert_allclose(got.x, expected, rtol=0, atol=TOLERANCE["complex128"] * np.abs(expected).max())
    residual = np.linalg.norm(b - op(a, trans) @ got.x, axis=0) / np.linalg.norm(b, axis=0)
    np.testing.assert_allclose(got.relative_residual[0], residual, rtol=0.5, atol=1e-15)


@each_method
def test_a_wrong_answer_is_proved_wrong(method, monkeypatch):
    f = factor(method, array(KINDS[method], "float64"))
    solve = type(f.form).solve
    monkeypatch.setattr(type(f.form), "solve", lambda form, b, *, adjoint: 1.001 * solve(form, b, adjoint=adjoint))
    outcome = f.solve(numbers((40, 2), "float64", 9_338_214), "N", Controls())
    np.testing.assert_allclose(outcome.proof.relative, 1e-3, rtol=1e-6)


def test_what_is_not_good_enough_is_refined_on_the_host(monkeypatch):
    a, b = array("general", "float64"), numbers((40, 2), "float64", 75_006_812)
    f = factor("lu", a)
    solve = type(f.form).solve
    monkeypatch.setattr(type(f.form), "solve", lambda form, b, *, adjoint: 1.0001 * solve(form, b, adjoint=adjoint))
    got = answer(f, b, "N", Controls())
    assert got.refinements > 0
    np.testing.assert_allclose(got.x, np.linalg.solve(a, b), rtol=0, atol=1e-9)


def test_a_system_without_a_factor_has_no_proof():
    a, b = batch("general", "float64"), numbers((3, 40, 2), "float64", 14_226_093)
    a[1, :, 7] = 0
    f = factor("lu", a)
    assert f.statuses == (Status.OK, Status.SINGULAR_NUMERIC, Status.OK)
    outcome = f.solve(b, "T", Controls())
    assert np.isinf(outcome.proof.relative[1]).all()
    assert (outcome.proof.relative[[0, 2]] < 1e-12).all()
    assert np.isnan(outcome.x[1]).all()


def test_what_elimination_found_indefinite_has_no_proof():
    """Numbers come out of a half-made Cholesky factor as well, and they are not of a solution."""
    a, b = batch("definite", "float64"), numbers((3, 40, 2), "float64", 5_912_760)
    a[1, 39, 39] -= 2 * np.linalg.eigvalsh(a[1]).max()
    f = factor("cholesky", a)
    assert f.statuses[1] is Status.NOT_POSITIVE_DEFINITE
    assert np.isinf(f.solve(b, "N", Controls()).proof.relative[1]).all()


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_right_hand_sides_of_any_size_are_certified(scale):
    a, b = array("general", "float64"), numbers((40, 2), "float64", 88_410_263)
    got = answer(factor("lu", a), scale * b, "N", Controls())
    assert got.statuses == ((Status.OK,) * 2,)
    np.testing.assert_allclose(got.x / scale, np.linalg.solve(a, b), rtol=1e-9, atol=1e-10)


def test_mixed_precision_proves_nothing_of_the_rounded_matrix():
    a, b = array("general", "float64"), numbers((40, 2), "float64", 40_119_822)
    f = factor("lu", a, "float32")
    assert f.solve(b, "N", Controls()).proof is None
    assert f.inner.proving is None
    np.testing.assert_allclose(answer(f, b, "H", Controls()).x, np.linalg.solve(a.T, b), rtol=1e-9, atol=1e-10)


@each_method
def test_memory_is_foretold_for_the_place(method):
    a = array(KINDS[method], "float64")
    m, chosen = matrix("dense", a), solver(method, DEVICE)
    f = factor(method, a)
    foretold = chosen.analyze(m.pattern, FactorSpec(method, None, "float64", DEVICE)).predicted_nbytes("float64")
    assert 0 <= f.device_nbytes - foretold <= 40 * 8  # pivots and the like
    moved = f.moved("cpu")
    assert moved.solve(np.ones((40, 1)), "N", Controls()).proof is None
    assert 0 <= moved.nbytes - (foretold - m.values.nbytes) <= 40 * 8
