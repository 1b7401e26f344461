"""Sparse LU and LDLᵀ by rslab, a library in Rust (MIT licence; extra "rslab").

Three of its factorizations: a supernodal LU, a supernodal LDLᵀ for matrices that equal their
transpose, and a Gilbert-Peierls LU of the block triangular form for circuits. Analyses are immutable
and shared by all factors of a pattern. What the library made on one thread crashes it when that
thread has ended (version 1.7.0), so the methods run in a process of their own, which has one thread.
A transposed system is solved column by column, since the library offers no more.

Source: Bunch and Kaufman, "Some stable methods for calculating inertia and solving symmetric linear
systems", Math. Comp. 31 (1977); Davis and Palamadai Natarajan, "Algorithm 907: KLU", ACM TOMS 37 (2010).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, final

import numpy as np
import rslab

from backsolve.errors import InvalidOptionError, SingularMatrixError
from backsolve.pattern import AnyPattern
from backsolve.types import Array, Status, Trans

from ..base import Controls, Factor, FactorSpec, Outcome, Solver, Symbolic
from ..faults import factorize_each, singular
from ..operand import Operand
from ..symmetry import is_hermitian
from ..tolerance import pivoting_backward_error
from .columns import Columns, by_columns, solve_each
from .mixed import factorize_mixed, is_mixed
from .probe import probe

Path = Literal["lu", "klu", "ldlt"]

MAX_COLUMNS = 32
"""A column of 8 costs a third of one alone, of 16 a quarter."""

_ANALYZE: dict[Path, Callable[..., Any]] = {
    "lu": rslab._rslab.analyze_lu,
    "klu": rslab._rslab.analyze_klu,
    "ldlt": rslab._rslab.analyze_ldlt,
}
_SERIAL: Mapping[str, Any] = {"threads": 1, "solve_par_min_work": 2**62}
"""One thread, for the sweeps of a solve as well: those take a thread for each core by themselves, and where another
worker keeps a core busy each waits for the slowest (12.7 ms of a sweep of 7.7, in a cube of 30³)."""

_SETTINGS: dict[Path, Mapping[str, Any]] = {
    "lu": _SERIAL,
    # The library's own threshold of 0.001 is for rows matched by the size of their values.
    "klu": {"parallel": False, "pivot_threshold": 0.1},
    "ldlt": _SERIAL,
}


_BYTES: dict[Path, tuple[tuple[int, int], tuple[int, int]]] = {
    "lu": ((1, 0), (4, 28)),
    "klu": ((2, 5), (4, 40)),
    "ldlt": ((1, 0), (4, 22)),
}
"""What the library takes (1.7.0): numbers and bytes for each entry of the factor, then for each one of the matrix.

Fitted to what it says of itself, for meshes and circuits of 100 to 40 000 rows in every type: 0.95 to 1.1 of it;
of "klu", whose arrays grow by doubling, 0.8 to 1.7.
"""

_FULL_PIVOTING: Mapping[str, Any] = {"pivot_threshold": 1.0}


@final
@dataclass(frozen=True, eq=False)
class RslabSymbolic(Symbolic):
    """The library's analysis of a pattern.

    Attributes:
        pattern: the pattern.
        path: which factorization it is for.
        columns: the pattern by columns; of "ldlt" its lower triangle.
        handle: the library's object; None when n is 0.
    """

    pattern: AnyPattern
    path: Path
    columns: Columns
    handle: Any

    @property
    def nbytes(self) -> int:
        """Bytes of the analysis and of the gather."""
        return self.columns.nbytes + (0 if self.handle is None else int(self.handle.heap_bytes))

    def predicted_nbytes(self, precision: str) -> int | None:
        """Bytes of the factor's entries, and of what the library keeps of the matrix beside them."""
        if self.handle is None:
            return 0
        itemsize = np.dtype(precision).itemsize
        (entry, index), (copies, more) = _BYTES[self.path]
        factor = int(self.handle.factor_nnz) * (entry * itemsize + index)
        return factor + self.pattern.nnz * (copies * itemsize + more)


