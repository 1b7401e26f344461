"""The factor of an iterative method on a device: operators and preconditioners, and one solve with them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch

from backsolve.errors import BacksolveError
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, Outcome
from ..certify import Proof
from ..device import CPU
from ..faults import not_definite, record
from ..krylov.basis import RESTART, basis_bytes, columns_at_once, groups
from ..krylov.first import useful
from ..operand import Operand
from ..scaling import exponents, magnitude, shift
from ..tolerance import SINGLE_EPS, epsilon, iterative_rtol
from .figures import largest_entry
from .operator import DeviceOperator
from .place import fetch, torch_dtype, upload, working
from .precondition import DevicePreconditioner
from .problem import Apply, Iterated, NotDefiniteError, Problem
from .proof import prove

MAX_COLUMNS = 64
"""A block reads A once for all its columns, and an iteration's launches are paid once as well."""

Iterate = Callable[[Problem, Controls], Iterated]

_SEVERITY = (Status.OK, Status.MAX_ITER, Status.STAGNATION, Status.BREAKDOWN, Status.INCONSISTENT)
_ADJOINT: dict[Trans, Trans] = {"N": "H", "T": "N", "H": "N"}
"""Product that gives the adjoint of op(A); of "T", on conjugated data."""

_SAFE_NORM = 1e60
"""Squares of what an operator within this makes of vectors near 1 stay far from the ends of the range."""

_EXPONENTS = 1000
"""Powers of two beyond this are applied in two steps: one alone would leave the range of double."""


@final
@dataclass(frozen=True, slots=True)
class Method:
    """What tells the iterative methods apart here.

    Attributes:
        name: as in the registry.
        hermitian: A = Aᴴ is required, so that no product with Aᵀ is.
        limit_per_row: default iteration limit in units of n.
        bases: bases of `restart` vectors that it keeps for each column.
        iterate: the iteration.
    """

    name: str
    hermitian: bool
    limit_per_row: int
    iterate: Iterate
    bases: int = 0


