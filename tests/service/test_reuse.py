"""Factors of older values as preconditioners, through the whole data plane."""

import numpy as np
import pytest
from scipy.sparse import csr_array

import backsolve
from backsolve.errors import InconsistentError, InvalidOptionError, MemoryBudgetError, SingularMatrixError
from backsolve.types import TRANS, Status
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.dataplane.reuse import Reuse
from backsolve_service.embedded import EmbeddedTransport
from backsolve_service.engine.registry import ROWS, methods
from backsolve_service.engine.reuse import judge
from engine.table import array, op
from loadtests.engine.problems import grid

CUBE = grid((17, 17, 17))
"""Its factor costs dozens of solves."""


def client_of(**config):
    return backsolve.Client(transport=EmbeddedTransport(DataPlane(PlaneConfig(workers=1, **config))))


@pytest.fixture
def client():
    client = client_of()
    yield client
    closed(client)


def closed(client):
    plane = client.transport.plane
    client.close()
    plane.close()


@pytest.fixture
def dear(monkeypatch):
    """What a factor has cost is given out as an hour, so that reusing it pays however busy the machine is."""
    built = Reuse.built
    monkeypatch.setattr(Reuse, "built", lambda self, entry, spec, seconds: built(self, entry, spec, 3600.0))


def drifting(steps, drift=0.01):
    rng = np.random.default_rng(305_728_114)
    weights = np.exp(0.5 * rng.standard_normal(CUBE.edges))
    for _ in range(steps):
        yield CUBE.member(weights), rng.standard_normal(CUBE.n), rng.standard_normal(CUBE.n)
        weights = weights * np.exp(drift * rng.standard_normal(CUBE.edges))


HOMES = {"thread": {}, "process": {"isolated": frozenset({"superlu"}), "processes": 1}}


@pytest.mark.parametrize("home", HOMES)
def test_a_drifting_sequence_is_solved_on_few_factors(dear, home):
    """In a process of its own as well, which is sent the new values as the right-hand sides are."""
    client = client_of(**HOMES[home])
    options = {"method": "superlu", "reuse": "precondition"}
    kinds = []
    for A, b, g in drifting(6):
        solution = client.solve(A, b, **options)
        gradients = client.vjp(A, solution.x, g, **options)
        assert np.linalg.norm(A @ solution.x - b) <= 1e-10 * np.linalg.norm(b)
        assert np.linalg.norm(A.T @ gradients.b - g) <= 1e-10 * np.linalg.norm(g)
        kinds.append(solution.stats.preconditioner)
        if solution.stats.preconditioner is not None:
            assert solution.stats.method == "fgmres"
            assert 0 < solution.stats.iterations < 30
            assert "older values" in solution.stats.reason
    assert kinds[0] is None
    assert "stale(superlu)" in kinds[1:]
    assert client.stats()["factorizations"] == kinds.count(None) == 1
    closed(client)


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_every_operator_and_several_columns(dear, home, dtype):
    """A process is sent the new values before the right-hand sides."""
    client = client_of(**HOMES[home])
    (A, b, _), (B, c, d) = drifting(2)
    options = {"method": "superlu", "reuse": "precondition"}
    A, B, rhs = A.astype(dtype), B.astype(dtype), np.stack([c, d], axis=1).astype(dtype)
    if rhs.dtype.kind == "c":
        B.data[B.indices > np.repeat(np.arange(CUBE.n), np.diff(B.indptr))] *= 1 + 0.01j
        rhs[:, 1] *= 1j
    client.solve(A, b.astype(dtype), **options)
    for trans in TRANS:
        op = {"N": B, "T": B.T, "H": B.conj().T}[trans]
        found = client.solve(B, rhs, trans=trans, **options)
        assert found.stats.preconditioner == "stale(superlu)"
        wanted = 1e-5 if dtype == "float32" else 1e-9
        assert np.abs(op @ found.x - rhs).max() <= wanted * np.abs(rhs).max()
    assert client.stats()["factorizations"] == 1
    closed(client)


