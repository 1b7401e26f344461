"""Each wrong input has its own error, the same on every way in, and none echoes what was sent."""

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from scipy import sparse

from backsolve import Client, Status, errors
from backsolve.torch import solve, spsolve
from support.systems import convection, laplacian
from support.tensors import sparse_pattern

pytestmark = pytest.mark.same_host

B5 = np.ones(5)


def with_value(value: float) -> np.ndarray:
    a = np.eye(5) * 2
    a[1, 3] = value
    return a


def structurally_singular() -> sparse.csr_array:
    a = sparse.csr_array((np.ones(5), ([0, 1, 2, 3, 3], [0, 1, 2, 0, 1])), shape=(5, 5))
    a.sort_indices()
    return a


def numerically_singular() -> sparse.csr_array:
    a = np.diag([1.0, 2.0, 3.0, 4.0, 5.0])
    a[0, 1], a[1, 0], a[1, 1] = 2.0, 2.0, 4.0
    return sparse.csr_array(a)


CASES = {
    "nan in dense A": (with_value(np.nan), B5, {}, errors.NonfiniteInputError, "NaN"),
    "inf in sparse A": (sparse.csr_array(with_value(np.inf)), B5, {}, errors.NonfiniteInputError, "infinity"),
    "nan in b": (np.eye(5), np.array([1.0, 2.0, np.nan, 1.0, 1.0]), {}, errors.NonfiniteInputError, "b holds"),
    "b too short": (np.eye(5), np.ones(4), {}, errors.InvalidShapeError, r"\(5,\)"),
    "b with too many axes": (np.eye(5), np.ones((5, 1, 1)), {}, errors.InvalidShapeError, "columns"),
    "A not square": (np.ones((5, 4)), B5, {}, errors.InvalidShapeError, "square"),
    "half precision": (np.eye(5, dtype=np.float16), B5, {}, errors.InvalidDtypeError, "float64"),
    "structurally singular": (structurally_singular(), B5, {}, errors.SingularMatrixError, "structurally"),
    "nothing stored": (sparse.csr_array((5, 5)), B5, {}, errors.SingularMatrixError, "structurally"),
    "singular sparse": (numerically_singular(), B5, {}, errors.SingularMatrixError, "singular"),
    "singular dense": (numerically_singular().toarray(), B5, {"method": "lu"}, errors.SingularMatrixError, "singular"),
    "not definite, dense": (
        np.diag([1.0, 2.0, -3.0, 4.0, 5.0]),
        B5,
        {"method": "cholesky"},
        errors.NotPositiveDefiniteError,
        "positive",
    ),
    "indefinite, sparse": (
        sparse.csr_array(np.array([[1.0, 2.0], [2.0, 1.0]])),
        np.ones(2),
        {"method": "cholesky"},
        errors.NotPositiveDefiniteError,
        "positive",
    ),
    "CG on a nonsymmetric matrix": (
        convection(3),
        np.ones(9),
        {"method": "cg"},
        errors.NotPositiveDefiniteError,
        "Hermitian",
    ),
    "CG on an indefinite matrix": (
        np.array([[1.0, 2.0], [2.0, 1.0]]),
        np.array([1.0, -1.0]),
        {"method": "cg"},
        errors.NotPositiveDefiniteError,
        "positive definite",
    ),
    "unknown method": (np.eye(5), B5, {"method": "choleski"}, errors.InvalidOptionError, "cholesky"),
    "unknown preconditioner": (
        laplacian(3),
        np.ones(9),
        {"method": "cg", "preconditioner": "jacoby"},
        errors.InvalidOptionError,
        "jacobi",
    ),
    "unused option": (np.eye(5), B5, {"method": "lu", "maxiter": 3}, errors.InvalidOptionError, "maxiter"),
    "unused first iterate": (np.eye(5), B5, {"method": "lu", "x0": B5}, errors.InvalidOptionError, "x0"),
    "negative tolerance": (np.eye(5), B5, {"rtol": -1.0}, errors.InvalidOptionError, "rtol"),
    "nan tolerance": (np.eye(5), B5, {"rtol": float("nan")}, errors.InvalidOptionError, "rtol"),
    "no iterations": (laplacian(3), np.ones(9), {"method": "cg", "maxiter": 0}, errors.InvalidOptionError, "maxiter"),
    "unknown trans": (np.eye(5), B5, {"trans": "C"}, errors.InvalidOptionError, "'N', 'T' or 'H'"),
    "wrong x0": (laplacian(3), np.ones(9), {"method": "cg", "x0": np.ones(8)}, errors.InvalidShapeError, "x0"),
    "a dense method for a sparse matrix": (
        laplacian(3),
        np.ones(9),
        {"method": "lu"},
        errors.InvalidOptionError,
        "superlu",
    ),
}


@pytest.mark.awaited
@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_each_fault_has_its_own_error(client: Client, case: str) -> None:
    a, b, options, error, text = CASES[case]
    with pytest.raises(error, match=text) as caught:
        client.solve(a, b, **options)
    assert type(caught.value) is error


