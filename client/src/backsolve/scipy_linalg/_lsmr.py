"""LSMR with SciPy's signature, stop rule and eight results."""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy.sparse import csr_array, issparse

from ..errors import InvalidShapeError
from ..options import SolveOptions
from ..types import Array
from ._client import current, settled
from ._inputs import array, count, dtype_of, matrix, number, vector

_EPS = float(np.finfo(np.float64).eps)

_ATTAINABLE = 8 * _EPS
"""What rounding leaves of a measured residual; SciPy's recurrence may carry one that is smaller than that."""

_LARGE = 1e100
"""Larger tolerances mean no more than this one, and infinity cannot be sent."""

_TEXTS = (
    "x = 0, or x0, is a solution",
    "b - A x is small enough, given atol and btol",
    "the least squares solution is good enough, given atol",
    "the condition of A seems to exceed conlim",
    "b - A x is small enough for this machine",
    "the least squares solution is good enough for this machine",
    "the condition of A seems too large for this machine",
    "maxiter was reached, or nothing was gained any more",
)


def lsmr(
    A: Any,
    b: Any,
    damp: float = 0.0,
    atol: float = 1e-6,
    btol: float = 1e-6,
    conlim: float = 1e8,
    maxiter: int | None = None,
    show: bool = False,
    x0: Any = None,
) -> tuple[Array, int, int, float, float, float, float, float]:
    """Minimise ||b - A x||² + damp² ||x||², as `scipy.sparse.linalg.lsmr`; computed in double precision.

    The service iterates until its own estimates meet a quarter of `atol`, so that SciPy's rule holds of what is
    measured here from the x that is returned: `istop` says which part of it. r below is b - A x.

    Args:
        A: `[m, n]`, sparse or dense.
        b: `[m]`, or a column or row of as many entries; a number if m is 1.
        damp: 0 or more.
        atol, btol: x is a solution where ||r|| <= atol ||A|| ||x|| + btol ||b||, else a least squares solution where
            ||Aᴴr|| <= atol ||A|| ||r||; None is 1e-6. Both of 0 ask for what the iteration can reach.
        conlim: the iteration stops once the condition number that it has met is as large; the answer comes with
            IllConditionedWarning then. None is 1e8, 0 no limit.
        maxiter: most iterations; by default min(m, n).
        show: print a summary at the end; the iterations are not seen from here.
        x0: where to begin; with damp, what is damped is x - x0.

    Returns:
        x `[n]`; istop, as SciPy numbers it (1 solution, 2 least squares solution, 3 conlim, 4 to 6 the same to machine
        precision, 7 none of them, 0 nothing to do); iterations; ||r||; ||Aᴴr||; ||A|| in the Frobenius norm; the
        condition number that the iteration has met, a bound from below; ||x||. With damp the residuals are those of
        the damped system, as in SciPy. The two residuals and both norms are computed, where SciPy estimates them.

    Raises:
        NotSupportedError: A is a linear operator.
        InvalidShapeError, InvalidOptionError, BacksolveError: as `Client.lstsq`.
    """
    system = _LeastSquares.of(A, b, x0, number(damp or 0.0, "lsmr", "damp"))
    wanted = (_tolerance(atol, "atol"), _tolerance(btol, "btol"))
    limit = 1e8 if conlim is None else number(conlim, "lsmr", "conlim")
    most = min(system.a.shape) if maxiter is None else count(maxiter, "lsmr", "maxiter", 0)
    found = system.solved(*wanted, limit, most)
    if show:
        x, istop, itn, normr, normar, norma, conda, normx = found
        print(f"lsmr: A has shape {system.a.shape}, damp = {system.damp:.3e}, at most {most} iterations")
        print(f"lsmr: istop = {istop}, {_TEXTS[istop]}; itn = {itn}, normr = {normr:.3e}, normar = {normar:.3e}")
        print(f"lsmr: norma = {norma:.3e}, conda = {conda:.3e}, normx = {normx:.3e}, x of type {x.dtype}")
    return found


def _tolerance(value: Any, what: str) -> float:
    return 1e-6 if value is None else min(number(value, "lsmr", what), _LARGE)


