"""A sparse matrix that elimination finds singular: which column is it?"""

import warnings

import numpy as np
import pytest
from scipy import sparse

from backsolve import Client
from backsolve.errors import IllConditionedWarning, SingularMatrixError
from backsolve.types import Status
from backsolve_service.engine.direct.dependent import dependent_column
from backsolve_service.engine.registry import ROWS, methods
from engine.table import numbers

N = 60
SPARSE = [
    name for name in methods() if ROWS[name].direct and ROWS[name].needs == "square" and "csr" in ROWS[name].layouts
]


def regular(dtype="float64", seed=730_118_264):
    """Small whole numbers, so that combinations are exact; no column depends on others."""
    places = np.random.default_rng(seed).random((N, N)) < 0.08
    a = np.rint(2 * np.where(places, numbers((N, N), "float64", seed + 1), 0))
    return (a + np.diag(np.where(np.arange(N) % 2, 9.0, -8.0))).astype(dtype)


def dependent(kind, dtype="float64"):
    """A matrix and the columns that may be named."""
    a = regular(dtype)
    if kind == "multiple":
        a[:, 41] = 2 * a[:, 17]
        return a, {41, 17}
    if kind == "combination":
        a[:, 5] = a[:, 30] - a[:, 51]
        return a, {5, 30, 51}
    if kind == "badly scaled":
        a[:, 41] = 2 * a[:, 17]
        a[:, 3] *= 2.0**-40
        a[7] *= 2.0**50
        return a, {41, 17}
    a[:, 23] = 0
    return a, {23}


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("kind", ["multiple", "combination", "badly scaled", "zero"])
def test_the_column_is_found(kind, dtype):
    a, columns = dependent(kind, dtype)
    found = dependent_column(sparse.csc_array(a))
    assert found is not None
    assert found[0] in columns
    if kind != "badly scaled":
        assert found[1] == len(columns) - 1
        assert np.linalg.matrix_rank(np.delete(a, found[0], axis=1)) == N - 1, "without it the others are independent"


def test_columns_that_share_too_few_rows_are_found_by_the_pattern():
    a = np.diag(np.arange(1.0, 7.0))
    a[:, 2:5] = 0
    a[0, 2:5] = a[1, 2:5] = 1
    assert dependent_column(sparse.csc_array(a)) in {(column, -1) for column in (0, 1, 2, 3, 4)}


def test_no_column_of_a_regular_matrix_is_named():
    a = regular()
    a[:, 3] *= 2.0**-60
    assert dependent_column(sparse.csc_array(a)) is None


@pytest.mark.parametrize("method", ["auto", *SPARSE])
@pytest.mark.parametrize("kind", ["multiple", "combination", "zero"])
def test_every_direct_method_names_it(embedded: Client, method, kind):
    a, columns = dependent(kind)
    stored = sparse.csr_array(np.where(regular() != 0, 1.0, 0) + (a != 0))
    stored.data[:] = a[stored.nonzero()]  # a zero column is stored: the pattern says nothing
    rounded = kind == "combination" or (kind == "multiple" and method in ("banded", "block_diagonal"))
    with warnings.catch_warnings():
        # Where elimination has rounded, the pivot is not zero, but it says as much.
        warnings.simplefilter("ignore" if rounded else "error", IllConditionedWarning)
        try:
            got = embedded.solve(stored, np.arange(N) % 7 + 1.0, method=method)
        except SingularMatrixError as error:
            caught = error
        else:
            assert rounded
            assert got.status is Status.ILL_CONDITIONED
            return
    details = caught.details
    assert int(details["column"]) in columns
    assert f"column {details['column']}" in str(caught)
