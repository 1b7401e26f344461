"""Solves: `op(A) x = b`, alone or again and again with one matrix."""

from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from .._failure import check_choice, settle, without_answer
from .._protocol import Exchange, Steps
from .._surmise import Name
from .._transports.base import JvpCall, SolveCall, SolveReply
from ..canonical import as_array
from ..errors import InvalidDtypeError, InvalidOptionError, SolveError
from ..matrix import Matrix
from ..options import SolveOptions, check_trans, make_options
from ..types import Array, Certificate, Options, Solution
from .operands import Terms, alike, check_fits, common


def solve(exchange: Exchange, A: Any, b: Any, x0: Any, terms: Terms, options: SolveOptions) -> Steps[Solution]:
    """`Client.solve`."""
    asked = make_options(**options)
    canonical, (rhs, start) = common(exchange.memo, A, storage=terms.storage, b=as_array(b, "b"), x0=x0)
    assert rhs is not None
    return (yield from solve_matrix(exchange, canonical.matrix, rhs, start, terms, asked))


def solve_matrix(
    exchange: Exchange, matrix: Matrix, rhs: Array, x0: Array | None, terms: Terms, options: Options
) -> Steps[Solution]:
    """`Client.solve_matrix`."""
    check_choice(terms.on_failure)
    check_fits(matrix, rhs, "b")
    name = exchange.name(matrix, "solve")
    call = SolveCall(name.ref, options, np.ascontiguousarray(rhs), alike(x0, rhs, "x0"), meanwhile=name.meanwhile)
    return (yield from answered(exchange, matrix, call, name, rhs, terms, "solve"))


def answered(
    exchange: Exchange,
    matrix: Matrix,
    call: SolveCall | JvpCall,
    name: Name,
    like: Array,
    terms: Terms,
    what: str,
) -> Steps[Solution]:
    """Deliver a call that is answered by x, and make of the reply what the caller has asked for.

    Args:
        exchange, matrix, call: what is delivered.
        name: of the matrix in the call.
        like: shaped like x.
        terms: the caller's.
        what: named in the texts of errors and warnings.
    """
    try:
        reply: SolveReply = yield from exchange.deliver(matrix, call, terms.timeout)
    except SolveError as error:
        if terms.on_failure == "raise":
            raise
        return (yield from without_answer(error, like, call.options.method, terms.on_failure, what))
    return (yield from settle(solution(reply, name.seconds), terms.on_failure, what))


def solution(reply: SolveReply, hashed: float) -> Solution:
    """The reply as callers see it, with this side's part of the times."""
    stats = reply.certificate
    if stats.seconds.hash != hashed:
        stats = replace(stats, seconds=replace(stats.seconds, hash=hashed))
    return Solution(reply.x, stats.status, stats)


@final
@dataclass(slots=True)
class Held:
    """A matrix that is solved with again and again, and what was said when it was handed over.

    Attributes:
        last: certificate of the latest call.
    """

    matrix: Matrix
    options: Options
    terms: Terms
    last: Certificate

    def solve(self, exchange: Exchange, b: Any, trans: str) -> Steps[Array]:
        """`Factorized.solve`."""
        rhs, dtype = as_array(b, "b"), self.matrix.dtype
        if not np.can_cast(rhs.dtype, dtype, "safe"):
            raise InvalidDtypeError(f"b is {rhs.dtype}, the factor {dtype}: factorize A.astype({rhs.dtype.name!r})")
        options = self.options if trans == self.options.trans else replace(self.options, trans=check_trans(trans))
        rhs = rhs.astype(dtype, copy=False)
        solved = yield from solve_matrix(exchange, self.matrix, rhs, None, self.terms, options)
        self.last = solved.stats
        return solved.x


def hold(exchange: Exchange, A: Any, terms: Terms, options: SolveOptions) -> Steps[Held]:
    """What `Client.factorized` keeps."""
    if "trans" in options:
        raise InvalidOptionError("say trans in each solve of the handle, not when it is made", option="trans")
    asked = make_options(**options)
    canonical, _ = common(exchange.memo, A, storage=terms.storage)
    matrix = canonical.matrix.copy()
    # No columns to solve for: the call factorizes, and reports a singular matrix, now.
    nothing = np.zeros((*matrix.systems_shape, matrix.n, 0), dtype=matrix.dtype)
    first = yield from solve_matrix(exchange, matrix, nothing, None, terms, asked)
    return Held(matrix, asked, terms, first.stats)
