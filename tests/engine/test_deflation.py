"""Deflation: fewer iterations, the same answers, and eigenvectors that a run finds by itself."""

import numpy as np
import pytest

from backsolve_service.engine.krylov.deflation import Deflation, Directions, deflated_cg, recycled, ritz_vectors
from backsolve_service.engine.krylov.problem import NotDefiniteError, Problem, Stop
from backsolve_service.engine.registry import solver
from engine.table import numbers

N = 150
each_dtype = pytest.mark.parametrize("dtype", ["float64", "complex128"])


def hard(dtype, seed=71_209_335, small=(1e-4, 3e-4, 1e-3, 2e-3)):
    """Definite, with a few eigenvalues far below the others; and its eigenvectors to those."""
    vectors = np.linalg.qr(numbers((N, N), dtype, seed))[0]
    values = np.concatenate([small, np.linspace(1, 20, N - len(small))])
    a = (vectors * values) @ vectors.conj().T
    return (a + a.conj().T) / 2, vectors[:, : len(small)]


def identity(rows):
    return rows


def problem(a, b, precondition=identity, rtol=1e-9, limit=3000, x0=None):
    def multiply(rows):
        return (a @ rows.T).T

    norm = float(np.abs(a).sum(axis=1).max())
    targets = rtol * np.linalg.norm(b, axis=1)
    return Problem(multiply, multiply, precondition, b, x0, targets, limit, 30, norm, lambda: None)


def nothing(dtype):
    return Deflation(np.zeros((N, 0), dtype=dtype), np.zeros((N, 0), dtype=dtype))


@each_dtype
def test_deflated_eigenvectors_no_longer_cost_iterations(dtype):
    a, low = hard(dtype)
    b = numbers((3, N), dtype, 4_410_286)
    space = Deflation(low * [1.0, 1e3, 1e-200, 1e150], a @ low * [1.0, 1e3, 1e-200, 1e150])
    plain, deflated = solver("cg").iterate(problem(a, b)), deflated_cg(problem(a, b), space)
    assert plain.stops == deflated.stops == [Stop.CONVERGED] * 3
    assert deflated.iterations < 0.7 * plain.iterations
    exact = np.linalg.solve(a, b.T).T
    np.testing.assert_allclose(deflated.x, exact, rtol=0, atol=1e-4 * np.abs(exact).max())
    assert np.linalg.norm(b.T - a @ deflated.x.T, axis=0).max() <= 1e-9 * np.linalg.norm(b, axis=1).max()


@each_dtype
def test_without_a_space_it_is_cg(dtype):
    a, _ = hard(dtype, small=(0.3,))
    b = numbers((2, N), dtype, 4_410_287)
    scale = np.linspace(1, 3, N)
    cg, deflated = (
        run(problem(a, b, lambda rows: rows / scale))
        for run in (solver("cg").iterate, lambda p: deflated_cg(p, nothing(dtype)))
    )
    assert deflated.iterations == cg.iterations
    np.testing.assert_allclose(deflated.x, cg.x, rtol=0, atol=1e-11 * np.abs(cg.x).max())


@each_dtype
def test_a_random_space_changes_no_answer(dtype):
    a, _ = hard(dtype, small=(0.05,))
    b = numbers((2, N), dtype, 91_027_744)
    w = numbers((N, 5), dtype, 1_180_456)
    got = deflated_cg(problem(a, b, x0=numbers((2, N), dtype, 31_189)), Deflation(w, a @ w))
    assert got.stops == [Stop.CONVERGED] * 2
    np.testing.assert_allclose(got.x.T, np.linalg.solve(a, b.T), rtol=0, atol=1e-6)


@each_dtype
def test_what_lies_in_the_space_is_solved_without_a_product(dtype):
    a, _ = hard(dtype, small=(0.5,))
    w = numbers((N, 4), dtype, 66_810_247)
    b = (a @ w @ numbers((4, 1), dtype, 66_810_248)).T
    got = deflated_cg(problem(a, np.vstack([b, numbers((1, N), dtype, 5_520_183)])), Deflation(w, a @ w))
    alone = deflated_cg(problem(a, b), Deflation(w, a @ w))
    assert alone.iterations == 0
    assert alone.stops == [Stop.CONVERGED]
    assert got.stops == [Stop.CONVERGED] * 2
    np.testing.assert_allclose(got.x[0], alone.x[0], rtol=0, atol=1e-12 * np.abs(alone.x).max())


