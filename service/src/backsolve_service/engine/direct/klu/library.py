"""KLU inside the package nbklu: where it is, which of its functions are called, and how its records lie in memory.

nbklu's own binding holds the interpreter's lock during every call, and offers no way to copy a
factor; its extension module exports the C functions, which ctypes calls without that lock. Two
records of KLU are read here and one is copied. Their layout is that of KLU 1 and 2, and is not
taken on trust: before the first use a small matrix is factorized, and every field that is relied
upon has to hold what that matrix makes it hold.
"""

import ctypes
import importlib.util
import threading
from ctypes import POINTER, Structure, c_char, c_double, c_int, c_int32, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np

from backsolve.errors import MemoryBudgetError, NotSupportedError

from ...faults import singular

PACKAGE = "nbklu"

OK, SINGULAR, OUT_OF_MEMORY, INVALID, TOO_LARGE = 0, 1, -2, -3, -4
"""Values of `Common.status`."""

_loading = threading.Lock()


@final
class Common(Structure):
    """`klu_common`: settings, and the status of the last call."""

    _fields_ = (
        *((name, c_double) for name in ("tol", "memgrow", "initmem_amd", "initmem", "maxwork")),
        *((name, c_int) for name in ("btf", "ordering", "scale")),
        *((name, c_void_p) for name in ("user_order", "user_data")),
        *((name, c_int) for name in ("halt_if_singular", "status", "nrealloc")),
        *((name, c_int32) for name in ("structural_rank", "numerical_rank", "singular_col", "noffdiag")),
        *((name, c_double) for name in ("flops", "rcond", "condest", "rgrowth", "work")),
        *((name, c_size_t) for name in ("memusage", "mempeak")),
        ("room", c_char * 512),  # of a later version that has more fields
    )


@final
class Symbolic(Structure):
    """`klu_symbolic`: what is read of it."""

    _fields_ = (
        *((name, c_double) for name in ("symmetry", "est_flops", "lnz", "unz")),
        ("column_lnz", c_void_p),
        *((name, c_int32) for name in ("n", "nz")),
        *((name, c_void_p) for name in ("p", "q", "r")),
        *((name, c_int32) for name in ("nzoff", "nblocks", "maxblock", "ordering", "do_btf", "structural_rank")),
    )


@final
class Numeric(Structure):
    """`klu_numeric`: the whole of it, since it is copied."""

    _fields_ = (
        *((name, c_int32) for name in ("n", "nblocks", "lnz", "unz", "max_lnz_block", "max_unz_block")),
        *((name, c_void_p) for name in ("pnum", "pinv", "lip", "uip", "llen", "ulen")),
        ("blocks", POINTER(c_void_p)),
        ("block_units", POINTER(c_size_t)),
        *((name, c_void_p) for name in ("udiag", "rs")),
        ("worksize", c_size_t),
        *((name, c_void_p) for name in ("work", "xwork", "iwork", "offp", "offi", "offx")),
        ("nzoff", c_int32),
    )


_SYMBOLIC, _NUMERIC, _COMMON = POINTER(Symbolic), POINTER(Numeric), POINTER(Common)
_ARRAY = c_void_p

SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "klu_defaults": (c_int, (_COMMON,)),
    "klu_analyze": (_SYMBOLIC, (c_int32, _ARRAY, _ARRAY, _COMMON)),
    "klu_free_symbolic": (c_int, (POINTER(_SYMBOLIC), _COMMON)),
    "klu_malloc": (c_void_p, (c_size_t, c_size_t, _COMMON)),
    "klu_free": (c_void_p, (c_void_p, c_size_t, c_size_t, _COMMON)),
    "klu_tsolve": (c_int, (_SYMBOLIC, _NUMERIC, c_int32, c_int32, _ARRAY, _COMMON)),
    "klu_z_tsolve": (c_int, (_SYMBOLIC, _NUMERIC, c_int32, c_int32, _ARRAY, c_int, _COMMON)),
} | {
    f"klu_{kind}{name}": signature
    for kind in ("", "z_")
    for name, signature in {
        "factor": (_NUMERIC, (_ARRAY, _ARRAY, _ARRAY, _SYMBOLIC, _COMMON)),
        "refactor": (c_int, (_ARRAY, _ARRAY, _ARRAY, _SYMBOLIC, _NUMERIC, _COMMON)),
        "solve": (c_int, (_SYMBOLIC, _NUMERIC, c_int32, c_int32, _ARRAY, _COMMON)),
        "rcond": (c_int, (_SYMBOLIC, _NUMERIC, _COMMON)),
        "rgrowth": (c_int, (_ARRAY, _ARRAY, _ARRAY, _SYMBOLIC, _NUMERIC, _COMMON)),
        "free_numeric": (c_int, (POINTER(_NUMERIC), _COMMON)),
    }.items()
}
"""Every function of the library that is called: what it returns, and its parameters."""


