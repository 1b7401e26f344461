"""Whatever layout the caller has, the canonical form is one, and gradients find their way back."""

import numpy as np
import pytest
from scipy import sparse

from backsolve.canonical import PatternMemo, as_array, canonicalise, from_coordinates
from backsolve.errors import InvalidDtypeError, InvalidPatternError, InvalidShapeError
from backsolve.pattern import DensePattern, Pattern
from support.systems import convection

RNG_SEED = 930_175_264


def shuffled_coo(a: sparse.csr_array, duplicates: int) -> sparse.coo_array:
    """The same matrix as unsorted COO in which some entries are split in two."""
    rng = np.random.default_rng(RNG_SEED)
    coo = a.tocoo()
    twice = rng.choice(coo.nnz, duplicates, replace=False)
    data = coo.data.copy()
    data[twice] *= 0.25
    row = np.concatenate([coo.row, coo.row[twice]])
    col = np.concatenate([coo.col, coo.col[twice]])
    data = np.concatenate([data, 3 * data[twice]])
    order = rng.permutation(data.size)
    return sparse.coo_array((data[order], (row[order], col[order])), shape=a.shape)


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
def test_every_scipy_format_means_the_same_matrix(form: str) -> None:
    a = convection(5)
    canonical = canonicalise(a.asformat(form))
    pattern = canonical.matrix.pattern
    assert isinstance(pattern, Pattern)
    rebuilt = sparse.csr_array((canonical.matrix.values, pattern.indices, pattern.indptr), shape=a.shape)
    np.testing.assert_array_equal(rebuilt.toarray(), a.toarray())


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "lil"])
def test_a_gradient_returns_in_the_callers_format(form: str) -> None:
    a = convection(5).asformat(form)
    canonical = canonicalise(a)
    pattern = canonical.matrix.pattern
    assert isinstance(pattern, Pattern)
    gradient = np.arange(pattern.nnz, dtype=float) + 1
    back = canonical.like_caller(gradient)
    assert back.format == form
    expected = sparse.csr_array((gradient, pattern.indices, pattern.indptr), shape=a.shape)
    np.testing.assert_array_equal(back.toarray(), expected.toarray())


def test_duplicates_are_summed_and_each_gets_the_full_gradient() -> None:
    a = convection(4)
    coo = shuffled_coo(a, duplicates=9)
    canonical = canonicalise(coo)
    pattern = canonical.matrix.pattern
    assert isinstance(pattern, Pattern)
    np.testing.assert_array_equal(pattern.indices, a.indices)
    np.testing.assert_allclose(canonical.matrix.values, a.data, rtol=1e-15)
    gradient = np.random.default_rng(RNG_SEED).standard_normal(pattern.nnz)
    back = canonical.like_caller(gradient)
    np.testing.assert_array_equal(back.row, coo.row)
    dense = np.zeros(a.shape)
    dense[pattern.rows, pattern.indices] = gradient
    np.testing.assert_array_equal(back.data, dense[coo.row, coo.col])


def test_unsorted_csr_is_sorted_and_its_gradient_unsorted_again() -> None:
    a = convection(4)
    reversed_rows = sparse.csr_array(
        (
            np.concatenate([a.data[s:e][::-1] for s, e in zip(a.indptr, a.indptr[1:], strict=False)]),
            np.concatenate([a.indices[s:e][::-1] for s, e in zip(a.indptr, a.indptr[1:], strict=False)]),
            a.indptr,
        ),
        shape=a.shape,
    )
    canonical = canonicalise(reversed_rows)
    np.testing.assert_array_equal(canonical.matrix.values, a.data)
    back = canonical.like_caller(np.arange(a.nnz, dtype=float))
    np.testing.assert_array_equal(back.indices, reversed_rows.indices)
    assert back.data[0] == a.indptr[1] - 1


def test_explicit_zeros_are_kept() -> None:
    a = convection(3)
    a.data[3] = 0.0
    assert canonicalise(a).matrix.pattern.nnz == a.nnz


