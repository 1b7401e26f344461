"""What tells the iterative methods apart, and what none of them may get wrong."""

import numpy as np
import pytest
import scipy.sparse.linalg as peers
from scipy.sparse import csr_array, diags_array

from backsolve.errors import CancelledError, InvalidOptionError, NotPositiveDefiniteError
from backsolve.types import Options, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.krylov.lsmr import least_squares
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.options import preconditioner_spec
from backsolve_service.engine.registry import PRECONDITIONERS, ROWS, solver
from backsolve_service.engine.select import choose
from backsolve_service.engine.structure import inspect, inspect_pattern
from backsolve_service.engine.tolerance import iterative_rtol
from engine.table import array, factor_of, matrix, numbers, op, poisson

GENERAL = ("bicgstab", "gmres", "fgmres", "lsmr")
ALL = ("cg", "fcg", "minres", *GENERAL)

each = pytest.mark.parametrize("method", ALL)
each_general = pytest.mark.parametrize("method", GENERAL)
each_preconditioned_general = pytest.mark.parametrize("method", ["bicgstab", "gmres", "fgmres"])


def made(method, m, preconditioner="none"):
    return factor_of(method, m, preconditioner if "preconditioner" in ROWS[method].options else None)


def convection(n=200):
    """A nonsymmetric tridiagonal matrix with complex eigenvalues and a condition number of some hundreds."""
    a = csr_array(diags_array([-1.6, 2.05, -0.4], offsets=[-1, 0, 1], shape=(n, n)))
    a.sort_indices()
    return matrix("csr", a.toarray())


def run(f, b, trans="N", **controls):
    return answer(f, b, trans, Controls(**controls))


# -- against peers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "peer"),
    [("cg", peers.cg), ("minres", peers.minres), ("bicgstab", peers.bicgstab), ("gmres", peers.gmres)],
)
def test_products_are_those_of_the_algorithm(method, peer):
    m = poisson(24, shift=0.05)
    a = csr_array((m.values, m.pattern.indices, m.pattern.indptr), shape=m.pattern.shape)
    b = numbers((m.n, 1), "float64", 15_640_932)
    counted = []
    extra = {} if method == "minres" else {"atol": 0.0}
    if method == "gmres":
        extra |= {"restart": 20, "callback_type": "pr_norm"}
    peer(a, b[:, 0], rtol=1e-8, callback=counted.append, **extra)
    got = run(made(method, m), b, rtol=1e-8, **({"restart": 20} if method == "gmres" else {}))
    assert got.statuses == ((Status.OK,),)
    products = len(counted) * (2 if method == "bicgstab" else 1)
    # SciPy's MINRES stops by another test, an estimate in which the norms of A and x take part.
    assert got.iterations[0] == pytest.approx(products, rel=0.35 if method == "minres" else 0.15, abs=2)


@pytest.mark.parametrize("damp", [0.0, 0.7])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_least_squares_core_finds_the_shortest_minimiser(damp, dtype, shape):
    a = numbers(shape, dtype, 84_990_127)
    b = numbers((2, shape[0]), dtype, 7_724_601)
    seen = []

    def met(progress):
        seen.append(progress)
        return progress.normal <= 1e-13 * progress.norm * np.linalg.norm(b, axis=1)

    steps, x = least_squares(lambda v: (a @ v.T).T, lambda u: (a.conj().T @ u.T).T, b, damp, 500, met, lambda: None)
    wide = np.vstack([a, damp * np.eye(shape[1])])
    expected = np.linalg.pinv(wide) @ np.hstack([b, np.zeros((2, shape[1]))]).T
    np.testing.assert_allclose(x.T, expected, rtol=0, atol=1e-10)
    assert steps < 200
    residual = np.sqrt(np.linalg.norm(b.T - a @ x.T, axis=0) ** 2 + damp**2 * np.linalg.norm(x, axis=1) ** 2)
    np.testing.assert_allclose(seen[-1].residual, residual, rtol=1e-6, atol=1e-9)


# -- options change what they should -----------------------------------------------------


@pytest.mark.parametrize(("method", "device"), [*((method, False) for method in ALL), ("cg", True), ("gmres", True)])
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_half_of_the_default_tolerance_is_left_to_rounding_x_to_single(method, device, dtype):
    """Of what was asked, 1e-6 in single, an iteration in double must not use up all: x is rounded after it."""
    preconditioner = None if method == "lsmr" else "none"
    f = factor_of(method, poisson(16, dtype=dtype), preconditioner, on_device=device)
    b = numbers((256, 1), dtype, 602_118_391)
    half, whole = {"complex64": (5e-7, 1e-6), "complex128": (1e-10, 2e-10)}[dtype]
    default, tight, loose = (run(f, b, rtol=rtol) for rtol in (None, half, whole))
    np.testing.assert_array_equal(default.x, tight.x)
    assert default.iterations[0] == tight.iterations[0] > loose.iterations[0]
    assert default.relative_residual.max() <= iterative_rtol(np.dtype(dtype))


