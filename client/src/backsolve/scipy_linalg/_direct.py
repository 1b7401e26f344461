"""Direct solves with SciPy's signatures: `spsolve`, `splu` and `factorized`."""

import warnings
from collections.abc import Callable
from typing import Any, NoReturn, final

import numpy as np
from scipy.sparse import csc_array, issparse
from scipy.sparse.linalg import MatrixRankWarning

from ..errors import InvalidOptionError, InvalidShapeError, NotSupportedError, SingularMatrixError
from ..options import SolveOptions, check_trans
from ..types import Array
from ._client import current
from ._inputs import array, dtype_of, square

_COLUMNS = 64
"""Columns of a sparse right-hand side that are dense at a time."""

_REFINEMENTS = 2
"""The engine's own default: to name it leaves iterative methods out of the service's choice."""

_ORDERINGS = {"COLAMD": "colamd", "MMD_AT_PLUS_A": "mmd"}
_NOT_OFFERED = ("NATURAL", "MMD_ATA")


@final
class SingularFactorError(SingularMatrixError, RuntimeError):
    """`splu` of a singular matrix, which SciPy reports as a RuntimeError."""


@final
class FactorsElsewhereError(NotSupportedError, AttributeError):
    """The factors themselves, which stay where they were computed."""


def spsolve(A: Any, b: Any, permc_spec: Any = None, use_umfpack: Any = True) -> Any:
    """Solve `A x = b` directly, as `scipy.sparse.linalg.spsolve`.

    The service chooses among its direct methods (banded, Cholesky, sparse LU, …), keeps the factor by the content of A,
    and refines and checks every answer. Integers count as float64, and A is never modified.

    Args:
        A: `[n, n]` sparse matrix or array; a dense one is converted to CSC.
        b: `[n]` or `[n, k]`, dense or sparse.
        permc_spec: "COLAMD" or "MMD_AT_PLUS_A" for sparse LU in that ordering; None: the service chooses.
        use_umfpack: which of its own libraries SciPy would use; both values mean a direct solve here.

    Returns:
        As SciPy does: `[n]` for a vector or a single column, a dense `[n, k]` for a dense b, and for a sparse b of more
        columns a sparse matrix of A's own class (csc_array where A is neither CSR nor CSC). If A is exactly singular,
        NaN with a `MatrixRankWarning`; if it is singular but for rounding, x with an `IllConditionedWarning`, where
        SciPy says nothing.

    Raises:
        SingularFactorError: A is exactly singular and b sparse with several columns (a RuntimeError).
        NotConvergedError: no answer with a small backward error was found; SciPy would return x all the same.
        NotSupportedError: an ordering that the service does not offer; A is a linear operator.
        BacksolveError: as `Client.solve`.
    """
    del use_umfpack
    a, options = _sparse(A, "spsolve"), _options(permc_spec, "spsolve")
    if issparse(b) and b.ndim == 2 and b.shape[1] != 1:
        return _sparse_answer(a, b, options)
    rhs = array(b.toarray() if issparse(b) else b, "b")
    if rhs.ndim == 2 and rhs.shape[1] == 1:
        rhs = rhs[:, 0]
    if rhs.ndim not in (1, 2) or rhs.shape[0] != a.shape[0]:
        raise InvalidShapeError(f"b has shape {rhs.shape}, this matrix takes ({a.shape[0]},) or ({a.shape[0]}, k)")
    try:
        return current().solve(a, rhs, **options).x
    except SingularMatrixError:
        warnings.warn("Matrix is exactly singular", MatrixRankWarning, stacklevel=2)
        return np.full(rhs.shape, np.nan, dtype_of(a, rhs))


def splu(
    A: Any,
    permc_spec: Any = None,
    diag_pivot_thresh: Any = None,
    relax: Any = None,
    panel_size: Any = None,
    options: Any = None,
) -> "SuperLU":
    """Factorize A now and solve with it later, as `scipy.sparse.linalg.splu`.

    Args:
        A: `[n, n]` sparse matrix or array.
        permc_spec: as for `spsolve`.
        diag_pivot_thresh, relax, panel_size, options: settings of SuperLU; the service has its own.

    Returns:
        An object with `solve`, `shape` and `nnz`. The factor stays where it was computed; if it is lost there, the next
        solve has it computed again.

    Raises:
        SingularFactorError: A is exactly singular (a RuntimeError, as in SciPy).
        NotSupportedError: a setting of SuperLU; an ordering that is not offered; A is a linear operator.
        BacksolveError: as `Client.factorized`.
    """
    settings = {"diag_pivot_thresh": diag_pivot_thresh, "relax": relax, "panel_size": panel_size}
    for name, value in settings.items():
        if value is not None:
            _refuse_setting(name)
    if options:
        _refuse_setting("options")
    return SuperLU(_sparse(A, "splu"), _options(permc_spec, "splu"))


