"""However the caller stores A: the right answer, and gradients in that same storage; no two matrices confused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from backsolve import Client
from support.collisions import collision_set
from support.fresh import new_rng
from support.systems import convection, op, random_like


def _unsorted(a: sparse.csr_array) -> sparse.csr_array:
    """Columns falling within each row."""
    rows = np.repeat(np.arange(a.shape[0]), np.diff(a.indptr))
    order = np.lexsort((-a.indices, rows))
    return sparse.csr_array((a.data[order], a.indices[order], a.indptr), shape=a.shape)


def _duplicated(a: sparse.csr_array) -> sparse.coo_array:
    """In any order, each entry in two unequal parts."""
    coo = a.tocoo()
    order = np.random.default_rng(483_920_175).permutation(2 * a.nnz)
    parts = np.concatenate([coo.data * 0.25, coo.data * 0.75])[order]
    rows, columns = (np.concatenate([index, index])[order] for index in (coo.row, coo.col))
    return sparse.coo_array((parts, (rows, columns)), shape=a.shape)


def _strided(a: sparse.csr_array) -> np.ndarray:
    full = a.toarray()
    wide = np.full((2 * full.shape[0], 3 * full.shape[1]), np.nan, dtype=full.dtype)
    wide[::2, ::3] = full
    return wide[::2, ::3]


def _big_endian(a: sparse.csr_array) -> sparse.csr_array:
    other = a.copy()
    other.data = other.data.astype(other.dtype.newbyteorder(">"))
    other.indices, other.indptr = other.indices.astype(">i4"), other.indptr.astype(">i4")
    return other


LAYOUTS: dict[str, Callable[[sparse.csr_array], Any]] = {
    "csr": lambda a: a,
    "csr-unsorted": _unsorted,
    "csr-big-endian": _big_endian,
    "csc": lambda a: a.tocsc(),
    "coo-duplicated": _duplicated,
    "dense": lambda a: a.toarray(),
    "dense-fortran": lambda a: np.asfortranarray(a.toarray()),
    "dense-strided": _strided,
    "dense-big-endian": lambda a: a.toarray().astype(a.dtype.newbyteorder(">")),
}


def _places(a: Any) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each number that the caller stores, in the caller's order."""
    if not sparse.issparse(a):
        rows, columns = np.indices(a.shape)
        return rows, columns
    if a.format == "coo":
        return a.row, a.col
    lines = np.repeat(np.arange(a.shape[0]), np.diff(a.indptr))
    return (lines, a.indices) if a.format == "csr" else (a.indices, lines)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("trans", ["N", "T", "H"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("values_on", ["client", "server"])
def test_answers_and_gradients_in_the_callers_storage(
    client: Client, layout: str, trans: str, dtype: str, values_on: str
) -> None:
    canonical = convection(5, dtype, seed=926_305_418)
    a = LAYOUTS[layout](canonical)
    b, g = (random_like((25, 2), dtype, seed) for seed in (159_846_302, 703_214_968))
    if layout.startswith("dense"):  # b comes as A does
        b = LAYOUTS[layout](sparse.csr_array(np.hstack([b, np.zeros((25, 23))])))[:, :2]
    operator = op(canonical, trans)
    x = client.solve(a, b, trans=trans).x
    np.testing.assert_allclose(x, np.linalg.solve(operator, b), rtol=1e-11, atol=1e-13)
    assert x.dtype == np.dtype(dtype)
    lam = np.linalg.solve(operator.conj().T, g)
    outer = -lam @ x.conj().T
    expected = {"N": outer, "T": outer.T, "H": outer.conj().T}[trans]
    pulled = client.vjp(a, x, g, trans=trans, values_on=values_on)
    np.testing.assert_allclose(pulled.b, lam, rtol=1e-11, atol=1e-13)
    values = pulled.values
    numbers = values
    if sparse.issparse(a):
        assert type(values) is type(a)
        for mine, theirs in zip(_places(values), _places(a), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        numbers = values.data
    assert numbers.dtype == np.dtype(dtype)
    np.testing.assert_allclose(numbers, expected[_places(a)], rtol=1e-10, atol=1e-12)


def test_every_layout_is_the_same_matrix(client: Client) -> None:
    """Sparse ones share one factor, dense ones another: the digest is that of the canonical form."""
    canonical = convection(5)
    canonical.data *= 1 + 2.0 ** -new_rng().integers(5, 40)
    for family in ("csr", "dense"):
        seen = client.stats()["factorizations"]
        for layout, make in LAYOUTS.items():
            if layout != "coo-duplicated" and layout.startswith(("dense",) if family == "dense" else ("cs",)):
                client.solve(make(canonical), np.ones(25))
        assert client.stats()["factorizations"] - seen == 1


def test_no_two_matrices_of_the_collision_set_are_confused(client: Client) -> None:
    """None finds another's factor, each finds its own, and each answer is that of its own matrix."""
    matrices = collision_set(1 + 1e-3 * new_rng().random())
    b = random_like((36,), "float64", 380_917_264)
    for first in (True, False):
        for name, (pattern, values) in matrices.items():
            a = sparse.csr_array((values, pattern.indices, pattern.indptr), shape=pattern.shape)
            rhs = b.astype(values.dtype)
            solution = client.solve(a, rhs)
            assert solution.stats.factor_hit is not first, name
            residual = np.linalg.norm(rhs - a @ solution.x) / np.linalg.norm(rhs)
            assert residual < (1e-4 if values.dtype == np.float32 else 1e-11), name
