"""Least squares: every method of it against the pseudoinverse, and the proof that comes with the answer."""

import threading

import numpy as np
import pytest
from scipy.sparse import csr_array

from backsolve import Client
from backsolve.errors import (
    IllConditionedWarning,
    InvalidOptionError,
    InvalidShapeError,
    NonfiniteInputError,
    SingularMatrixError,
)
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern
from backsolve.types import Options, Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import ROWS, solver
from backsolve_service.engine.select import choose
from backsolve_service.engine.structure import inspect, inspect_pattern
from engine.table import DTYPES, numbers

WAYS = [(name, layout) for name, row in ROWS.items() if row.least_squares for layout in sorted(row.layouts)]
each_way = pytest.mark.parametrize(("method", "layout"), WAYS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)

SHAPES = {
    "tall": (12, 7, 7),
    "wide": (7, 12, 7),
    "square": (9, 9, 9),
    "low rank": (12, 9, 5),
    "wide low rank": (6, 11, 4),
}
TAKES = {"lstsq_superlu": ("tall", "square")}
"""Shapes that a method takes without damping, where that is not all of them."""


def array(shape, dtype, seed=604_118_223):
    """A matrix of a kind, with singular values between 1 and 3."""
    m, n, rank = SHAPES[shape]
    u, v = (np.linalg.qr(numbers((size, rank), dtype, seed + size))[0] for size in (m, n))
    return ((u * np.linspace(1, 3, rank)) @ v.conj().T).astype(dtype)


def of(layout, a):
    """The canonical matrix, every entry stored."""
    m, n = a.shape[-2:]
    if layout == "dense":
        return Matrix(DensePattern((m, n)), a)
    pattern = Pattern(np.arange(0, m * n + 1, n) if n else np.zeros(m + 1, int), np.tile(np.arange(n), m), (m, n))
    return Matrix(pattern, np.ascontiguousarray(a.reshape(*a.shape[:-2], m * n)))


def factor(method, m, damp=0.0, rcond=None):
    chosen = solver(method)
    spec = FactorSpec(method, None, m.dtype.name, "cpu", damp=damp, rcond=rcond)
    return chosen.factorize(chosen.analyze(m.pattern, spec), Operand(m), spec)


def normal(a, damp):
    """G = (AᴴA + damp² I)⁺ in double precision."""
    wide = a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)
    return np.linalg.pinv(wide.conj().T @ wide + damp**2 * np.eye(a.shape[1]), rcond=1e-5, hermitian=True)


def cases(method):
    return [(shape, damp) for shape in SHAPES for damp in (0.0, 0.3) if damp or shape in TAKES.get(method, SHAPES)]


EVERY = [(method, layout, shape, damp) for method, layout in WAYS for shape, damp in cases(method)]


@pytest.mark.parametrize(("method", "layout", "shape", "damp"), EVERY)
@each_dtype
def test_gives_the_shortest_minimiser_and_applies_its_normal_inverse(method, layout, shape, damp, dtype):
    a = array(shape, dtype)
    m, n = a.shape
    f = factor(method, of(layout, a), damp)
    single = np.dtype(dtype).itemsize <= 8 and dtype != "float64"
    limit = 2e-4 if single else 1e-8
    g_inverse = normal(a, damp)
    b = numbers((m, 3), dtype, 77_901_245)
    got = answer(f, b, "N", Controls())
    expected = g_inverse @ a.conj().T @ b
    assert got.statuses == ((Status.OK,) * 3,)
    assert got.x.dtype == np.dtype(dtype)
    np.testing.assert_allclose(got.x, expected, rtol=0, atol=limit * np.abs(expected).max())
    g = numbers((n, 2), dtype, 12_450_871)
    got = answer(f, g, "N", Controls(cotangent=True))
    expected = g_inverse @ g
    assert got.statuses == ((Status.OK,) * 2,)
    np.testing.assert_allclose(got.x, expected, rtol=0, atol=limit * np.abs(expected).max())


