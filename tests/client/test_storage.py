"""What storage "hermitian" and "lower" say of a matrix: patterns, digests, all entries, and what is refused."""

import pickle

import numpy as np
import pytest
from scipy import sparse

from backsolve import Pattern
from backsolve.canonical import canonicalise
from backsolve.errors import InvalidOptionError, InvalidPatternError, InvalidShapeError, NotHermitianError
from backsolve.fingerprint import pattern_digest
from backsolve.matrix import Matrix
from backsolve.options import least_squares_options
from backsolve.pattern import DensePattern, StructuredPattern, check_storage
from backsolve.storage import full, general, held_bytes, packed, unpacked
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.structure import inspect, inspect_pattern
from support.systems import laplacian, random_like


def hermitian(n: int, dtype: str, seed: int = 660_193_287) -> np.ndarray:
    a = random_like((n, n), dtype, seed)
    return a + a.conj().T


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_all_entries_come_of_a_triangle(n: int, dtype: str) -> None:
    a = hermitian(n, dtype)
    a[np.abs(a) < 0.7] = 0.0
    lower = sparse.csr_array(np.tril(a))
    operand = Operand(canonicalise(lower, storage="lower").matrix)
    np.testing.assert_array_equal(operand.systems[0].toarray(), a)
    assert operand.pattern.storage == "general"
    dense = Operand(canonicalise(a, storage="lower").matrix)
    np.testing.assert_array_equal(dense.systems[0], a)
    assert dense.matrix.values.size == n * (n + 1) // 2


def test_a_batch_is_filled_in_system_by_system() -> None:
    systems = np.stack([hermitian(5, "complex128", seed) for seed in (71, 72, 73)])
    operand = Operand(canonicalise(systems, storage="lower").matrix)
    np.testing.assert_array_equal(operand.values, systems)


def test_a_triangle_is_packed_by_rows_and_unpacked_with_zeros_above() -> None:
    a = np.arange(18.0).reshape(2, 3, 3)
    np.testing.assert_array_equal(packed(a)[0], [0, 3, 4, 6, 7, 8])
    np.testing.assert_array_equal(unpacked(packed(a), 3), np.tril(a))


def test_a_pattern_knows_its_storage_and_has_a_digest_of_its_own() -> None:
    a = sparse.csr_array(sparse.tril(laplacian(3)))
    every = Pattern.from_csr(a)
    lower = Pattern.from_csr(a, storage="lower")
    assert every.stored("lower") is every.stored("lower")
    assert every.stored("lower").same_as(lower)
    assert not every.same_as(lower)
    dense = [DensePattern((9, 9)), DensePattern((9, 9), "hermitian"), DensePattern((9, 9), "lower")]
    sym = Pattern.from_csr(laplacian(3))
    digests = {pattern_digest(p) for p in (every, lower, sym, sym.stored("hermitian"), *dense)}
    assert len(digests) == 7
    for pattern in (lower, dense[2]):
        again = pickle.loads(pickle.dumps(pattern))
        assert again.storage == "lower"
        assert again.same_as(pattern)
        assert "lower" in repr(pattern)
    assert not dense[0].same_as(dense[1])


def test_solvers_see_general_patterns_and_what_was_made_for_them_is_counted() -> None:
    for storage in ("general", "hermitian", "lower"):
        given = laplacian(4) if storage != "lower" else sparse.csr_array(sparse.tril(laplacian(4)))
        pattern = Pattern.from_csr(given, storage=storage)
        before = held_bytes(pattern)
        assert before == pattern.nbytes
        assert general(pattern).same_as(Pattern.from_csr(laplacian(4)))
        made = 0 if storage == "general" else full(pattern).nbytes if storage == "lower" else pattern.nbytes
        assert held_bytes(pattern) == before + made
    assert general(pattern) is general(pattern)


def test_what_storage_cannot_be_is_refused() -> None:
    a = laplacian(3)
    with pytest.raises(InvalidPatternError, match="tril"):
        Pattern.from_csr(a, storage="lower")
    with pytest.raises(InvalidPatternError, match="tril"):
        canonicalise(a, storage="lower")
    with pytest.raises(InvalidOptionError, match="'general', 'hermitian' or 'lower'"):
        check_storage("upper", (2, 2))
    with pytest.raises(InvalidOptionError, match="'general', 'hermitian' or 'lower'"):
        canonicalise(np.eye(3), storage="symmetric")  # type: ignore[arg-type]
    for shape in ((2, 3), (3, 2)):
        with pytest.raises(InvalidShapeError, match="square"):
            DensePattern(shape, "hermitian")
    with pytest.raises(InvalidOptionError, match="already"):
        Pattern.from_csr(a, storage="hermitian").stored("general")
    with pytest.raises(InvalidPatternError, match="general storage"):
        StructuredPattern("update", (9, 1), Pattern.from_csr(a, storage="hermitian"))
    with pytest.raises(InvalidOptionError, match="storage"):
        least_squares_options(storage="lower")  # type: ignore[call-arg]


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_a_diagonal_that_is_not_real_is_no_hermitian_matrix(dtype: str) -> None:
    a = hermitian(4, dtype)
    rounding = 2 * np.finfo(dtype).eps * np.abs(a[2, 2])
    a[2, 2] += 1j * rounding
    Operand(canonicalise(a, storage="lower").matrix)
    a[2, 2] += 1j * 100 * rounding
    with pytest.raises(NotHermitianError, match="diagonal is not real"):
        Operand(canonicalise(a, storage="lower").matrix)


def test_an_unfinished_system_of_a_batch_is_no_reason_to_refuse_the_others() -> None:
    systems = np.stack([hermitian(3, "complex128", seed) for seed in (74, 75)])
    for bad in (complex(np.nan, 1), complex(1, np.nan), complex(1, np.inf)):
        systems[1, 1, 1] = bad
        Operand(Matrix(DensePattern((3, 3), "lower"), packed(systems)))


def test_what_was_filled_in_is_hermitian_without_a_comparison() -> None:
    """NaN equals nothing, so a comparison would say that it is not."""
    a = hermitian(3, "float64")
    a[1, 0] = np.nan
    operand = Operand(canonicalise(a, storage="lower").matrix)
    assert inspect(inspect_pattern(operand.pattern), operand).hermitian
