"""CHOLMOD's own objects: the analysis of a pattern, and the factors that are made on copies of it.

Every call has a record of settings to itself, since that record holds the library's workspace as well.
With that CHOLMOD may be called by any number of threads; its BLAS may not, hence the lock.
"""

from ctypes import byref, c_int64
from typing import Any, final

import numpy as np

from backsolve.pattern import IndexArray
from backsolve.types import Array

from ...faults import not_definite
from . import library as cholmod

_INDEX = 8
"""Bytes of an index."""


@final
class Analysis:
    """The order of a pattern, its elimination tree and the sizes of its columns, or its supernodes.

    Args:
        n: rows, at least 1.
        indptr, indices: int64, of the lower triangle by columns.
        order: the row that is eliminated i-th; None: approximate minimum degree.

    Attributes:
        entries: of L, without the zeros that dense blocks hold.
        operations: multiplications and additions of a factorization.
        supernodal: L is held in dense blocks.

    Raises:
        MemoryBudgetError, NotSupportedError: as `library.check`, or the library cannot be used.
    """

    def __init__(self, n: int, indptr: IndexArray, indices: IndexArray, order: IndexArray | None) -> None:
        self._library, self._n = cholmod.load(), n
        self._handle: Any = None
        self._indptr, self._indices = indptr, indices
        given = None if order is None else order.astype(np.int64)
        with cholmod.session(self._library) as common:
            common.nmethods, common.method[0].ordering = 1, cholmod.AMD if given is None else cholmod.GIVEN
            pattern = cholmod.lower_triangle(n, indptr, indices, None)
            at = None if given is None else cholmod.address(given)
            self._handle = self._library.cholmod_l_analyze_p(pattern, at, None, 0, common)
            cholmod.check(common)
            self.entries, self.operations = int(common.lnz), float(common.fl)
        self.supernodal = bool(self._handle.contents.is_super)

    def factor_nbytes(self, *, complex_: bool) -> int:
        """Bytes of a factor: its numbers, in double precision, where they are, and a few vectors beside them."""
        made, itemsize = self._handle.contents, 16 if complex_ else 8
        if self.supernodal:
            return int(made.xsize) * itemsize + self.nbytes
        return self.entries * (itemsize + _INDEX) + 4 * _INDEX * self._n + self.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of the analysis: two vectors, and the rows of each dense block."""
        made = self._handle.contents
        return _INDEX * (2 * self._n + int(made.ssize) + 3 * int(made.nsuper))

    def factorized(self, values: Array) -> "Numeric":
        """Factorize on a copy of the analysis.

        Args:
            values: of the lower triangle by columns, float64 or complex128.

        Raises:
            NotPositiveDefiniteError: a column, which it names, has no positive pivot.
            MemoryBudgetError, NotSupportedError: as `library.check`.
        """
        a = cholmod.lower_triangle(self._n, self._indptr, self._indices, values)
        with cholmod.LOCK, cholmod.session(self._library) as common:
            handle = self._library.cholmod_l_copy_factor(self._handle, common)
            cholmod.check(common)
            made = Numeric(self, handle)
            self._library.cholmod_l_factorize(a, handle, common)
            cholmod.check(common)
        if handle.contents.minor < self._n:
            order = (c_int64 * self._n).from_address(handle.contents.perm)
            raise not_definite(int(order[handle.contents.minor]), "cholmod", "superlu")
        return made

    def solved(self, handle: Any, b: Array) -> Array:
        """As `Numeric.solve`."""
        return cholmod.solved(self._library, handle, b)

    def free(self, handle: Any) -> None:
        """Free a factor."""
        with cholmod.session(self._library) as common:
            self._library.cholmod_l_free_factor(byref(handle), common)

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle:
            self.free(handle)


@final
class Numeric:
    """The factor L of one matrix; solves only read it.

    Args:
        analysis: of its pattern.
        handle: CHOLMOD's, owned from now on.
    """

    def __init__(self, analysis: Analysis, handle: Any) -> None:
        self._analysis = analysis  # freed after this one
        self._handle = handle

    def __del__(self) -> None:
        self._analysis.free(self._handle)

    @property
    def nbytes(self) -> int:
        """Bytes of L, as large as the analysis has said."""
        return self._analysis.factor_nbytes(complex_=self._handle.contents.xtype == cholmod.COMPLEX)

    def solve(self, b: Array) -> Array:
        """`A⁻¹ b` for `[n, k]`, float64 or complex128, stored column by column as the answer is.

        Raises:
            MemoryBudgetError: there is no room for the answer.
        """
        return self._analysis.solved(self._handle, b)