@each_way
@pytest.mark.parametrize("damp", [0.0, 0.4])
def test_the_certificate_is_what_the_answer_shows(method, layout, damp):
    a = array("tall", "complex128")
    b = numbers((12, 1), "complex128", 5_120_773)
    got = answer(factor(method, of(layout, a), damp), b, "N", Controls())
    wrong = answer(tampered(factor(method, of(layout, a), damp)), b, "N", Controls(refine=0))
    for found, x in ((got, got.x), (wrong, wrong.x)):
        r = b - a @ x
        norm = np.sqrt(np.max(np.sum(np.abs(a) ** 2, axis=0)) + damp**2)
        remainder = np.hypot(np.linalg.norm(r), damp * np.linalg.norm(x))
        stewart = np.linalg.norm(a.conj().T @ r - damp**2 * x) / norm / remainder
        assert found.relative_residual[0, 0] <= stewart * 1.001 + 1e-15
        assert found.relative_residual[0, 0] >= 0.02 * stewart or found is got
    assert wrong.relative_residual[0, 0] > 1e-6
    assert wrong.statuses != ((Status.OK,),)


def tampered(factor):
    """The factor with answers that are off by 1e-4: no certificate may call them good."""

    def solve(self, rhs, trans, controls):
        outcome = factor.solve(rhs, trans, controls)
        return type(outcome)(outcome.x * (1 + 1e-4), outcome.statuses, outcome.iterations)

    copy = object.__new__(type("Tampered", (type(factor),), {"solve": solve}))
    copy.__dict__.update(factor.__dict__)
    return copy


@each_way
def test_a_nearly_consistent_system_is_as_good_as_rounding_allows(method, layout):
    """With ||r|| = 1e-9 ||b||, rounding x alone moves the normal equations by 1e-7 of ||A|| ||r||."""
    a = array("tall", "float64")
    u = np.linalg.svd(a)[0]
    b = a @ numbers((7, 1), "float64", 55_019_872) + 1e-9 * u[:, -1:]
    got = answer(factor(method, of(layout, a)), b, "N", Controls())
    assert got.statuses == ((Status.OK,),)
    if ROWS[method].direct:
        assert got.backward_error.max() < 1e-13
        asked = answer(factor(method, of(layout, a)), b, "N", Controls(rtol=1e-12))
        assert asked.statuses == ((Status.OK,),)
        assert asked.relative_residual.max() < 1e-12


@pytest.mark.parametrize(("method", "layout"), [way for way in WAYS if way[0] not in TAKES], ids=str)
@pytest.mark.parametrize("shape", ["wide", "low rank"])
@pytest.mark.parametrize("part", [1e-1, 1e-3, 1e-6, 1e-10])
def test_a_cotangent_that_nearly_lies_in_the_range_is_as_good_as_rounding_allows(method, layout, shape, part):
    """Outside the range of Aᴴ it has a small part; beside that, the rounding of the rest is large."""
    a = array(shape, "float64")
    null = np.linalg.svd(a)[2][-1:].T
    g = a.T @ a @ numbers((a.shape[1], 1), "float64", 71_330_264)
    g = g / np.linalg.norm(g) + part * null
    f = factor(method, of(layout, a))
    asked = answer(f, g, "N", Controls(cotangent=True, rtol=1e-13))
    assert asked.statuses == ((Status.OK,),)
    assert asked.relative_residual.max() <= 1e-13
    np.testing.assert_allclose(asked.x, normal(a, 0.0) @ g, rtol=0, atol=1e-12)
    assert answer(f, g, "N", Controls(cotangent=True)).statuses == ((Status.OK,),)
    wrong = answer(tampered(f), g, "N", Controls(cotangent=True, refine=0))
    assert wrong.statuses != ((Status.OK,),)
    assert wrong.relative_residual[0, 0] > 1e-6


