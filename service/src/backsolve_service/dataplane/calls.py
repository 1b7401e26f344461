"""What each call computes, once it is admitted: checks, the cache, the solve, the gradient."""

import time
from dataclasses import replace
from typing import final

import numpy as np

from backsolve._transports.base import JvpCall, PutCall, SolveCall, SolveReply, VjpCall, VjpReply
from backsolve.errors import (
    InvalidOptionError,
    NeedMatrixError,
    NeedValuesError,
    NonfiniteInputError,
    PayloadTooLargeError,
)
from backsolve.fingerprint import Taken, matrix_ref
from backsolve.gradient import adjoint, parameters_gradient, parameters_tangent_rhs
from backsolve.matrix import Matrix, standing_on
from backsolve.pattern import DensePattern, StructuredPattern, check_square
from backsolve.types import Array, Holding, Limits, MatrixRef

from ..cache.entries import MatrixEntry
from ..cache.store import FactorCache
from ..context import CallContext, WouldWaitError
from ..engine.operand import Operand
from ..engine.registry import least_squares
from ..engine.structure import inspect, inspect_pattern
from ..scheduling.steps import Steps
from ..scheduling.worker import FactorRef
from .checks import check_digests, check_ref, check_same_shape, check_storage, check_values_shape, columns
from .solving import Answering
from .telemetry import Telemetry

_FIRST_USE = 2
"""Uses of a matrix that was stored and then asked for once: the call for which it was sent."""

_SMALL_BYTES = 1 << 20
"""A gradient of so many bytes takes a fraction of a millisecond."""


@final
class Counted:
    """A call that counts at the end of a `with` block, however that ends, unless it will be made again."""

    __slots__ = ("_name", "_telemetry")

    def __init__(self, telemetry: Telemetry, name: str) -> None:
        self._telemetry, self._name = telemetry, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not WouldWaitError:
            self._telemetry.count(self._name)


