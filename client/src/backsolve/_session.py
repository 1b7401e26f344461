"""Calls on matrices in canonical form: by digest first, with the data only when it is missed."""

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Final, TypeVar, final

import numpy as np

from ._failure import check_choice, settle, without_answer
from ._transports.base import JvpCall, PutCall, SolveCall, SolveReply, Transport, VjpCall
from .errors import (
    DigestMismatchError,
    InvalidDtypeError,
    InvalidShapeError,
    MatrixChangedError,
    NeedMatrixError,
    NeedValuesError,
    SolveError,
)
from .fingerprint import matrix_ref
from .matrix import Matrix
from .pattern import check_square
from .retry import Budget
from .types import Array, Gradients, MatrixRef, OnFailure, Options, Solution, Want

T = TypeVar("T")

_UPLOADS_PER_CALL = 4
"""A matrix that is evicted as often as this between its upload and its use does not fit the cache."""


class Unset:
    """The type of `UNSET`: not given, as opposed to None (no limit)."""


UNSET: Final = Unset()
Timeout = float | None | Unset


@final
class Session:
    """One transport, the time that calls may take, and the matrices it has sent. Thread-safe.

    Args:
        transport: what carries the calls.
        timeout: seconds for each call unless it says otherwise; None waits for ever.
    """

    def __init__(self, transport: Transport, timeout: float | None) -> None:
        self.transport = transport
        self.timeout = timeout
        self.uploads = 0
        self._met_before = False

    def solve(
        self,
        matrix: Matrix,
        rhs: Array,
        options: Options,
        x0: Array | None,
        timeout: Timeout,
        on_failure: OnFailure,
    ) -> Solution:
        """Solve `op(A) x = rhs`."""
        check_choice(on_failure)
        _check_fits(matrix, rhs, "b")
        ref, hashed = _timed_ref(matrix)
        call = SolveCall(ref, options, np.ascontiguousarray(rhs), _like(x0, rhs, "x0"))
        return self._solved(matrix, call, hashed, rhs, timeout, on_failure)

    def least_squares(
        self, matrix: Matrix, rhs: Array, options: Options, timeout: Timeout, on_failure: OnFailure
    ) -> Solution:
        """Minimise `||rhs - A x||² + damp² ||x||²`; `options.method` is one of least squares."""
        check_choice(on_failure)
        _check_type(matrix, rhs, "b")
        vector = matrix.is_vector(rhs)
        shape = (*matrix.systems_shape, matrix.n, *(() if vector else rhs.shape[-1:]))
        ref, hashed = _timed_ref(matrix)
        call = SolveCall(ref, options, np.ascontiguousarray(rhs), answer_shape=shape)
        return self._solved(matrix, call, hashed, np.empty(shape, rhs.dtype), timeout, on_failure)

    def _solved(
        self, matrix: Matrix, call: SolveCall, hashed: float, like: Array, timeout: Timeout, on_failure: OnFailure
    ) -> Solution:
        """Make the call; `like` is shaped like its answer."""
        options = call.options
        try:
            reply = self._send(matrix, lambda left: self.transport.solve(call, left), timeout)
        except SolveError as error:
            if on_failure == "raise":
                raise
            return without_answer(error, like, options.method, on_failure, "solve")
        return settle(_solution(reply, hashed), on_failure, "solve")

    def adjoint(
        self,
        matrix: Matrix,
        cotangent: Array,
        options: Options,
        want: tuple[Want, ...],
        x: Array | None,
        timeout: Timeout,
        on_failure: OnFailure,
        *,
        least_squares: bool = False,
    ) -> Gradients:
        """Pull a cotangent back; `options.trans` names the operator of the forward solve.

        Of least squares `b` of the reply is λ = (AᴴA + damp² I)⁺ · cotangent.
        """
        check_choice(on_failure)
        if least_squares:
            _check_type(matrix, cotangent, "the cotangent")
            matrix.is_vector(cotangent, of_columns=True)
        else:
            _check_fits(matrix, cotangent, "the cotangent")
        ref, hashed = _timed_ref(matrix)
        call = VjpCall(ref, options, np.ascontiguousarray(cotangent), want, _like(x, cotangent, "x"))
        what = "adjoint solve (backward)"
        try:
            reply = self._send(matrix, lambda left: self.transport.vjp(call, left), timeout)
        except SolveError as error:
            if on_failure == "raise":
                raise
            blank = without_answer(error, cotangent, options.method, on_failure, what)
            values = np.full_like(matrix.values, np.nan) if "values" in want else None
            return Gradients(blank.x if "b" in want else None, values, blank.stats)
        lam = np.zeros(0, matrix.dtype) if reply.b is None else reply.b
        settled = settle(_solution(SolveReply(lam, reply.certificate), hashed), on_failure, what)
        return Gradients(None if reply.b is None else settled.x, reply.values, settled.stats)

    def tangent(
        self, matrix: Matrix, rhs: Array, options: Options, timeout: Timeout, on_failure: OnFailure
    ) -> Solution:
        """Solve `op(A) dx = rhs`, where `rhs = db - op(dA) x` was formed by the caller."""
        check_choice(on_failure)
        _check_fits(matrix, rhs, "the tangent")
        ref, hashed = _timed_ref(matrix)
        call = JvpCall(ref, options, None, np.ascontiguousarray(rhs), None)
        what = "tangent solve"
        try:
            reply = self._send(matrix, lambda left: self.transport.jvp(call, left), timeout)
        except SolveError as error:
            if on_failure == "raise":
                raise
            return without_answer(error, rhs, options.method, on_failure, what)
        return settle(_solution(reply, hashed), on_failure, what)

    def budget(self, timeout: Timeout) -> Budget:
        """The time of one call."""
        seconds = self.timeout if isinstance(timeout, Unset) else timeout
        return Budget(seconds, met_before=self._met_before)

    def _send(self, matrix: Matrix, attempt: Callable[[float | None], T], timeout: Timeout) -> T:
        """Make a call by digest; when the server lacks the matrix, upload it and call again."""
        budget = self.budget(timeout)
        for _ in range(_UPLOADS_PER_CALL):
            try:
                reply = budget.run(attempt)
            except NeedValuesError:
                self._upload(matrix, budget, values_only=True)
            except NeedMatrixError:
                self._upload(matrix, budget, values_only=False)
            else:
                self._met_before = True
                return reply
        self._upload(matrix, budget, values_only=False)
        return budget.run(attempt)

    def _upload(self, matrix: Matrix, budget: Budget, *, values_only: bool) -> None:
        """Send a matrix under the digests it was called by.

        Raises:
            MatrixChangedError: its values are no longer those that the call has named.
        """
        self._met_before = True
        self.uploads += 1
        call = PutCall(matrix.ref, matrix, values_only)
        try:
            budget.run(lambda left: self.transport.put(call, left))
        except NeedMatrixError:
            whole = PutCall(matrix.ref, matrix)
            budget.run(lambda left: self.transport.put(whole, left))
        except DigestMismatchError as error:
            if matrix_ref(matrix.pattern, matrix.values) != matrix.ref:
                raise MatrixChangedError(
                    "A was modified after the call that used it began: pass a copy, or do not write to it in place"
                ) from error
            raise