@each
def test_rtol_decides_when_to_stop(method):
    f = made(method, poisson(12, shift=0.5))
    b = numbers((144, 1), "float64", 33_018_245)
    counts = [run(f, b, rtol=rtol).iterations[0] for rtol in (1e-2, 1e-6, 1e-12)]
    assert counts[0] < counts[1] < counts[2]
    for rtol in (1e-2, 1e-6, 1e-12):
        assert run(f, b, rtol=rtol).relative_residual.max() <= rtol


@each
def test_maxiter_ends_it_and_says_so(method):
    f = made(method, poisson(16))
    got = run(f, numbers((256, 2), "float64", 61_002_784), maxiter=4)
    assert got.statuses == ((Status.MAX_ITER,) * 2,)
    assert got.iterations[0] <= 4
    assert np.isfinite(got.x).all()
    assert got.relative_residual.max() < 2


@each
def test_an_exact_first_iterate_needs_no_step(method):
    m = poisson(9, shift=1.0)
    b = numbers((81, 1), "float64", 90_018_273)
    x = np.linalg.solve(Operand(m).wide[0].toarray(), b)
    got = run(made(method, m), b, x0=x, rtol=1e-9)
    assert got.iterations == (0,)
    np.testing.assert_array_equal(got.x, x)
    other = run(made(method, m), b, x0=100 * numbers((81, 1), "float64", 3), rtol=1e-9)
    assert other.iterations[0] > 0
    np.testing.assert_allclose(other.x, x, rtol=0, atol=1e-7)


def test_restart_bounds_the_basis_and_costs_iterations():
    f = made("gmres", convection())
    b = numbers((200, 1), "float64", 45_981_230)
    long, short = (run(f, b, rtol=1e-8, restart=restart) for restart in (200, 5))
    assert long.statuses == short.statuses == ((Status.OK,),)
    assert short.iterations[0] > 1.2 * long.iterations[0]


@each
def test_a_cancelled_solve_ends(method):
    f = made(method, poisson(30))
    with pytest.raises(CancelledError):
        run(f, np.ones((900, 1)), cancelled=lambda: True)


@each
@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e-200, 1e200])
def test_the_size_of_b_changes_nothing(method, factor):
    f = made(method, poisson(12, shift=0.1))
    b = numbers((144, 1), "float64", 5_590_284)
    base, scaled = run(f, b, rtol=1e-8), run(f, factor * b, rtol=1e-8)
    assert scaled.statuses == base.statuses
    assert scaled.iterations[0] == pytest.approx(base.iterations[0], abs=1)


@each
def test_columns_do_not_know_of_each_other(method):
    f = made(method, poisson(11, shift=0.2))
    b = numbers((121, 4), "float64", 20_883_417)
    b[:, 1] *= 1e5
    b[:, 2] = Operand(poisson(11, shift=0.2)).product(0, np.ones((121, 1)), "N")[:, 0]
    block = run(f, b, rtol=1e-9)
    assert block.statuses == ((Status.OK,) * 4,)
    for j in range(4):
        alone = run(f, np.ascontiguousarray(b[:, j : j + 1]), rtol=1e-9)
        np.testing.assert_allclose(block.x[:, j], alone.x[:, 0], rtol=0, atol=1e-7 * np.abs(alone.x).max())


@pytest.mark.parametrize("method", ["fcg", "minres", "bicgstab", "gmres", "fgmres"])
def test_a_preconditioner_changes_the_work_and_not_the_answer(method):
    rng = np.random.default_rng(77_120_438)
    scale = 10.0 ** rng.uniform(-3, 3, 60)
    core = array("definite", "float64", n=60)
    a = np.sqrt(scale)[:, None] * core * np.sqrt(scale)
    b = numbers((60, 1), "float64", 1_884_027)
    m = matrix("csr", a)
    plain, scaled = (run(made(method, m, name), b, rtol=1e-10, maxiter=3000) for name in ("none", "jacobi"))
    assert scaled.statuses == ((Status.OK,),)
    assert scaled.iterations[0] < plain.iterations[0]
    assert scaled.relative_residual.max() <= 1e-10


# -- what goes wrong is told ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["cg", "fcg"])
def test_an_indefinite_matrix_is_found_out_on_the_way(method):
    a = array("definite", "float64")
    a[3, 7] = a[7, 3] = 40.0
    with pytest.raises(NotPositiveDefiniteError, match=method):
        run(made(method, matrix("csr", a)), numbers((40, 1), "float64", 47_112_903))


@pytest.mark.parametrize("method", ["minres", "gmres", "fgmres", "bicgstab", "lsmr"])
def test_an_indefinite_matrix_is_no_trouble_for_the_others(method):
    a = array("definite", "float64")
    a[3, 7] = a[7, 3] = 40.0
    b = numbers((40, 1), "float64", 47_112_903)
    got = run(made(method, matrix("csr", a)), b, rtol=1e-9)
    assert got.statuses == ((Status.OK,),)
    np.testing.assert_allclose(got.x, np.linalg.solve(a, b), rtol=0, atol=1e-5)