@each_way
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_scales_do_not_matter(method, layout, scale):
    a, b = array("tall", "float64"), numbers((12, 2), "float64", 30_117_554)
    expected = np.linalg.pinv(a) @ b
    for a_scale, b_scale in ((scale, 1.0), (1.0, scale), (scale, scale)):
        got = answer(factor(method, of(layout, a_scale * a)), b_scale * b, "N", Controls())
        assert got.statuses == ((Status.OK,) * 2,)
        np.testing.assert_allclose(got.x * (a_scale / b_scale), expected, rtol=0, atol=1e-8)


@each_way
@pytest.mark.parametrize(("m", "n", "k"), [(0, 0, 1), (0, 3, 2), (3, 0, 2), (1, 1, 1), (5, 2, 0), (2, 1, 3)])
def test_sizes_nobody_thinks_of(method, layout, m, n, k):
    damp = 0.0 if m >= n and (n < 2 or method not in TAKES) else 0.5
    f = factor(method, of(layout, np.full((m, n), 2.0)), damp=damp)
    b = numbers((m, k), "float64", 81_203)
    got = answer(f, b, "N", Controls())
    assert got.x.shape == (n, k)
    assert got.statuses == ((Status.OK,) * k,)
    if n == 1:
        np.testing.assert_allclose(got.x[0], b.mean(axis=0) / 2, atol=1e-9)
    elif m == 0:
        assert not got.x.any()
    assert answer(f, numbers((n, k), "float64", 4_177), "N", Controls(cotangent=True)).x.shape == (n, k)


@each_way
def test_zero_right_hand_sides_give_zero_and_bad_ones_spoil_no_other(method, layout):
    f = factor(method, of(layout, array("tall", "float64")))
    b = numbers((12, 3), "float64", 66_110_293)
    b[:, 0] = 0
    b[4, 1] = np.nan
    got = answer(f, b, "N", Controls())
    assert got.statuses == ((Status.OK, Status.NONFINITE_INPUT, Status.OK),)
    assert not got.x[:, 0].any()
    assert np.isnan(got.x[:, 1]).all()


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize(("m", "n"), [(5, 3), (3, 5)])
@each_dtype
def test_a_matrix_of_zeros_has_the_shortest_minimiser_zero(layout, m, n, dtype):
    """Nothing can be removed from b, and ||A|| is no divisor."""
    a, b, g = np.zeros((m, n), dtype), numbers((m, 2), dtype, 88_310_274), numbers((n, 2), dtype, 88_310_275)
    f = factor("lstsq_lsmr", of(layout, a))
    for rhs, controls in ((b, Controls()), (g, Controls(cotangent=True))):
        got = answer(f, rhs, "N", controls)
        assert got.statuses == ((Status.OK,) * 2,)
        assert not got.x.any()
        assert not got.relative_residual.any()
        assert not got.backward_error.any()


@each_way
def test_a_batch_has_a_status_a_system(method, layout):
    a = np.stack([array("tall", "complex64", seed) for seed in (88_123, 88_124, 88_125)])
    a[1] = np.nan
    b = numbers((3, 12, 2), "complex64", 1_937_444)
    got = answer(factor(method, of(layout, a)), b, "N", Controls())
    assert got.statuses == ((Status.OK,) * 2, (Status.NONFINITE_INPUT,) * 2, (Status.OK,) * 2)
    for s in (0, 2):
        np.testing.assert_allclose(got.x[s], np.linalg.pinv(a[s]) @ b[s], rtol=0, atol=1e-4)
    assert np.isnan(got.x[1]).all()


@each_way
def test_a_matrix_that_is_not_finite_is_refused(method, layout):
    a = array("tall", "float64")
    a[3, 2] = np.inf
    with pytest.raises(NonfiniteInputError, match="A holds NaN or infinity"):
        factor(method, of(layout, a))


@each_way
def test_a_shape_that_does_not_fit_is_refused(method, layout):
    f = factor(method, of(layout, array("tall", "float64")))
    for rows, cotangent in ((7, False), (12, True)):
        with pytest.raises(InvalidShapeError, match="this matrix takes"):
            answer(f, np.ones((rows, 1)), "N", Controls(cotangent=cotangent))


