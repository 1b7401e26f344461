"""Structured matrices give the same answers, gradients and tangents on every way in."""

from collections.abc import Callable

import numpy as np
import pytest

import backsolve
from backsolve import Client, Status
from backsolve.errors import InvalidOptionError, InvalidPatternError, SingularMatrixError
from backsolve.structured import Structured
from support.systems import op, random_like

METHODS = {"low_rank": "woodbury", "kronecker": "kronecker", "circulant": "circulant", "toeplitz": "toeplitz"}
each_kind = pytest.mark.parametrize("kind", METHODS)
each_trans = pytest.mark.parametrize("trans", ["N", "T", "H"])


def parameters(kind: str, dtype: str, seed: int = 0) -> tuple[Callable[..., Structured], dict[str, np.ndarray]]:
    """A class and well-conditioned parameters for it."""
    if kind == "low_rank":
        d, u, v = (random_like(s, dtype, 118_204_661 + i + seed) for i, s in enumerate([(12,), (12, 3), (12, 3)]))
        return backsolve.LowRankPlusDiagonal, {"d": d + 5, "U": u, "V": v}
    c, r, first, second = (
        random_like(s, dtype, 702_991_304 + i + seed) for i, s in enumerate([(12,), (12,), (3, 3), (4, 4)])
    )
    head = (20 * (np.arange(12) == 0)).astype(c.dtype)
    if kind == "circulant":
        return backsolve.Circulant, {"c": c + head}
    if kind == "toeplitz":
        # r[0] belongs to nothing.
        return backsolve.Toeplitz, {"c": c + head, "r": r * (head == 0)}
    return _Kronecker, {"first": first + 4 * np.eye(3, dtype=c.dtype), "second": second + 4 * np.eye(4, dtype=c.dtype)}


def _Kronecker(first: np.ndarray, second: np.ndarray) -> backsolve.Kronecker:  # noqa: N802  (stands for the class)
    return backsolve.Kronecker(first, second)


def parameter(a: Structured, name: str) -> np.ndarray:
    """One of the parameters that `parameters` names."""
    if isinstance(a, backsolve.Kronecker):
        return a.factors[name == "second"]
    return np.asarray(getattr(a, name))


@each_kind
@each_trans
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("columns", [(), (3,)], ids=["vector", "columns"])
def test_solve(client: Client, kind: str, trans: str, dtype: str, columns: tuple[int, ...]) -> None:
    make, given = parameters(kind, dtype)
    a = make(**given)
    b = random_like((a.shape[0], *columns), dtype, 90_366_127)
    solution = client.solve(a, b, trans=trans)
    exact = np.linalg.solve(op(a.toarray().astype(np.complex128), trans), b)
    tolerance = 1e-4 if np.finfo(dtype).eps > 1e-10 else 1e-11
    np.testing.assert_allclose(solution.x, exact, rtol=0, atol=tolerance * np.abs(exact).max())
    assert solution.x.dtype == np.dtype(dtype)
    assert solution.status is Status.OK
    assert solution.stats.method == METHODS[kind]
    assert client.solve(a, b, trans=trans).stats.factor_hit


@each_kind
@each_trans
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_derivatives(client: Client, kind: str, trans: str, dtype: str) -> None:
    """The gradient formed here and there, and Re⟨gradient, dθ⟩ + Re⟨λ, db⟩ = Re⟨g, dx⟩ with the tangent."""
    make, given = parameters(kind, dtype)
    _, moved = parameters(kind, dtype, seed=55)
    a, da = make(**given), make(**moved)
    b, g, db = (random_like((a.shape[0], 2), dtype, seed) for seed in (711_902, 711_903, 711_904))
    x = client.solve(a, b, trans=trans).x
    here = client.vjp(a, x, g, trans=trans, b=b, condition=True)
    there = client.vjp(a, x, g, trans=trans, values_on="server")
    dx = client.jvp(a, x, A_tangent=da, b_tangent=db, trans=trans).x
    h = 1e-6
    plus, minus = (
        client.solve(make(**{p: given[p] + s * moved[p] for p in given}), b + s * db, trans=trans).x for s in (h, -h)
    )
    np.testing.assert_allclose(dx, (plus - minus) / (2 * h), rtol=0, atol=1e-6 * np.abs(dx).max())
    assert type(here.values) is type(a)
    total = np.vdot(here.b, db).real
    for name in given:
        mine, theirs = parameter(here.values, name), parameter(there.values, name)
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-13)
        total += np.vdot(mine, moved[name]).real
    assert total == pytest.approx(np.vdot(g, dx).real, rel=1e-9)
    assert here.corrected_value == pytest.approx(np.vdot(g, x).real, rel=1e-9, abs=1e-9)


@each_kind
def test_factorized(client: Client, kind: str) -> None:
    make, given = parameters(kind, "float64")
    a = make(**given)
    handle = client.factorized(a)
    b = random_like((a.shape[0],), "float64", 4_410_229)
    np.testing.assert_allclose(a @ handle.solve(b), b, rtol=0, atol=1e-11)


