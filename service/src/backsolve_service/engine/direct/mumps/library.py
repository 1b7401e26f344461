"""The libraries of MUMPS 5.5, one for each element type: where they are, their record, and what their codes mean.

MUMPS is called with one large record, whose layout changes from release to release. It is written
down here for release 5.5 (`dmumps_c.h`), and the library's own version number, near its end, has to
be found where this layout puts it.
"""

import ctypes
import ctypes.util
import threading
from ctypes import POINTER, c_char, c_double, c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Any

from backsolve.errors import InternalError, MemoryBudgetError, NotSupportedError, SingularMatrixError

from ...faults import singular

RELEASE = "5.5"
PACKAGE = f"libmumps-seq-{RELEASE}"
"""Debian's."""

LOCK = threading.RLock()
"""Held through each call: the library has one state for all of a process."""

LETTERS = {"float32": "s", "float64": "d", "complex64": "c", "complex128": "z"}

_ROOM = 1 << 14
"""Bytes behind the record, should the library's be longer."""


def _fields(real: Any) -> list[tuple[str, Any]]:
    """The record's fields in their order, as `dmumps_c.h` of release 5.5 lists them."""
    pointers = c_void_p
    return [
        *((name, c_int) for name in ("sym", "par", "job", "comm_fortran")),
        *(("icntl", c_int * 60), ("keep", c_int * 500), ("cntl", real * 15), ("dkeep", real * 230)),
        *(("keep8", c_int64 * 150), ("n", c_int), ("nblk", c_int), ("nz_alloc", c_int)),
        *(("nz", c_int), ("nnz", c_int64), ("irn", pointers), ("jcn", pointers), ("a", pointers)),
        *(("nz_loc", c_int), ("nnz_loc", c_int64), ("irn_loc", pointers), ("jcn_loc", pointers), ("a_loc", pointers)),
        *(("nelt", c_int), ("eltptr", pointers), ("eltvar", pointers), ("a_elt", pointers)),
        *((name, pointers) for name in ("blkptr", "blkvar", "perm_in", "sym_perm", "uns_perm", "colsca", "rowsca")),
        *(("colsca_from_mumps", c_int), ("rowsca_from_mumps", c_int)),
        *((name, pointers) for name in ("rhs", "redrhs", "rhs_sparse", "sol_loc", "rhs_loc")),
        *((name, pointers) for name in ("irhs_sparse", "irhs_ptr", "isol_loc", "irhs_loc")),
        *((name, c_int) for name in ("nrhs", "lrhs", "lredrhs", "nz_rhs", "lsol_loc", "nloc_rhs", "lrhs_loc")),
        *((name, c_int) for name in ("schur_mloc", "schur_nloc", "schur_lld", "mblock", "nblock", "nprow", "npcol")),
        *(("info", c_int * 80), ("infog", c_int * 80), ("rinfo", real * 40), ("rinfog", real * 40)),
        *(("deficiency", c_int), ("pivnul_list", pointers), ("mapping", pointers)),
        *(("size_schur", c_int), ("listvar_schur", pointers), ("schur", pointers)),
        *(("instance_number", c_int), ("wk_user", pointers), ("version_number", c_char * 32)),
        *(("ooc_tmpdir", c_char * 256), ("ooc_prefix", c_char * 64), ("write_problem", c_char * 256)),
        *(("lwk_user", c_int), ("save_dir", c_char * 256), ("save_prefix", c_char * 256)),
        *(("metis_options", c_int * 40), ("beyond", c_char * _ROOM)),
    ]


class SingleRecord(ctypes.Structure):
    """The record of the libraries in single precision."""

    _fields_ = _fields(c_float)


class DoubleRecord(ctypes.Structure):
    """The record of the libraries in double precision."""

    _fields_ = _fields(c_double)


def record(dtype: str) -> Any:
    """A new record, all zero, for an element type."""
    return SingleRecord() if dtype in ("float32", "complex64") else DoubleRecord()


@cache
def installed() -> bool:
    """Whether all four libraries are known to the system's loader; none is loaded for that."""
    return all(ctypes.util.find_library(f"{letter}mumps_seq-{RELEASE}") is not None for letter in LETTERS.values())


@cache
def load(dtype: str) -> Any:
    """The function of the library for one element type.

    Raises:
        NotSupportedError: the library is not here, or cannot be loaded.
    """
    letter = LETTERS[dtype]
    try:
        library = ctypes.CDLL(f"lib{letter}mumps_seq-{RELEASE}.so")
    except OSError as err:
        raise NotSupportedError(
            f"method 'mumps' needs the system's package {PACKAGE!r}: apt-get install {PACKAGE}, or use method 'superlu'"
        ) from err
    function = library[f"{letter}mumps_c"]
    function.restype = None
    function.argtypes = [POINTER(type(record(dtype)))]
    return function


def check_version(made: Any) -> None:
    """Refuse a record that the library has filled in otherwise than it is described here.

    Raises:
        NotSupportedError: the version number is not where it is expected, or is another one.
    """
    found = bytes(made.version_number).split(b"\0")[0].decode("ascii", "replace")
    if not found.startswith(f"{RELEASE}."):
        raise NotSupportedError(
            f"method 'mumps' is written for release {RELEASE} of MUMPS, and this library is another one: "
            f"install {PACKAGE}, or use method 'superlu'"
        )


def check(code: int, what: str) -> None:
    """Turn `infog(1)` into an error; positive codes are warnings.

    Raises:
        SingularMatrixError: a pivot is zero.
        MemoryBudgetError: an allocation failed.
        NotSupportedError: the factors are larger than 32-bit integers can count.
        InternalError: the library was called wrongly, or failed.
    """
    if code >= 0:
        return
    if code in (-6, -10):
        error: SingularMatrixError = singular()
        raise error
    if code in (-7, -8, -9, -13, -19):
        raise MemoryBudgetError("the factors L and U do not fit in memory: try method 'cg' if A is definite")
    if code in (-51, -52):
        raise NotSupportedError("the matrix is larger than 32-bit integers can count: use an iterative method")
    raise InternalError(f"MUMPS failed at {what} (code {code})")
