"""One system for a Krylov method of the service, and when SciPy would call it solved."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from scipy.sparse import csr_array, issparse

from ..errors import InvalidOptionError, NotPositiveDefiniteError
from ..options import SolveOptions
from ..types import LARGEST_INTEGER, Array, Solution, Status
from ._client import current, settled
from ._inputs import dtype_of, first_iterate, number, preconditioner, square, vector

_BREAKDOWN = -10
"""What SciPy's `bicgstab` returns after a breakdown."""


@final
@dataclass(frozen=True, slots=True)
class System:
    """One system, and when it counts as solved.

    Attributes:
        method: what solves it: SciPy's name and the service's are the same.
        a: `[n, n]`.
        b: `[n]`, in the element type of the answer.
        x0: likewise, or None.
        size: ||b||.
        rtol, atol: as the caller gave them.
        preconditioner: a name of the service's.
        asked: the caller's matrix, where `a` is another one.
    """

    method: str
    a: Any
    b: Array
    x0: Array | None
    size: float
    rtol: float
    atol: float
    preconditioner: str
    asked: Any = None

    @classmethod
    def of(cls, method: str, A: Any, b: Any, x0: Any, M: Any, rtol: Any, atol: Any) -> "System":
        """Check what the caller gave."""
        a = square(A, method)
        rhs = vector(b, a.shape[0], "b")
        rhs = rhs.astype(dtype_of(a, rhs), copy=False)
        named = preconditioner(M, method)
        start = first_iterate(x0, M, rhs, method)
        size = _norm(rhs)
        return cls(method, a, rhs, start, size, number(rtol, method, "rtol"), number(atol, method, "atol"), named)

    @property
    def n(self) -> int:
        """Number of unknowns."""
        return int(self.b.size)

    @property
    def target(self) -> float:
        """Wanted norm of the residual."""
        return max(self.rtol * self.size, self.atol)

    def solved(self, limit: int, products: int = 1, restart: int | None = None) -> tuple[Array, int]:
        """SciPy's answer: x and info.

        Args:
            limit: most iterations, as SciPy counts them.
            products: products with A in each.
            restart: of GMRES.
        """
        if self._trivial():
            return self._start(), 0
        solution = self._run(self.x0, min(limit * products, LARGEST_INTEGER), restart)
        if self._met(solution):
            return solution.x, 0
        if solution.status is Status.BREAKDOWN and self.method == "bicgstab":
            return solution.x, _BREAKDOWN
        if solution.status is Status.MAX_ITER:
            return solution.x, limit
        return solution.x, max(1, math.ceil(solution.stats.iterations / products))

    def hermitian(self, limit: int) -> tuple[Array, int]:
        """`solved`, by a method whose A must be Hermitian; one that is so but for rounding is made so first.

        Products such as `B @ B.conj().T` are not Hermitian to the last digit, which the service asks for. The answer is
        judged by the residual with the caller's own A.

        Raises:
            NotPositiveDefiniteError, InvalidOptionError: A is not what the method needs.
        """
        try:
            return self.solved(limit)
        except (NotPositiveDefiniteError, InvalidOptionError) as error:
            if isinstance(error, InvalidOptionError) and error.details.get("option") != "method":
                raise
            near = None if self.asked is not None else nearest_hermitian(self.a)
            if near is None:
                raise
        return replace(self, a=near, asked=self.a).hermitian(limit)

    def watched(self, limit: int, restart: int, callback: Callable[..., Any]) -> tuple[Array, int]:
        """`solved` by GMRES, one cycle a call; nothing of a cycle but its x is used by the next."""
        if self._trivial():
            return self._start(), 0
        x = self.x0
        for cycle in range(limit):
            solution = self._run(x, restart, restart)
            x = solution.x
            if solution.stats.iterations == 0 and self._met(solution):
                return x, 0  # x0 was good enough
            callback(x.copy())
            if self._met(solution):
                return x, 0
            if solution.status is not Status.MAX_ITER:
                return x, cycle + 1
        assert x is not None
        return x, limit

    def minimised(self, x: Array, rtol: float) -> bool:
        """Whether the residual r of a Hermitian A is as good as orthogonal to its range."""
        a, rest = self.a.astype(np.result_type(self.b.dtype, np.float64)), self.residual(x)
        columns = np.asarray(abs(a).power(2).sum(axis=0) if issparse(a) else (abs(a) ** 2).sum(axis=0))
        return _norm(a @ rest) <= rtol * math.sqrt(columns.max(initial=0.0)) * _norm(rest)

    def _trivial(self) -> bool:
        """Nothing is to be done: b is zero, or any residual will do."""
        return self.size == 0 or math.isinf(self.target)

    def _start(self) -> Array:
        return np.zeros_like(self.b) if self.x0 is None or self.size == 0 else self.x0

    def _run(self, x0: Array | None, maxiter: int, restart: int | None) -> Solution:
        # Half of the tolerance is left to rounding x to single precision; the answer is judged by all of it.
        share = 0.5 if self.b.dtype.itemsize < np.result_type(self.b.dtype, np.float64).itemsize else 1.0
        options: SolveOptions = {
            "method": self.method,
            "preconditioner": self.preconditioner,
            "rtol": share * self.rtol,
            "atol": share * self.atol,
            "maxiter": maxiter,
        }
        if restart is not None:
            options["restart"] = restart
        return settled(lambda: current().solve(self.a, self.b, x0=x0, **options))

    def _met(self, solution: Solution) -> bool:
        if self.asked is not None:
            return _norm(self.residual(solution.x)) <= self.target
        return solution.stats.relative_residual * self.size <= self.target or solution.status is Status.OK

    def residual(self, x: Array) -> Array:
        """`b - A x` with the caller's A, in double precision."""
        wide = np.result_type(self.b.dtype, np.float64)
        a = self.a if self.asked is None else self.asked
        return np.asarray(self.b - a.astype(wide) @ x.astype(wide))


def nearest_hermitian(a: Any) -> Any:
    """`(A + Aᴴ) / 2`, if A differs from it by roundings of a product of matrices; else None.

    That is an entry by at most n eps times what is largest in its row, and in its column. None as well if there is no
    difference: then the fault lies elsewhere.
    """
    eps = float(np.finfo(dtype_of(a)).eps)
    if not issparse(a):
        a = a.astype(dtype_of(a), copy=False)
        other = a.conj().T
        largest = np.abs(a).max(axis=1, initial=0.0)
        allowed = a.shape[0] * eps * np.minimum.outer(largest, largest)
        fits = np.array_equal(a, other) is False and bool(np.all(np.abs(a - other) <= allowed))
        return (a + other) / 2 if fits else None
    a = csr_array(a, dtype=dtype_of(a))
    other = csr_array(a.conj().T)
    both = csr_array((a + other) / 2)
    away = abs(a - other).tocoo()
    largest = abs(a).max(axis=1).toarray().reshape(-1)
    fits = bool(np.all(away.data <= a.shape[0] * eps * np.minimum(largest[away.row], largest[away.col])))
    return both if fits and (away.nnz or both.nnz != a.nnz) else None


def _norm(a: Array) -> float:
    """2-norm in double precision."""
    return float(np.linalg.norm(a.astype(np.result_type(a.dtype, np.float64), copy=False)))