def usable() -> bool:
    """Whether the library is here, and is one whose records are laid out as they are read."""
    try:
        load()
    except NotSupportedError:
        return False
    return True


def load() -> Any:
    """The library with the signatures of its functions, proved on a small matrix.

    Raises:
        NotSupportedError: it is not here, hides its functions, or lays its records out otherwise.
    """
    with _loading:  # two threads of a cold start would prove it twice
        return _loaded()


@cache
def _loaded() -> Any:
    file = _find()
    if file is None:
        raise NotSupportedError(f"method 'klu' needs the package {PACKAGE!r}: pip install 'backsolve-service[klu]'")
    try:
        library = ctypes.CDLL(str(file))
        for name, (result, parameters) in SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, parameters
    except (OSError, AttributeError) as err:
        raise NotSupportedError(f"this build of {PACKAGE!r} hides KLU's functions: use method 'superlu'") from err
    if not _as_expected(library):
        raise NotSupportedError(f"this version of {PACKAGE!r} has an unknown KLU inside: use method 'superlu'")
    return library


def _find() -> Path | None:
    """The package's extension module; the package itself is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    return next((file for place in places for file in sorted(Path(place).glob("_ext.*so"))), None)


def settings(library: Any) -> Common:
    """KLU's own settings; until it has set them they are all zero, which among other things means no pivoting."""
    common = Common()
    library.klu_defaults(common)
    return common


def check(common: Common) -> None:
    """Raise what the status of the last call says.

    Raises:
        SingularMatrixError: a pivot is exactly zero.
        MemoryBudgetError, NotSupportedError: L and U do not fit in memory, or in its indices.
    """
    if common.status == OK:
        return
    if common.status == SINGULAR:
        raise singular()
    if common.status == OUT_OF_MEMORY:
        raise MemoryBudgetError("the factors L and U do not fit in memory: try method 'cg' if A is definite")
    if common.status == TOO_LARGE:
        raise NotSupportedError("the factors are larger than 32-bit indices reach: use method 'superlu'")
    raise RuntimeError(f"KLU returned status {common.status}")


def address(array: Any) -> int:
    """Where the numbers of an array lie; the caller keeps it alive."""
    return int(array.ctypes.data)


def _as_expected(library: Any) -> bool:
    """Whether each field that is relied upon lies where it is read.

    The matrix has a block of one row and one of three, whose L and U differ in size, and two
    entries between the blocks: so nearly every count is another number.
    """
    a = np.array([[2.0, 0, 5, 7], [0, 3, 1, 0], [0, 1, 4, 1], [0, 1, 0, 6]])
    columns, rows = np.nonzero(a.T)
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(a, axis=0))]).astype(np.intc)
    indices, values = rows.astype(np.intc), a[rows, columns]
    common = settings(library)
    if (common.tol, common.memgrow, common.btf, common.scale, common.halt_if_singular) != (1e-3, 1.2, 1, 2, 1):
        return False
    # It refuses a matrix that is not there, and says so in the status.
    if library.klu_analyze(4, None, None, common) or common.status != INVALID:
        return False
    symbolic = library.klu_analyze(4, address(indptr), address(indices), common)
    if not symbolic or common.status != OK:
        return False
    numeric = library.klu_factor(address(indptr), address(indices), address(values), symbolic, common)
    s, m = symbolic.contents, numeric.contents
    proved = bool(
        (s.n, s.nz, s.nzoff, s.nblocks, s.maxblock) == (4, 10, 2, 2, 3)
        and (m.n, m.nblocks, m.nzoff) == (4, 2, 2)
        and (m.max_lnz_block + 1, m.max_unz_block + 1) == (m.lnz, m.unz)  # the block of one row has one of each
        and 5 < m.unz < m.lnz < 8
        and (m.work, m.iwork) == (m.xwork, m.xwork + 4 * 8)
        and m.worksize >= 4 * (8 + 4)
        and sorted((c_int32 * 4).from_address(m.pnum)) == [0, 1, 2, 3]
        and (c_int32 * 5).from_address(m.offp)[4] == m.nzoff
        and sorted((c_double * 4).from_address(m.rs)) == sorted(a.max(axis=1))
        and [bool(m.blocks[block]) for block in range(2)] == [False, True]
        and 0 < m.block_units[1] <= 64
    )
    library.klu_free_numeric(ctypes.byref(numeric), common)
    library.klu_free_symbolic(ctypes.byref(symbolic), common)
    return proved