@each_way
def test_an_asked_tolerance_that_cannot_be_met_is_not_called_met(method, layout):
    f = factor(method, of(layout, array("tall", "float64")))
    got = answer(f, numbers((12, 1), "float64", 8_820_113), "N", Controls(rtol=1e-40))
    assert got.statuses[0][0] in (Status.STAGNATION, Status.MAX_ITER)


@each_way
def test_factors_are_safe_to_share(method, layout):
    a = array("tall", "float64")
    f = factor(method, of(layout, a))
    b = numbers((12, 1), "float64", 27_000_913)
    expected, wrong = np.linalg.pinv(a) @ b, []

    def work():
        for _ in range(10):
            if not np.allclose(answer(f, b, "N", Controls()).x, expected, atol=1e-8):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_rank_that_rounding_may_have_decided_is_told():
    u, v = np.linalg.qr(numbers((12, 7), "float64", 1_120))[0], np.linalg.qr(numbers((7, 7), "float64", 1_121))[0]
    b = numbers((12, 1), "float64", 77_120)
    for least, rank, status in ((1e-3, 7, Status.OK), (3e-14, 7, Status.ILL_CONDITIONED), (0.0, 6, Status.OK)):
        f = factor("lstsq_qr", of("dense", (u * np.append(np.linspace(3, 1, 6), least)) @ v.T))
        assert f.note is not None
        assert f.note.startswith(f"rank {rank} of 7 columns")
        assert answer(f, b, "N", Controls()).statuses == ((status,),)
    f = factor("lstsq_qr", of("dense", (u * np.append(np.linspace(3, 1, 6), 1e-6)) @ v.T), rcond=1e-4)
    assert f.note == "rank 6 of 7 columns"


