"""Arrays in, a request to the client, arrays out: what TensorFlow calls back, in whichever thread it likes.

Nothing is kept from one call to the next. What later solves must know of the forward, the digests
and the method, leaves it as a note beside x and travels through the graph as x does, so that one
traced function may run many times at once.
"""

from dataclasses import dataclass, replace
from math import prod
from typing import Final, Literal, final

import numpy as np

from .._adapter.request import Observer, Phase, Request, System
from .._adapter.shapes import leading
from .._fork import renew_after_fork
from ..canonical import Entries, PatternMemo, from_coordinates
from ..client import Client, default_client
from ..errors import InvalidShapeError
from ..matrix import Matrix
from ..pattern import AnyPattern, DensePattern, StructuredPattern, check_square, parameters
from ..retry import Timeout
from ..storage import packed
from ..types import Array, Certificate, MatrixRef, OnFailure, Options, Storage

_memo: Final = PatternMemo()
renew_after_fork(_memo, PatternMemo.forget_locks)

_DIGEST: Final = 32

Operation = Literal["solve", "minimise", "normal"]
"""`M⁻¹ rhs`; or of least squares `G Aᴴ rhs` and `G rhs`, with G = (AᴴA + damp² I)⁺."""


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """A solve, but for its numbers.

    Attributes:
        client: where to solve; None: wherever the process solves when the request is made.
        pattern: of one sparse or structured matrix; None where it comes with the numbers (`Operands`).
        options, timeout, on_failure, observe: as the caller gave them.
        name: how the caller knows the values.
        operation: what is asked for.
        storage: of a matrix whose pattern comes with the numbers; a dense "lower" one is given whole.
        adjoint: solve with the adjoint of `options.trans`'s operator.
        cotangent: the right-hand side is a cotangent, of an adjoint that was differentiated.
    """

    client: Client | None
    pattern: AnyPattern | None
    options: Options
    timeout: Timeout
    on_failure: OnFailure
    observe: Observer | None
    name: str
    operation: Operation = "solve"
    storage: Storage = "general"
    adjoint: bool = False
    cotangent: bool = False

    def pulled_back(self) -> "Asked":
        """What a cotangent of this one's answer needs."""
        return replace(self, adjoint=not self.adjoint, cotangent=self.adjoint)


@final
@dataclass(frozen=True, slots=True)
class Operands:
    """The numbers of a solve.

    Attributes:
        values: `[*batch, nnz]`, or dense `[*batch, m, n]`.
        rhs: `[*batch, n]` or `[*batch, n, k]`.
        note: of the forward solve; empty in the forward itself.
        x0: first iterate, shaped like rhs.
        indices: `[nnz, 2]` rows and columns, in any order, of a sparse matrix that brings its own.
        shape: `[2]`, of that matrix.
    """

    values: Array
    rhs: Array
    note: Array
    x0: Array | None
    indices: Array | None
    shape: Array | None


def answer(asked: Asked, given: Operands) -> tuple[Array, Array, Certificate | None]:
    """Make the one request; x, of memory of its own, a note for later ones, and the certificate.

    Of a derivative with nothing on the right the answer is nothing, and no request is made: products with a Jacobian
    ask for such ones (`products.py`). There is no certificate then.
    """
    values, pattern = _canonical(asked, given)
    if asked.operation == "solve":
        check_square(pattern)
    lead = _checked(asked, given, values, pattern)
    wanted = (*lead, pattern.n, *given.rhs.shape[len(lead) + 1 :])
    if given.note.size and not given.rhs.any():
        return np.zeros(wanted, given.rhs.dtype), given.note, None
    rhs, x0 = given.rhs, given.x0
    if len(lead) > 1:
        size = prod(lead)
        values = values.reshape(size, *parameters(pattern))
        rhs = rhs.reshape(size, *rhs.shape[len(lead) :])
        x0 = None if x0 is None else x0.reshape(rhs.shape)
    matrix, options = Matrix.of_parameters(pattern, values), asked.options
    if given.note.size:
        ref, method = _read(given.note)
        matrix.named(ref)
        # The forward's method by name, so that its factor is met; with `reuse` it may have had none.
        options = options if options.reuse is not None else replace(options, method=method)
    x, certificate = _called(asked, options, matrix, rhs, x0)
    note = given.note if given.note.size else _written(matrix.ref, certificate.method)
    return np.ascontiguousarray(x).reshape(wanted), note, certificate


