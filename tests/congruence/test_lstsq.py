"""Least squares embedded, over REST and over gRPC: the same answers, gradients and refusals."""

import numpy as np
import pytest
from scipy import sparse

from backsolve import Client
from backsolve.errors import BacksolveError, InvalidOptionError, InvalidShapeError
from backsolve.types import Status

RNG = np.random.default_rng(318_004_557)
TALL = RNG.standard_normal((30, 12))
LOW = RNG.standard_normal((20, 6)) @ RNG.standard_normal((6, 14))
WIDE = RNG.standard_normal((9, 25)) + 1j * RNG.standard_normal((9, 25))


@pytest.mark.awaited
@pytest.mark.parametrize("damp", [0.0, 0.3])
@pytest.mark.parametrize("a", [TALL, LOW, WIDE], ids=["tall", "low-rank", "wide"])
@pytest.mark.parametrize("columns", [(), (3,)], ids=["vector", "columns"])
def test_answers_and_gradients(client: Client, a: np.ndarray, damp: float, columns: tuple[int, ...]) -> None:
    m, n = a.shape
    b, g = RNG.standard_normal((m, *columns)), RNG.standard_normal((n, *columns))
    wide = np.concatenate([a, damp * np.eye(n)])
    solution = client.lstsq(a, b, damp=damp)
    inverse = np.linalg.pinv(wide, rcond=1e-10)
    np.testing.assert_allclose(solution.x, inverse[:, :m] @ b, atol=1e-11)
    assert (solution.status, solution.stats.method) == (Status.OK, "lstsq_qr")
    assert "rank" in solution.stats.reason
    gradients = client.lstsq_vjp(a, b, solution.x, g, damp=damp)
    np.testing.assert_allclose(gradients.b, a @ (inverse @ inverse.conj().T) @ g, atol=1e-11)
    assert gradients.stats.factor_hit
    # ⟨g, dx⟩ is the same pulled back and pushed forward, if dA keeps the rank.
    da = 0.1 * a @ RNG.standard_normal((n, n)) + 0.1 * RNG.standard_normal((m, m)) @ a
    pushed = client.lstsq_jvp(a, b, solution.x, A_tangent=da, damp=damp).x
    assert np.vdot(gradients.values, da).real == pytest.approx(np.vdot(g, pushed).real, rel=1e-9, abs=1e-9)


@pytest.mark.awaited
def test_a_batch(client: Client) -> None:
    a, b = RNG.standard_normal((3, 8, 5)), RNG.standard_normal((3, 8, 2))
    solution = client.lstsq(a, b)
    assert [element.status for element in solution.stats.elements] == [Status.OK] * 3
    np.testing.assert_allclose(solution.x, np.linalg.pinv(a) @ b, atol=1e-12)


def test_large_answers_of_small_questions(client: Client) -> None:
    """x has far more numbers than b: what fits one message up may not fit one down."""
    a = np.zeros((1, 600_000))
    a[0, 7] = 2.0
    solution = client.lstsq(a, np.array([3.0]))
    assert solution.x.shape == (600_000,)
    assert (solution.x[7], np.count_nonzero(solution.x)) == (1.5, 1)


@pytest.mark.awaited
def test_refusals(client: Client) -> None:
    with pytest.raises(InvalidShapeError, match="use lstsq"):
        client.solve(TALL, np.ones(30))
    with pytest.raises(InvalidShapeError, match="b has shape"):
        client.lstsq(TALL, np.ones(12))
    with pytest.raises(InvalidOptionError, match="transpose A itself"):
        client.lstsq(TALL, np.ones(30), trans="T")
    with pytest.raises(InvalidOptionError, match="does not use damp"):
        client.solve(TALL[:12], np.ones(12), method="lu", damp=0.1)
    with pytest.raises(BacksolveError):
        client.solve(sparse.csr_array(TALL), np.ones(30))