@pytest.fixture(scope="module")
def every():
    """One for all methods: their processes are started once."""
    client = client_of()
    yield client
    closed(client)


@pytest.mark.parametrize("method", [name for name in methods() if "reuse" in ROWS[name].options])
def test_every_direct_method_serves_newer_values(every, dear, method):
    row, n = ROWS[method], 40
    a = array({"diagonal": "diagonal", "triangular": "triangular"}.get(row.needs, "definite"), "float64", n=n)
    drift = np.exp(0.02 * np.random.default_rng(660_310_284).standard_normal((n, n)))
    drift = (drift + drift.T) / 2
    b, layout = np.linspace(1, 2, n), csr_array if "csr" in row.layouts else np.asarray
    every.solve(layout(a), b, method=method, reuse="precondition")
    for trans in TRANS:
        found = every.solve(layout(a * drift), b, method=method, reuse="precondition", trans=trans)
        assert found.stats.preconditioner == f"stale({method})"
        assert 1 < found.stats.iterations < 12
        np.testing.assert_allclose(op(a * drift, trans) @ found.x, b, rtol=0, atol=1e-9)


def test_a_known_null_space_is_known_of_newer_values_too(client, dear):
    n = 60
    ring = np.roll(np.eye(n), 1, axis=1)
    for index, weight in enumerate((1.0, 1.1)):
        a = csr_array((1 + weight) * np.eye(n) - weight * ring - ring.T)
        b = np.sin(np.arange(n))
        options = {"method": "superlu", "nullspace": "constant", "reuse": "precondition"}
        found = client.solve(a, b - b.mean(), **options)
        assert found.stats.preconditioner == ("stale(superlu)" if index else None)
        assert abs(found.x.mean()) <= 1e-9 * np.abs(found.x).max()
        np.testing.assert_allclose(a @ found.x, b - b.mean(), atol=1e-9)
        with pytest.raises(InconsistentError):
            client.solve(a, b + 1, **options)


def test_a_right_hand_side_of_zeros_counts_as_no_solve_with_an_own_factor(client, dear, monkeypatch):
    """It needs no iteration, and its quick answer is no measure of what a solve with the factor costs."""
    told = counted(monkeypatch)
    for A, b, _ in drifting(2):
        client.solve(A, b, reuse="precondition")
        assert not client.solve(A, 0 * b, reuse="precondition").x.any()
    assert [name for name, _ in told] == ["solved", "solved", "preconditioned", "preconditioned"]
    assert told[2][1] > 1
    assert told[3][1] == 0


def test_the_rule_is_told_how_many_sets_of_values_there_were(client, dear, monkeypatch):
    """And what the first and the last of them took; each set counts once, however often it is solved with."""
    lives, judged = [], judge

    def tell(life):
        lives.append(life)
        return judged(life)

    monkeypatch.setattr("backsolve_service.dataplane.reuse.judge", tell)
    taken = []
    for A, b, g in drifting(4):
        solves = [client.solve(A, rhs, method="superlu", reuse="precondition") for rhs in (b, g)]
        taken.append(sum(each.stats.iterations for each in solves))
    assert [life.steps for life in lives] == [1, 2, 3]
    assert [life.last for life in lives] == taken[:3]
    assert [life.first for life in lives] == [0, 0, taken[1]]
    assert lives[-1].iterations == sum(taken[:3])


def test_refinements_count_as_uses_of_the_factor(client, dear, monkeypatch):
    told = counted(monkeypatch)
    (A, b, _), *_ = drifting(1)
    solution = client.solve(A, b, method="superlu", reuse="precondition", precision="mixed")
    assert solution.stats.refinements >= 1
    ((_, single),) = told
    assert single == pytest.approx(solution.stats.seconds.solve / (1 + solution.stats.refinements))


def counted(monkeypatch):
    """What `Reuse` is told of solves: which kind, and the last of its figures."""
    told = []

    def heard(name, done):
        def tell(self, *figures):
            told.append((name, figures[-1]))
            done(self, *figures)

        return tell

    for name in ("solved", "preconditioned"):
        monkeypatch.setattr(Reuse, name, heard(name, getattr(Reuse, name)))
    return told