@each_dtype
def test_a_run_finds_the_smallest_eigenvalues_of_the_preconditioned_matrix(dtype):
    a, _ = hard(dtype, small=(0.01, 0.02, 0.05))
    diagonal = np.linspace(1, 4, N)
    directions = Directions(100)
    deflated_cg(
        problem(a, numbers((1, N), dtype, 82_004_671), lambda rows: rows / diagonal), nothing(dtype), directions
    )
    z, az = directions.pairs(a)
    values, w, aw = ritz_vectors(z, az, lambda rows: rows / diagonal, 3)
    root = np.sqrt(diagonal)
    exact = np.linalg.eigvalsh(a / root[:, None] / root)[:3]
    assert np.all(values >= exact * (1 - 1e-9))
    np.testing.assert_allclose(values, exact, rtol=1e-3)
    np.testing.assert_allclose(aw, a @ w, rtol=0, atol=1e-10 * np.abs(aw).max())
    residual = aw / diagonal[:, None] - w * values
    assert np.linalg.norm(residual) < 0.05 * np.linalg.norm(w * values)


def test_what_a_run_learns_spares_the_next_one_iterations():
    """A sequence of matrices, each a little off the last: the space is made anew after every solve."""
    a, _ = hard("float64")
    rng = np.random.default_rng(60_114_923)
    space, counts = nothing("float64"), []
    for _ in range(4):
        scale = 1 + 0.01 * rng.uniform(-1, 1, N)
        now = scale[:, None] * a * scale
        directions = Directions(60)
        b = rng.standard_normal((1, N))
        got = deflated_cg(problem(now, b), Deflation(space.w, now @ space.w), directions)
        assert got.stops == [Stop.CONVERGED]
        counts.append((got.iterations, solver("cg").iterate(problem(now, b)).iterations))
        space = recycled(Deflation(space.w, now @ space.w), directions, identity, 6)
        assert space.w.shape == (N, 6)
    assert counts[0][0] == counts[0][1]
    for deflated, plain in counts[1:]:
        assert deflated < 0.85 * plain


def test_directions_that_add_nothing_are_left_out():
    a, low = hard("float64")
    w = np.column_stack([low[:, 0], np.zeros(N), low[:, 1], low[:, 0] - 2 * low[:, 1], np.full(N, np.nan)])
    with np.errstate(invalid="ignore"):
        space = Deflation(w, a @ w)
    assert space.w.shape == (N, 2)
    np.testing.assert_allclose(space.w.T @ a @ space.w, np.eye(2), rtol=0, atol=1e-9)
    assert space.nbytes == 2 * 2 * N * 8


def test_a_space_on_which_the_matrix_is_not_definite_is_refused():
    a, low = hard("float64", small=(-0.5, 0.5))
    with pytest.raises(NotDefiniteError):
        Deflation(low, a @ low)
    mixed = np.column_stack([low[:, 0] + 1.2 * low[:, 1], low[:, 0] - 1.2 * low[:, 1]])
    with pytest.raises(NotDefiniteError):
        Deflation(mixed, a @ mixed)


def test_an_indefinite_rest_is_found_on_the_way():
    a, low = hard("float64", small=(0.5, -0.5))
    with pytest.raises(NotDefiniteError):
        deflated_cg(problem(a, numbers((1, N), "float64", 2_093_381)), Deflation(low[:, :1], a @ low[:, :1]))


@pytest.mark.parametrize("limit", [1, 6])
def test_the_limit_holds(limit):
    a, low = hard("float64")
    got = deflated_cg(problem(a, numbers((2, N), "float64", 77_310_046), limit=limit), Deflation(low, a @ low))
    assert got.iterations == limit
    assert got.stops == [Stop.LIMIT] * 2
    assert np.isfinite(got.x).all()
