"""The identity of a matrix: BLAKE3-256 over a canonical header and the raw bytes.

Bitwise: -0.0 differs from 0.0 and a float32 matrix from its float64 copy, so two systems that
could differ in their answer never share a digest. The header carries the version of this
scheme, and both sides agree on it before they talk (`ServerInfo.digest_version`).
"""

import struct
import time
from dataclasses import dataclass
from math import prod
from typing import Any, final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from .errors import InvalidPatternError
from .matrix import Matrix
from .pattern import AnyPattern, Pattern, StructuredPattern
from .types import DIGEST_VERSION, Array, MatrixRef, Storage

_THREADED_BYTES = 8 << 20
"""From here on BLAKE3's own threads pay (they cost about 80 us to wake)."""

_CSR: dict[Storage, bytes] = {"general": b"csr", "hermitian": b"csr-h", "lower": b"csr-l"}
_DENSE: dict[Storage, bytes] = {"general": b"dense", "hermitian": b"dense-h", "lower": b"dense-l"}
"""A pattern's layout and storage in its header. Another server's reading of the same arrays has another digest."""


@final
class RunningDigest:
    """A digest that is taken piece by piece, while the bytes arrive.

    Args:
        header: what the bytes are, as the digest of all of them has it.

    Attributes:
        header: the same.
        nbytes: taken so far.
        seconds: that this took.
    """

    __slots__ = ("_hasher", "header", "nbytes", "seconds")

    def __init__(self, header: bytes) -> None:
        self.header, self.nbytes, self.seconds = header, 0, 0.0
        self._hasher = blake3(header)

    @classmethod
    def of_values(cls, layout: str, dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> "RunningDigest":
        """Of the values of a matrix on a pattern of this layout."""
        return cls(_header(b"values", layout.encode(), dtype.str, shape, prod(shape)))

    @classmethod
    def of_csr(
        cls, dtype: "np.dtype[Any]", shape: tuple[int, ...], nnz: int, storage: Storage = "general"
    ) -> "RunningDigest":
        """Of a sparse pattern: all of `indptr`, then `indices`, both of this type."""
        return cls(_header(b"pattern", _CSR[storage], dtype.str, shape, nnz))

    def add(self, data: NDArray[np.uint8]) -> None:
        """Take the next bytes."""
        started = time.perf_counter()
        self._hasher.update(data.data)
        self.nbytes += data.size
        self.seconds += time.perf_counter() - started

    def digest(self) -> bytes:
        """The digest of what was taken."""
        return self._hasher.digest()


@final
@dataclass(frozen=True, slots=True)
class Taken:
    """Digests that were taken of a matrix on its way; one is None where that could not be."""

    pattern: RunningDigest | None = None
    values: RunningDigest | None = None


_NOTHING = Taken()


def pattern_digest(pattern: AnyPattern, taken: RunningDigest | None = None) -> bytes:
    """Digest of storage, shape, `indptr` and `indices`, or of kind and dims; kept on the pattern, which never changes.

    Args:
        pattern: what is named.
        taken: of its very bytes; used if it is of such a pattern.

    Raises:
        InvalidPatternError: of an update, whose digest takes the numbers of S as well (`update_digest`).
    """
    if isinstance(pattern, StructuredPattern) and pattern.base is not None:
        raise InvalidPatternError("the pattern of an update is named with the matrix that it stands on")
    if pattern._digest is None:
        if isinstance(pattern, Pattern):
            header = _header(b"pattern", _CSR[pattern.storage], pattern.indices.dtype.str, pattern.shape, pattern.nnz)
            pattern._digest = _taken(taken, header, pattern.nbytes) or _digest(header, pattern.indptr, pattern.indices)
        elif isinstance(pattern, StructuredPattern):
            name = np.frombuffer(pattern.kind.name.encode(), dtype=np.uint8)
            pattern._digest = _digest(_header(b"pattern", b"struct", "", pattern.dims, name.size), name)
        else:
            pattern._digest = _digest(_header(b"pattern", _DENSE[pattern.storage], "", pattern.shape, 0))
    return pattern._digest


def values_digest(pattern: AnyPattern, values: Array, taken: RunningDigest | None = None) -> bytes:
    """Digest of the element type, the batch and the numbers, in C order and little-endian.

    Args:
        pattern: that they are on.
        values: the numbers.
        taken: of their very bytes; used if it is of such values.
    """
    header = _header(b"values", pattern.layout.encode(), values.dtype.str, values.shape, values.size)
    return _taken(taken, header, values.nbytes) or _digest(header, values)


def update_digest(pattern: StructuredPattern, base: MatrixRef) -> bytes:
    """Digest of an update's kind and dims, and of both digests of the matrix that it stands on."""
    name = np.frombuffer(pattern.kind.name.encode(), dtype=np.uint8)
    below = np.frombuffer(base.pattern + base.values, dtype=np.uint8)
    return _digest(_header(b"pattern", b"struct", "", pattern.dims, name.size + below.size), name, below)


def matrix_ref(pattern: AnyPattern, values: Array, base: MatrixRef | None = None, taken: Taken = _NOTHING) -> MatrixRef:
    """Both digests of a matrix.

    Args:
        pattern, values: the matrix.
        base: digests of the matrix that an update stands on.
        taken: digests of the very bytes of pattern and values, which then are not read again.
    """
    of_values = values_digest(pattern, values, taken.values)
    if base is not None and isinstance(pattern, StructuredPattern):
        return MatrixRef(update_digest(pattern, base), of_values, base.route or base.pattern)
    return MatrixRef(pattern_digest(pattern, taken.pattern), of_values)


def fresh_ref(matrix: Matrix) -> MatrixRef:
    """Both digests of a matrix as its numbers are now, whatever was computed of them before."""
    return matrix_ref(matrix.pattern, matrix.values, None if matrix.base is None else fresh_ref(matrix.base))


def _header(kind: bytes, layout: bytes, dtype: str, shape: tuple[int, ...], count: int) -> bytes:
    """A self-delimiting header: no two different headers have the same bytes."""
    dims = struct.pack(f"<{len(shape) + 1}q", *shape, count)
    return struct.pack("<9s8s8s8sBB", b"backsolve", kind, layout, dtype.encode(), DIGEST_VERSION, len(shape)) + dims


def _taken(running: RunningDigest | None, header: bytes, nbytes: int) -> bytes | None:
    """A digest that was taken already, if it is of just that."""
    return running.digest() if running is not None and (running.header, running.nbytes) == (header, nbytes) else None


def _digest(header: bytes, *arrays: Array) -> bytes:
    size = sum(a.nbytes for a in arrays)
    hasher = blake3(header, max_threads=blake3.AUTO if size >= _THREADED_BYTES else 1)
    for array in arrays:
        if array.size:
            # A flat byte view: no copy, and BLAKE3 releases the GIL while it reads.
            hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.digest()