@final
@dataclass(frozen=True, eq=False)
class RslabFactor(Factor):
    """The library's factor of each system; None where a system has none.

    Attributes:
        mirrored: A equals its transpose.
    """

    operand: Operand
    handles: tuple[Any, ...]
    statuses: tuple[Status, ...]
    mirrored: bool

    direct = True
    max_columns = MAX_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes that the library holds: the factors, and its copy of the matrix."""
        return sum(int(handle.heap_bytes) for handle in self.handles if handle is not None)

    @property
    def condition(self) -> float | None:
        """Not estimated here: `conditioning.lower_bound` asks for it, once."""
        return None

    def solve(self, rhs: Array, trans: Trans, controls: Controls) -> Outcome:
        """Two triangular sweeps; of a transposed system for each column by itself."""
        del controls
        x = solve_each(self.handles, rhs, lambda handle, b: solve_one(handle, b, trans, self.mirrored))
        return Outcome(x, self.statuses, (0,) * len(self.statuses))


@final
class Rslab(Solver):
    """Any square nonsingular sparse matrix; best where the fill is large."""

    name = "rslab"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Order the pattern and lay out its supernodes, at the price of one factorization or more."""
        del spec
        return _analyze(pattern, self.name, "lu")

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize with threshold pivoting, and where a probe solve is not good enough with full pivoting.

        Then come analyses of these values alone, each time: see `_attempts`.

        Raises:
            SingularMatrixError: a pivot is zero, up to rounding.
            NonfiniteInputError: the matrix holds NaN or infinity.
        """
        if is_mixed(operand, spec):
            return factorize_mixed(self, symbolic, operand, spec, symmetric=False)
        return _factorize(symbolic, operand)


@final
class RslabKlu(Solver):
    """Circuits, and what resembles them: extremely sparse, nearly triangular, little fill."""

    name = "rslab_klu"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Find the block triangular form and order its blocks."""
        del spec
        return _analyze(pattern, self.name, "klu")

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize block by block; otherwise as `Rslab.factorize`."""
        if is_mixed(operand, spec):
            return factorize_mixed(self, symbolic, operand, spec, symmetric=False)
        return _factorize(symbolic, operand)


@final
class RslabLdl(Solver):
    """Matrices that equal their transpose, real or complex, definite or not; half the work of LU.

    A complex Hermitian matrix is none of them: `Rslab` takes it. The library seeks pivots within a
    supernode only, and gives up on regular matrices with zeros on the diagonal (saddle points), or loses
    their digits where it is tiny: those are analysed anew and factorized by LU, each time.
    """

    name = "rslab_ldl"

    def analyze(self, pattern: AnyPattern, spec: FactorSpec | None = None) -> Symbolic:
        """Order the lower triangle and lay out its supernodes."""
        del spec
        return _analyze(pattern, self.name, "ldlt")

    def factorize(self, symbolic: Symbolic, operand: Operand, spec: FactorSpec) -> Factor:
        """Factorize with pivots of order one and two, or by LU where the library finds none that are good enough.

        Raises:
            InvalidOptionError: the matrix does not equal its transpose.
            SingularMatrixError, NonfiniteInputError: as `Rslab.factorize`.
        """
        if is_mixed(operand, spec):
            return factorize_mixed(self, symbolic, operand, spec, symmetric=True)
        return _factorize(symbolic, operand)


def _analyze(pattern: AnyPattern, name: str, path: Path) -> RslabSymbolic:
    columns = by_columns(pattern, name, lower=path == "ldlt")
    # The library matches rows by size where a diagonal entry is small. The values come later:
    # with equal ones it matches where a diagonal entry is missing.
    return _analyzed(pattern, path, columns, np.ones(columns.indices.size))


def _analyzed(pattern: AnyPattern, path: Path, columns: Columns, values: Array) -> RslabSymbolic:
    handle = None
    if pattern.n:
        wide = (columns.indptr.astype(np.int64), columns.indices.astype(np.int64))
        handle = _ANALYZE[path](pattern.n, *wide, values, **_SETTINGS[path])
    return RslabSymbolic(pattern, path, columns, handle)


def _factorize(symbolic: Symbolic, operand: Operand) -> RslabFactor:
    symbolic.check(operand)
    assert isinstance(symbolic, RslabSymbolic)
    handles, statuses = factorize_each(operand, lambda index: _one(symbolic, operand, index))
    return RslabFactor(operand, handles, statuses, symbolic.path == "ldlt")


def _one(symbolic: RslabSymbolic, operand: Operand, index: int) -> Any:
    a = operand.systems[index]
    if symbolic.path == "ldlt" and not is_hermitian(a, conjugate=False):
        raise InvalidOptionError(
            "method 'rslab_ldl' needs a matrix that equals its transpose, and this one does not: use method 'rslab'",
            option="method",
            method="rslab_ldl",
        )
    if symbolic.handle is None:
        return None
    values = a.data.take(symbolic.columns.positions)
    mirrored, limit = symbolic.path == "ldlt", pivoting_backward_error(operand.dtype)
    handle: Any = None
    for attempt in _attempts(symbolic, operand, index, values):
        try:
            handle = attempt()
        except SingularMatrixError:
            handle = None
            continue
        if probe(partial(_solved, handle, mirrored), operand, index) <= limit:
            return handle
    if handle is None:
        raise singular()
    return handle


def _attempts(symbolic: RslabSymbolic, operand: Operand, index: int, values: Array) -> Iterator[Callable[[], Any]]:
    """Factorizations to try until a probe solve is good, each more careful and dearer than the one before.

    Those of supernodes seek pivots within a supernode only: where the pattern alone was matched, the library gives
    up on regular matrices whose matched entries happen to be zero, and loses every digit where they are tiny.
    So rows are matched by these values next; and at last pivots are sought in whole columns.
    """
    if symbolic.path == "ldlt" or symbolic.columns.full_diagonal:
        yield partial(_numeric, symbolic, values)
    if symbolic.path != "ldlt":
        yield partial(_numeric, symbolic, values, _FULL_PIVOTING)
    columns = by_columns(operand.pattern, "rslab")
    own = operand.systems[index].data.take(columns.positions)
    yield partial(_anew, operand.pattern, "lu", columns, own)
    yield partial(_anew, operand.pattern, "klu", columns, own)


def _anew(pattern: AnyPattern, path: Path, columns: Columns, values: Array) -> Any:
    return _numeric(_analyzed(pattern, path, columns, values), values, _FULL_PIVOTING)


def _numeric(symbolic: RslabSymbolic, values: Array, settings: Mapping[str, Any] = MappingProxyType({})) -> Any:
    try:
        return symbolic.handle.factor(values, **{**_SETTINGS[symbolic.path], **settings})
    except RuntimeError as err:  # the library has no type of its own for this failure
        if "singular" not in str(err) and "rank-deficient" not in str(err):
            raise
        raise singular() from err


def _solved(handle: Any, mirrored: bool, b: Array) -> Array:
    return solve_one(handle, b, "N", mirrored)


def solve_one(handle: Any, b: Array, trans: Trans, mirrored: bool) -> Array:
    """`op(A)⁻¹ b` of one system, `[n, k]`."""
    if trans == "H" and b.dtype.kind == "c":
        return np.conj(solve_one(handle, np.conj(b), "T", mirrored))
    if trans != "N" and not mirrored:
        columns = [handle.solve_transpose(np.ascontiguousarray(column)) for column in b.T]
        return np.stack(columns, axis=1)
    if b.shape[1] == 1:
        return np.asarray(handle.solve(np.ascontiguousarray(b[:, 0])))[:, None]
    return np.asarray(handle.solve_many(np.ascontiguousarray(b)))
