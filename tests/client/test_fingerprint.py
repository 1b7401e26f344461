"""Two systems that could have different answers never share a digest."""

import numpy as np
import pytest
from blake3 import blake3

from backsolve.errors import InvalidDtypeError
from backsolve.fingerprint import matrix_ref, pattern_digest, values_digest
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern
from support.collisions import collision_set
from support.systems import convection


def test_the_collision_set_has_no_collisions() -> None:
    refs = {name: matrix_ref(p, v) for name, (p, v) in collision_set().items()}
    assert len(set(refs.values())) == len(refs)


def test_bytes_that_look_alike_differ_by_their_header() -> None:
    numbers = np.arange(16, dtype=np.float64)
    digests = {
        values_digest(DensePattern((4, 4)), numbers.reshape(4, 4)),
        values_digest(DensePattern((2, 2)), numbers.reshape(4, 2, 2)),
        values_digest(DensePattern((4, 4)), numbers.view(np.complex128)),
        values_digest(Pattern(np.arange(17), np.arange(16), (16, 16)), numbers),
        values_digest(Pattern(np.arange(9), np.arange(8), (8, 8)), numbers.reshape(2, 8)),
    }
    assert len(digests) == 5


def test_equal_content_has_equal_digests_whatever_its_memory() -> None:
    a = convection(5)
    wide = np.zeros((a.nnz, 3))
    wide[:, 1] = a.data
    pattern = Pattern.from_csr(a)
    again = Pattern(a.indptr.astype(np.int64), a.indices.astype(np.int64), a.shape)
    assert pattern_digest(pattern) == pattern_digest(again)
    assert Matrix(pattern, a.data).ref == Matrix(again, wide[:, 1]).ref


def test_large_values_hash_as_small_ones_do() -> None:
    """Threads are used from 8 MiB on: the digest must not depend on them."""
    values = np.random.default_rng(160_493_718).standard_normal((1100, 1100))
    pattern = DensePattern((1100, 1100))
    digest = values_digest(pattern, values)
    assert digest != values_digest(pattern, values + 0.0 * values + 1e-300) or np.array_equal(values, values + 1e-300)
    assert digest == values_digest(pattern, values.copy())
    assert len(digest) == len(blake3(b"").digest())


def test_half_precision_is_refused() -> None:
    with pytest.raises(InvalidDtypeError, match="convert"):
        Matrix(DensePattern((2, 2)), np.eye(2, dtype=np.float16))
