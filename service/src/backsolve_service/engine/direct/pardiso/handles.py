"""PARDISO's handles: one analysis, and slots for factors that share it.

A handle keeps its analysis and up to `SLOTS` factors. Each factor here owns a slot; the next
factorization takes a free one, so that nothing is analysed twice and no factor is overwritten.
"""

import weakref
from typing import Any, final

import numpy as np

from backsolve.types import Array, Trans

from .library import RETURNED, TAKEN, TRANSPOSED, MatrixType, Phase, Setting, call, check, new_settings

SLOTS = 64
"""Factors that one analysis serves; an empty slot costs a few dozen bytes."""

_POINTERS = 64

_FEW = 8
_LEAN = {MatrixType.REAL_GENERAL: 50, MatrixType.REAL_DEFINITE: 25}
"""Entries of the factor a row, up to which these kinds solve columns faster one by one (MKL 2026.2): a block
costs 1.5 to 5 times as much on plane meshes of 1e4 rows and on circuits. With less than `_FEW` columns they
always do. Of the other kinds two columns together are faster already."""


@final
class Handle:
    """One analysis and its factors.

    Args:
        kind: of the matrix.
        single: single precision.
        indptr, indices: of the matrix, or of its upper triangle where it is mirrored.
        slots: factors that it will hold at once.
        settings: of `iparm`, beside the usual ones.

    Attributes:
        free: slots that hold no factor.
        entries: numbers in one factor, as analysed.
        analysis_nbytes, factor_nbytes: bytes of the analysis and of one factor, as the library foresees them.
    """

    def __init__(
        self, kind: MatrixType, single: bool, indptr: Array, indices: Array, *, slots: int = 1, **settings: int
    ) -> None:
        self.kind, self.slots = kind, slots
        self._pointers = np.zeros(_POINTERS, dtype=np.int64)
        self._settings = new_settings(SINGLE=int(single), **settings)
        self._pattern = (indptr, indices)
        self.free = list(range(slots, 0, -1))
        self.entries = self.analysis_nbytes = self.factor_nbytes = 0
        state = (self._pointers, self._settings, kind, self._pattern, slots)
        weakref.finalize(self, _end, *state).atexit = False

    def analyze(self, values: Array, order: Array | None = None) -> None:
        """Order the pattern, or take the given order, and lay out the factors.

        Raises:
            SingularMatrixError, MemoryBudgetError, NotSupportedError: see `library.check`.
        """
        check(self._call(Phase.ANALYZE, values, order=order), "the analysis")
        self.entries = self._told(Setting.FACTOR_ENTRIES)
        self.analysis_nbytes = 1024 * self._told(Setting.ANALYSIS_KB)
        self.factor_nbytes = 1024 * self._told(Setting.FACTOR_KB)

    def factorize(self, values: Array, slot: int) -> int:
        """Factorize into a slot.

        Returns:
            How many pivots were too small, and replaced.

        Raises:
            SingularMatrixError, MemoryBudgetError, NotSupportedError: see `library.check`; a definite
                kind met a pivot that is not positive.
        """
        check(self._call(Phase.FACTORIZE, values, slot=slot), "the factorization")
        return self._told(Setting.PERTURBED_PIVOTS)

    def solve(self, values: Array, slot: int, rhs: Array, trans: Trans) -> Array:
        """`op(A)⁻¹ rhs` for `[k, n]`, from the factor in a slot and the values that it was made of."""
        x = np.empty_like(rhs)
        self._settings[Setting.TRANSPOSED - 1] = TRANSPOSED[trans]
        for rows in self._blocks(*rhs.shape):
            check(self._call(Phase.SOLVE, values, slot=slot, rhs=rhs[rows], x=x[rows]), "the solve")
        return x

    def _blocks(self, k: int, n: int) -> list[slice]:
        """Which columns to solve together."""
        lean = _LEAN.get(self.kind)
        if lean is not None and (k < _FEW or self.entries < lean * n):
            return [slice(column, column + 1) for column in range(k)]
        return [slice(0, k)]

    def release(self, slot: int) -> None:
        """Give the memory of a factor back, and its slot."""
        self._call(Phase.RELEASE_SLOT, np.zeros(1), slot=slot)
        self.free.append(slot)

    def _told(self, name: Setting) -> int:
        return int(self._settings[name - 1])

    def _call(self, phase: Phase, values: Array, **more: Any) -> int:
        matrix = (*self._pattern, values)
        return call(self._pointers, self._settings, self.kind, phase, matrix, slots=self.slots, **more)


def _end(pointers: Array, settings: Array, kind: MatrixType, pattern: tuple[Array, Array], slots: int) -> None:
    call(pointers, settings, kind, Phase.RELEASE_ALL, (*pattern, np.zeros(1)), slots=slots)


@final
class Slot:
    """A factor: its place in a handle, given back with this object, and the values that it was made of."""

    def __init__(self, handle: Handle, values: Array) -> None:
        self.handle, self.values = handle, values
        self.number = handle.free.pop()
        weakref.finalize(self, handle.release, self.number).atexit = False

    @property
    def nbytes(self) -> int:
        """Bytes of the factor, of values that were gathered for it, and of an analysis that is its own."""
        own = self.handle.analysis_nbytes if self.handle.slots == 1 else 0
        return self.handle.factor_nbytes + own + (int(self.values.nbytes) if self.handle.kind.mirrored else 0)

    def factorize(self) -> int:
        """Make the factor; returns how many pivots were replaced. See `Handle.factorize` for what it raises."""
        return self.handle.factorize(self.values, self.number)

    def solve(self, rhs: Array, trans: Trans) -> Array:
        """`op(A)⁻¹ rhs` for `[n, k]`."""
        rows = np.ascontiguousarray(rhs.T)
        return self.handle.solve(self.values, self.number, rows, trans).T


@final
class Shelf:
    """Handles that share the order of one pattern, each made when its kind of matrix first comes.

    Args:
        patterns: row pointers and columns of the matrix and, where it may be mirrored, of its upper triangle.
        order: what the analysis of the pattern has found.
    """

    def __init__(self, patterns: "dict[bool, tuple[Array, Array]]", order: Array) -> None:
        self._patterns, self._order = patterns, order
        self._handles: dict[tuple[MatrixType, bool], Handle] = {}

    def open(self, kind: MatrixType, single: bool, values: Array, **settings: int) -> Slot:
        """A free slot of a handle of this kind."""
        handle = self._handles.get((kind, single))
        if handle is None or not handle.free:
            # A full one lives on with its factors.
            indptr, indices = self._patterns[kind.mirrored]
            handle = Handle(kind, single, indptr, indices, slots=SLOTS, PERMUTATION=TAKEN, **settings)
            handle.analyze(values, self._order)
            self._handles[kind, single] = handle
        return Slot(handle, values)


def order_of(indptr: Array, indices: Array) -> tuple[Array, Handle]:
    """The library's order of a pattern, which needs no values, and the handle that found it."""
    order = np.zeros(indptr.size - 1, dtype=np.int32)
    handle = Handle(MatrixType.REAL_GENERAL, False, indptr, indices, PERMUTATION=RETURNED)
    handle.analyze(np.ones(indices.size), order)
    return order, handle
