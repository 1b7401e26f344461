"""The system's CHOLMOD: where it is, which of its functions are called, and how its records lie in memory.

The offsets of all fields that are read or set are the same in every release from 3.0 to 5.3, of which
the headers were compared. None of it is taken on trust: before the first use the library has to say
that it is one of these releases, its defaults have to be found where they are expected, and the
factors of a small matrix, by both of its methods, have to be what that matrix makes them.
"""

import ctypes
import ctypes.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, byref, c_char, c_double, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from typing import Any, final

import numpy as np

from backsolve.errors import InternalError, MemoryBudgetError, NotSupportedError
from backsolve.pattern import IndexArray
from backsolve.types import Array

PACKAGE = "libcholmod3"
"""Debian 12's; its successor's is libcholmod5."""

SONAMES = ("libcholmod.so.5", "libcholmod.so.4", "libcholmod.so.3")

RELEASES = frozenset({(3, 0), (4, 0), (4, 2), (5, 0), (5, 1), (5, 2), (5, 3)})
"""Those whose headers were compared with the records below (SuiteSparse 5 to 7.10)."""

OK, NOT_DEFINITE, OUT_OF_MEMORY, TOO_LARGE = 0, 1, -2, -3
"""Values of `Common.status`."""

SIMPLICIAL, SUPERNODAL = 0, 2
"""Values of `Common.supernodal`; between them is the library's own choice, by operations for each entry."""

GIVEN, AMD = 1, 2
"""Values of `Method.ordering`."""

REAL, COMPLEX = 1, 2
"""Values of `xtype`; 0 is a pattern alone."""

_DOUBLE, _LONG, _LOWER, _SOLVE = 0, 2, -1, 0

LOCK = threading.RLock()
"""Held while the BLAS works: that of the system may be one that several threads must not use at once, and nothing
says which it is. Debian's OpenBLAS without threads, for one, spoils the factors of whoever shares it."""

_loading = threading.Lock()


@final
class Method(Structure):
    """One of the ways to order that an analysis may try."""

    _fields_ = (
        *((name, c_double) for name in ("lnz", "fl", "prune_dense", "prune_dense2", "nd_oksep")),
        ("other_1", c_double * 4),
        ("nd_small", c_size_t),
        ("other_2", c_double * 4),
        *((name, c_int) for name in ("aggressive", "order_for_lu", "nd_compress", "nd_camd", "nd_components")),
        ("ordering", c_int),
        ("other_3", c_size_t * 4),
    )


@final
class Common(Structure):
    """`cholmod_common`: settings, and the status of the last call; workspace too, so each call has its own."""

    _fields_ = (
        *((name, c_double) for name in ("dbound", "grow0", "grow1")),
        *((name, c_size_t) for name in ("grow2", "maxrank")),
        ("supernodal_switch", c_double),
        *((name, c_int) for name in ("supernodal", "final_asis", "final_super", "final_ll")),
        *((name, c_int) for name in ("final_pack", "final_monotonic", "final_resymbol")),
        *(("zrelax", c_double * 3), ("nrelax", c_size_t * 3)),
        *((name, c_int) for name in ("prefer_zomplex", "prefer_upper", "quick_return_if_not_posdef")),
        *((name, c_int) for name in ("prefer_binary", "print", "precise", "try_catch")),
        ("error_handler", c_void_p),
        *((name, c_int) for name in ("nmethods", "current", "selected")),
        ("method", Method * 10),
        *((name, c_int) for name in ("postorder", "default_nesdis")),
        *((name, c_double) for name in ("metis_memory", "metis_dswitch")),
        *((name, c_size_t) for name in ("metis_nswitch", "nrow", "mark", "iworksize", "xworksize")),
        *((name, c_void_p) for name in ("flag", "head", "xwork", "iwork")),
        *((name, c_int) for name in ("itype", "dtype", "no_workspace_reallocate", "status")),
        *((name, c_double) for name in ("fl", "lnz", "anz", "modfl")),
        *((name, c_size_t) for name in ("malloc_count", "memory_usage", "memory_inuse")),
        ("room", c_char * 4096),  # 632 to 656 bytes more that are the library's own affair
    )


@final
class Sparse(Structure):
    """`cholmod_sparse`."""

    _fields_ = (
        *((name, c_size_t) for name in ("nrow", "ncol", "nzmax")),
        *((name, c_void_p) for name in ("p", "i", "nz", "x", "z")),
        *((name, c_int) for name in ("stype", "itype", "xtype", "dtype", "sorted", "packed")),
    )


@final
class Dense(Structure):
    """`cholmod_dense`."""

    _fields_ = (
        *((name, c_size_t) for name in ("nrow", "ncol", "nzmax", "d")),
        *(("x", c_void_p), ("z", c_void_p), ("xtype", c_int), ("dtype", c_int)),
    )