def test_the_failing_column_is_named_in_the_callers_numbering(client: Client) -> None:
    a = laplacian(4).tolil()
    a[11, 11] = 1e-3
    with pytest.raises(errors.NotPositiveDefiniteError) as caught:
        client.solve(sparse.csr_array(a), np.ones(16), method="cholesky")
    assert "column" in caught.value.details


MARK = 2.0**37
"""A power of two, so that what is singular or symmetric stays so to the last bit; 2**13 where it would overflow."""


def marked(value: Any, mark: float = MARK) -> Any:
    """The same input, every number of it a multiple of the mark."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | float):
        return type(value)(value * mark)
    scaled = value.copy()
    numbers = scaled.data if sparse.issparse(scaled) else scaled
    numbers *= numbers.dtype.type(2.0**13 if numbers.dtype == np.float16 else mark)
    return scaled


def numbers_of(value: Any) -> set[float]:
    """Every number that an error text could have taken from here; small ones are words like "row 1"."""
    if sparse.issparse(value):
        parts = [np.asarray(part).ravel() for part in (value.data, value.indices, value.indptr)]
        flat = np.concatenate([part.astype(np.float64) for part in parts])
    elif isinstance(value, str) or value is None:
        return set()
    else:
        flat = np.asarray(value, dtype=np.float64).ravel()
    return {abs(float(number)) for number in flat[np.isfinite(flat)] if abs(number) > 1000}


def assert_not_echoed(error: BaseException, *given: Any) -> None:
    """Neither the text, nor the details, nor any error it was raised from."""
    texts, seen = [], error
    while seen is not None:
        # gRPC's own text also has the port, which could be any number.
        texts += (
            [seen.details()] if isinstance(seen, grpc.RpcError) else [str(seen), repr(getattr(seen, "details", ""))]
        )
        seen = seen.__cause__ or seen.__context__
    planted = set().union(*(numbers_of(value) for value in given))
    assert planted
    for number in planted:
        digits = f"{number:.0f}"
        for form in {digits, repr(number), f"{number:g}", f"{number:,.0f}", f"{number:e}"[:4], digits[:6]}:
            assert not any(form in text for text in texts), form


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_no_input_is_echoed(client: Client, case: str) -> None:
    a, b, options, error, _ = CASES[case]
    a, b, options = marked(a), marked(b), {name: marked(value) for name, value in options.items()}
    with pytest.raises(error) as caught:
        client.solve(a, b, **options)
    assert_not_echoed(caught.value, a, b, *options.values())


def broken(name: str, index: int, value: int, layout: Any = sparse.csr_array) -> Any:
    """A good matrix of which one number of one index array has been overwritten."""
    a = layout(convection(3))
    getattr(a, name)[index] = value
    return a


def with_longer(name: str) -> sparse.csr_array:
    a = convection(3)
    setattr(a, name, np.concatenate([getattr(a, name), getattr(a, name)[-1:]]))
    return a


STRANGE = 739_158
BROKEN = {
    "index outside": lambda: broken("indices", 4, STRANGE),
    "index below": lambda: broken("indices", 4, -STRANGE),
    "index outside, by column": lambda: broken("indices", 4, STRANGE, sparse.csc_array),
    "indptr runs away": lambda: broken("indptr", 3, STRANGE),
    "indptr decreases": lambda: broken("indptr", 3, 1),
    "indptr begins below": lambda: broken("indptr", 0, -STRANGE),
    "indptr ends early": lambda: broken("indptr", -1, 20),
    "indptr too long": lambda: with_longer("indptr"),
    "an index too many": lambda: with_longer("indices"),
    "a value too many": lambda: with_longer("data"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_patterns_have_their_error_and_are_not_echoed(client: Client, fault: str) -> None:
    a = BROKEN[fault]()
    a.data *= MARK
    with pytest.raises(errors.InvalidPatternError) as caught:
        client.solve(a, np.ones(9) * MARK)
    assert_not_echoed(caught.value, a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("which", ["A", "b", "values"])
def test_tensors_of_other_types_are_refused_with_the_cure(client: Client, dtype: torch.dtype, which: str) -> None:
    pattern = sparse_pattern(360_915_274, 4)
    a, b, values = torch.eye(4).double(), torch.ones(4).double(), torch.ones(pattern.nnz).double()
    calls: dict[str, Callable[[], object]] = {
        "A": lambda: solve(a.to(dtype), b, client=client),
        "b": lambda: solve(a, b.to(dtype), client=client),
        "values": lambda: spsolve(values.to(dtype), pattern, b, client=client),
    }
    with pytest.raises(errors.InvalidDtypeError, match=rf"{which} is {dtype}.*{which}\.to\(torch\.float64\)"):
        calls[which]()


def test_a_run_stopped_early_never_says_converged(client: Client) -> None:
    a, b = laplacian(20), np.ones(400)
    with pytest.raises(errors.NotConvergedError, match="maxiter") as caught:
        client.solve(a, b, method="cg", maxiter=3)
    solution = caught.value.solution
    assert solution is not None
    assert solution.status is Status.MAX_ITER
    true = np.linalg.norm(b - a @ solution.x) / np.linalg.norm(b)
    assert solution.stats.relative_residual == pytest.approx(true, rel=1e-10)
    with pytest.warns(errors.NotConvergedWarning, match="maxiter"):
        warned = client.solve(a, b, method="cg", maxiter=3, on_failure="warn")
    np.testing.assert_array_equal(warned.x, solution.x)
    blank = client.solve(a, b, method="cg", maxiter=3, on_failure="nan")
    assert np.isnan(blank.x).all()
    assert blank.status is Status.MAX_ITER
    with pytest.raises(errors.NotConvergedError, match="backward"):
        client.vjp(a, b, b, method="cg", maxiter=3)


@pytest.mark.awaited
def test_one_bad_system_of_a_batch(client: Client) -> None:
    a = np.stack([np.eye(3), np.zeros((3, 3)), 2 * np.eye(3)])
    b = np.ones((3, 3))
    with pytest.raises(errors.SingularMatrixError, match="system 1 of 3") as caught:
        client.solve(a, b, method="lu")
    assert caught.value.solution is not None
    partial = client.solve(a, b, method="lu", on_failure="nan")
    np.testing.assert_array_equal(partial.x[[0, 2]], [np.ones(3), np.full(3, 0.5)])
    assert np.isnan(partial.x[1]).all()
    assert [e.status for e in partial.stats.elements] == [Status.OK, Status.SINGULAR_NUMERIC, Status.OK]


@pytest.mark.awaited
def test_without_raising_a_singular_matrix_gives_nan_and_its_status(client: Client) -> None:
    solution = client.solve(numerically_singular(), B5, on_failure="nan")
    assert np.isnan(solution.x).all()
    assert solution.status is Status.SINGULAR_NUMERIC
    assert client.solve(structurally_singular(), B5, on_failure="nan").status is Status.SINGULAR_STRUCTURAL


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_a_direct_answer_that_misses_an_asked_tolerance_is_not_ok(client: Client, layout: str) -> None:
    a = convection(6) if layout == "csr" else convection(6).toarray()
    with pytest.raises(errors.NotConvergedError, match="residual") as caught:
        client.solve(a, np.ones(36), rtol=1e-30)
    assert caught.value.solution is not None
    assert caught.value.solution.status is Status.STAGNATION
    np.testing.assert_allclose(a @ caught.value.solution.x, 1.0, atol=1e-12)
    assert np.isnan(client.solve(a, np.ones(36), rtol=1e-30, on_failure="nan").x).all()


@pytest.mark.parametrize("where", ["A", "b"])
def test_a_nan_in_one_system_of_a_batch_leaves_the_others_alone(client: Client, where: str) -> None:
    a = np.stack([2 * np.eye(3), 4 * np.eye(3), 8 * np.eye(3)])
    b = np.ones((3, 3))
    (a if where == "A" else b)[1, 2] = np.nan
    solution = client.solve(a, b, method="lu", on_failure="nan")
    assert [e.status for e in solution.stats.elements] == [Status.OK, Status.NONFINITE_INPUT, Status.OK]
    np.testing.assert_array_equal(solution.x[[0, 2]], [np.full(3, 0.5), np.full(3, 0.125)])
    assert np.isnan(solution.x[1]).all()
    with pytest.raises(errors.NotConvergedError, match="NaN"):
        client.solve(a, b, method="lu")


def test_a_warning_points_at_the_caller(client: Client) -> None:
    a, b = laplacian(8), np.ones(64)
    for call in (
        lambda: client.solve(a, b, method="cg", maxiter=2, on_failure="warn"),
        lambda: client.vjp(a, b, b, method="cg", maxiter=2, on_failure="warn"),
    ):
        with pytest.warns(errors.NotConvergedWarning) as caught:
            call()
        assert caught[0].filename == __file__


def test_an_ill_conditioned_matrix_is_answered_with_a_warning(client: Client) -> None:
    n = 14
    hilbert = 1.0 / (np.arange(n)[:, None] + np.arange(n)[None, :] + 1)
    with pytest.warns(errors.IllConditionedWarning, match="ill-conditioned"):
        solution = client.solve(hilbert, np.ones(n), method="lu")
    assert solution.status is Status.ILL_CONDITIONED
    assert solution.stats.backward_error < 1e-12


@pytest.mark.awaited
def test_a_changed_matrix_is_noticed(client: Client) -> None:
    """A canonical matrix whose values were written to after it was hashed."""
    from backsolve.matrix import Matrix
    from backsolve.options import make_options
    from backsolve.pattern import Pattern

    a = convection(5, seed=99_120_417)
    matrix = Matrix(Pattern.from_csr(a), a.data.copy())
    _ = matrix.ref
    matrix.values[3] += 1.0
    with pytest.raises(errors.MatrixChangedError, match="modified"):
        client.solve_matrix(matrix, np.ones(25), make_options())


@pytest.mark.awaited
def test_a_deadline_that_cannot_be_met(client: Client) -> None:
    with pytest.raises(errors.DeadlineError, match="timeout"):
        client.solve(laplacian(150), np.ones(22_500), timeout=1e-4)
