"""What the iterative methods owe each column: a count, a limit and an end of its own."""

import numpy as np
import pytest
from scipy.sparse import block_array, csr_array, diags_array

from backsolve.errors import CancelledError
from backsolve.types import Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls
from backsolve_service.engine.krylov import gmres
from backsolve_service.engine.krylov.driver import Cycle, run
from backsolve_service.engine.krylov.problem import NotDefiniteError, Problem, Stop
from backsolve_service.engine.registry import ROWS, solver
from engine.table import array, factor_of, matrix, numbers, poisson

GENERAL = ("bicgstab", "gmres", "fgmres", "lsmr")
ALL = ("cg", "fcg", "minres", *GENERAL)
each = pytest.mark.parametrize("method", ALL)


class Operator:
    """A matrix that counts its products, by the row; from product `spoilt` on they are not numbers."""

    def __init__(self, a, spoilt=10**9):
        self.a, self.spoilt, self.count = a, spoilt, 0

    def multiply(self, rows):
        self.count += rows.shape[0]
        return (self.a @ rows.T).T if self.count < self.spoilt else np.full_like(rows, np.nan)

    def adjoint(self, rows):
        return np.conj(self.a.T @ np.conj(rows.T)).T


def problem(operator, b, precondition=lambda rows: rows, rtol=1e-9, limit=2000, restart=30, check=lambda: None):
    norm = float(np.abs(operator.a).sum(axis=1).max())
    targets = rtol * np.linalg.norm(b, axis=1)
    return Problem(operator.multiply, operator.adjoint, precondition, b, None, targets, limit, restart, norm, check)


def nonnormal():
    """Residuals of BiCGStab rise far before they fall, and inner products lose their digits."""
    return diags_array([-3.0, 2.5, 1.0], offsets=[-1, 0, 1], shape=(200, 200)).tocsr()


def laplacian(side, shift=0.0):
    return factor_of("cg", poisson(side, shift=shift)).operand.wide[0]


@each
@pytest.mark.parametrize("limit", [1, 2, 7, 8])
def test_the_limit_counts_products_with_the_matrix(method, limit):
    """All products but those that check a residual: one for each cycle, and of BiCGStab some on the way."""
    operator = Operator(laplacian(16))
    got = solver(method).iterate(problem(operator, numbers((1, 256), "float64", 40_117_982), limit=limit))
    assert got.stops == [Stop.LIMIT]
    assert got.iterations == limit
    assert limit <= operator.count <= limit + 3


@each
def test_a_column_has_the_limit_to_itself(method):
    """An easy column, a hard one, and limits that only the easy one meets: neither gains or loses by the other."""
    a = laplacian(14)
    eigenvalues, vectors = np.linalg.eigh(a.toarray())
    easy = vectors[:, [3, 90, 150]].sum(axis=1)
    b = np.stack([numbers((196,), "float64", 7_710_335), easy, eigenvalues[0] * vectors[:, 0]])
    for limit in (2, 3, 4, 9, 25):
        block = solver(method).iterate(problem(Operator(a), b, limit=limit, restart=6))
        counts = []
        for j in range(3):
            alone = solver(method).iterate(problem(Operator(a), b[j : j + 1], limit=limit, restart=6))
            assert block.stops[j] is alone.stops[0]
            np.testing.assert_allclose(block.x[j], alone.x[0], rtol=0, atol=1e-9 * np.abs(alone.x).max())
            counts.append(alone.iterations)
        assert block.iterations == max(counts)


def test_a_breakdown_beside_it_changes_no_column():
    """BiCGStab: the second column breaks down at once, whatever its shadow residual is."""
    a = np.zeros((42, 42))
    a[:40, :40] = array("general", "float64")
    a[40, 41], a[41, 40] = 1.0, -1.0
    b = np.zeros((2, 42))
    b[0, :40] = numbers((40,), "float64", 55_190_387)
    b[1, 40] = 1.0
    block = solver("bicgstab").iterate(problem(Operator(a), b, rtol=1e-13))
    alone = solver("bicgstab").iterate(problem(Operator(a), b[:1], rtol=1e-13))
    assert alone.stops == [Stop.CONVERGED]
    assert block.stops == [Stop.CONVERGED, Stop.BROKE_DOWN]
    np.testing.assert_allclose(block.x[0], alone.x[0], rtol=0, atol=1e-14)


def exchange_beside(a):
    """`a`, and two rows that exchange their unknowns: from either BiCGStab breaks down, and another start solves it."""
    return block_array([[a, None], [None, csr_array([[0.0, 1.0], [1.0, 0.0]])]]).tocsr()