def test_values_too_far_away_get_a_factor_of_their_own(client):
    (near, b, _), *_ = drifting(1)
    client.solve(near, b, reuse="precondition")
    far = CUBE.member(10.0 ** np.random.default_rng(17_885_209).uniform(-6, 6, CUBE.edges))
    solution = client.solve(far, b, reuse="precondition")
    assert solution.stats.method == "superlu"
    assert "factorized anew" in solution.stats.reason
    assert client.stats()["factorizations"] == 2
    again = client.solve(far, b, reuse="precondition")
    assert again.stats.factor_hit


def test_a_singular_successor_is_told_as_ever(client):
    (A, b, _), *_ = drifting(1)
    client.solve(A, b, reuse="precondition")
    singular = A.copy()
    row = slice(singular.indptr[40], singular.indptr[41])
    singular.data[row] = 0.0
    with pytest.raises(SingularMatrixError):
        client.solve(singular, b, reuse="precondition")


def test_the_caller_may_name_the_method_and_the_tolerance(client, dear):
    for index, (A, b, _) in enumerate(drifting(2, drift=0.05)):
        loose = client.solve(A, b, method="superlu", reuse="precondition", rtol=1e-3)
        if index:
            tight = client.solve(A, b, method="superlu", reuse="precondition", rtol=1e-11)
            assert loose.stats.iterations < tight.stats.iterations
            assert tight.stats.relative_residual <= 1e-11


def test_an_evicted_factor_is_not_used(client):
    (A, b, _), (B, c, _) = drifting(2)
    client.solve(A, b, reuse="precondition")
    client.transport.plane._cache.clear()
    assert client.solve(B, c, reuse="precondition").stats.method == "superlu"


def test_an_iterative_method_has_no_factor_to_reuse(client):
    (A, b, _), *_ = drifting(1)
    with pytest.raises(InvalidOptionError, match="does not use reuse"):
        client.solve(A, b, method="cg", reuse="precondition")
    with pytest.raises(InvalidOptionError, match="reuse"):
        client.solve(A, b, reuse="always")


@pytest.mark.parametrize("name", ["auto", "superlu"])
def test_a_factor_that_does_not_fit_is_foreseen(name):
    """The cube's factor holds 20 MB; what is allowed here is enough for the matrix."""
    client = client_of(cache_bytes=6 << 20)
    (A, b, _), *_ = drifting(1)
    if name == "auto":
        solution = client.solve(A, b)
        assert solution.status is Status.OK
        assert solution.stats.method == "cg"
        assert "no room for a factor" in solution.stats.reason
        assert np.linalg.norm(A @ solution.x - b) <= 1e-9 * np.linalg.norm(b)
    else:
        with pytest.raises(MemoryBudgetError, match=r"\d+.*\d+"):
            client.solve(A, b, method=name)
    assert client.stats()["factorizations"] == (1 if name == "auto" else 0)
    closed(client)


def test_a_training_step_in_torch_goes_on_with_the_older_factor(client, dear):
    torch = pytest.importorskip("torch")
    from backsolve.torch import spsolve

    pattern = None
    seen = []
    for A, b, _ in drifting(3):
        pattern = pattern or backsolve.Pattern.from_csr(A)
        values = torch.tensor(A.data, requires_grad=True)
        rhs = torch.tensor(b, requires_grad=True)
        x = spsolve(
            values,
            pattern,
            rhs,
            client=client,
            reuse="precondition",
            rtol=1e-12,
            observe=lambda phase, certificate: seen.append((phase, certificate.method)),
        )
        (x**2).sum().backward()
        exact = client.solve(A, 2 * x.detach().numpy(), method="superlu").x
        np.testing.assert_allclose(rhs.grad.numpy(), exact, rtol=0, atol=1e-9 * np.abs(exact).max())
    assert ("adjoint", "fgmres") in seen
    assert ("solve", "fgmres") in seen