@final
@dataclass(frozen=True, eq=False)
class DeviceKrylovFactor(Factor):
    """A and its preconditioner on a device, for each system; None where a system is refused."""

    operand: Operand
    device: str
    method: Method
    operators: tuple[DeviceOperator | None, ...]
    preconditioners: tuple[DevicePreconditioner | None, ...]
    statuses: tuple[Status, ...]

    direct = False

    @property
    def max_columns(self) -> int:
        """Fewer of a large matrix where each column keeps a basis."""
        return min(MAX_COLUMNS, self._at_once(RESTART) or MAX_COLUMNS)

    @property
    def nbytes(self) -> int:
        """Bytes on the device: the matrix lies there beside the host's own copy."""
        return sum(part.nbytes for part in (*self.operators, *self.preconditioners) if part is not None)

    @property
    def device_nbytes(self) -> int:
        """All of them."""
        return 0 if self.device == CPU else self.nbytes

    @property
    def condition(self) -> float | None:
        """Not estimated."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Iterate on the device until each column's true residual meets the tolerance, or says why it cannot.

        The answer comes back in one copy, with the proof that was measured beside it.

        Raises:
            NotPositiveDefiniteError: a single matrix has shown not to be definite to a method that needs it.
            CancelledError: `controls.cancelled` said so.
            DeviceOutOfMemoryError: there is no room for the iteration's vectors.
        """
        stacked = rhs if rhs.ndim == 3 else rhs[None]
        first = controls.x0
        if first is not None and first.ndim == 2:
            first = first[None]
        first, note = useful(self.operand, first, stacked, trans)
        count, _, k = stacked.shape
        x = np.full(stacked.shape, np.nan, dtype=self.operand.dtype)
        figures = np.full((3, count, k), np.inf)
        statuses, iterations = list(self.statuses), [0] * count
        for index in range(count):
            if self.operators[index] is None:
                continue
            x0 = None if first is None else first[index]
            try:
                for group in groups(k, self._at_once(controls.restart or RESTART)):
                    start = None if x0 is None else x0[:, group]
                    solved = self._one(index, stacked[index, :, group], start, trans, controls)
                    x[index, :, group], figures[:, index, group], status, taken = solved
                    statuses[index] = max(statuses[index], status, key=_SEVERITY.index)
                    iterations[index] = max(iterations[index], taken)
            except BacksolveError as error:
                statuses[index] = record(self.operand, error)
        return Outcome(x.reshape(rhs.shape), tuple(statuses), tuple(iterations), Proof(*figures), note=note)

    def _at_once(self, restart: int) -> int | None:
        """How many columns are solved together, where that is limited."""
        itemsize = self.operand.wide_dtype.itemsize
        return columns_at_once(basis_bytes(self.operand.n, itemsize, restart, self.method.bases))

    def _one(
        self, index: int, rhs: Array, x0: Array | None, trans: Trans, controls: Controls
    ) -> tuple[Array, Array, Status, int]:
        """Solve with one system: `[n, k]` in; x, its figures, worst status and iterations out."""
        n, k = rhs.shape
        if n == 0 or k == 0:
            return rhs.copy(), np.zeros((3, k)), Status.OK, 0
        # A = Aᴴ, so "H" is "N", and "T" is the solve with conjugated data.
        hermitian = self.method.hermitian
        conjugate = hermitian and trans == "T" and self.operand.dtype.kind == "c"
        b, powers = self._scaled(rhs, conjugate)
        applied: Trans = "N" if hermitian else trans
        size = 0 if hermitian else _far(self.operand.norm(index, applied))
        start = None if x0 is None else shift(self._rows(x0, conjugate), size - powers)
        sizes = np.linalg.norm(b, axis=1)
        try:
            with working(self.device):
                problem = Problem(
                    multiply=self._multiply(index, applied),
                    adjoint=self._multiply(index, "N" if hermitian else _ADJOINT[applied], conjugate=applied == "T"),
                    precondition=self._precondition(index, applied),
                    b=upload(b, self.device),
                    x0=None if start is None else upload(start, self.device),
                    sizes=sizes,
                    targets=self._targets(sizes, powers, controls),
                    limit=controls.maxiter or self.method.limit_per_row * n,
                    norm=self.operand.norm(index, applied),
                    cancelled=controls.cancelled,
                )
                ended = self.method.iterate(_divided(problem, size) if size else problem, controls)
                return self._returned(index, problem, ended, powers, size, conjugate, applied)
        except NotDefiniteError:
            other = "lu" if self.operand.pattern.layout == "dense" else "superlu"
            raise not_definite(None, self.method.name, other) from None

    def _returned(
        self, index: int, problem: Problem, ended: Iterated, powers: Array, size: int, conjugate: bool, trans: Trans
    ) -> tuple[Array, Array, Status, int]:
        """Round x to the caller's element type and units, prove what was rounded, and bring it to the host."""
        operator = self.operators[index]
        assert operator is not None
        narrow = _shifted(ended.x, powers - size).to(torch_dtype(self.operand.dtype))
        wide = _shifted(narrow.to(ended.x.dtype), -powers)
        figures = fetch(prove(operator, problem.b, wide, trans, self.operand.norm(index, trans)))
        x = fetch(narrow.T.contiguous())
        worst = max(ended.statuses, key=_SEVERITY.index)
        return (np.conj(x) if conjugate else x), figures, worst, ended.iterations

    def _multiply(self, index: int, trans: Trans, *, conjugate: bool = False) -> Apply:
        operator = self.operators[index]
        assert operator is not None
        if conjugate and self.operand.dtype.kind == "c":
            return lambda rows: torch.conj_physical(operator.product(torch.conj_physical(rows), trans))
        return lambda rows: operator.product(rows, trans)

    def _precondition(self, index: int, trans: Trans) -> Callable[[torch.Tensor], torch.Tensor]:
        m = self.preconditioners[index]
        assert m is not None
        return lambda rows: m.apply(rows, trans)

    def _rows(self, columns: Array, conjugate: bool) -> Array:
        rows = np.ascontiguousarray(columns.T).astype(self.operand.wide_dtype)
        return np.conj(rows) if conjugate else rows

    def _scaled(self, rhs: Array, conjugate: bool) -> tuple[Array, Array]:
        """Every column at a magnitude near 1: b and 1e-200 b take the same steps."""
        b = self._rows(rhs, conjugate)
        powers: Array = exponents(magnitude(b, 1))[:, None]
        return shift(b, -powers), powers

    def _targets(self, sizes: Array, powers: Array, controls: Controls) -> Array:
        """Wanted 2-norm of each column's residual, in the scaled units."""
        rtol = controls.rtol
        if rtol is None:
            rtol = iterative_rtol(self.operand.dtype)
            if epsilon(self.operand.dtype) >= SINGLE_EPS:
                rtol /= 2  # the other half is left to rounding x to single
        if not controls.atol:
            return np.asarray(rtol * sizes)
        return np.asarray(np.maximum(rtol * sizes, shift(np.full(powers.shape, controls.atol), -powers)[:, 0]))


def _far(norm: float) -> int:
    """Power of two to divide A by where squares of its products would leave the range, else 0."""
    return 0 if norm == 0 or 1 / _SAFE_NORM <= norm <= _SAFE_NORM else int(np.frexp(norm)[1])


def _divided(problem: Problem, power: int) -> Problem:
    """The problem of `2**-power A`, whose answer is `2**power x`, with M scaled to do little to a vector's size."""
    made = fetch(largest_entry(problem.precondition(problem.b)))
    made = made[problem.sizes > 0]
    # One number for all columns: M is one matrix.
    size = int(exponents(made).max()) if made.size else 0

    def by(apply: Apply, exponent: int) -> Apply:
        return lambda rows: _shifted(apply(rows), np.array([[-exponent]]))

    return replace(
        problem,
        multiply=by(problem.multiply, power),
        adjoint=by(problem.adjoint, power),
        precondition=by(problem.precondition, size),
        norm=float(np.ldexp(problem.norm, -power)),
    )


def _shifted(rows: torch.Tensor, powers: Array) -> torch.Tensor:
    """`rows * 2**powers`, exact but for under- and overflow."""
    first: Any = np.clip(powers, -_EXPONENTS, _EXPONENTS)
    scaled = rows * upload(np.ldexp(1.0, first), str(rows.device))
    rest = powers - first
    return scaled * upload(np.ldexp(1.0, rest), str(rows.device)) if rest.any() else scaled