def last_but_one(n):
    unit = np.zeros(n)
    unit[-2] = 1.0
    return unit


def test_products_of_others_are_no_products_of_ones_own():
    a = exchange_beside(csr_array(array("general", "float64")))
    long = np.concatenate([numbers((40,), "float64", 6_631_009), [0.0, 0.0]])
    b = np.stack([long, last_but_one(42)])
    need = solver("bicgstab").iterate(problem(Operator(a), b[:1])).iterations
    alone = solver("bicgstab").iterate(problem(Operator(a), b[1:]))
    assert alone.stops == [Stop.CONVERGED]
    assert 1 < alone.iterations < need
    block = solver("bicgstab").iterate(problem(Operator(a), b, limit=need))
    assert block.stops == [Stop.CONVERGED] * 2
    assert block.iterations == need


def test_a_new_shadow_residual_is_for_the_column_that_needs_one():
    a = exchange_beside(nonnormal())
    b = np.stack([np.concatenate([np.ones(200), [0.0, 0.0]]), last_but_one(202)])
    alone = solver("bicgstab").iterate(problem(Operator(a), b[:1]))
    block = solver("bicgstab").iterate(problem(Operator(a), b))
    assert block.stops == [Stop.CONVERGED] * 2
    assert block.iterations == pytest.approx(alone.iterations, rel=0.05)  # rounding is another in a block


@each
def test_what_is_not_a_number_ends_it_within_two_products(method):
    operator = Operator(laplacian(16), spoilt=6)
    got = solver(method).iterate(problem(operator, numbers((1, 256), "float64", 61_830_471)))
    assert got.stops == [Stop.BROKE_DOWN]
    assert np.isfinite(got.x).all()
    assert operator.count <= 6 + (9 if method == "bicgstab" else 2)


@each
def test_cancelling_is_asked_for_before_every_product(method):
    asked = []

    def check():
        asked.append(True)
        if len(asked) == 5:
            raise CancelledError("nobody waits")

    operator = Operator(laplacian(16))
    with pytest.raises(CancelledError):
        solver(method).iterate(problem(operator, numbers((1, 256), "float64", 8_820_916), check=check))
    assert operator.count <= 5 * 2


def wobbling(rows, state):
    """A preconditioner that is another one each time, at times with a negative eigenvalue."""
    state.append(True)
    rng = np.random.default_rng(len(state))
    return rows * rng.uniform(0.2, 1.8, rows.shape[1])


def test_flexible_methods_take_a_preconditioner_that_changes():
    a = array("definite", "float64", n=80)
    b = numbers((2, 80), "float64", 21_900_458)
    for method in ("fcg", "fgmres"):
        state = []
        got = solver(method).iterate(problem(Operator(a), b, lambda rows, s=state: wobbling(rows, s), rtol=1e-10))
        assert got.stops == [Stop.CONVERGED] * 2
        np.testing.assert_allclose(got.x.T, np.linalg.solve(a, b.T), rtol=0, atol=1e-8)
        assert got.iterations < 200


def test_fcg_steps_along_the_residual_where_the_preconditioner_leads_nowhere():
    """M is skew: M⁻¹ r is orthogonal to r, and a step along it would have length zero."""
    a = array("definite", "float64", n=60)
    signs = np.where(np.arange(60) % 2, 1.0, -1.0)
    b = numbers((1, 60), "float64", 70_455_201)
    got = solver("fcg").iterate(problem(Operator(a), b, lambda rows: rows[:, np.arange(60) ^ 1] * signs))
    assert got.stops == [Stop.CONVERGED]
    np.testing.assert_allclose(got.x[0], np.linalg.solve(a, b[0]), rtol=0, atol=1e-7)


