"""Whatever numbers and shapes come in: an answer that is right, a status, or one of our own errors."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array

from backsolve import Client
from backsolve.errors import BacksolveError, IllConditionedWarning, InternalError
from backsolve.types import TRANS, Status
from loadtests.fails_safely.__main__ import cases
from loadtests.fails_safely.judge import error_of

CASES = [
    case for case in cases() if case[2] in (None, "none", "jacobi") or case[:2] in (("cg", "csr"), ("gmres", "csr"))
]
MAXITER = {"maxiter": 60}

plain = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -3.0])
"""Few numbers, so that rows are often equal, or dependent."""
strange = st.sampled_from(
    [
        np.nan,
        np.inf,
        -np.inf,
        5e-324,
        -1e-310,
        2.3e-308,
        1e-200,
        1e-160,
        1e150,
        -1e200,
        1.7e308,
        1 / 3,
        1e-17,
        1 + 1e-15,
    ]
)
DTYPES = st.sampled_from(["float64", "float64", "complex128", "float32", "complex64"])


@st.composite
def drawn(draw):
    """A matrix as coordinates, duplicates and explicit zeros included, and a right-hand side."""
    n, dtype = draw(st.integers(0, 6)), np.dtype(draw(DTYPES))
    number = draw(st.sampled_from([plain, plain, st.one_of(plain, strange), st.floats(-4, 4, width=32)]))
    nnz = draw(st.integers(0, n * n + n))
    where = st.lists(st.integers(0, max(n - 1, 0)), min_size=nnz, max_size=nnz)
    rows, columns = draw(where), draw(where)
    shape = (n, *draw(st.sampled_from([(), (1,), (3,), (0,)])))
    entries, b = numbers(draw, number, (nnz,), dtype), numbers(draw, number, shape, dtype)
    a = coo_array((entries, (np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64))), shape=(n, n))
    if n and draw(st.booleans()):
        # Hermitian, with a diagonal that some methods need before they look any further.
        with np.errstate(all="ignore"):
            full = a.toarray()
            a = coo_array(full + full.conj().T + draw(st.sampled_from([0, 1, 8])) * np.eye(n, dtype=dtype))
    return a.astype(dtype), b, draw(st.sampled_from(TRANS)), draw(st.booleans())


def numbers(draw, number, shape, dtype):
    size = int(np.prod(shape))
    parts = [np.array(draw(st.lists(number, min_size=size, max_size=size)), dtype=np.float64) for _ in range(2)]
    with np.errstate(all="ignore"):
        made = parts[0] + (0 if dtype.kind != "c" else 1j * np.where(np.isfinite(parts[1]), parts[1], 0))
        return made.astype(dtype).reshape(shape)


def tried(client, case, system) -> Any:
    """The solution; None after an error of ours, anything else escapes."""
    method, layout, preconditioner = case
    a, b, trans, limited = system
    options = {} if preconditioner is None else {"preconditioner": preconditioner}
    options |= MAXITER if preconditioner is not None and limited else {}
    with np.errstate(all="ignore"):
        matrix = a.toarray() if layout == "dense" else a
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", IllConditionedWarning)
        try:
            return client.solve(matrix, b, method=method, trans=trans, **options)
        except InternalError:
            raise
        except BacksolveError as error:
            found = getattr(error, "solution", None)
            assert found is None or found.status is not Status.OK
            return found


@pytest.fixture(scope="module")
def solving():
    with Client("embedded") as client:
        yield client


BIG = coo_array(1e200 * np.array([[1.0, 1.0], [1.0, -1.0]])), np.array([1e-200, 1e200]), "T", False

CANCELLING = coo_array(([np.inf, -np.inf], ([0, 0], [0, 0])), shape=(1, 1)), np.ones(1), "N", False
"""Duplicated entries whose sum is NaN."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(part for part in case if part))
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(system=drawn())
@example(system=BIG)
@example(system=CANCELLING)
@example(system=(coo_array((0, 0)), np.empty((0, 3)), "H", True))
def test_whatever_comes_in(solving, case, system):
    found = tried(solving, case, system)
    if found is None:
        return
    a, b, trans, _ = system
    assert found.x.shape == b.shape
    if found.status is Status.OK:
        with np.errstate(all="ignore"):
            full = a.toarray()
        assert np.isfinite(full).all()
        assert np.isfinite(found.x).all()
        assert error_of(case[0], full, b, found.x, trans) <= (1e-6 if np.finfo(a.dtype).eps < 1e-10 else 1e-3)