@each_kind
def test_what_does_not_fit_is_refused_alike(client: Client, kind: str) -> None:
    make, given = parameters(kind, "float64")
    a = make(**given)
    b = np.ones(a.shape[0])
    with pytest.raises(InvalidOptionError, match=METHODS[kind]):
        client.solve(a, b, method="lu")
    with pytest.raises(InvalidOptionError):
        client.solve(a, b, maxiter=3)
    with pytest.raises(InvalidOptionError, match="does not take a dense matrix"):
        client.solve(a.toarray(), b, method=METHODS[kind])
    with pytest.raises(InvalidPatternError):
        client.jvp(a, b, A_tangent=a.toarray())
    with pytest.raises(SingularMatrixError):
        client.solve(make(**{name: 0 * value for name, value in given.items()}), b)


def test_the_gradient_of_a_tied_factor_is_that_of_both_places(client: Client) -> None:
    d, u, du = (random_like(s, "complex128", 34_400 + i) for i, s in enumerate([(9,), (9, 2), (9, 2)]))
    b, g = random_like((2, 9), "complex128", 34_500)
    a = backsolve.LowRankPlusDiagonal(d.real + 4, u)
    x = client.solve(a, b).x
    got = client.vjp(a, x, g, want=("values",)).values
    h = 1e-6
    plus, minus = (client.solve(backsolve.LowRankPlusDiagonal(a.d, u + s * du), b).x for s in (h, -h))
    assert got.V is None
    assert np.vdot(got.U, du).real == pytest.approx(np.vdot(g, (plus - minus) / (2 * h)).real, rel=1e-6)


def test_the_gradient_of_a_hermitian_toeplitz_is_that_of_both_places(client: Client) -> None:
    c, dc = (random_like((9,), "complex128", seed) for seed in (81_002, 81_003))
    b, g = random_like((2, 9), "complex128", 81_004)
    c[0] = 20
    x = client.solve(backsolve.Toeplitz(c), b).x
    got = client.vjp(backsolve.Toeplitz(c), x, g, want=("values",)).values
    h = 1e-6
    plus, minus = (client.solve(backsolve.Toeplitz(c + s * dc), b).x for s in (h, -h))
    assert got.r is None
    assert np.vdot(got.c, dc).real == pytest.approx(np.vdot(g, (plus - minus) / (2 * h)).real, rel=1e-6)


@each_kind
@each_trans
@pytest.mark.parametrize("columns", [(), (2,)], ids=["vector", "columns"])
def test_a_batch_is_its_members(client: Client, kind: str, trans: str, columns: tuple[int, ...]) -> None:
    """Answers, gradients formed on both sides, tangents and statuses, in one request each."""
    make, _ = parameters(kind, "complex128")
    each = [parameters(kind, "complex128", seed)[1] for seed in (0, 55, 110)]
    moved = [parameters(kind, "complex128", seed)[1] for seed in (7, 62, 117)]
    a, da = (make(**{p: np.stack([one[p] for one in many]) for p in each[0]}) for many in (each, moved))
    members, directions = [make(**one) for one in each], [make(**one) for one in moved]
    b, g, db = (random_like((3, a.shape[0], *columns), "complex128", seed) for seed in (33_190, 33_191, 33_192))
    before = client.stats()["solves"]
    solution = client.solve(a, b, trans=trans)
    assert client.stats()["solves"] == before + 1
    x = solution.x
    here, there = (client.vjp(a, x, g, trans=trans, values_on=side) for side in ("client", "server"))
    pushed = client.jvp(a, x, A_tangent=da, b_tangent=db, trans=trans).x
    assert [element.status for element in solution.stats.elements] == [Status.OK] * 3
    np.testing.assert_allclose(a @ b, np.stack([m @ v for m, v in zip(members, b, strict=True)]), rtol=1e-12)
    assert a.toarray().shape == (3, *a.shape)
    for s, (one, along) in enumerate(zip(members, directions, strict=True)):
        np.testing.assert_allclose(x[s], client.solve(one, b[s], trans=trans).x, rtol=1e-10, atol=1e-12)
        gradients = client.vjp(one, x[s], g[s], trans=trans)
        np.testing.assert_allclose(here.b[s], gradients.b, rtol=1e-10, atol=1e-12)
        for p in each[0]:
            for found in (here, there):
                np.testing.assert_allclose(
                    parameter(found.values, p)[s], parameter(gradients.values, p), rtol=1e-9, atol=1e-11
                )
        expected = client.jvp(one, x[s], A_tangent=along, b_tangent=db[s], trans=trans).x
        np.testing.assert_allclose(pushed[s], expected, rtol=1e-9, atol=1e-11)


@each_kind
def test_a_singular_member_has_a_status_of_its_own(client: Client, kind: str) -> None:
    make, given = parameters(kind, "float64")
    a = make(**{name: np.stack([value, 0 * value, value]) for name, value in given.items()})
    b = random_like((3, a.shape[0]), "float64", 66_102_417)
    solution = client.solve(a, b, on_failure="nan")
    statuses = [element.status for element in solution.stats.elements]
    assert statuses == [Status.OK, Status.SINGULAR_NUMERIC, Status.OK]
    assert np.isnan(solution.x[1]).all()
    for s in (0, 2):
        np.testing.assert_allclose(solution.x[s], client.solve(make(**given), b[s]).x, rtol=1e-11)