def test_a_cyclic_shift_is_solved_by_a_full_basis_and_stagnates_in_a_short_one():
    n = 24
    m = matrix("csr", np.roll(np.eye(n), 1, axis=0))
    b = np.eye(n)[:, :1]
    assert run(made("gmres", m), b, restart=n).statuses == ((Status.OK,),)
    assert run(made("gmres", m), b, restart=n - 1).statuses == ((Status.STAGNATION,),)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_bicgstab_on_a_skew_matrix_never_says_ok_wrongly(dtype):
    """omega = 0 in the first step: sᴴ A s vanishes for every s."""
    a = np.array([[0.0, 1.0], [-1.0, 0.0]]).astype(dtype)
    b = np.array([[1.0], [0.0]], dtype=dtype)
    got = run(made("bicgstab", matrix("csr", a)), b)
    if got.statuses == ((Status.OK,),):
        np.testing.assert_allclose(got.x, np.linalg.solve(a, b), atol=1e-8)
    else:
        assert got.statuses in (((Status.BREAKDOWN,),), ((Status.STAGNATION,),))


@pytest.mark.parametrize("method", ["minres", *GENERAL])
def test_an_inconsistent_system_is_told(method):
    """A graph Laplacian, and a right-hand side with a part along its null space."""
    line = diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(30, 30)).toarray()
    line[0, 0] = line[-1, -1] = 1.0
    b = numbers((30, 1), "float64", 8_133_260)
    got = run(made(method, matrix("csr", line)), b, maxiter=4000)
    assert got.statuses[0][0] in (Status.INCONSISTENT, Status.STAGNATION, Status.BREAKDOWN)
    if method in ("minres", "lsmr"):
        assert got.statuses == ((Status.INCONSISTENT,),)
    consistent = run(made(method, matrix("csr", line)), b - b.mean(), rtol=1e-8)
    assert consistent.statuses == ((Status.OK,),)


@each
def test_nan_on_the_way_stops_at_once(method):
    """Entries whose products overflow: the residual is not a number after one step."""
    a = 1e308 * (np.eye(6) + 0.5 * np.eye(6, k=1) + 0.5 * np.eye(6, k=-1))
    got = run(made(method, matrix("csr", a)), 1e10 * numbers((6, 1), "float64", 70_018_822), maxiter=50)
    if Status.OK in got.statuses[0]:
        assert got.relative_residual.max() < 1e-8
    assert got.iterations[0] <= 50


def test_minres_refuses_what_is_not_hermitian():
    m = matrix("csr", array("general", "float64"))
    structure = inspect(inspect_pattern(m.pattern), Operand(m))
    with pytest.raises(InvalidOptionError, match="'minres' needs a matrix that is Hermitian"):
        choose(structure, Options(method="minres"), has_x0=False, device="cpu")
    chosen = solver("minres")
    with pytest.raises(InvalidOptionError, match="'minres' needs a Hermitian matrix"):
        chosen.factorize(chosen.analyze(m.pattern), Operand(m), FactorSpec("minres", "jacobi", "float64", "cpu"))


@each_general
@pytest.mark.parametrize("trans", ["N", "T", "H"])
def test_products_with_the_right_operator(method, trans):
    a = array("general", "complex128")
    b = numbers((40, 2), "complex128", 12_004_598)
    got = run(made(method, matrix("csr", a)), b, trans, rtol=1e-11)
    np.testing.assert_allclose(got.x, np.linalg.solve(op(a, trans), b), rtol=0, atol=1e-8)


INDEFINITE = [name for name, row in PRECONDITIONERS.items() if not row.definite]


@pytest.mark.parametrize(("method", "other"), [("cg", "fcg"), ("minres", "gmres")])
@pytest.mark.parametrize("preconditioner", INDEFINITE)
def test_a_preconditioner_that_may_be_indefinite_is_refused(method, other, preconditioner):
    m = poisson(6)
    structure = inspect(inspect_pattern(m.pattern), Operand(m))
    options = Options(method=method, preconditioner=preconditioner)
    with pytest.raises(InvalidOptionError, match=f"not Hermitian positive definite.*use method '{other}'"):
        choose(structure, options, has_x0=False, device="cpu")
    taken = choose(structure, Options(method=other, preconditioner=preconditioner), has_x0=False, device="cpu")
    assert taken.spec.method == other


@pytest.mark.parametrize("trans", ["N", "T", "H"])
@pytest.mark.parametrize("preconditioner", INDEFINITE)
@each_preconditioned_general
def test_the_preconditioner_is_applied_as_the_right_operator(method, preconditioner, trans):
    """With op(M) mistaken for M an answer would still come, and take many more iterations."""
    a = array("general", "complex128")
    b = numbers((40, 2), "complex128", 80_337_152)
    f = factor_of(method, matrix("csr", a), preconditioner_spec(preconditioner))
    got, plain = run(f, b, trans, rtol=1e-10), run(made(method, matrix("csr", a)), b, trans, rtol=1e-10)
    np.testing.assert_allclose(got.x, np.linalg.solve(op(a, trans), b), rtol=0, atol=1e-7)
    assert got.iterations[0] < plain.iterations[0]
