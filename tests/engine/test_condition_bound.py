"""Every direct method says of a matrix that is singular but for rounding that no digit is certain, whatever b is."""

import numpy as np
import pytest

from backsolve.errors import NotPositiveDefiniteError, SingularMatrixError
from backsolve.types import Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.conditioning import lower_bound, lower_bounds
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import ROWS, solver
from engine.table import TABLE, array, factor, matrix, numbers

DIRECT = [
    (name, layout)
    for name, row in ROWS.items()
    if row.direct and row.needs in ("square", "definite", "symmetric", "transpose") and not (row.requires or row.probe)
    for layout in sorted(row.layouts - {"structured"})
]
each_way = pytest.mark.parametrize(("method", "layout"), DIRECT)


def neumann(rng, n, decades):
    """The stiffness matrix of a bar that nothing holds: weights over some decades, null space the constants."""
    w = 10.0 ** rng.uniform(-decades, decades, n - 1)
    a = np.zeros((n, n))
    i = np.arange(n - 1)
    for at, sign in (((i, i), 1), ((i + 1, i + 1), 1), ((i, i + 1), -1), ((i + 1, i), -1)):
        np.add.at(a, at, sign * w)
    return a


def made(method, layout, a):
    m = matrix(layout, a)
    spec = FactorSpec(method, None, m.dtype.name, "cpu")
    chosen = solver(method)
    return chosen.factorize(chosen.analyze(m.pattern, spec), Operand(m), spec)


@each_way
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_consistent_b_does_not_hide_a_singular_matrix(method, layout, dtype):
    rng = np.random.default_rng(83_110_457)
    seen = 0
    for _ in range(25):
        a = neumann(rng, int(rng.integers(5, 90)), 1.5).astype(dtype)
        b = (a @ rng.standard_normal((len(a), 1))).astype(dtype)
        try:
            f = made(method, layout, a)
        except (SingularMatrixError, NotPositiveDefiniteError):
            continue
        seen += 1
        assert answer(f, b, "N", Controls()).statuses == ((Status.ILL_CONDITIONED,),)
    assert seen >= 2


@each_way
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_nor_does_it_in_a_batch_where_each_system_is_told_apart(method, layout, dtype):
    """Regular ones beside it, one that is not finite, and one with rows of very different size."""
    rng = np.random.default_rng(83_110_458)
    seen = 0
    for _ in range(12):
        n = int(rng.integers(5, 60))
        a = np.stack([neumann(rng, n, 1.0) for _ in range(4)]).astype(dtype)
        a[::2] += np.eye(n, dtype=dtype) * np.trace(a[0].real) / n
        b = (a @ rng.standard_normal((n, 2))).astype(dtype)
        a[3, 1, 1] = np.nan
        f = made(method, layout, a)
        if f.statuses[1] is not Status.OK:
            continue
        seen += 1
        got = answer(f, b, "N", Controls())
        assert [system[0] for system in got.statuses] == [
            Status.OK,
            Status.ILL_CONDITIONED,
            Status.OK,
            Status.NONFINITE_INPUT,
        ]
        np.testing.assert_allclose(
            got.x[0], np.linalg.solve(a[0], b[0]), rtol=0, atol=1e-3 if dtype == "complex64" else 1e-10
        )
    assert seen >= 2


@each_way
def test_bounds_of_a_batch_are_those_of_its_systems(method, layout):
    structure = {"diagonal": "diagonal", "triangular": "triangular"}.get(ROWS[method].needs, "definite")
    structure = "triangular" if method == "triangular" else "diagonal" if method == "diagonal" else structure
    a = np.stack([array(structure, "float64", seed=seed) for seed in (7_130_611, 7_130_612, 7_130_613)])
    a[1] *= np.geomspace(1, 1e-7, 40)[:, None] * np.geomspace(1, 1e-7, 40) if method != "diagonal" else 1
    together = lower_bounds(made(method, layout, a))
    alone = [lower_bound(made(method, layout, each)) for each in a]
    if layout == "csr":  # dense ones are asked for more, when they are made
        np.testing.assert_allclose(together, alone, rtol=1e-6)
    assert np.all(together <= 3 * np.array(alone))
    assert np.all(together > 0.1)


def dependent(rng, n):
    """Singular matrices that only rounding makes invertible, three ways."""
    full = rng.standard_normal((n, n))
    twice, summed = full.copy(), full.copy()
    twice[3] = twice[1]
    summed[3] = summed[1] + summed[2]
    return twice, summed, full[:, :-2] @ rng.standard_normal((n - 2, n))