@pytest.mark.parametrize("off", [0.0, 1e-12])
@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_dependent_columns_are_refused_by_the_sparse_factor_with_the_way_out(off, scale, dtype):
    """The residual of such an answer would be as small as any, and the answer made of rounding errors."""
    a = array("tall", dtype)
    a[:, 4] = a[:, :3] @ numbers((3,), dtype, 5_118) + off * a[:, 4]
    with pytest.raises(SingularMatrixError, match="use method 'lstsq_lsmr' for the shortest, or damp"):
        factor("lstsq_superlu", of("csr", scale * a))
    with pytest.raises(SingularMatrixError, match="fewer rows than columns"):
        factor("lstsq_superlu", of("csr", scale * a.T))
    b = numbers((12, 1), dtype, 66_120_384)
    for m, rhs in ((a, b), (a.T, b[:7])):
        got = answer(factor("lstsq_superlu", of("csr", scale * m), damp=0.2 * scale), rhs, "N", Controls())
        assert got.statuses == ((Status.OK,),)
        expected = normal(m, 0.2) @ m.conj().T @ rhs
        np.testing.assert_allclose(got.x * scale, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_dependent_columns_in_a_batch_have_a_status():
    a = np.stack([array("tall", "float64", seed) for seed in (61_330, 61_331, 61_332, 61_333)])
    a[1, :, 2] = a[1, :, :2] @ [0.3, -1.7]
    a[2] = 0
    b = numbers((4, 12, 2), "float64", 9_440_127)
    got = answer(factor("lstsq_superlu", of("csr", a)), b, "N", Controls())
    fine, none = (Status.OK,) * 2, (Status.SINGULAR_NUMERIC,) * 2
    assert got.statuses == (fine, none, none, fine)
    for s in (0, 3):
        np.testing.assert_allclose(got.x[s], np.linalg.pinv(a[s]) @ b[s], rtol=0, atol=1e-9)


@pytest.mark.parametrize("least", [1e-1, 1e-5])
def test_the_sparse_factor_keeps_the_conditioning_of_the_matrix_itself(least):
    """By the normal equations the error would be that of its square; pivots near the diagonal cost a digit."""
    u, v = (np.linalg.qr(numbers((size, 8), "float64", 3_308 + size))[0] for size in (30, 8))
    a = (u * np.geomspace(1, least, 8)) @ v.T
    x = numbers((8, 1), "float64", 61_902)
    f = factor("lstsq_superlu", of("csr", a))
    assert 0.3 / least < f.condition < 3 / least
    np.testing.assert_allclose(answer(f, a @ x, "N", Controls()).x, x, rtol=0, atol=1e-13 / least)


def test_damping_that_rounding_swallows_is_refused():
    with pytest.raises(InvalidOptionError, match="damp is so small"):
        factor("lstsq_qr", of("dense", array("low rank", "float64")), damp=1e-18)


def test_who_may_ask_for_what():
    def pick(a, layout="dense", **options):
        m = of(layout, a)
        structure = inspect(inspect_pattern(m.pattern), Operand(m))
        return choose(structure, Options(**options), has_x0=False, device="cpu").spec.method

    tall, square = array("tall", "float64"), array("square", "float64")
    assert pick(tall, method="lstsq") == pick(square, method="lstsq") == "lstsq_qr"
    assert pick(tall, method="lstsq", maxiter=9) == "lstsq_lsmr"
    assert pick(tall.T, "csr", method="lstsq") == pick(square, "csr", method="lstsq") == "lstsq_lsmr"
    for method in ("auto", "lu"):
        with pytest.raises(InvalidShapeError, match="use lstsq"):
            pick(tall, method=method)
    with pytest.raises(InvalidOptionError, match="'lu' does not use damp"):
        pick(square, method="lu", damp=0.1)
    with pytest.raises(InvalidOptionError, match="transpose A itself"):
        pick(tall, method="lstsq", trans="T")


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("damp", [0.0, 0.4])
@pytest.mark.parametrize("columns", [(), (2,)], ids=["vector", "columns"])
def test_gradients_and_tangents_are_those_of_the_pseudoinverse(shape, dtype, damp, columns):
    """Central differences along directions that keep the rank."""
    a = array(shape, dtype)
    m, n = a.shape
    b, db = numbers((2, m, *columns), dtype, 20_118_334)
    g = numbers((n, *columns), dtype, 31_776_120)
    left, right = 0.3 * numbers((m, m), dtype, 9_102), 0.3 * numbers((n, n), dtype, 9_103)
    da = left @ a + a @ right

    def exact(t):
        moved = (np.eye(m) + t * left) @ a @ (np.eye(n) + t * right)
        return normal(moved, damp) @ moved.conj().T @ (b + t * db)

    step = 1e-5
    expected = (exact(step) - exact(-step)) / (2 * step)
    with Client() as client:
        x = client.lstsq(a, b, damp=damp).x
        gradients = client.lstsq_vjp(a, b, x, g, damp=damp)
        pushed = client.lstsq_jvp(a, b, x, A_tangent=da, b_tangent=db, damp=damp).x
        only_b = client.lstsq_jvp(a, b, x, b_tangent=db, damp=damp).x
    np.testing.assert_allclose(pushed, expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(only_b, normal(a, damp) @ a.conj().T @ db, rtol=0, atol=1e-10)
    assert gradients.b.shape == b.shape
    pulled = np.vdot(gradients.values, da).real + np.vdot(gradients.b, db).real
    assert pulled == pytest.approx(np.vdot(g, expected).real, rel=1e-8, abs=1e-8)


def test_gradients_are_those_of_torch():
    torch = pytest.importorskip("torch")
    a, b = array("tall", "complex128"), numbers((12, 2), "complex128", 60_123)
    g = numbers((7, 2), "complex128", 60_124)
    ta, tb = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    x = torch.linalg.lstsq(ta, tb).solution
    x.backward(torch.tensor(g))
    with Client() as client:
        gradients = client.lstsq_vjp(a, b, client.lstsq(a, b).x, g)
    np.testing.assert_allclose(gradients.values, ta.grad.numpy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(gradients.b, tb.grad.numpy(), rtol=0, atol=1e-10)


def test_a_batch_through_the_client():
    a = np.stack([array("low rank", "float64", seed) for seed in (5_121, 5_122)])
    b, g = numbers((2, 12), "float64", 7_001), numbers((2, 9), "float64", 7_002)
    with Client() as client:
        solution = client.lstsq(a, b)
        gradients = client.lstsq_vjp(a, b, solution.x, g)
        singles = [client.lstsq_vjp(a[s], b[s], solution.x[s], g[s]) for s in range(2)]
    assert solution.x.shape == (2, 9)
    assert len(solution.stats.elements) == 2
    np.testing.assert_allclose(gradients.values, [single.values for single in singles], atol=1e-13)
    np.testing.assert_allclose(gradients.b, [single.b for single in singles], atol=1e-13)


def test_a_solve_of_a_rectangular_matrix_says_what_to_use():
    with Client() as client:
        for a in (np.ones((5, 3)), csr_array(np.ones((5, 3)))):
            for call in (client.solve, lambda a, b: client.vjp(a, b, b), lambda a, b: client.jvp(a, b, b_tangent=b)):
                with pytest.raises(InvalidShapeError, match="use lstsq"):
                    call(a, np.ones(5))
        with pytest.raises(InvalidShapeError, match="with this A and b it must be"):
            client.lstsq_vjp(np.ones((5, 3)), np.ones(5), np.ones(5), np.ones(3))


@pytest.mark.parametrize(("m", "n"), [(30, 18), (18, 30)])
@pytest.mark.parametrize("damp", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_sparse_gradients_live_on_the_pattern(m, n, damp, dtype):
    rng = np.random.default_rng(618_220_493)
    full = np.where(rng.random((m, n)) < 0.2, numbers((m, n), dtype, 4_410), 0)
    full[np.arange(min(m, n)), np.arange(min(m, n))] = 5  # full rank
    a = csr_array(full)
    b, g = numbers((m, 2), dtype, 4_411), numbers((n, 2), dtype, 4_412)
    direction = a.copy()
    direction.data = numbers(a.nnz, dtype, 4_413)

    def exact(t):
        moved = full + t * direction.toarray()
        return normal(moved, damp) @ moved.conj().T @ b

    # Of fourth order: with the plain quotient rounding alone is 1e-8 in the sum below.
    step = 1e-3
    expected = (8 * (exact(step) - exact(-step)) - (exact(2 * step) - exact(-2 * step))) / (12 * step)
    options = {"damp": damp, "rtol": 1e-13}
    with Client() as client:
        solution = client.lstsq(a, b, **options)
        gradients = client.lstsq_vjp(a, b, solution.x, g, **options)
        pushed = client.lstsq_jvp(a, b, solution.x, A_tangent=direction, **options).x
    assert solution.stats.method in ("lstsq_lsmr", "lstsq_superlu")
    assert (gradients.values.nnz, gradients.values.format) == (a.nnz, "csr")
    pulled = np.vdot(gradients.values.data, direction.data).real
    assert pulled == pytest.approx(np.vdot(g, expected).real, rel=1e-8, abs=1e-8)
    np.testing.assert_allclose(pushed, expected, rtol=0, atol=1e-8)


def test_a_gradient_where_rounding_may_have_decided_the_rank_warns_its_caller():
    u, v = np.linalg.qr(numbers((9, 4), "float64", 4_120))[0], np.linalg.qr(numbers((4, 4), "float64", 4_121))[0]
    a, b = (u * np.array([3, 2, 1, 3e-14])) @ v.T, numbers((9,), "float64", 4_122)
    with Client() as client:
        with pytest.warns(IllConditionedWarning) as caught:
            x = client.lstsq(a, b).x
        assert {warning.filename for warning in caught} == {__file__}
        with pytest.warns(IllConditionedWarning) as caught:
            client.lstsq_vjp(a, b, x, np.ones(4))
        assert {warning.filename for warning in caught} == {__file__}
