"""One instance of MUMPS: an analysis and at most one factorization, ended with the object that stands for it."""

import weakref
from ctypes import POINTER, byref, c_int, cast
from enum import IntEnum
from typing import Any, final

import numpy as np

from backsolve.types import Array, Trans

from .library import LOCK, check, check_version, load, record

_WORLD = -987654
"""MUMPS's name for all processes, of which the sequential library has one."""

_TOO_SMALL = (-8, -9)
_ROOM = (30, 100, 400, 2000)
"""Percent of working space beyond what the analysis has foreseen; delayed pivots may need more than the first."""

_MILLIONS = 1_000_000


@final
class Job(IntEnum):
    """What one call does."""

    BEGIN = -1
    END = -2
    ANALYZE = 1
    FACTORIZE = 2
    SOLVE = 3


@final
class Control(IntEnum):
    """Entries of `icntl`, numbered as in the users' guide, from one."""

    ERRORS = 1
    DIAGNOSTICS = 2
    GLOBAL = 3
    VERBOSITY = 4
    MATCHING = 6
    ORDERING = 7
    TRANSPOSED = 9
    ROOM = 14


_METIS, _GIVEN, _AUTOMATIC = 5, 1, 7


@final
class Instance:
    """An instance.

    Args:
        dtype: NumPy name of the element type.
        n: rows.
        rows, columns: of each entry, int32 and from one; of a matrix that equals its transpose, of one triangle.
        mirrored: it is such a matrix.
    """

    def __init__(self, dtype: str, n: int, rows: Array, columns: Array, *, mirrored: bool) -> None:
        self._function, self._record = load(dtype), record(dtype)
        self._kept: list[Array] = [rows, columns]
        self._record.sym, self._record.par, self._record.comm_fortran = 2 * int(mirrored), 1, _WORLD
        self._call(Job.BEGIN)
        weakref.finalize(self, _end, self._function, self._record).atexit = False
        check_version(self._record)
        check(self._record.infog[0], "its start")
        for silent in (Control.ERRORS, Control.DIAGNOSTICS, Control.GLOBAL):
            self._set(silent, -1)
        self._set(Control.VERBOSITY, 0)
        self._record.n, self._record.nnz = n, rows.size
        self._record.irn, self._record.jcn = rows.ctypes.data, columns.ctypes.data

    def analyze(self, values: Array | None = None, order: Array | None = None) -> None:
        """Order the pattern, take the given order, or match rows with columns by values and order that.

        Raises:
            SingularMatrixError, MemoryBudgetError, NotSupportedError: see `library.check`.
        """
        self._set(Control.MATCHING, 0 if values is None else _AUTOMATIC)
        self._set(Control.ORDERING, _METIS if order is None else _GIVEN)
        if values is not None:
            self._hold(values)
        if order is not None:
            self._kept.append(order)
            self._record.perm_in = order.ctypes.data
        self._call(Job.ANALYZE)
        check(self._record.infog[0], "the analysis")

    @property
    def order(self) -> Array:
        """The order that the analysis found, `[n]` int32: place of each row, from one."""
        return _integers(self._record.sym_perm, self._record.n)

    @property
    def foreseen(self) -> tuple[int, int]:
        """Numbers and integers in the factors, as the analysis foresees them."""
        return _count(self._record.infog[2]), _count(self._record.infog[3])

    def factorize(self, values: Array) -> None:
        """Factorize with threshold pivoting.

        Raises:
            SingularMatrixError, MemoryBudgetError, NotSupportedError: see `library.check`.
        """
        self._hold(values)
        for room in _ROOM:
            self._set(Control.ROOM, room)
            self._call(Job.FACTORIZE)
            if self._record.infog[0] not in _TOO_SMALL:
                break
        check(self._record.infog[0], "the factorization")

    @property
    def factor_nbytes(self) -> int:
        """Bytes of the factors, numbers and integers."""
        return _count(self._record.infog[8]) * self._kept[-1].dtype.itemsize + 4 * _count(self._record.infog[9])

    def solve(self, rhs: Array, trans: Trans) -> Array:
        """`op(A)⁻¹ rhs` for `[n, k]`; there is no conjugate transpose, so "H" conjugates what goes in and comes out."""
        conjugate = trans == "H" and rhs.dtype.kind == "c"
        x: Any = np.array((np.conj(rhs) if conjugate else rhs).T, order="C", copy=True)
        self._set(Control.TRANSPOSED, 1 if trans == "N" else 2)
        with LOCK:
            self._record.nrhs, self._record.lrhs = x.shape
            self._record.rhs = x.ctypes.data
            self._call(Job.SOLVE)
            self._record.rhs = None
        check(self._record.infog[0], "the solve")
        return np.conj(x.T) if conjugate else np.asarray(x.T)

    def _hold(self, values: Array) -> None:
        self._kept.append(values)
        self._record.a = values.ctypes.data

    def _set(self, name: Control, value: int) -> None:
        self._record.icntl[name - 1] = value

    def _call(self, job: Job) -> None:
        with LOCK:
            self._record.job = job
            self._function(byref(self._record))


def _end(function: Any, made: Any) -> None:
    with LOCK:
        made.job = Job.END
        function(byref(made))


def _count(told: int) -> int:
    """A number of entries; a negative one counts millions."""
    return told if told >= 0 else -told * _MILLIONS


def _integers(address: int, n: int) -> Array:
    """A copy of int32 numbers at an address."""
    return np.ctypeslib.as_array(cast(address, POINTER(c_int)), shape=(n,)).astype(np.int32, copy=True)