@final
@dataclass(frozen=True, slots=True)
class _LeastSquares:
    """A problem in double precision.

    Attributes:
        a: `[m, n]`, without duplicates.
        b: `[m]`.
        x0: `[n]`, where to begin.
        damp: of what is added to x0.
        norm: ||A|| in the Frobenius norm.
    """

    a: Any
    b: Array
    x0: Array
    damp: float
    norm: float

    @classmethod
    def of(cls, A: Any, b: Any, x0: Any, damp: float) -> "_LeastSquares":
        """Check what the caller gave."""
        a = matrix(A, "lsmr")
        rhs = array(b, "b")
        m, n = a.shape
        if rhs.size != m or sum(size != 1 for size in rhs.shape) > 1:
            raise InvalidShapeError(f"b has shape {rhs.shape}, this matrix takes ({m},)")
        rhs = rhs.reshape(m)
        start = np.zeros(n) if x0 is None else vector(x0, n, "x0")
        wide = np.result_type(dtype_of(a, rhs, start), np.float64)
        if issparse(a):
            a = csr_array(a, dtype=wide, copy=not getattr(a, "has_canonical_format", False))
            a.sum_duplicates()
        else:
            a = a.astype(wide, copy=False)
        return cls(a, rhs.astype(wide), start.astype(wide), damp, _norm(a.data if issparse(a) else a))

    def solved(
        self, atol: float, btol: float, conlim: float, most: int
    ) -> tuple[Array, int, int, float, float, float, float, float]:
        """SciPy's eight results."""
        size = _norm(self.b)
        if size == 0:
            nothing = np.zeros_like(self.x0)
            return self._results(nothing, nothing, 0, 0, 1.0)
        rest = self.b - self.a @ self.x0
        nothing = np.zeros_like(self.x0)
        if _norm(self._adjoint(rest)) == 0:
            return self._results(self.x0, nothing, 0, 0, 1.0)
        if most == 0:
            return self._results(self.x0, nothing, 7, 0, 1.0)
        options: SolveOptions = {
            "method": "lstsq_lsmr",
            "damp": self.damp,
            # The service compares with the norm of the damped matrix, SciPy with that of A.
            "rtol": atol * self.norm / math.hypot(self.norm, self.damp),
            "maxiter": most,
            "refine": 0,
        }
        if 0 < conlim < math.inf:
            options["rcond"] = min(1 / conlim, _LARGE)
        solution = settled(lambda: current().lstsq(self.a, rest, **options))
        condition = solution.stats.condition_estimate or 1.0
        x, step = self.x0 + solution.x, solution.x
        found = self._results(x, step, 7, solution.stats.iterations, condition)
        return (x, self._reason(found, size, atol, btol, conlim), *found[2:])

    def _results(
        self, x: Array, step: Array, istop: int, itn: int, condition: float
    ) -> tuple[Array, int, int, float, float, float, float, float]:
        """Everything but the reason, measured from x, which is `step` away from x0."""
        rest = self.b - self.a @ x
        residual = math.hypot(_norm(rest), self.damp * _norm(step))
        normal = _norm(self._adjoint(rest) - self.damp**2 * step)
        return x.copy(), istop, itn, residual, normal, self.norm, condition, _norm(x)

    def _adjoint(self, v: Array) -> Array:
        return np.asarray(np.conj(self.a.T @ np.conj(v)))

    @staticmethod
    def _reason(
        found: tuple[Array, int, int, float, float, float, float, float],
        size: float,
        atol: float,
        btol: float,
        conlim: float,
    ) -> int:
        """`istop`: the first of SciPy's conditions that holds, in its order of precedence."""
        _, _, _, residual, normal, norm, condition, length = found
        consistent, minimal = residual / size, normal / (norm * residual) if norm * residual > 0 else math.inf
        reach = norm * length / size
        if consistent <= btol + atol * reach:
            return 1
        if minimal <= atol:
            return 2
        if conlim > 0 and condition >= conlim:
            return 3
        if consistent / (1 + reach) <= _ATTAINABLE:
            return 4
        if minimal <= _ATTAINABLE:
            return 5
        return 6 if condition >= 1 / _EPS else 7


def _norm(a: Array) -> float:
    return float(np.linalg.norm(a))