@final
class Factor(Structure):
    """`cholmod_factor`: symbolic or numeric, simplicial or supernodal."""

    _fields_ = (
        *((name, c_size_t) for name in ("n", "minor")),
        *((name, c_void_p) for name in ("perm", "col_count", "iperm")),
        ("nzmax", c_size_t),
        *((name, c_void_p) for name in ("p", "i", "x", "z", "nz", "next", "prev")),
        *((name, c_size_t) for name in ("nsuper", "ssize", "xsize", "maxcsize", "maxesize")),
        *((name, c_void_p) for name in ("super", "pi", "px", "s")),
        *((name, c_int) for name in ("ordering", "is_ll", "is_super", "is_monotonic", "itype", "xtype", "dtype")),
        ("use_gpu", c_int),
    )


_COMMON, _SPARSE, _DENSE, _FACTOR = POINTER(Common), POINTER(Sparse), POINTER(Dense), POINTER(Factor)

SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cholmod_l_version": (c_int, (POINTER(c_int),)),
    "cholmod_l_start": (c_int, (_COMMON,)),
    "cholmod_l_finish": (c_int, (_COMMON,)),
    "cholmod_l_analyze_p": (_FACTOR, (_SPARSE, c_void_p, c_void_p, c_size_t, _COMMON)),
    "cholmod_l_copy_factor": (_FACTOR, (_FACTOR, _COMMON)),
    "cholmod_l_factorize": (c_int, (_SPARSE, _FACTOR, _COMMON)),
    "cholmod_l_solve": (_DENSE, (c_int, _FACTOR, _DENSE, _COMMON)),
    "cholmod_l_free_factor": (c_int, (POINTER(_FACTOR), _COMMON)),
    "cholmod_l_free_dense": (c_int, (POINTER(_DENSE), _COMMON)),
}
"""Every function of the library that is called: what it returns, and its parameters.

Those with indices of 64 bits: a factor in three dimensions soon needs them, and they take no longer."""


@cache
def installed() -> bool:
    """Whether the system's loader knows the library; it is not loaded for that."""
    return ctypes.util.find_library("cholmod") is not None


def load() -> Any:
    """The library with the signatures of its functions, proved on a small matrix.

    Raises:
        NotSupportedError: it is not here, is another release, or lays its records out otherwise.
    """
    with _loading:  # two threads of a cold start would prove it twice
        return _loaded()


@cache
def _loaded() -> Any:
    library = _opened()
    try:
        for name, (result, parameters) in SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, parameters
    except AttributeError as err:
        raise NotSupportedError("this build of CHOLMOD lacks functions: use method 'cholesky'") from err
    told = (c_int * 3)()
    library.cholmod_l_version(told)
    check_release(tuple(told))
    if not as_expected(library):
        raise NotSupportedError("this build of CHOLMOD lays its records out in its own way: use method 'cholesky'")
    return library


def _opened() -> Any:
    for name in SONAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise NotSupportedError(
        f"method 'cholmod' needs the system's package {PACKAGE!r}: apt-get install {PACKAGE}, or use method 'cholesky'"
    )


def check_release(release: tuple[int, ...]) -> None:
    """Refuse a release whose records nobody has compared.

    Raises:
        NotSupportedError: it is one.
    """
    if release[:2] not in RELEASES:
        raise NotSupportedError(
            "method 'cholmod' knows releases 3.0 to 5.3 of CHOLMOD (SuiteSparse 5 to 7), and this library is another: "
            f"install {PACKAGE}, or use method 'cholesky'"
        )


@contextmanager
def session(library: Any) -> Iterator[Common]:
    """A record of settings for the calls of one thread, whose workspace is freed at the end."""
    common = Common()
    library.cholmod_l_start(common)
    try:
        common.try_catch = 1  # or it would print its errors
        # Pivots are looked at in LLᴴ; LDLᴴ would go on with any. Nothing is computed once one is not positive.
        common.final_ll = common.quick_return_if_not_posdef = 1
        yield common
    finally:
        library.cholmod_l_finish(common)


def check(common: Common) -> None:
    """Raise what the status of the last call says; that a matrix is not definite is left to the caller.

    Raises:
        MemoryBudgetError: an allocation failed.
        NotSupportedError: the factor is larger than the library or its BLAS can count.
        InternalError: the library was called wrongly, or failed.
    """
    if common.status >= OK:
        return
    if common.status == OUT_OF_MEMORY:
        raise MemoryBudgetError("the factor L does not fit in memory: try method 'cg'")
    if common.status == TOO_LARGE:
        raise NotSupportedError("the factor is larger than CHOLMOD or its BLAS can count: use method 'cg'")
    raise InternalError(f"CHOLMOD failed (status {common.status})")


