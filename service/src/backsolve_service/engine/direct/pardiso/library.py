"""The shared library `libmkl_rt`: where the wheel `mkl` has put it, its one function, and what its codes mean."""

import ctypes
import threading
from ctypes import byref, c_int, c_void_p
from enum import IntEnum
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, final

import numpy as np

from backsolve.errors import InternalError, MemoryBudgetError, NotSupportedError, SingularMatrixError
from backsolve.types import Array

from ...faults import singular

PACKAGE = "mkl"

_NAME = "libmkl_rt.so"
"""Followed by a number that changes with every other release."""

_LP64, _ILP64_BIT = 0, 1
_SEQUENTIAL = 1
"""Of `mkl_service.h`: integers of 32 bits, and no threads of the library's own."""

LOCK = threading.RLock()
"""Held through each call. PARDISO's handles are not safe to share between threads, and one process has one."""


@final
class MatrixType(IntEnum):
    """What PARDISO is told of a matrix (`mtype`); of the mirrored ones it reads the upper triangle."""

    REAL_DEFINITE = 2
    REAL_SYMMETRIC = -2
    REAL_GENERAL = 11
    HERMITIAN_DEFINITE = 4
    COMPLEX_SYMMETRIC = 6
    COMPLEX_GENERAL = 13

    @property
    def mirrored(self) -> bool:
        """One triangle says all."""
        return self not in (MatrixType.REAL_GENERAL, MatrixType.COMPLEX_GENERAL)

    @property
    def definite(self) -> bool:
        """The factorization is Cholesky's."""
        return self in (MatrixType.REAL_DEFINITE, MatrixType.HERMITIAN_DEFINITE)


@final
class Phase(IntEnum):
    """What one call does."""

    ANALYZE = 11
    FACTORIZE = 22
    SOLVE = 33
    RELEASE_SLOT = 0
    RELEASE_ALL = -1


@final
class Setting(IntEnum):
    """Entries of `iparm`, numbered as in Intel's reference, from one."""

    NO_DEFAULTS = 1
    ORDERING = 2
    PERMUTATION = 5
    REFINEMENTS = 8
    PIVOT_PERTURBATION = 10
    SCALING = 11
    TRANSPOSED = 12
    MATCHING = 13
    PERTURBED_PIVOTS = 14
    ANALYSIS_PEAK_KB = 15
    ANALYSIS_KB = 16
    FACTOR_KB = 17
    FACTOR_ENTRIES = 18
    PIVOTING = 21
    SINGLE = 28
    ZERO_BASED = 35


METIS = 2
TAKEN, RETURNED = 1, 2
"""What `PERMUTATION` says: the caller's order is used, or the library's is given to the caller."""

TRANSPOSED = {"N": 0, "H": 1, "T": 2}

_FAILURES = {
    -1: "inconsistent input",
    -3: "a reordering problem",
    -5: "an unclassified error",
    -9: "not enough memory outside the core",
    -10: "files outside the core that cannot be opened",
    -11: "files outside the core that cannot be read or written",
    -12: "integers of the wrong width",
}


def installed() -> bool:
    """Whether the library's file is here; it is not loaded for that."""
    return find() is not None


@cache
def find() -> Path | None:
    """The library's file as the wheel lists it; no disk is searched."""
    try:
        files = distribution(PACKAGE).files or ()
    except PackageNotFoundError:
        return None
    here = (Path(str(file.locate())) for file in files if file.name.startswith(_NAME))
    return next((file.resolve() for file in here if file.is_file()), None)


@cache
def load() -> Any:
    """The library, told to use 32-bit integers and no threads.

    Raises:
        NotSupportedError: it is not here, cannot be loaded, or was told otherwise before.
    """
    file = find()
    if file is None:
        raise NotSupportedError(
            f"method 'pardiso' needs the package {PACKAGE!r}: pip install 'backsolve-service[pardiso]'"
        )
    try:
        library = ctypes.CDLL(str(file))
    except OSError as err:
        raise NotSupportedError(f"{file.name} cannot be loaded: reinstall {PACKAGE!r}, or use 'superlu'") from err
    interface = library.MKL_Set_Interface_Layer(c_int(_LP64))
    layer = library.MKL_Set_Threading_Layer(c_int(_SEQUENTIAL))
    if interface & _ILP64_BIT or layer != _SEQUENTIAL:
        raise NotSupportedError(
            "MKL was loaded into this process with 64-bit integers or threads of its own: "
            "unset MKL_INTERFACE_LAYER and MKL_THREADING_LAYER, or use method 'superlu'"
        )
    library.pardiso.restype = None
    library.pardiso.argtypes = (c_void_p,) * 16
    return library


def call(
    handle: Array,
    settings: Array,
    kind: MatrixType,
    phase: Phase,
    matrix: tuple[Array, Array, Array],
    *,
    slots: int = 1,
    slot: int = 1,
    order: Array | None = None,
    rhs: Array | None = None,
    x: Array | None = None,
) -> int:
    """One call of `pardiso`.

    Args:
        handle: 64 pointers, all zero before the first call.
        settings: `iparm`, read and written.
        kind: of the matrix.
        phase: what to do.
        matrix: row pointers and columns, int32 and from zero, and values.
        slots, slot: how many matrices the handle may hold at once, and which of them is meant, from one.
        order: `[n]` int32, read or written as the settings say.
        rhs, x: `[k, n]`.

    Returns:
        The library's error code.
    """
    indptr, indices, values = matrix
    columns = 1 if rhs is None else rhs.shape[0]
    numbers = [c_int(v) for v in (slots, slot, kind, phase, indptr.size - 1, columns, 0)]
    maxfct, mnum, mtype, what, n, nrhs, silent = (byref(number) for number in numbers)
    code = c_int()
    with LOCK:
        load().pardiso(
            *(handle.ctypes.data, maxfct, mnum, mtype, what, n),
            *(values.ctypes.data, indptr.ctypes.data, indices.ctypes.data, _address(order)),
            *(nrhs, settings.ctypes.data, silent, _address(rhs), _address(x), byref(code)),
        )
    return code.value


def _address(array: Array | None) -> int | None:
    return None if array is None else int(array.ctypes.data)


def check(code: int, what: str) -> None:
    """Turn a code into an error.

    Raises:
        SingularMatrixError: a pivot is zero, or no row can be found for some column.
        MemoryBudgetError: an allocation failed.
        NotSupportedError: the factors are larger than 32-bit integers can count.
        InternalError: the library was called wrongly, or failed.
    """
    if code == 0:
        return
    if code in (-4, -6, -7):
        error: SingularMatrixError = singular()
        raise error
    if code == -2:
        raise MemoryBudgetError("the factors L and U do not fit in memory: try method 'cg' if A is definite")
    if code == -8:
        raise NotSupportedError("the factors are larger than 32-bit integers can count: use an iterative method")
    raise InternalError(f"PARDISO failed at {what} with {_FAILURES.get(code, 'an unknown error')} (code {code})")


def new_settings(**given: int) -> Array:
    """`iparm` with everything said that matters here; names are those of `Setting`."""
    settings = np.zeros(64, dtype=np.int32)
    chosen = {"NO_DEFAULTS": 1, "ORDERING": METIS, "PIVOTING": 1, "FACTOR_ENTRIES": -1, "ZERO_BASED": 1} | given
    for name, value in chosen.items():
        settings[Setting[name] - 1] = value
    return settings
