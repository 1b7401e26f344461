"""What a call must be before anything is computed for it; each fault has its own error."""

import math

import numpy as np

from backsolve.errors import (
    DigestMismatchError,
    InvalidDtypeError,
    InvalidOptionError,
    InvalidShapeError,
    NonfiniteInputError,
    NotHermitianError,
)
from backsolve.matrix import Matrix
from backsolve.types import DIGEST_BYTES, Array, MatrixRef

from ..engine.operand import Operand
from ..engine.structure import Structure
from ..engine.symmetry import hermitian_systems


def check_ref(ref: MatrixRef) -> None:
    """Refuse digests that cannot be any matrix's."""
    if len(ref.pattern) != DIGEST_BYTES or len(ref.values) != DIGEST_BYTES:
        raise InvalidOptionError(f"a digest has {DIGEST_BYTES} bytes")


def columns(matrix: Matrix, array: Array, what: str, *, of_columns: bool = False) -> Array:
    """A right-hand side as columns `[m, k]` or `[batch, m, k]`, checked; with `of_columns` it has n rows.

    Raises:
        InvalidDtypeError: not the matrix's element type.
        InvalidShapeError: neither vectors nor columns of this matrix.
        NonfiniteInputError: NaN or infinity in it, and the matrix is no batch.
    """
    if array.dtype != matrix.dtype:
        raise InvalidDtypeError(f"{what} is {array.dtype}, A is {matrix.dtype}: convert one to the other's type")
    vector = matrix.is_vector(array, of_columns=of_columns)
    # Of a batch each system has its own status, so the good ones are solved.
    if matrix.batch is None and not _finite(array):
        raise NonfiniteInputError(f"{what} holds NaN or infinity: check what computed it")
    return array[..., None] if vector else array


def _finite(array: Array) -> bool:
    """Whether every entry is a finite number.

    NaN and infinity make the sum of the squares one of both, and so do numbers beyond the root of the largest: those
    are looked at one by one. In place of that the sum takes a third of the time.
    """
    return math.isfinite(abs(np.vdot(array, array))) or bool(np.isfinite(array).all())


def check_values_shape(matrix: Matrix, array: Array, what: str) -> None:
    """Refuse tangents of the values that are not shaped and typed like the values."""
    if array.shape != matrix.parameters_shape:
        raise InvalidShapeError(f"{what} has shape {array.shape}, A's values {matrix.parameters_shape}")
    if array.dtype != matrix.dtype:
        raise InvalidDtypeError(f"{what} is {array.dtype}, A is {matrix.dtype}: convert one to the other's type")


def check_digests(claimed: MatrixRef, computed: MatrixRef) -> None:
    """Refuse data that is not what it was announced as; values may be unnamed.

    Raises:
        DigestMismatchError: it was changed under way, or after it was hashed.
    """
    if claimed != computed and not (claimed.is_unnamed and claimed.pattern == computed.pattern):
        part = "pattern" if claimed.pattern != computed.pattern else "values"
        raise DigestMismatchError(f"the {part} received do not have the digest they were announced under: send again")


def check_storage(operand: Operand, structure: Structure) -> None:
    """Refuse a matrix that was announced as Hermitian and is not.

    The comparison is the one that `structure` rests on: it is made once for each matrix that is held.

    Raises:
        NotHermitianError: an entry differs from the conjugate of its mirror image; of a batch, in a system
            that is finite.
    """
    if operand.stored != "hermitian" or structure.hermitian:
        return
    if operand.batch is not None and structure.facts.symmetric_pattern:
        finite = np.isfinite(operand.values.reshape(operand.batch, -1)).all(axis=1)
        if np.all(hermitian_systems(operand) | ~finite):
            return
    raise NotHermitianError(
        "storage 'hermitian' was promised, and A differs from its conjugate transpose by more than rounding: pass "
        "(A + A.conj().T) / 2 if that is what is meant, or storage='general'"
    )


def check_same_shape(array: Array, like: Array, what: str) -> Array:
    """The array, if it is shaped like the one it goes with."""
    if array.shape != like.shape:
        raise InvalidShapeError(f"{what} has shape {array.shape}, it must be {like.shape}")
    return array