@final
class Calls:
    """The calls of one data plane.

    Args:
        cache: what is held.
        answering: solves with what is held.
        telemetry: counts.
        limits: of one call.
    """

    def __init__(
        self, cache: FactorCache[FactorRef], answering: Answering, telemetry: Telemetry, limits: Limits
    ) -> None:
        self._cache = cache
        self._answering = answering
        self._telemetry = telemetry
        self._limits = limits

    def solve(self, call: SolveCall, context: CallContext) -> Steps[SolveReply]:
        """Solve `op(A) x = b`."""
        brought = None if call.values is None else self._keep(call.ref, call.values, context)
        entry = self._entry(brought or call.ref, context)
        with Counted(self._telemetry, "solves"), self._cache.pin(entry) as held:
            rhs = columns(held.operand.matrix, call.rhs, "b")
            x0 = (
                None
                if call.x0 is None
                else columns(held.operand.matrix, check_same_shape(call.x0, call.rhs, "x0"), "x0")
            )
            x, certificate = yield from self._answering.answer("solve", held, call.options, rhs, x0, context)
        # Of least squares x has another number of rows than b.
        rows = rhs.ndim - 2
        shape = (*call.rhs.shape[:rows], held.operand.n, *call.rhs.shape[rows + 1 :])
        return SolveReply(x.reshape(shape), certificate, brought)

    def vjp(self, call: VjpCall, context: CallContext) -> Steps[VjpReply]:
        """One adjoint solve; the gradient of the values if it is wanted from here."""
        entry = self._entry(call.ref, context)
        with Counted(self._telemetry, "adjoint_solves"), self._cache.pin(entry) as held:
            matrix = held.operand.matrix
            if least_squares(call.options.method):
                return (yield from self._normal(call, held, context))
            cotangent = columns(matrix, call.cotangent, "the cotangent")
            forward = None
            if "values" in call.want:
                if call.x is None:
                    raise InvalidOptionError("the gradient of the values needs x, the forward answer")
                forward = columns(matrix, check_same_shape(call.x, call.cotangent, "x"), "x")
            trans, conjugate = adjoint(call.options.trans)
            options = replace(call.options, trans=trans)
            rhs = np.conj(cotangent) if conjugate else cotangent
            lam, certificate = yield from self._answering.answer("vjp", held, options, rhs, None, context)
            lam = np.conj(lam) if conjugate else lam
            values = None
            if forward is not None:
                values = parameters_gradient(matrix, lam, forward, call.options.trans)
        wanted = lam.reshape(call.cotangent.shape) if "b" in call.want else None
        return VjpReply(wanted, values, certificate)

    def _normal(self, call: VjpCall, held: MatrixEntry[FactorRef], context: CallContext) -> Steps[VjpReply]:
        """`λ = (AᴴA + damp² I)⁺ · cotangent`, of which the caller makes the gradients of least squares."""
        if "values" in call.want:
            raise InvalidOptionError("the gradient of least squares is formed by the client: want 'b' alone from here")
        cotangent = columns(held.operand.matrix, call.cotangent, "the cotangent", of_columns=True)
        lam, certificate = yield from self._answering.answer("vjp", held, call.options, cotangent, None, context)
        return VjpReply(lam.reshape(call.cotangent.shape), None, certificate)

    def jvp(self, call: JvpCall, context: CallContext) -> Steps[SolveReply]:
        """One tangent solve."""
        entry = self._entry(call.ref, context)
        with Counted(self._telemetry, "tangent_solves"), self._cache.pin(entry) as held:
            matrix = held.operand.matrix
            if least_squares(call.options.method):
                raise InvalidOptionError("the tangent of least squares is made of solves and vjps by the client")
            check_square(matrix.pattern)
            shape = _tangent_shape(call)
            moved = None if call.b_tangent is None else columns(matrix, call.b_tangent, "the tangent of b")
            forward = None
            if call.values_tangent is not None:
                if call.x is None:
                    raise InvalidOptionError("a tangent of the values needs x, the forward answer")
                check_values_shape(matrix, call.values_tangent, "the tangent of the values")
                forward = columns(matrix, call.x, "x")
            if forward is None:
                assert moved is not None
                rhs = moved
            else:
                rhs = parameters_tangent_rhs(matrix, call.values_tangent, forward, moved, call.options.trans)
            dx, certificate = yield from self._answering.answer("jvp", held, call.options, rhs, None, context)
        return SolveReply(dx.reshape(shape), certificate)

    def at_hand(self, call: SolveCall | VjpCall, context: CallContext) -> bool:
        """Whether everything lies ready for a call, and what is computed beside the solve is small."""
        entry = self._cache.at_hand(context.tenant, call.ref)
        if isinstance(call, SolveCall) and call.values is not None:
            return self._small_at_hand(call, call.values, context)
        if entry is None or entry.operand.batch is not None or call.options.condition:
            return False
        if isinstance(call, VjpCall):
            if "values" in call.want and entry.operand.nbytes > _SMALL_BYTES:
                return False
            options = replace(call.options, trans=adjoint(call.options.trans)[0])
            return self._answering.at_hand(entry, options, has_x0=False)
        return self._answering.at_hand(entry, call.options, has_x0=call.x0 is not None)

    def _small_at_hand(self, call: SolveCall, values: Array, context: CallContext) -> bool:
        """The same for a call that brings a small dense matrix, which is factorized on the way."""
        pattern = self._cache.pattern_at_hand(context.tenant, call.ref.pattern)
        if not isinstance(pattern, DensePattern) or values.shape != pattern.entries:
            return False
        return self._answering.small_at_hand(Operand(Matrix(pattern, values)), call.options)

    def put(self, call: PutCall, context: CallContext, taken: Taken | None = None) -> MatrixRef:
        """Check, hash and keep a matrix."""
        matrix = call.matrix
        size = matrix.values.nbytes + matrix.pattern.nbytes
        if size > self._limits.max_payload_bytes:
            raise PayloadTooLargeError(
                f"the matrix has {size} bytes, this server takes {self._limits.max_payload_bytes} in one call",
                size=size,
                limit=self._limits.max_payload_bytes,
            )
        base = None if matrix.base is None else self.base(matrix.base.ref, context)
        self._telemetry.count("uploads")
        started = time.perf_counter()
        taken = taken or Taken()
        ref = matrix_ref(matrix.pattern, matrix.values, None if base is None else base.ref, taken)
        hashed = time.perf_counter() - started
        hashed += sum(running.seconds for running in (taken.pattern, taken.values) if running is not None)
        self._telemetry.phase("hash", hashed)
        check_digests(call.ref, ref)
        if self._cache.holding(context.tenant, ref) in (Holding.VALUES, Holding.FACTOR):
            return ref
        if base is not None:
            matrix = _on(base, matrix)
        pattern = self._cache.pattern(context.tenant, ref.pattern)
        if pattern is not None and matrix.pattern.storage != "general":
            # Where the entries go was found out for the pattern that is held.
            matrix = Matrix(pattern.pattern, matrix.values)
        operand = Operand(matrix, None if base is None else base.operand)
        # Of a batch each system has its own status, so the good ones are solved.
        if operand.batch is None and not operand.finite:
            raise NonfiniteInputError("A holds NaN or infinity: check what computed it")
        facts = inspect_pattern(operand.pattern) if pattern is None else pattern.facts
        structure = inspect(facts, operand)
        check_storage(operand, structure)
        if pattern is None:
            pattern = self._cache.add_pattern(context.tenant, ref.pattern, matrix.pattern, facts, hashed, base)
        self._cache.add_matrix(pattern, ref.values, operand, structure, time.perf_counter() - started)
        return ref

    def _entry(self, ref: MatrixRef, context: CallContext) -> MatrixEntry[FactorRef]:
        check_ref(ref)
        entry = self._cache.matrix(context.tenant, ref)
        if entry is None:
            self.refuse_missing(ref, self._cache.holding(context.tenant, ref))
            raise NeedMatrixError("this matrix is not held here: send it")
        if entry.uses > _FIRST_USE:
            self._telemetry.bytes_not_sent(entry.operand.values.nbytes + entry.pattern.pattern.nbytes)
        return entry

    def base(self, ref: MatrixRef, context: CallContext) -> MatrixEntry[FactorRef]:
        """The matrix that an update stands on.

        Raises:
            NeedMatrixError, NeedValuesError: it is not held, and has to be sent first; `details["base"]` names it.
        """
        check_ref(ref)
        entry = self._cache.matrix(context.tenant, ref)
        if entry is not None:
            return entry
        if self._cache.holding(context.tenant, ref) is Holding.PATTERN:
            self._telemetry.count("need_values")
            raise NeedValuesError(
                "the values of S, on which the update stands, are not held here: send them first", base=ref.key
            )
        self._telemetry.count("need_matrix")
        raise NeedMatrixError("S, on which the update stands, is not held here: send it first", base=ref.key)

    def _keep(self, ref: MatrixRef, values: Array, context: CallContext) -> MatrixRef:
        """Take the values that a call brings for a pattern that is held, and give back their digests.

        Raises:
            NeedMatrixError: it is not held.
        """
        check_ref(ref)
        pattern = self._cache.pattern(context.tenant, ref.pattern)
        if pattern is None:
            self.refuse_missing(ref, Holding.ABSENT)
            raise NeedMatrixError("this matrix is not held here: send it")
        base = None if pattern.base is None else pattern.base.operand.matrix.named(pattern.base.ref)
        return self.put(PutCall(ref, Matrix(pattern.pattern, values, base), values_only=True), context)

    def refuse_missing(self, ref: MatrixRef, holding: Holding, *, brought: bool = False) -> None:
        """Say what of a matrix has to be sent, if anything; nothing of its values, if they are `brought` anyway.

        Raises:
            NeedMatrixError, NeedValuesError: the data that are not held.
        """
        check_ref(ref)
        if holding is Holding.ABSENT:
            self._telemetry.count("need_matrix")
            raise NeedMatrixError("this matrix is not held here: send it")
        if holding is Holding.PATTERN and not brought:
            self._telemetry.count("need_values")
            raise NeedValuesError("these values are not held here, their pattern is: send the values")


def _on(base: MatrixEntry[FactorRef], matrix: Matrix) -> Matrix:
    """An update on the matrix that is held, rather than on the sender's copy of it."""
    below = base.operand.matrix
    assert isinstance(matrix.pattern, StructuredPattern)
    pattern = StructuredPattern(matrix.pattern.kind.name, matrix.pattern.dims, standing_on(below))
    return Matrix(pattern, matrix.values, below)


def _tangent_shape(call: JvpCall) -> tuple[int, ...]:
    given = call.b_tangent if call.b_tangent is not None else call.x
    if given is None or (call.b_tangent is None and call.values_tangent is None):
        raise InvalidOptionError("a tangent of b, or one of the values with x, is needed")
    return given.shape
