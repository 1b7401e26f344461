"""Derivatives of a solve: cotangents pulled back to b and A, tangents of them pushed forward to x."""

from typing import Any

import numpy as np

from .._failure import check_choice, settle, without_answer
from .._protocol import Exchange, Steps
from .._transports.base import JvpCall, SolveReply, VjpCall, VjpReply
from ..canonical import Canonical, as_array, canonicalise
from ..errors import InvalidOptionError, InvalidPatternError, InvalidShapeError, SolveError
from ..gradient import parameters_gradient, parameters_tangent_rhs
from ..matrix import Matrix
from ..options import SolveOptions, make_options
from ..pattern import check_square
from ..quality import Quality, quality
from ..types import Array, Gradients, Options, Solution, Want
from .operands import Terms, alike, check_fits, check_type, common
from .solve import answered, solution

_ADJOINT = "adjoint solve (backward)"


def vjp(
    exchange: Exchange,
    A: Any,
    x: Any,
    cotangent: Any,
    b: Any,
    want: tuple[Want, ...],
    values_on: str,
    terms: Terms,
    options: SolveOptions,
) -> Steps[Gradients]:
    """`Client.vjp`."""
    asked = make_options(**options)
    _check_want(want, values_on, x)
    if b is not None and x is None:
        raise InvalidOptionError("judging the gradient needs x beside b: give both")
    needs_x = "values" in want
    canonical, (given, forward, rhs) = common(
        exchange.memo,
        A,
        storage=terms.storage,
        cotangent=as_array(cotangent, "the cotangent"),
        x=x if needs_x or b is not None else None,
        b=b,
    )
    assert given is not None
    served = values_on == "server" and needs_x
    # λ is needed here for whatever is formed here.
    from_server: tuple[Want, ...] = want if served and rhs is None else ("b", "values") if served else ("b",)
    reply = yield from adjoint(
        exchange, canonical.matrix, given, from_server, forward if served else None, terms, asked
    )
    return _gradients(canonical, asked, want, reply, given, forward, rhs)


def _gradients(
    canonical: Canonical,
    options: Options,
    want: tuple[Want, ...],
    reply: Gradients,
    cotangent: Array,
    x: Array | None,
    rhs: Array | None,
) -> Gradients:
    """What is wanted of λ and of what the server has formed, in the caller's layout."""
    matrix, values = canonical.matrix, reply.values
    if "values" in want and values is None:
        assert x is not None
        assert reply.b is not None
        values = parameters_gradient(matrix, reply.b, x, options.trans)
    found = Quality(None, None)
    if rhs is not None:
        assert x is not None
        assert reply.b is not None
        found = quality(matrix, options.trans, rhs, x, cotangent, reply.b, reply.stats.inverse_norm)
    return Gradients(
        b=reply.b if "b" in want else None,
        values=None if values is None else canonical.like_caller(values),
        stats=reply.stats,
        corrected_value=found.corrected_value,
        error_bound=found.error_bound,
    )


def adjoint(
    exchange: Exchange,
    matrix: Matrix,
    cotangent: Array,
    want: tuple[Want, ...],
    x: Array | None,
    terms: Terms,
    options: Options,
    *,
    least_squares: bool = False,
) -> Steps[Gradients]:
    """Pull a cotangent back; `options.trans` names the operator of the forward solve.

    Of least squares `b` of the reply is λ = (AᴴA + damp² I)⁺ · cotangent.
    """
    check_choice(terms.on_failure)
    if least_squares:
        check_type(matrix, cotangent, "the cotangent")
        matrix.is_vector(cotangent, of_columns=True)
    else:
        check_fits(matrix, cotangent, "the cotangent")
    name = exchange.name(matrix, "vjp")
    forward = alike(x, cotangent, "x")
    call = VjpCall(name.ref, options, np.ascontiguousarray(cotangent), want, forward, name.meanwhile)
    try:
        reply: VjpReply = yield from exchange.deliver(matrix, call, terms.timeout)
    except SolveError as error:
        if terms.on_failure == "raise":
            raise
        blank = yield from without_answer(error, cotangent, options.method, terms.on_failure, _ADJOINT)
        values = np.full(matrix.parameters_shape, np.nan, matrix.dtype) if "values" in want else None
        return Gradients(blank.x if "b" in want else None, values, blank.stats)
    lam = np.zeros(0, matrix.dtype) if reply.b is None else reply.b
    settled = yield from settle(solution(SolveReply(lam, reply.certificate), name.seconds), terms.on_failure, _ADJOINT)
    return Gradients(None if reply.b is None else settled.x, reply.values, settled.stats)


def jvp(
    exchange: Exchange, A: Any, x: Any, A_tangent: Any, b_tangent: Any, terms: Terms, options: SolveOptions
) -> Steps[Solution]:
    """`Client.jvp`."""
    asked = make_options(**options)
    check_tangents(A_tangent, b_tangent)
    tangents = None if A_tangent is None else canonicalise(A_tangent, storage=terms.storage).matrix
    if A_tangent is not None and x is None:
        raise InvalidOptionError("a tangent of A needs x, the forward answer")
    canonical, (forward, moved) = common(
        exchange.memo,
        A,
        None if tangents is None else tangents.dtype,
        storage=terms.storage,
        x=x,
        b_tangent=b_tangent,
    )
    matrix = canonical.matrix
    check_square(matrix.pattern)
    values = None if tangents is None else _values_tangent(matrix, tangents)
    rhs = parameters_tangent_rhs(matrix, values, forward, moved, asked.trans)
    return (yield from tangent(exchange, matrix, rhs, terms, asked))


def tangent(exchange: Exchange, matrix: Matrix, rhs: Array, terms: Terms, options: Options) -> Steps[Solution]:
    """Solve `op(A) dx = rhs`, where `rhs = db - op(dA) x` was formed by the caller."""
    check_choice(terms.on_failure)
    check_fits(matrix, rhs, "the tangent")
    name = exchange.name(matrix, "jvp")
    call = JvpCall(name.ref, options, None, np.ascontiguousarray(rhs), None, name.meanwhile)
    return (yield from answered(exchange, matrix, call, name, rhs, terms, "tangent solve"))


def check_tangents(A_tangent: Any, b_tangent: Any) -> None:
    """Refuse a call that pushes nothing.

    Raises:
        InvalidOptionError: both tangents are None.
    """
    if A_tangent is None and b_tangent is None:
        raise InvalidOptionError("give A_tangent, b_tangent, or both: without a tangent there is nothing to push")


def _values_tangent(matrix: Matrix, tangents: Matrix) -> Array:
    if not matrix.pattern.same_as(tangents.pattern):
        raise InvalidPatternError("A_tangent must have the stored entries of A, explicit zeros included")
    if tangents.values.shape != matrix.values.shape:
        raise InvalidShapeError(f"A_tangent has shape {tangents.values.shape}, A's values {matrix.values.shape}")
    return tangents.parameters.astype(matrix.dtype, copy=False)


def _check_want(want: tuple[Want, ...], values_on: str, x: Any) -> None:
    if not isinstance(want, tuple | list) or not want or any(name not in ("b", "values") for name in want):
        raise InvalidOptionError("want must name 'b', 'values', or both")
    if values_on not in ("client", "server"):
        raise InvalidOptionError("values_on must be 'client' or 'server'")
    if "values" in want and x is None:
        raise InvalidOptionError("the gradient of the values needs x, the forward answer")