def _timed_ref(matrix: Matrix) -> tuple[MatrixRef, float]:
    """The digests of a matrix, and the seconds that taking them cost now."""
    if matrix.hashed:
        return matrix.ref, 0.0
    started = perf_counter()
    ref = matrix.ref
    return ref, perf_counter() - started


def _solution(reply: SolveReply, hashed: float) -> Solution:
    """The reply as callers see it, with this side's part of the times."""
    seconds = replace(reply.certificate.seconds, hash=hashed)
    stats = replace(reply.certificate, seconds=seconds)
    return Solution(reply.x, stats.status, stats)


def _check_fits(matrix: Matrix, array: Array, what: str) -> None:
    check_square(matrix.pattern)
    _check_type(matrix, array, what)
    matrix.is_vector(array)


def _check_type(matrix: Matrix, array: Array, what: str) -> None:
    if array.dtype != matrix.dtype:
        raise InvalidDtypeError(f"{what} is {array.dtype}, A is {matrix.dtype}: convert one to the other's type")


def _like(array: Array | None, rhs: Array, what: str) -> Array | None:
    if array is None:
        return None
    if array.shape != rhs.shape:
        raise InvalidShapeError(f"{what} has shape {array.shape}, it must be shaped like b, {rhs.shape}")
    return np.ascontiguousarray(array, dtype=rhs.dtype)