def test_strided_fortran_and_integer_input() -> None:
    base = np.arange(50).reshape(5, 10)
    view = base[:, ::2]
    canonical = canonicalise(view)
    assert canonical.matrix.dtype == np.float64
    np.testing.assert_array_equal(canonical.matrix.values, view)
    fortran = np.asfortranarray(np.arange(9.0).reshape(3, 3))
    np.testing.assert_array_equal(canonicalise(fortran).matrix.values, fortran)
    big_endian = np.arange(4.0).reshape(2, 2).astype(">f8")
    assert canonicalise(big_endian).matrix.dtype.isnative


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble, object, "U3", "M8[s]"])
def test_other_element_types_are_refused_with_the_cure(dtype: object) -> None:
    with pytest.raises(InvalidDtypeError, match="float64"):
        as_array(np.zeros(3).astype(dtype) if dtype is not object else np.array([object()]), "b")


@pytest.mark.parametrize(
    ("indptr", "indices", "text"),
    [
        ([0, 2, 1, 2], [0, 1], "decreases"),
        ([0, 1, 2, 3], [0, 3, 1], "outside"),
        ([0, 1, 2, 3], [0, -1, 1], "outside"),
        ([1, 1, 2, 3], [0, 1, 2], "begin with 0"),
        ([0, 1, 2, 4], [0, 1, 2], "does not end"),
        ([0, 1, 3], [0, 1, 2], "needs 4"),
        ([0, 2, 2, 3], [1, 0, 2], "unsorted"),
        ([0, 2, 2, 3], [1, 1, 2], "duplicated"),
    ],
)
def test_broken_patterns_are_named(indptr: list[int], indices: list[int], text: str) -> None:
    with pytest.raises(InvalidPatternError, match=text):
        Pattern(indptr, indices, (3, 3))


def test_a_falling_index_is_allowed_only_between_rows() -> None:
    pattern = Pattern([0, 0, 2, 2, 3, 3], [1, 4, 0], (5, 5))
    assert pattern.rows.tolist() == [1, 1, 3]


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (0, 4), (4, 0)])
@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "dia", "lil"])
def test_rectangular_matrices(layout: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(38_220_915)
    full = np.where(rng.random(shape) < 0.5, rng.standard_normal(shape), 0)
    for given in (full, sparse.coo_array(full).asformat(layout)):
        canonical = canonicalise(given)
        pattern, values = canonical.matrix.pattern, canonical.matrix.values
        assert (pattern.shape, canonical.matrix.m, canonical.matrix.n) == (shape, *shape)
        back = values
        if isinstance(pattern, Pattern):
            back = np.zeros(shape)
            back[pattern.rows, pattern.indices] = values
            assert np.array_equal(canonical.like_caller(values).toarray(), full)
        assert np.array_equal(back, full)


def test_duplicates_of_a_rectangular_matrix_are_summed() -> None:
    a = sparse.coo_array((np.array([1.0, 2.0, 4.0]), ([1, 0, 1], [6, 2, 6])), shape=(2, 7))
    assert canonicalise(a).matrix.values.tolist() == [2.0, 5.0]


def test_only_matrices() -> None:
    with pytest.raises(InvalidShapeError, match="dimensions"):
        canonicalise(np.ones(4))


def test_coordinates_outside_are_refused() -> None:
    with pytest.raises(InvalidPatternError, match="outside"):
        from_coordinates(np.array([0, 2]), np.array([0, 1]), (2, 2))


def test_empty_matrices() -> None:
    assert canonicalise(np.zeros((0, 0))).matrix.n == 0
    assert canonicalise(sparse.csr_array((0, 0))).matrix.n == 0
    assert canonicalise(sparse.csr_array((4, 4))).matrix.pattern.nnz == 0


def test_the_memo_notices_arrays_that_were_written_to() -> None:
    memo = PatternMemo()
    a = convection(4)
    first = canonicalise(a, memo=memo).matrix.pattern
    assert canonicalise(a.copy(), memo=memo).matrix.pattern is first
    a.indices[a.indptr[1] - 1] += 1
    changed = canonicalise(a, memo=memo).matrix.pattern
    assert isinstance(changed, Pattern)
    assert not changed.same_as(first)


def test_patterns_own_their_arrays() -> None:
    a = convection(3)
    pattern = Pattern.from_csr(a)
    before = pattern.indices.copy()
    a.indices[:] = 0
    np.testing.assert_array_equal(pattern.indices, before)
    with pytest.raises(ValueError, match="read-only"):
        pattern.indices[0] = 1
    assert DensePattern((3, 3)).nnz == 9
