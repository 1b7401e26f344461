"""`S + U Vᴴ` on every way in: one factorization, S under its own name, and recovery of whatever is forgotten."""

import numpy as np
import pytest
from scipy import sparse

import backsolve
from backsolve import Client, LowRankUpdate, Status
from backsolve._transports.base import PutCall
from backsolve.canonical import canonicalise
from backsolve.errors import (
    InvalidOptionError,
    InvalidPatternError,
    InvalidShapeError,
    MatrixChangedError,
    NeedMatrixError,
    NeedValuesError,
    NonfiniteInputError,
    SingularMatrixError,
)
from backsolve.types import Holding
from backsolve_service.engine.tolerance import ATTAINABLE
from support.fresh import new_rng
from support.servers import ServerProcess
from support.systems import convection, dense, op, random_like

M, N = 7, 49
each_trans = pytest.mark.parametrize("trans", ["N", "T", "H"])
each_layout = pytest.mark.parametrize("layout", ["csr", "csc", "coo", "dense"])


def base(layout: str, dtype: str = "float64") -> object:
    """A matrix that no other test and no other transport has used."""
    shift = new_rng().random()
    if layout == "dense":
        return (dense(N, dtype) + shift * np.eye(N)).astype(dtype)
    return (convection(M, dtype) + shift * sparse.eye_array(N)).astype(dtype).asformat(layout)


