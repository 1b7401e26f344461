"""KLU's objects as Python objects: made, copied, solved with under their lock, and freed once."""

import ctypes
import threading
from collections.abc import Callable
from ctypes import c_void_p
from typing import Any, final

import numpy as np

from backsolve.types import Array, Trans

from ..columns import Columns
from . import library as klu

_INT = 4
"""Bytes of an index."""


@final
class Analysis:
    """KLU's analysis of one pattern; read only, so threads share it.

    Args:
        n: rows.
        columns: the pattern.

    Raises:
        MemoryBudgetError, NotSupportedError: as `library.check`, and as `library.load`.
    """

    def __init__(self, n: int, columns: Columns) -> None:
        self.library = klu.load()
        self.columns = columns
        self._common = klu.settings(self.library)
        self.handle = self.library.klu_analyze(
            n, klu.address(columns.indptr), klu.address(columns.indices), self._common
        )
        klu.check(self._common)
        # Kept here, since when the interpreter ends nothing can be looked up any more.
        self._free: Callable[..., int] = self.library.klu_free_symbolic

    @property
    def least_entries(self) -> int:
        """Entries of L, U and between the blocks, if every pivot is on the diagonal."""
        made = self.handle.contents
        return int(max(made.lnz, 0) + max(made.unz, 0)) + int(made.nzoff)

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if handle:
            self._free(handle, self._common)


@final
class Numeric:
    """The factors of one matrix; solving uses room inside them, so it takes turns.

    Args:
        analysis: of its pattern.
        kind: "" of real numbers, "z_" of complex ones.
        handle: KLU's, owned from now on.
    """

    def __init__(self, analysis: Analysis, kind: str, handle: Any) -> None:
        self._analysis = analysis  # freed after this one
        self.kind = kind
        self._handle = handle
        self._turn = threading.Lock()
        self._free: Callable[..., int] = _function(analysis, kind, "free_numeric")
        self._common = klu.settings(analysis.library)

    def __del__(self) -> None:
        self._free(self._handle, self._common)

    @property
    def entries(self) -> int:
        """Entries of L, U and between the blocks."""
        made = self._handle.contents
        return int(made.lnz) + int(made.unz) + int(made.nzoff)

    def solve(self, b: Array, trans: Trans) -> Array:
        """`op(A)⁻¹ b` of `[n, k]`, in b's element type.

        Raises:
            SingularMatrixError: as `library.check`.
        """
        n, k = b.shape
        complex_ = self.kind == "z_"
        # KLU solves in place, column by column in memory.
        x = np.array(b.T, dtype=np.complex128 if complex_ else np.float64, order="C", copy=True)
        library, common = self._analysis.library, klu.settings(self._analysis.library)
        which = (self._analysis.handle, self._handle, n, k, klu.address(x))
        with self._turn:
            if trans == "N":
                _function(self._analysis, self.kind, "solve")(*which, common)
            elif complex_:
                library.klu_z_tsolve(*which, int(trans == "H"), common)
            else:
                library.klu_tsolve(*which, common)
        klu.check(common)
        return np.asarray(x.T.astype(b.dtype, copy=False))

    def refactored(self, values: Array) -> "Numeric | None":
        """The factors of other values on the pattern with the same pivots; None where one of those is zero.

        Nothing says that they are good pivots for these values. This factor stays as it is.

        Args:
            values: by columns.

        Raises:
            MemoryBudgetError: they do not fit in memory.
        """
        columns, common = self._analysis.columns, klu.settings(self._analysis.library)
        handle = _copied(self._analysis.library, self._handle.contents, values.dtype.itemsize, common)
        made = Numeric(self._analysis, self.kind, handle)
        refactor = _function(self._analysis, self.kind, "refactor")
        refactor(*_places(columns, values), self._analysis.handle, handle, common)
        if common.status == klu.SINGULAR:
            return None
        klu.check(common)
        return made

    def growth(self, values: Array) -> float:
        """Reciprocal pivot growth, between 0 (every digit lost) and about 1; it costs one pass over U.

        Args:
            values: those of A, by columns.
        """
        columns, common = self._analysis.columns, klu.settings(self._analysis.library)
        grown = _function(self._analysis, self.kind, "rgrowth")
        grown(*_places(columns, values), self._analysis.handle, self._handle, common)
        klu.check(common)
        return float(common.rgrowth)