def address(array: Array) -> int:
    """Where the numbers of an array lie; the caller keeps it alive."""
    return int(array.ctypes.data)


def lower_triangle(n: int, indptr: IndexArray, indices: IndexArray, values: Array | None) -> Sparse:
    """The record of a lower triangle by columns; the arrays stay the caller's, who keeps them alive.

    Args:
        n: rows.
        indptr, indices: int64, sorted within a column.
        values: float64 or complex128; None: of the pattern alone.
    """
    of = Sparse(nrow=n, ncol=n, nzmax=indices.size, p=address(indptr), i=address(indices))
    of.stype, of.itype, of.dtype, of.sorted, of.packed = _LOWER, _LONG, _DOUBLE, 1, 1
    if values is not None:
        of.x, of.xtype = address(values), COMPLEX if values.dtype.kind == "c" else REAL
    return of


def solved(library: Any, factor: Any, b: Array) -> Array:
    """`A⁻¹ b` for `[n, k]` float64 or complex128; both are stored column by column.

    Raises:
        MemoryBudgetError: there is no room for the answer.
    """
    n, k = b.shape
    xtype = COMPLEX if b.dtype.kind == "c" else REAL
    right = Dense(nrow=n, ncol=k, nzmax=n * k, d=n, x=address(b), xtype=xtype, dtype=_DOUBLE)
    x = np.empty((k, n), dtype=b.dtype)
    with LOCK, session(library) as common:
        made = library.cholmod_l_solve(_SOLVE, factor, right, common)
        check(common)
        ctypes.memmove(address(x), made.contents.x, x.nbytes)
        library.cholmod_l_free_dense(byref(made), common)
    return x.T


_SMALL = np.array([[4.0, 0, 2, 0], [0, 9, 0, 3], [2, 0, 10, 0], [0, 3, 0, 26]])
"""In the order 1, 3, 0, 2 it is two blocks, whose factors are [3, 0; 1, 5] and [2, 0; 1, 3]."""

_ENTRIES = [3.0, 1.0, 5.0, 2.0, 1.0, 3.0]


def as_expected(library: Any) -> bool:
    """Whether each field that is relied upon lies where it is read."""
    lower = np.tril(_SMALL).T
    columns, rows = np.nonzero(lower)
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(lower, axis=1))]).astype(np.int64)
    indices, values, order = rows.astype(np.int64), _SMALL[rows, columns], np.array([1, 3, 0, 2], dtype=np.int64)
    a = lower_triangle(4, indptr, indices, values)
    with LOCK, session(library) as common:
        if not _defaults(common):
            return False
        common.nmethods, common.method[0].ordering, common.postorder = 1, GIVEN, 0
        for kind in (SIMPLICIAL, SUPERNODAL):
            common.supernodal = kind
            made = library.cholmod_l_analyze_p(a, address(order), None, 0, common)
            if not made or (common.status, common.lnz, common.fl) != (OK, 6.0, 10.0):
                return False
            library.cholmod_l_factorize(a, made, common)
            proved = common.status == OK and _laid_out(made.contents, kind)
            library.cholmod_l_free_factor(byref(made), common)
            if not proved:
                return False
    return True


def _defaults(common: Common) -> bool:
    """Whether the library's own settings, but for those of a session, are found in their places."""
    return bool(
        (common.grow1, common.grow2, common.maxrank) == (1.2, 5, 8)
        and (common.supernodal_switch, common.supernodal, common.final_asis, common.final_pack) == (40.0, 1, 1, 1)
        and (tuple(common.zrelax), tuple(common.nrelax)) == ((0.8, 0.1, 0.05), (4, 16, 48))
        and (common.print, common.precise, common.nmethods, common.postorder) == (3, 0, 0, 1)
        and (common.method[0].ordering, common.method[0].prune_dense) == (GIVEN, 10.0)
        and (common.metis_nswitch, common.itype, common.status, common.lnz) == (3000, _LONG, OK, -1.0)
    )


def _laid_out(made: Factor, kind: int) -> bool:
    """Whether the factor of the small matrix is what it must be."""
    if (made.n, made.minor, made.xtype, made.dtype, made.is_ll) != (4, 4, REAL, _DOUBLE, 1):
        return False
    if list((c_int64 * 4).from_address(made.perm)) != [1, 3, 0, 2]:
        return False
    if kind == SIMPLICIAL:
        return (made.is_super, made.nzmax) == (0, 6) and list((c_double * 6).from_address(made.x)) == _ENTRIES
    if made.is_super == 0 or (made.nsuper, made.xsize, made.ssize) != (2, 8, 4):
        return False
    # Two dense blocks by columns; what is above a diagonal is nobody's.
    held = list((c_double * 8).from_address(made.x))
    return [held[at] for at in (0, 1, 3, 4, 5, 7)] == _ENTRIES