def thin(k: int, dtype: str = "float64", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    u, v = (random_like((N, k), dtype, 470_118_263 + 2 * seed + i) for i in (0, 1))
    return u, v


def grown(client: Client, before: dict[str, float], name: str) -> float:
    return client.stats()[name] - before[name]


@pytest.mark.parametrize("layout", ["csr", "dense"])
@each_trans
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("columns", [(), (3,)], ids=["vector", "columns"])
def test_solve(client: Client, layout: str, trans: str, dtype: str, columns: tuple[int, ...]) -> None:
    a = LowRankUpdate(base(layout, dtype), *thin(3, dtype))
    b = random_like((N, *columns), dtype, 90_366_127)
    solution = client.solve(a, b, trans=trans)
    exact = np.linalg.solve(op(a.toarray().astype(np.complex128), trans), b)
    tolerance = 1e-4 if np.finfo(dtype).eps > 1e-10 else 1e-11
    np.testing.assert_allclose(solution.x, exact, rtol=0, atol=tolerance * np.abs(exact).max())
    assert solution.x.dtype == np.dtype(dtype)
    assert solution.status is Status.OK
    assert solution.stats.method == ("update(lu)" if layout == "dense" else "update(banded)")
    assert client.solve(a, b, trans=trans).stats.factor_hit


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_one_factorization_for_s_and_all_that_is_built_on_it(client: Client, layout: str) -> None:
    s, b = base(layout), np.ones(N)
    before = dict(client.stats())
    plain = client.solve(s, b)
    first = client.solve(LowRankUpdate(s, *thin(2)), b)
    assert first.stats.factor_hit
    assert first.stats.symbolic_hit
    built = grown(client, before, "cache_misses_factor")
    assert built == 2, "of S, and of the update"
    assert first.stats.method == f"update({plain.stats.method})"
    again = client.solve(LowRankUpdate(s, *thin(2)), b, trans="H")
    assert again.stats.factor_hit
    client.solve(LowRankUpdate(s, *thin(2)), b, method=first.stats.method)
    assert grown(client, before, "cache_misses_factor") == built
    client.solve(LowRankUpdate(s, *thin(2, seed=5)), b)
    client.solve(LowRankUpdate(s, thin(4)[0]), b)
    assert grown(client, before, "factorizations") == 1
    # S, and each pair of U and V once.
    assert grown(client, before, "uploads") == 4


def test_the_sum_comes_first_and_s_has_its_factor(client: Client) -> None:
    s, b = base("csr"), np.ones(N)
    before = dict(client.stats())
    assert not client.solve(LowRankUpdate(s, *thin(2)), b).stats.factor_hit
    assert client.solve(s, b).stats.factor_hit
    assert grown(client, before, "factorizations") == 1
    assert grown(client, before, "uploads") == 2


def test_what_is_named_is_not_confused(client: Client) -> None:
    """U and V changed about, another S, another rank: each has an answer of its own."""
    s, t, b = base("csr"), base("csr"), np.ones(N)
    u, v = thin(2)
    for a in (
        LowRankUpdate(s, u, v),
        LowRankUpdate(s, v, u),
        LowRankUpdate(t, u, v),
        LowRankUpdate(s.toarray(), u, v),
        LowRankUpdate(s, u[:, :1], v[:, :1]),
        LowRankUpdate(s, u),
        LowRankUpdate(s, u, -v),
    ):
        np.testing.assert_allclose(a @ client.solve(a, b).x, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("k", [0, 1, N])
def test_ranks_from_none_to_all(client: Client, k: int) -> None:
    a, b = LowRankUpdate(base("csr"), *thin(k)), random_like((N, 2), "float64", 5_518_203)
    np.testing.assert_allclose(a @ client.solve(a, b).x, b, rtol=0, atol=1e-9)
    gradient = client.vjp(a, b, b).values
    assert gradient.U.shape == gradient.V.shape == (N, k)


@pytest.mark.parametrize("method", ["cg", "gmres", "superlu", "cholesky", "lsmr"])
def test_the_method_is_that_of_s(client: Client, method: str) -> None:
    s = base("csr")
    s = (s + s.T).tocsr()
    a, b = LowRankUpdate(s, thin(2)[0]), np.ones(N)
    solution = client.solve(a, b, method=method, rtol=1e-9)
    assert solution.stats.method == f"update({method})"
    assert np.linalg.norm(a @ solution.x - b) <= 1e-9 * np.linalg.norm(b)
    assert bool(solution.stats.iterations) == (method in ("cg", "gmres", "lsmr"))


def test_half_precision_of_the_factor_is_refined(client: Client) -> None:
    a, b = LowRankUpdate(base("csr"), *thin(2)), np.ones(N)
    solution = client.solve(a, b, method="superlu", precision="mixed", condition=True)
    assert solution.stats.precision == "float32"
    # What a factor in double precision would have given.
    assert solution.stats.backward_error <= ATTAINABLE * np.finfo(np.float64).eps
    exact = np.linalg.cond(a.toarray(), 1)
    assert exact / 3 <= solution.stats.condition_estimate <= exact * (1 + 1e-6)


@each_layout
@each_trans
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("tied", [False, True])
def test_derivatives(client: Client, layout: str, trans: str, dtype: str, tied: bool) -> None:
    """The gradient formed here and there, and Re⟨gradient, dA⟩ + Re⟨λ, db⟩ = Re⟨g, dx⟩ with the tangent."""
    s = base(layout, dtype)
    ds = s * 0.3 if layout == "dense" else type(s)(s * 0.3)
    (u, v), (du, dv) = thin(3, dtype), thin(3, dtype, seed=9)
    a, da = (LowRankUpdate(*pair[: 2 if tied else 3]) for pair in ((s, u, v), (ds, du, dv)))
    b, g, db = (random_like((N, 2), dtype, seed) for seed in (711_902, 711_903, 711_904))
    x = client.solve(a, b, trans=trans).x
    here = client.vjp(a, x, g, trans=trans, b=b, condition=True)
    there = client.vjp(a, x, g, trans=trans, values_on="server")
    dx = client.jvp(a, x, A_tangent=da, b_tangent=db, trans=trans).x
    h = 1e-6
    plus, minus = (
        client.solve(LowRankUpdate(s + t * ds, u + t * du, None if tied else v + t * dv), b + t * db, trans=trans).x
        for t in (h, -h)
    )
    np.testing.assert_allclose(dx, (plus - minus) / (2 * h), rtol=0, atol=1e-6 * np.abs(dx).max())
    assert type(here.values) is LowRankUpdate
    assert (here.values.V is None) == tied
    assert type(here.values.S) is type(s)
    total = np.vdot(here.b, db).real
    for mine, theirs, moved in zip(pieces(here.values), pieces(there.values), pieces(da), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-13)
        total += np.vdot(mine, moved).real
    assert total == pytest.approx(np.vdot(g, dx).real, rel=1e-9)
    assert here.corrected_value == pytest.approx(np.vdot(g, x).real, rel=1e-9, abs=1e-9)
    assert here.error_bound < 1e-8


def pieces(a: LowRankUpdate) -> list[np.ndarray]:
    s = a.S if isinstance(a.S, np.ndarray) else a.S.data
    return [s, a.U] if a.V is None else [s, a.U, a.V]


def test_factorized(client: Client) -> None:
    a = LowRankUpdate(base("csr"), *thin(2))
    handle = client.factorized(a)
    b = random_like((N,), "float64", 4_410_229)
    exact = {trans: np.linalg.solve(op(a.toarray(), trans), b) for trans in ("N", "H")}
    # The handle has copies of its own.
    a.S.data[:] = a.U[:] = 0
    for trans, x in exact.items():
        np.testing.assert_allclose(handle.solve(b, trans), x, rtol=0, atol=1e-11)


def test_what_does_not_fit_is_refused_alike(client: Client) -> None:
    s, b = base("csr"), np.ones(N)
    u, v = thin(2)
    a = LowRankUpdate(s, u, v)
    for options in ({"method": "lu"}, {"x0": b}, {"nullspace": "constant"}, {"method": "update(qr)"}):
        with pytest.raises(InvalidOptionError):
            client.solve(a, b, **options)
    with pytest.raises(InvalidOptionError, match="does not use maxiter"):
        client.solve(a, b, method="superlu", maxiter=3)
    with pytest.raises(InvalidOptionError, match="not known"):
        client.solve(s, b, method="update(superlu)")
    with pytest.raises(InvalidOptionError, match="least squares"):
        client.lstsq(a, b)
    with pytest.raises(InvalidPatternError):
        client.jvp(a, b, A_tangent=LowRankUpdate(s.toarray(), u, v))
    with pytest.raises(InvalidPatternError):
        client.jvp(a, b, A_tangent=s)
    with pytest.raises(InvalidShapeError):
        client.solve(a, np.ones(N + 1))
    with pytest.raises(NonfiniteInputError):
        client.solve(LowRankUpdate(s, np.where(u == u[3, 1], np.nan, u), v), b)
    with pytest.raises(NonfiniteInputError):
        client.solve(LowRankUpdate(s * np.nan, u, v), b)


def test_what_is_singular_is_named_and_remembered(client: Client) -> None:
    s = np.diag(np.arange(1.0, N + 1)) + new_rng().random() * np.eye(N, k=1)
    unit, b = np.eye(N)[:, -1:], np.ones(N)
    # The last row of S is N in its last place alone: taking it away leaves a row of zeros.
    a = LowRankUpdate(s, N * unit, -unit)
    assert np.linalg.matrix_rank(a.toarray()) == N - 1
    before = dict(client.stats())
    for _ in range(2):
        with pytest.raises(SingularMatrixError, match="the update makes the matrix singular"):
            client.solve(a, b, method="lu")
    assert grown(client, before, "factorizations") == 1
    s[-1, -1] = 0
    with pytest.raises(SingularMatrixError, match="S is singular"):
        client.solve(LowRankUpdate(s, unit), b, method="lu")
    assert client.solve(LowRankUpdate(s, unit), b, method="lu", on_failure="nan").status is Status.SINGULAR_NUMERIC
    # Its pattern says so before anything is factorized.
    empty = LowRankUpdate(sparse.csr_array(np.where(np.eye(N)[-1:].T, 0, s)), unit)
    for method in ("auto", "superlu"):
        with pytest.raises(SingularMatrixError, match="S is singular"):
            client.solve(empty, b, method=method)
    assert client.solve(empty, b, on_failure="nan").status is Status.SINGULAR_STRUCTURAL


def test_a_server_that_has_forgotten_everything_is_told_again() -> None:
    """Over both transports; what one of them sends is of no use to the other, whose pattern is another."""
    with ServerProcess() as server, Client(server.http_url) as first, Client(server.grpc_url) as second:
        s, b = base("csr"), random_like((N,), "float64", 611_350)
        known = []
        for client, own in ((first, s), (second, sparse.csr_array(s + 0.01 * sparse.eye_array(N, k=9)))):
            a = LowRankUpdate(own, *thin(3))
            known.append((client, own, a, client.factorized(a), client.solve(a, b).x))
        server.kill()
        server.start()
        for client, _, a, _, x in known:
            before = dict(client.stats())
            np.testing.assert_allclose(client.vjp(a, x, b).b, np.linalg.solve(a.toarray().T, b), rtol=0, atol=1e-11)
            # S, and then U and V.
            assert grown(client, before, "uploads") == 2
            assert grown(client, before, "factorizations") == 1
        server.kill()
        server.start()
        for client, own, _, handle, x in known:
            before = dict(client.stats())
            client.solve(own, b)
            uploads = client.stats()["uploads"]
            np.testing.assert_array_equal(handle.solve(b), x)
            assert client.stats()["uploads"] - uploads == 1
            assert grown(client, before, "factorizations") == 1


def test_only_what_is_missing_is_sent(client: Client) -> None:
    s, b = base("csr"), np.ones(N)
    u, v = thin(3)
    client.solve(s, b)
    t = s * 1.5
    # The pattern of S is there, its new values are not.
    before = dict(client.stats())
    client.solve(LowRankUpdate(t, u, v), b)
    assert grown(client, before, "uploads") == 2
    refs = [canonicalise(each).matrix.ref for each in (s, t, LowRankUpdate(t, u, v), LowRankUpdate(t, v, u))]
    refs.append(canonicalise(LowRankUpdate(s, u, v)).matrix.ref)
    held = client.transport.find(refs, 60)
    assert held == [Holding.FACTOR, Holding.FACTOR, Holding.FACTOR, Holding.PATTERN, Holding.ABSENT]


def test_updates_that_follow_each_other_travel_with_their_calls(client: Client) -> None:
    """U and V are asked for once, and then come along without being asked for."""
    s, b = base("csr"), np.ones(N)
    client.solve(LowRankUpdate(s, *thin(2)), b)
    before = dict(client.stats())
    for seed in range(1, 6):
        a = LowRankUpdate(s, *thin(2, seed=seed))
        np.testing.assert_allclose(a @ client.solve(a, b).x, b, rtol=0, atol=1e-11)
    assert grown(client, before, "need_values") == 1
    assert grown(client, before, "need_matrix") == 0
    assert grown(client, before, "uploads") == 5
    assert grown(client, before, "factorizations") == 0


def test_what_has_to_be_sent_first_is_named(client: Client) -> None:
    # A pattern of its own, too.
    s = base("csr") + 0.1 * sparse.random_array((N, N), density=0.2, rng=new_rng())
    for scale, error in ((1.0, NeedMatrixError), (2.0, NeedValuesError)):
        matrix = canonicalise(LowRankUpdate(scale * s, *thin(2))).matrix
        with pytest.raises(error, match=r"send .* first") as told:
            client.transport.put(PutCall(matrix.ref, matrix), 60)
        assert told.value.details["base"] == matrix.base.ref.key
        with pytest.raises((NeedMatrixError, NeedValuesError)):
            client.transport.put(PutCall(matrix.ref, matrix, values_only=True), 60)
        client.transport.put(PutCall(matrix.base.ref, matrix.base), 60)
        assert client.transport.put(PutCall(matrix.ref, matrix), 60) == matrix.ref
        other = canonicalise(LowRankUpdate(scale * s, *thin(2, seed=7))).matrix
        assert client.transport.put(PutCall(other.ref, other, values_only=True), 60) == other.ref


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_small_cache_forgets_and_nobody_notices(scheme: str) -> None:
    """Each S with its factor takes a good part of the cache, and each update a little on top of it."""
    with (
        ServerProcess(BACKSOLVE_CACHE_BYTES="1MiB") as small,
        Client(small.http_url if scheme == "http" else small.grpc_url) as client,
    ):
        bases = [convection(40, seed=20_117 + number) for number in range(12)]
        b = random_like((1600,), "float64", 40_022)
        u, v = (random_like((1600, 4), "float64", 40_023 + i) for i in (0, 1))
        for _ in range(2):
            for s in bases:
                for scale in (1.0, 0.5):
                    a = LowRankUpdate(s, scale * u, v)
                    np.testing.assert_allclose(a @ client.solve(a, b).x, b, rtol=0, atol=1e-8)
        stats = client.stats()
        assert stats["evictions"] > 0
        assert stats["cache_bytes"] <= 2**20
        assert stats["uploads"] > 12 + 24


def test_a_base_that_changes_under_way_is_noticed(embedded: Client) -> None:
    matrix = canonicalise(LowRankUpdate(base("csr"), *thin(2))).matrix
    assert matrix.ref
    matrix.base.values[3] += 1
    with pytest.raises(MatrixChangedError):
        embedded.solve_matrix(matrix, np.ones(N), backsolve.options.make_options())


def test_a_client_with_a_base_of_its_own_is_refused() -> None:
    s = base("csr")
    u, v = thin(2)
    a = LowRankUpdate(s, u, v)
    for wrong in (a, backsolve.Circulant(np.ones(N))):
        with pytest.raises(InvalidShapeError, match="must be an array or a sparse matrix"):
            LowRankUpdate(wrong, u, v)
    for arguments in ((s, u[:-1], v[:-1]), (s, u, v[:, :1]), (s, u[:, 0], v[:, 0]), (np.ones((2, N, N)), u, v)):
        with pytest.raises(InvalidShapeError):
            LowRankUpdate(*arguments)
    with pytest.raises(InvalidPatternError, match="at most n"):
        LowRankUpdate(s, np.ones((N, N + 1)))
    assert repr(a) == "LowRankUpdate(49x49, float64)"
    assert LowRankUpdate(s.astype(np.float32), u.astype(np.complex64)).dtype == np.complex64