def factored(analysis: Analysis, values: Array, tolerance: float | None) -> Numeric:
    """Factorize with pivots chosen for these values.

    Args:
        analysis: of the pattern.
        values: by columns, float64 or complex128.
        tolerance: of its column's largest entry, above which the diagonal stays the pivot; None: KLU's own, 0.001.

    Raises:
        SingularMatrixError: a pivot is exactly zero.
        MemoryBudgetError, NotSupportedError: as `library.check`.
    """
    common = klu.settings(analysis.library)
    if tolerance is not None:
        common.tol = tolerance
    kind = "z_" if values.dtype.kind == "c" else ""
    handle = _function(analysis, kind, "factor")(*_places(analysis.columns, values), analysis.handle, common)
    if common.status != klu.OK:
        # KLU has freed the arrays of a factor that it gave up, but in some versions not their record.
        if handle and common.memusage == ctypes.sizeof(klu.Numeric):
            analysis.library.klu_free(handle, 1, ctypes.sizeof(klu.Numeric), common)
        klu.check(common)
    return Numeric(analysis, kind, handle)


def _function(analysis: Analysis, kind: str, name: str) -> Any:
    return getattr(analysis.library, f"klu_{kind}{name}")


def _places(columns: Columns, values: Array) -> tuple[int, int, int]:
    return klu.address(columns.indptr), klu.address(columns.indices), klu.address(values)


def _copied(library: Any, old: klu.Numeric, itemsize: int, common: klu.Common) -> Any:
    """A copy that KLU itself can free: every array of it is of KLU's own allocator.

    Raises:
        MemoryBudgetError: it does not fit in memory; what was allocated by then is freed.
    """
    n, off = old.n, old.nzoff
    # The fields of a record whose arrays are not there yet are null, and freeing it is safe at any time.
    made = ctypes.cast(_room(library, ctypes.sizeof(klu.Numeric), common), ctypes.POINTER(klu.Numeric))
    ctypes.memset(made, 0, ctypes.sizeof(klu.Numeric))
    new = made.contents
    for field in ("n", "nblocks", "lnz", "unz", "max_lnz_block", "max_unz_block", "nzoff", "worksize"):
        setattr(new, field, getattr(old, field))
    sizes = dict.fromkeys(("pnum", "pinv", "lip", "uip", "llen", "ulen"), _INT * n)
    sizes |= {"offp": _INT * (n + 1), "offi": _INT * (off + 1), "offx": itemsize * (off + 1)}
    sizes |= {"udiag": itemsize * n, "rs": 8 * n}
    try:
        for field, nbytes in sizes.items():
            setattr(new, field, _copy(library, getattr(old, field), nbytes, common))
        new.work = new.xwork = _room(library, old.worksize, common)
        new.iwork = new.work + (old.iwork - old.work)
        _copy_blocks(library, old, new, itemsize, common)
    except BaseException:
        free = library.klu_free_numeric if itemsize == 8 else library.klu_z_free_numeric
        free(made, common)
        raise
    return made


def _copy_blocks(library: Any, old: klu.Numeric, new: klu.Numeric, itemsize: int, common: klu.Common) -> None:
    """L and U of each diagonal block; one of a single row has none."""
    pointers = _copy(library, _at(old.blocks), 8 * old.nblocks, common)
    ctypes.memset(pointers, 0, 8 * old.nblocks)
    new.blocks = ctypes.cast(pointers, type(new.blocks))
    units = _copy(library, _at(old.block_units), 8 * old.nblocks, common)
    new.block_units = ctypes.cast(units, type(new.block_units))
    held = np.ctypeslib.as_array((ctypes.c_size_t * old.nblocks).from_address(_at(old.blocks)))
    for block in np.flatnonzero(held):
        new.blocks[block] = _copy(library, int(held[block]), itemsize * old.block_units[block], common)


def _at(pointer: Any) -> int:
    return int(ctypes.cast(pointer, c_void_p).value or 0)


def _copy(library: Any, source: int, nbytes: int, common: klu.Common) -> int:
    assert source, "an array of KLU's is missing"
    room = _room(library, nbytes, common)
    ctypes.memmove(room, source, nbytes)
    return room


def _room(library: Any, nbytes: int, common: klu.Common) -> int:
    made = library.klu_malloc(nbytes, 1, common)
    klu.check(common)
    return int(made)
