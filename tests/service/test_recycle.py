"""Vectors that one solve leaves to the next on its pattern, through the whole data plane."""

import numpy as np
import pytest

import backsolve
from backsolve.errors import InvalidOptionError
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.embedded import EmbeddedTransport
from loadtests.engine.problems import grid

PLANE = grid((30, 30))


@pytest.fixture
def client():
    client = backsolve.Client(transport=EmbeddedTransport(DataPlane(PlaneConfig(workers=1))))
    yield client
    plane = client.transport.plane
    client.close()
    plane.close()


def sequence(steps):
    """Values that drift, with a contrast that makes a few small eigenvalues."""
    rng = np.random.default_rng(700_318_226)
    weights = np.exp(1.5 * rng.standard_normal(PLANE.edges))
    for _ in range(steps):
        yield PLANE.member(weights), rng.standard_normal(PLANE.n)
        weights = weights * np.exp(0.02 * rng.standard_normal(PLANE.edges))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_later_solves_on_the_pattern_need_fewer_iterations(client, dtype):
    plain, recycled = [], []
    for real, rhs in sequence(5):
        A, b = real.astype(dtype), rhs.astype(dtype)
        kwargs = {"method": "cg", "rtol": 1e-9}
        plain.append(client.solve(A, b, **kwargs).stats.iterations)
        solution = client.solve(A, b, recycle=12, **kwargs)
        recycled.append(solution.stats.iterations)
        assert np.linalg.norm(A @ solution.x - b) <= 1e-9 * np.linalg.norm(b)
    assert recycled[0] == pytest.approx(plain[0], abs=3)
    assert max(recycled[2:]) <= 0.85 * min(plain[2:])


def test_the_adjoint_recycles_too(client):
    for A, b in sequence(3):
        x = client.solve(A, b, method="cg", recycle=8).x
        gradients = client.vjp(A, x, b, method="cg", recycle=8, rtol=1e-10)
        assert np.linalg.norm(A.T @ gradients.b - b) <= 1e-10 * np.linalg.norm(b)


def test_each_number_of_vectors_has_a_space_of_its_own(client):
    (A, b), *_ = sequence(1)
    few = [client.solve(A, b, method="cg", recycle=2).stats.iterations for _ in range(3)]
    many = [client.solve(A, b, method="cg", recycle=24).stats.iterations for _ in range(3)]
    assert many[-1] < few[-1]


def test_auto_turns_to_the_method_that_recycles(client):
    (A, b), *_ = sequence(1)
    stats = client.solve(A, b, recycle=4).stats
    assert stats.method == "cg"
    assert "recycle given" in stats.reason


@pytest.mark.parametrize(
    ("A", "options", "text"),
    [
        (np.stack([np.eye(3)] * 2), {"method": "cg", "recycle": 1}, "not for a batch"),
        (np.eye(3), {"method": "cg", "recycle": 4}, "4 vectors, the matrix has 3 rows"),
        (np.eye(3), {"method": "cg", "recycle": 0}, "recycle must be an integer, 1 or more"),
        (np.eye(3), {"method": "gmres", "recycle": 2}, "'gmres' does not use recycle"),
    ],
)
def test_what_cannot_be_recycled_is_refused(client, A, options, text):
    with pytest.raises(InvalidOptionError, match=text):
        client.solve(A, np.ones(A.shape[:-1]), **options)