def factorized(A: Any) -> Callable[..., Array]:
    """A function that solves with A, as `scipy.sparse.linalg.factorized`: the `solve` of `splu(A)`.

    Raises:
        SingularFactorError: A is exactly singular (a RuntimeError, as in SciPy).
        BacksolveError: as `Client.factorized`.
    """
    return SuperLU(_sparse(A, "factorized"), _options(None, "factorized")).solve


@final
class SuperLU:
    """A matrix that is factorized; made by `splu`, in place of SciPy's object of this name.

    `L`, `U`, `perm_r` and `perm_c` are not there: which factorization serves is the service's choice, and it does not
    leave it. Asking for them raises `FactorsElsewhereError`, an AttributeError that says what to do.

    Attributes:
        shape: `(n, n)`.
        nnz: stored entries of the matrix, as SciPy documents it (its own object counts those of the factors).
    """

    def __init__(self, a: Any, options: SolveOptions) -> None:
        self.shape: tuple[int, int] = (int(a.shape[0]), int(a.shape[1]))
        self.nnz = int(a.nnz)
        try:
            self._held = current().factorized(a, **options)
        except SingularMatrixError as error:
            raise SingularFactorError(f"Factor is exactly singular: {error}", **error.details) from error

    def solve(self, rhs: Any, trans: str = "N") -> Array:
        """Solve `op(A) x = rhs` with the factor.

        Args:
            rhs: `[n]` or `[n, k]`; converted to A's element type if that loses nothing.
            trans: "N", "T" or "H": A, its transpose, or its conjugate transpose.

        Returns:
            x, shaped like `rhs`.

        Raises:
            InvalidDtypeError: `rhs` does not fit A's element type (a TypeError, as in SciPy).
            InvalidShapeError, InvalidOptionError: a bad shape or letter (ValueErrors).
            NotConvergedError: no answer with a small backward error was found.
        """
        letter = check_trans(trans.upper() if isinstance(trans, str) else trans)
        return self._held.solve(array(rhs, "rhs") if getattr(rhs, "dtype", None) == np.float16 else rhs, letter)

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("L", "U", "perm_r", "perm_c"):
            raise FactorsElsewhereError(
                f"{name} stays with the service, which chooses the factorization: solve with .solve(b, trans), or take "
                f"scipy.sparse.linalg.splu(A).{name}, which factorizes in this process"
            )
        raise AttributeError(f"'SuperLU' object has no attribute {name!r}")


def _sparse(A: Any, name: str) -> Any:
    """A square matrix in a sparse format, not modified."""
    a = square(A, name)
    return a if issparse(a) and a.format in ("csr", "csc") else csc_array(a)


def _options(permc_spec: Any, name: str) -> SolveOptions:
    """The service's options for an ordering of SciPy's."""
    if permc_spec is None:
        return {"refine": _REFINEMENTS}
    if permc_spec in _ORDERINGS:
        return {"ordering": _ORDERINGS[permc_spec], "refine": _REFINEMENTS}
    if permc_spec in _NOT_OFFERED:
        raise NotSupportedError(
            f"the service has no ordering {permc_spec!r}: leave permc_spec out of {name}, which lets it choose, or use "
            "'COLAMD' or 'MMD_AT_PLUS_A'"
        )
    known = ", ".join((*_ORDERINGS, *_NOT_OFFERED))
    raise InvalidOptionError(f"permc_spec must be one of {known}", option="permc_spec")


def _refuse_setting(name: str) -> NoReturn:
    raise NotSupportedError(
        f"{name} is a setting of SuperLU, and the service chooses its factorization itself: leave it out, or call "
        "scipy.sparse.linalg.splu"
    )


def _sparse_answer(a: Any, b: Any, options: SolveOptions) -> Any:
    """The solution of several sparse columns as a sparse matrix, a block of columns at a time."""
    if b.shape[0] != a.shape[0]:
        raise InvalidShapeError(f"b has shape {tuple(b.shape)}, this matrix takes ({a.shape[0]}, k)")
    columns = csc_array(b)
    dtype = dtype_of(a, array(np.empty(0, b.dtype), "b"))
    lu = SuperLU(a.astype(dtype), options)
    none = np.empty(0, dtype=np.intp)
    found: list[tuple[Array, Array, Array]] = [(np.empty(0, dtype), none, none)]
    for start in range(0, b.shape[1], _COLUMNS):
        x = lu.solve(columns[:, start : start + _COLUMNS].toarray().astype(dtype))
        rows, places = np.nonzero(x)
        found.append((x[rows, places], rows, places + start))
    data, at_row, at_column = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return type(a)((data, (at_row, at_column)), shape=b.shape)
