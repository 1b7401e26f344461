"""What counts as Hermitian: products that rounding has left unsymmetric do, an unsymmetric corner does not."""

import numpy as np
import pytest
from scipy import sparse

from backsolve import Client
from backsolve.errors import InvalidOptionError, NotPositiveDefiniteError
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern
from backsolve.types import Status
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.symmetry import all_mirrored, hermitian_systems, is_hermitian, mirrored
from engine.table import numbers

DTYPES = ("float32", "float64", "complex64", "complex128")
FORMS = {"dense": np.ascontiguousarray, "csr": sparse.csr_array}


def product(dtype, n=300, seed=502_337_148):
    """Bᴴ D B, summed in an order of its own on each side of the diagonal."""
    b = numbers((n, n), dtype, seed)
    d = np.diag(np.linspace(0.1, 1.0, n)).astype(dtype)
    return b.conj().T @ d @ b


def indefinite(dtype, n=300):
    q = np.linalg.qr(numbers((n, n), dtype, 117_260_035))[0]
    spectrum = np.geomspace(1, 1e-4, n) * np.where(np.arange(n) % 2, 1, -1)
    return (q @ np.diag(spectrum.astype(dtype))) @ q.conj().T


def scaled(dtype):
    powers = np.random.default_rng(88_102_734).integers(-12, 13, 300)
    s = np.diag(2.0**powers).astype(dtype)
    return s @ product(dtype) @ s


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [product, indefinite, scaled])
def test_products_are_hermitian_but_for_rounding(make, dtype, form):
    a = make(dtype)
    assert not np.array_equal(a, a.conj().T)
    assert mirrored(FORMS[form](a)) == "rounded"
    assert mirrored(FORMS[form]((a + a.conj().T) / 2)) == "exactly"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_more_than_rounding_is_not(form, dtype):
    a = product(dtype)
    a = (a + a.conj().T) / 2
    i, j = 7, 290
    scale = np.sqrt(abs(a[i, i] * a[j, j]))
    for gap, same in ((8, True), (64, False)):
        spoilt = a.copy()
        spoilt[i, j] += gap * np.finfo(float).eps * scale
        assert is_hermitian(FORMS[form](spoilt)) is same
    assert not is_hermitian(FORMS[form](np.linalg.inv(a - 0.999999 * np.linalg.eigvalsh(a)[0] * np.eye(300))))


@pytest.mark.parametrize("form", FORMS)
def test_a_badly_scaled_matrix_does_not_hide_an_unsymmetric_corner(form):
    a = np.eye(300)
    a[0, 0] = 1e20
    a[298, 299], a[299, 298] = 1e-3, 2e-3
    assert not is_hermitian(FORMS[form](a))
    # Nor does a large entry in the row of one of the two, beyond what it could have rounded.
    a[298, 299], a[299, 298] = 0.5, 0.5
    a[0, 299], a[299, 0] = 1.0, 1.0 + 1e-3
    assert not is_hermitian(FORMS[form](a))


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_each_system_of_a_batch_is_judged_by_itself(layout):
    one = product("float64", n=20)
    exact = (one + one.T) / 2
    wrong = exact.copy()
    wrong[3, 4] *= 1 + 1e-12
    stack = np.stack([exact, one, wrong])
    if layout == "dense":
        operands = [Operand(Matrix(DensePattern((20, 20)), part)) for part in (stack, stack[:2], stack[:1])]
    else:
        pattern = Pattern.from_csr(sparse.csr_array(np.ones((20, 20))))
        flat = stack.reshape(3, -1)
        operands = [Operand(Matrix(pattern, part)) for part in (flat, flat[:2], flat[:1])]
    assert hermitian_systems(operands[0]).tolist() == [True, True, False]
    assert [all_mirrored(operand, conjugate=True) for operand in operands] == [None, "rounded", "exactly"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["auto", "cg", "fcg", "minres", "cholesky"])
def test_such_a_matrix_is_solved_and_the_answer_says_so(embedded: Client, method, form):
    a = product("float64", n=60) + 20 * np.eye(60)
    assert not np.array_equal(a, a.T)
    got = embedded.solve(FORMS[form](a), np.arange(60.0), method=method)
    assert got.status is Status.OK
    np.testing.assert_allclose(a @ got.x, np.arange(60.0), atol=1e-7)
    if got.stats.method != "superlu":
        assert "but for rounding" in got.stats.reason
    a[2, 5] += 1e-9
    if method != "auto":
        with pytest.raises((NotPositiveDefiniteError, InvalidOptionError), match="not"):
            embedded.solve(FORMS[form](a), np.arange(60.0), method=method)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preconditioner", ["ic", "chebyshev", "low_rank", "ssor"])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_its_preconditioner_goes_by_its_own_rounding(embedded: Client, dtype, preconditioner, form):
    a = product(dtype, n=60) + np.eye(60, dtype=dtype)
    assert mirrored(FORMS[form](a)) == "rounded"
    b = numbers((60,), dtype, 903_847_115)
    got = embedded.solve(FORMS[form](a), b, method="cg", preconditioner=preconditioner)
    assert got.status is Status.OK
    np.testing.assert_allclose(got.x, np.linalg.solve(a.astype("complex128"), b), rtol=0, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_infinity_agrees_with_no_number(form):
    """Nor does the size of it, by which gaps would be measured, make its row agree with anything."""
    a = np.eye(300)
    a[2, 7], a[7, 2] = np.inf, 3.0
    assert not is_hermitian(FORMS[form](a))
    a[7, 9] = a[9, 7] = np.inf
    assert not is_hermitian(FORMS[form](a))


def by_definition(a):
    """The formula of the module, entry by entry."""
    size, across = np.abs(a), a.conj().T
    roots, largest = np.sqrt(np.abs(np.diagonal(a))), size.max(axis=1)
    scale = np.maximum(size, np.outer(roots, roots))
    scale = np.maximum(scale, np.minimum.outer(largest, largest))
    if not np.array_equal(a != 0, across != 0):
        return None
    close = np.abs(a - across) <= 16 * np.finfo(a.dtype).eps * scale
    return None if not close.all() else "exactly" if np.array_equal(a, across) else "rounded"


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_what_shows_at_once_is_what_a_look_at_every_entry_would_show(dtype):
    """One spoilt entry anywhere, by little or much, of matrices of all sizes, and one that is missing."""
    rng, seen = np.random.default_rng(337_118_906), set()
    for _ in range(400):
        n = int(rng.integers(1, 40))
        a = np.where(
            rng.random((n, n)) < rng.choice([0.05, 0.3, 1.0]), numbers((n, n), dtype, int(rng.integers(1e9))), 0
        )
        a = a + a.conj().T + np.diag(rng.choice([0.0, 1.0, 1e6], n))
        a = (a * np.outer(2.0 ** np.arange(n), 2.0 ** np.arange(n)) if rng.random() < 0.3 else a).astype(dtype)
        stored = np.argwhere(a)
        if stored.size and rng.random() < 0.8:
            i, j = stored[rng.integers(len(stored))]
            a[i, j] *= 1 + rng.choice([-1.0, 1e-3, 3e-6, 1e-6, 3e-15, 1e-15])
        found = mirrored(sparse.csr_array(a))
        assert found == by_definition(a)
        seen.add(found)
    assert seen == {None, "exactly", "rounded"}


def test_equal_counts_and_equal_numbers_are_no_symmetry():
    """Each row and each column of a cycle has two entries, and all are alike."""
    cycle = sparse.csr_array(np.eye(5) + np.roll(np.eye(5), 1, axis=1))
    cycle.data[:] = 1.0
    assert mirrored(cycle) is None
