"""Methods that stand in for one that elimination found unfit, and what the certificate tells of it."""

import numpy as np
import pytest
from scipy.sparse import csr_array

import backsolve
from backsolve.errors import NotPositiveDefiniteError, SingularMatrixError
from backsolve.types import Status
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.embedded import EmbeddedTransport
from loadtests.engine.problems import grid


@pytest.fixture
def client():
    plane = DataPlane(PlaneConfig(workers=1))
    client = backsolve.Client(transport=EmbeddedTransport(plane))
    yield client
    client.close()
    plane.close()


def test_cholesky_falls_to_ldl(client):
    A = np.array([[1.0, 2.0, 0.0], [2.0, 1.0, 0.5], [0.0, 0.5, 3.0]])
    solution = client.solve(A, np.ones(3))
    assert solution.stats.method == "ldl"
    assert "not positive definite" in solution.stats.reason
    np.testing.assert_allclose(solution.x, np.linalg.solve(A, np.ones(3)))


@pytest.mark.filterwarnings("ignore::backsolve.errors.IllConditionedWarning")
def test_a_zero_pivot_of_ldl_is_the_last_word(client):
    """Singular but for rounding: where LDL meets an exact zero, no LU is asked for a second opinion."""
    A = np.array(
        [
            [0.10000000000000003, 0.08000000000000003, -0.04000000000000001],
            [0.08000000000000003, 0.10000000000000003, -0.08000000000000002],
            [-0.04000000000000001, -0.08000000000000002, 0.08000000000000002],
        ]
    )
    b = np.array([1.0, 0.0, 0.0])

    def outcome(method):
        try:
            solution = client.solve(A, b, method=method)
        except (NotPositiveDefiniteError, SingularMatrixError) as error:
            return type(error), None
        return solution.stats.method, solution.status

    # Which of them meet an exact zero is up to the machine's LAPACK.
    expected = next((found for found in map(outcome, ("cholesky", "ldl")) if found[1] is not None), outcome("ldl"))
    assert outcome("auto") == expected
    assert expected[1] is not Status.OK


@pytest.mark.parametrize("scale", [1.0, 1e-200])
def test_a_singular_hermitian_matrix_is_called_so(client, scale):
    A = scale * np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    with pytest.raises(SingularMatrixError, match=r"A \+ shift"):
        client.solve(A, np.ones(3))


def test_mixed_precision_goes_down_the_same_steps(client):
    A = np.array([[1.0, 2.0, 0.0], [2.0, 1.0, 0.5], [0.0, 0.5, 3.0]])
    solution = client.solve(A, np.ones(3), precision="mixed")
    assert (solution.stats.method, solution.stats.precision) == ("ldl", "float32")
    assert solution.stats.refinements >= 1
    np.testing.assert_allclose(solution.x, np.linalg.solve(A, np.ones(3)), rtol=1e-14)


def test_a_method_that_was_asked_for_has_no_substitute(client):
    A = csr_array(np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(NotPositiveDefiniteError):
        client.solve(A, np.ones(2), method="cholesky")


def test_orderings_are_analysed_apart_and_kept(client):
    square = grid((20, 20))
    A, b = square.member(np.ones(square.edges)), np.ones(square.n)
    hits = [client.solve(A, b, method="superlu", ordering=kind).stats.symbolic_hit for kind in ("mmd", "nd", "mmd")]
    assert hits == [False, False, True]
