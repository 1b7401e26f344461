"""Inputs that once gave a wrong answer without a word, or an error that was not one of ours."""

import numpy as np
import pytest
from scipy import sparse

from backsolve import Client, Status, errors
from support.systems import dense, random_like


def graph_laplacian(n: int) -> np.ndarray:
    """Singular: constants are its null space."""
    path = np.diag(np.full(n, 2.0)) - np.eye(n, k=1) - np.eye(n, k=-1)
    path[0, 0] = path[-1, -1] = 1.0
    return path


@pytest.mark.parametrize("n", [3, 10, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tolerance", [{}, {"atol": 1e-14}, {"rtol": 1e-8}])
def test_cg_never_calls_an_inconsistent_singular_system_solved(
    client: Client, n: int, dtype: str, tolerance: dict[str, float]
) -> None:
    """x grows until its backward error is small, while the residual stays as large as b."""
    a = graph_laplacian(n).astype(dtype)
    b = np.zeros(n, dtype)
    b[1] = 1
    with pytest.raises(errors.SolveError):
        client.solve(a, b, method="cg", **tolerance)


def test_a_tangent_must_be_shaped_like_the_values(client: Client) -> None:
    """With as many systems as rows, a batch of tangents fits everywhere and means nothing."""
    a, batch = dense(3), np.stack([dense(3, seed=s) for s in (51_001, 51_002, 51_003)])
    x = random_like((3, 3), "float64", 660_230_118)
    with pytest.raises(errors.InvalidShapeError, match="A_tangent"):
        client.jvp(a, x, A_tangent=batch)
    with pytest.raises(errors.InvalidShapeError, match="A_tangent"):
        client.jvp(batch, x, A_tangent=a)


def test_a_tangent_of_b_alone_needs_no_x(client: Client) -> None:
    a, db = dense(4), random_like((4,), "float64", 660_230_119)
    np.testing.assert_allclose(client.jvp(a, None, b_tangent=db).x, np.linalg.solve(a, db), rtol=1e-12)
    with pytest.raises(errors.InvalidOptionError, match="needs x"):
        client.jvp(a, None, A_tangent=a)


def test_stored_zeros_of_diagonals_have_a_gradient(client: Client) -> None:
    data = np.array([[0.0, 1.0, 0.0], [4.0, 2.0, 3.0]])
    a = sparse.dia_array((data, [1, 0]), shape=(3, 3))
    x = client.solve(a, np.ones(3)).x
    gradients = client.vjp(a, x, np.ones(3))
    assert gradients.b is not None
    assert gradients.values.format == "dia"
    expected = -np.outer(gradients.b, x)
    np.testing.assert_allclose(gradients.values.data[0, 1:], np.diag(expected, 1), rtol=1e-14)
    np.testing.assert_allclose(gradients.values.data[1], np.diag(expected), rtol=1e-14)


EYE = np.eye(2)
ONES = np.ones(2)
NOT_OURS = {
    "no b": (lambda c: c.solve(EYE, None), errors.InvalidDtypeError, "None"),
    "no A": (lambda c: c.solve(None, ONES), errors.InvalidDtypeError, "None"),
    "no cotangent": (lambda c: c.vjp(EYE, ONES, None), errors.InvalidDtypeError, "None"),
    "ragged rows": (lambda c: c.solve([[1, 2], [3]], ONES), errors.InvalidDtypeError, "rows of one length"),
    "masked": (lambda c: c.solve(EYE, np.ma.array([1.0, 2.0], mask=[0, 1])), errors.InvalidDtypeError, "filled"),
    "rtol too large for a float": (lambda c: c.solve(EYE, ONES, rtol=10**400), errors.InvalidOptionError, "rtol"),
    "timeout as text": (lambda c: c.solve(EYE, ONES, timeout="3"), errors.InvalidOptionError, "timeout"),
    "timeout nan": (lambda c: c.solve(EYE, ONES, timeout=float("nan")), errors.InvalidOptionError, "timeout"),
    "want a number": (lambda c: c.vjp(EYE, ONES, ONES, want=3), errors.InvalidOptionError, "want"),
    "want a list of lists": (lambda c: c.vjp(EYE, ONES, ONES, want=([],)), errors.InvalidOptionError, "want"),
    "more rows than there can be": (
        lambda c: c.solve(sparse.coo_array(([1.0], ([0], [0])), shape=(2**40, 2**40)), ONES),
        errors.PayloadTooLargeError,
        "rows",
    ),
}


@pytest.mark.parametrize("case", NOT_OURS, ids=lambda name: name.replace(" ", "-"))
def test_every_failure_is_one_of_ours(embedded: Client, case: str) -> None:
    call, error, text = NOT_OURS[case]
    with pytest.raises(error, match=text):
        call(embedded)


def test_a_masked_array_without_masked_entries_is_an_array(client: Client) -> None:
    b = np.ma.array([1.0, 2.0], mask=[False, False])
    assert client.solve(4 * EYE, b).status is Status.OK
