"""Least squares, and its derivatives out of more requests of the same kind."""

from typing import Any

import numpy as np

from .._failure import check_choice
from .._protocol import Exchange, Steps
from .._transports.base import SolveCall
from ..canonical import as_array, canonicalise
from ..errors import InvalidOptionError
from ..least_squares import pull, push
from ..matrix import Matrix
from ..options import SolveOptions, least_squares_options
from ..pattern import check_general
from ..types import Array, Gradients, Options, Solution
from .gradient import adjoint, check_tangents
from .operands import Terms, check_type, common
from .solve import answered


def lstsq(exchange: Exchange, A: Any, b: Any, terms: Terms, options: SolveOptions) -> Steps[Solution]:
    """`Client.lstsq`."""
    asked = least_squares_options(**options)
    canonical, (rhs,) = common(exchange.memo, A, b=as_array(b, "b"))
    assert rhs is not None
    return (yield from lstsq_matrix(exchange, canonical.matrix, rhs, terms, asked))


def lstsq_matrix(exchange: Exchange, matrix: Matrix, rhs: Array, terms: Terms, options: Options) -> Steps[Solution]:
    """Minimise `||rhs - A x||² + damp² ||x||²`; `options.method` is one of least squares."""
    check_choice(terms.on_failure)
    check_general(matrix.pattern, "least squares")
    check_type(matrix, rhs, "b")
    vector = matrix.is_vector(rhs)
    shape = (*matrix.systems_shape, matrix.n, *(() if vector else rhs.shape[-1:]))
    name = exchange.name(matrix, "lstsq")
    call = SolveCall(name.ref, options, np.ascontiguousarray(rhs), answer_shape=shape, meanwhile=name.meanwhile)
    return (yield from answered(exchange, matrix, call, name, np.empty(shape, rhs.dtype), terms, "solve"))


def normal_matrix(
    exchange: Exchange, matrix: Matrix, cotangent: Array, terms: Terms, options: Options
) -> Steps[Gradients]:
    """`b` = (AᴴA + damp² I)⁺ · cotangent."""
    check_general(matrix.pattern, "least squares")
    return adjoint(exchange, matrix, cotangent, ("b",), None, terms, options, least_squares=True)


def lstsq_vjp(
    exchange: Exchange, A: Any, b: Any, x: Any, cotangent: Any, terms: Terms, options: SolveOptions
) -> Steps[Gradients]:
    """`Client.lstsq_vjp`."""
    asked = least_squares_options(**options)
    canonical, (rhs, forward, given) = common(exchange.memo, A, b=b, x=x, cotangent=cotangent)
    if rhs is None or forward is None or given is None:
        raise InvalidOptionError("the gradient of least squares needs b, x and the cotangent")
    matrix = canonical.matrix

    def normal(v: Array) -> Steps[Gradients]:
        return normal_matrix(exchange, matrix, v, terms, asked)

    u, values, stats = yield from pull(matrix, rhs, forward, given, normal, damped=bool(asked.damp))
    return Gradients(u, canonical.like_caller(values), stats)


def lstsq_jvp(
    exchange: Exchange, A: Any, b: Any, x: Any, A_tangent: Any, b_tangent: Any, terms: Terms, options: SolveOptions
) -> Steps[Solution]:
    """`Client.lstsq_jvp`."""
    asked = least_squares_options(**options)
    check_tangents(A_tangent, b_tangent)
    tangents = None if A_tangent is None else canonicalise(A_tangent).matrix
    canonical, (rhs, forward, moved) = common(
        exchange.memo, A, None if tangents is None else tangents.dtype, b=b, x=x, b_tangent=b_tangent
    )
    if rhs is None or forward is None:
        raise InvalidOptionError("the tangent of least squares needs b and x")
    matrix = canonical.matrix

    def solve(v: Array) -> Steps[Solution]:
        return lstsq_matrix(exchange, matrix, v, terms, asked)

    def normal(v: Array) -> Steps[Gradients]:
        return normal_matrix(exchange, matrix, v, terms, asked)

    pushed = push(matrix, rhs, forward, tangents, moved, solve, normal, damped=bool(asked.damp))
    return (yield from pushed)