@pytest.mark.parametrize(("method", "layout"), [(m, layout) for m, layout in DIRECT if ROWS[m].needs == "square"])
@pytest.mark.parametrize("trans", ["N", "H"])
def test_no_answer_of_a_singular_matrix_counts_as_good(method, layout, trans):
    """Its x is huge and its backward error small, and its residual may be larger than b."""
    rng = np.random.default_rng(60_417_229)
    seen = 0
    for n in (10, 10, 10, 10, 10, 10, 40, 40, 40, 120, 120):
        for a in dependent(rng, n):
            b = rng.standard_normal((n, 1))
            try:
                f = made(method, layout, a)
            except SingularMatrixError:
                continue
            seen += 1
            assert answer(f, b, trans, Controls()).statuses != ((Status.OK,),)
            assert answer(f, np.hstack([b, b]), trans, Controls()).statuses != ((Status.OK,) * 2,)
    assert seen >= 10


def test_equal_rows_are_seen_wherever_they_stand():
    rng = np.random.default_rng(915_300_462)
    seen = 0
    for i in range(9):
        for j in range(i):
            a = rng.standard_normal((9, 9))
            a[i] = a[j]
            try:
                bound = lower_bound(made("superlu", "csr", a))
            except SingularMatrixError:
                continue
            seen += 1
            assert bound >= 0.01 / np.finfo(float).eps, (i, j)
    assert seen >= 10


@pytest.mark.parametrize("method", ["banded", "superlu"])
def test_a_large_mesh_in_single_precision_is_no_singular_matrix(method):
    n = 2000
    a = 2 * np.eye(n, dtype="float32") - np.eye(n, k=1, dtype="float32") - np.eye(n, k=-1, dtype="float32")
    got = answer(made(method, "csr", a), np.ones((n, 1), dtype="float32"), "N", Controls())
    assert got.statuses == ((Status.OK,),)


@pytest.mark.parametrize("row", [row for row in TABLE if ROWS[row.method].direct and not row.on_device], ids=str)
def test_it_is_a_bound_from_below(row):
    a = array(row.structure, "float64")
    got = lower_bound(factor(row, a))
    assert 0 < got <= max(np.linalg.cond(a, 1), np.linalg.cond(a, np.inf)) * (1 + 1e-9)


@pytest.mark.parametrize("method", ["superlu", "banded", "block_diagonal"])
@pytest.mark.parametrize("penalty", [1e20, 1e200])
def test_rows_of_another_size_are_no_singular_matrix(method, penalty):
    """Boundary values are often set by a huge number on the diagonal."""
    a = array("tridiagonal", "float64")
    a[0, 0] = a[-1, -1] = penalty
    b = numbers((40, 2), "float64", 9_443_120)
    b[[0, -1]] *= penalty
    got = answer(made(method, "csr", a), b, "N", Controls())
    assert got.statuses == ((Status.OK,) * 2,)


@pytest.mark.parametrize("scale", [1e-250, 1e250])
def test_the_size_of_the_matrix_changes_nothing(scale):
    a = array("general", "float64")
    plain, scaled = (lower_bound(made("superlu", "csr", factor * a)) for factor in (1.0, scale))
    assert scaled == pytest.approx(plain, rel=1e-9)


def test_it_is_asked_for_once():
    f = made("superlu", "csr", array("general", "float64"))
    assert lower_bound(f) == lower_bound(f) > 0
    batch = made("superlu", "csr", np.stack([array("general", "float64")] * 2))
    assert lower_bounds(batch) is lower_bounds(batch)


def test_where_digits_are_gone_the_whole_row_is_asked_for():
    """The probe's signs cancel most of it; and the row of A⁻¹ it is, not the column."""
    rng = np.random.default_rng(207_336_914)
    q, p = (np.linalg.qr(rng.standard_normal((40, 40)))[0] for _ in range(2))
    a = (q * np.r_[np.ones(39), 1e-12]) @ p.T
    inverse = np.abs(np.linalg.inv(a))
    whole = (inverse @ np.abs(a).sum(axis=1)).max()
    assert 0.9 * whole <= lower_bound(made("superlu", "csr", a)) <= 1.1 * whole


def test_a_factor_in_single_precision_is_not_asked():
    """It could tell of no more than seven digits, and its answers are refined or called stagnant."""
    m = matrix("csr", array("general", "float64"))
    spec = FactorSpec("superlu", None, "float32", "cpu")
    chosen = solver("superlu")
    factor = chosen.factorize(chosen.analyze(m.pattern, spec), Operand(m), spec)
    assert factor.narrow
    assert lower_bound(factor) == 0


def test_row_sums_beyond_the_range_say_nothing_of_the_matrix():
    a = array("general", "float64")
    a *= 1.5e308 / np.abs(a).max()
    with np.errstate(over="ignore"):
        assert not np.isfinite(np.abs(a).sum(axis=1)).all()
        assert lower_bound(made("banded", "csr", a)) == 0