def _called(asked: Asked, options: Options, matrix: Matrix, rhs: Array, x0: Array | None) -> tuple[Array, Certificate]:
    """The call that the operation stands for; whoever observes is told of it."""
    client, certificates = asked.client or default_client(), list[Certificate]()

    def seen(phase: Phase, certificate: Certificate) -> None:
        certificates.append(certificate)
        if asked.observe is not None:
            asked.observe(phase, certificate)

    if asked.operation == "minimise":
        found = client.lstsq_matrix(matrix, rhs, options, timeout=asked.timeout, on_failure=asked.on_failure)
        seen("solve", found.stats)
        return found.x, found.stats
    if asked.operation == "normal":
        reply = client.normal_matrix(matrix, rhs, options, timeout=asked.timeout, on_failure=asked.on_failure)
        seen("adjoint", reply.stats)
        return np.asarray(reply.b), reply.stats
    system = System(client, matrix.pattern, options, asked.timeout, asked.on_failure, seen)
    x = Request(system, adjoint=asked.adjoint, cotangent=asked.cotangent).run(matrix, rhs, x0)
    return x, certificates[0]


def _canonical(asked: Asked, given: Operands) -> tuple[Array, AnyPattern]:
    """Values in canonical order, and their pattern."""
    if asked.pattern is not None:
        return given.values, asked.pattern
    if given.indices is None or given.shape is None:
        rows, columns = given.values.shape[-2:]
        pattern = DensePattern((rows, columns), asked.storage)
        return packed(given.values) if asked.storage == "lower" else given.values, pattern
    entries = coordinates(given.indices, (int(given.shape[0]), int(given.shape[1])))
    return entries.gather(given.values), entries.pattern.stored(asked.storage)


def coordinates(indices: Array, shape: tuple[int, int]) -> Entries:
    """Where stored entries in any order lie; a pattern that was met before is found again with its digest."""
    rows, columns = indices[:, 0], indices[:, 1]
    inside = indices.size == 0 or (indices.min() >= 0 and rows.max() < shape[0] and columns.max() < shape[1])
    if not inside or np.any(rows[1:] < rows[:-1]):
        return from_coordinates(rows, columns, shape)
    indptr = np.zeros(shape[0] + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=shape[0]), out=indptr[1:])
    return _memo.compressed(indptr, columns, shape, by_column=False)


def _checked(asked: Asked, given: Operands, values: Array, pattern: AnyPattern) -> tuple[int, ...]:
    """The batch dimensions of operands that fit each other.

    Raises:
        InvalidShapeError: they do not.
    """
    rows = pattern.m if asked.operation == "minimise" else pattern.n
    start = None if given.x0 is None else given.x0.shape
    lead = leading(values.shape, given.rhs.shape, start, parameters(pattern), rows, asked.name)
    if lead and isinstance(pattern, StructuredPattern) and pattern.base is not None:
        raise InvalidShapeError("there is a batch of updates: solve them one by one, S is factorized only once")
    return lead


def _written(ref: MatrixRef, method: str) -> Array:
    return np.frombuffer(ref.pattern + ref.values + method.encode(), dtype=np.uint8)


def _read(note: Array) -> tuple[MatrixRef, str]:
    told = note.tobytes()
    ref = MatrixRef(told[:_DIGEST], told[_DIGEST : 2 * _DIGEST])
    return ref, told[2 * _DIGEST :].decode()