def test_an_indefinite_preconditioner_is_for_flexible_methods_only():
    a = array("definite", "float64", n=60)
    signs = np.where(np.arange(60) % 7, 1.0, -1.0)
    b = numbers((1, 60), "float64", 3_300_918)
    for method in ("cg", "minres"):
        with pytest.raises(NotDefiniteError):
            solver(method).iterate(problem(Operator(a), b, lambda rows: rows * signs))
    for method in ("fcg", "gmres", "fgmres", "bicgstab"):
        got = solver(method).iterate(problem(Operator(a), b, lambda rows: rows * signs))
        assert got.stops == [Stop.CONVERGED]
        np.testing.assert_allclose(got.x[0], np.linalg.solve(a, b[0]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ["gmres", "fgmres", "bicgstab", "lsmr"])
@pytest.mark.parametrize("solvable", [True, False])
def test_a_nilpotent_matrix_is_never_solved_wrongly(method, solvable):
    """From b = e1 the Krylov space ends before it holds the solution e2; the Hessenberg matrix is zero."""
    a = np.array([[0.0, 1.0], [0.0, 0.0]])
    b = np.array([[1.0], [0.0]] if solvable else [[0.0], [1.0]])
    f = factor_of(method, matrix("dense", a), "none" if "preconditioner" in ROWS[method].options else None)
    got = answer(f, b, "N", Controls())
    if method == "lsmr" and solvable:
        assert got.statuses == ((Status.OK,),)
        np.testing.assert_allclose(got.x, [[0.0], [1.0]], atol=1e-12)
    elif method == "bicgstab" and solvable:
        # Another shadow residual may find it.
        assert got.statuses[0][0] in (Status.OK, Status.BREAKDOWN)
    else:
        assert got.statuses == ((Status.BREAKDOWN if solvable else Status.INCONSISTENT,),)


def test_lsmr_sees_at_once_that_nothing_is_left_to_gain():
    """b is orthogonal to the range but for two eigenvectors: two steps find the least squares solution."""
    line = diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(50, 50)).toarray()
    line[0, 0] = line[-1, -1] = 1.0
    vectors = np.linalg.eigh(line)[1]
    operator = Operator(line)
    got = solver("lsmr").iterate(problem(operator, (vectors[:, 0] + vectors[:, 10] + vectors[:, 30])[None]))
    assert got.stops == [Stop.INCONSISTENT]
    assert got.iterations <= 12


def test_a_peak_costs_bicgstab_no_restart():
    """The first step is 1e10 times too long, and what it rounds away is seen while the iteration flies on."""
    a = array("general", "float64", n=30) / 8
    b = numbers((1, 30), "float64", 14_902_377)
    unit = b[0] / np.linalg.norm(b)
    flat = a - (1 - 1e-10) * (unit @ a @ unit) * np.outer(unit, unit)
    near = a - 0.5 * (unit @ a @ unit) * np.outer(unit, unit)
    steep, plain = (solver("bicgstab").iterate(problem(Operator(m), b, rtol=1e-10)) for m in (flat, near))
    assert steep.stops == plain.stops == [Stop.CONVERGED]
    assert steep.iterations < 1.4 * plain.iterations


def test_bicgstab_is_not_deceived_by_a_peak():
    """Residuals far above the first leave rounding that the recurrence never sees."""
    a, b = nonnormal(), np.ones((1, 200))
    got = solver("bicgstab").iterate(problem(Operator(a), b))
    assert got.stops == [Stop.CONVERGED]
    assert np.linalg.norm(b[0] - a @ got.x[0]) <= 1e-9 * np.linalg.norm(b)
    assert got.iterations < 600


@pytest.mark.parametrize("n", [2, 5, 12])
def test_a_triangle_that_is_singular_but_for_rounding_is_deficient(n):
    """A maps the space that the basis ends in into less of it: one pivot is what rotations left of zero."""
    rounded = 0
    for seed in range(30):
        rng = np.random.default_rng(318_204_577 + seed)
        q = np.linalg.qr(rng.standard_normal((n + 3, n)))[0]
        left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
        middle = left[:, 1:] @ right[1:]
        a, r = q @ middle @ q.T, q @ rng.standard_normal(n)
        column = gmres._Arnoldi(r, 0.0, n + 3, False)
        while not column.done:
            column.extend(column.tip, a @ column.tip)
        found = column.combination()
        pivots = np.abs(np.diag(column._triangle[: column.steps, : column.steps]))
        rounded += pivots.min() > 0
        assert column.deficient
        best = np.linalg.lstsq(a, r, rcond=1e-10)[0]
        assert np.linalg.norm(r - a @ found) <= np.linalg.norm(r - a @ best) + 1e-9 * np.linalg.norm(r)
        assert np.linalg.norm(found) <= 1e6 * np.linalg.norm(best)
    assert rounded > 10


def test_what_a_cycle_spoils_is_not_taken():
    """The recurrence is right at first, and then proposes what is worse: the best of its proposals is the answer."""
    a, b = laplacian(4), numbers((1, 16), "float64", 905_118_372)
    exact = np.linalg.solve(a.toarray(), b[0])[None]
    proposals = [exact * (1 + 1e-3), exact * 2, exact * -5, exact * 40, exact * 7]

    def cycle(_, start):
        return Cycle(proposals.pop(0), np.ones(1, dtype=np.int64), np.zeros(1, dtype=bool))

    got = run(problem(Operator(a), b, limit=100), cycle, 0.9)
    assert got.stops == [Stop.STAGNATED]
    np.testing.assert_allclose(got.x, exact * (1 + 1e-3), rtol=1e-12)
