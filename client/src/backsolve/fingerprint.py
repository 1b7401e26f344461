"""The identity of a matrix: BLAKE3-256 over a canonical header and the raw bytes.

Bitwise: -0.0 differs from 0.0 and a float32 matrix from its float64 copy, so two systems that
could differ in their answer never share a digest. The header carries the version of this
scheme, and both sides agree on it before they talk (`ServerInfo.digest_version`).
"""

import struct

import numpy as np
from blake3 import blake3

from .errors import InvalidPatternError
from .matrix import Matrix
from .pattern import AnyPattern, Pattern, StructuredPattern
from .types import DIGEST_VERSION, Array, MatrixRef

_THREADED_BYTES = 8 << 20
"""From here on BLAKE3's own threads pay (they cost about 80 us to wake)."""


def pattern_digest(pattern: AnyPattern) -> bytes:
    """Digest of shape, `indptr` and `indices`, or of kind and dims; kept on the pattern, which never changes.

    Raises:
        InvalidPatternError: of an update, whose digest takes the numbers of S as well (`update_digest`).
    """
    if isinstance(pattern, StructuredPattern) and pattern.base is not None:
        raise InvalidPatternError("the pattern of an update is named with the matrix that it stands on")
    if pattern._digest is None:
        if isinstance(pattern, Pattern):
            header = _header(b"pattern", b"csr", pattern.indices.dtype.str, pattern.shape, pattern.nnz)
            pattern._digest = _digest(header, pattern.indptr, pattern.indices)
        elif isinstance(pattern, StructuredPattern):
            name = np.frombuffer(pattern.kind.name.encode(), dtype=np.uint8)
            pattern._digest = _digest(_header(b"pattern", b"struct", "", pattern.dims, name.size), name)
        else:
            pattern._digest = _digest(_header(b"pattern", b"dense", "", pattern.shape, 0))
    return pattern._digest


def values_digest(pattern: AnyPattern, values: Array) -> bytes:
    """Digest of the element type, the batch and the numbers, in C order and little-endian."""
    header = _header(b"values", pattern.layout.encode(), values.dtype.str, values.shape, values.size)
    return _digest(header, values)


def update_digest(pattern: StructuredPattern, base: MatrixRef) -> bytes:
    """Digest of an update's kind and dims, and of both digests of the matrix that it stands on."""
    name = np.frombuffer(pattern.kind.name.encode(), dtype=np.uint8)
    below = np.frombuffer(base.pattern + base.values, dtype=np.uint8)
    return _digest(_header(b"pattern", b"struct", "", pattern.dims, name.size + below.size), name, below)


def matrix_ref(pattern: AnyPattern, values: Array, base: MatrixRef | None = None) -> MatrixRef:
    """Both digests of a matrix; `base` are those of the matrix that an update stands on."""
    if base is not None and isinstance(pattern, StructuredPattern):
        return MatrixRef(update_digest(pattern, base), values_digest(pattern, values), base.route or base.pattern)
    return MatrixRef(pattern_digest(pattern), values_digest(pattern, values))


def fresh_ref(matrix: Matrix) -> MatrixRef:
    """Both digests of a matrix as its numbers are now, whatever was computed of them before."""
    return matrix_ref(matrix.pattern, matrix.values, None if matrix.base is None else fresh_ref(matrix.base))


def _header(kind: bytes, layout: bytes, dtype: str, shape: tuple[int, ...], count: int) -> bytes:
    """A self-delimiting header: no two different headers have the same bytes."""
    dims = struct.pack(f"<{len(shape) + 1}q", *shape, count)
    return struct.pack("<9s8s8s8sBB", b"backsolve", kind, layout, dtype.encode(), DIGEST_VERSION, len(shape)) + dims


def _digest(header: bytes, *arrays: Array) -> bytes:
    size = sum(a.nbytes for a in arrays)
    hasher = blake3(header, max_threads=blake3.AUTO if size >= _THREADED_BYTES else 1)
    for array in arrays:
        if array.size:
            # A flat byte view: no copy, and BLAKE3 releases the GIL while it reads.
            hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.digest()
