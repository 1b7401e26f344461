"""Every method on every kind of matrix that it takes: one row of `TABLE` is one more method tested everywhere."""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from scipy.sparse import csr_array

from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern, StructuredPattern
from backsolve_service.engine.base import Factor, FactorSpec
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import ROWS, methods, solver

DTYPES = ("float32", "float64", "complex64", "complex128")

TOLERANCE = {"float32": 2e-4, "complex64": 2e-4, "float64": 1e-9, "complex128": 1e-9}
"""Relative error allowed against LAPACK in double precision; condition numbers here are below 100."""


@dataclass(frozen=True)
class Row:
    """One way to solve, and a kind of matrix it must solve."""

    method: str
    preconditioner: str | None
    layout: str
    structure: str
    on_device: bool = False
    """With the class that serves CUDA devices, here on torch's CPU."""

    def __str__(self):
        place = "torch" if self.on_device else None
        return "-".join(part for part in (self.method, self.preconditioner, self.layout, self.structure, place) if part)

    @property
    def definite(self):
        return ROWS[self.method].definite


EVERY = (
    Row("lu", None, "dense", "general"),
    Row("lu", None, "dense", "indefinite"),
    Row("lu", None, "dense", "zero_diagonal"),
    Row("cholesky", None, "dense", "definite"),
    Row("cholesky", None, "csr", "definite"),
    Row("ldl", None, "dense", "indefinite"),
    Row("ldl", None, "dense", "definite"),
    Row("ldl", None, "dense", "symmetric"),
    Row("ldl", None, "dense", "saddle"),
    Row("qr", None, "dense", "general"),
    Row("qr", None, "dense", "zero_diagonal"),
    Row("superlu", None, "csr", "general"),
    Row("superlu", None, "csr", "indefinite"),
    Row("superlu", None, "csr", "definite"),
    Row("superlu", None, "csr", "triangular"),
    Row("superlu", None, "csr", "zero_diagonal"),
    Row("diagonal", None, "csr", "diagonal"),
    Row("triangular", None, "csr", "triangular"),
    Row("triangular", None, "csr", "upper"),
    Row("triangular", None, "csr", "diagonal"),
    Row("triangular", None, "dense", "triangular"),
    Row("triangular", None, "dense", "upper"),
    Row("banded", None, "csr", "general"),
    Row("banded", None, "csr", "band"),
    Row("banded", None, "csr", "definite_band"),
    Row("banded", None, "csr", "tridiagonal"),
    Row("banded", None, "csr", "diagonal"),
    Row("block_diagonal", None, "csr", "general"),
    Row("block_diagonal", None, "csr", "blocks"),
    Row("block_diagonal", None, "csr", "diagonal"),
    Row("woodbury", None, "structured", "general"),
    Row("woodbury", None, "structured", "zero_diagonal"),
    Row("kronecker", None, "structured", "general"),
    Row("circulant", None, "structured", "circulant"),
    Row("toeplitz", None, "structured", "toeplitz"),
    Row("cg", "jacobi", "dense", "definite"),
    Row("cg", "jacobi", "csr", "definite"),
    Row("cg", "none", "dense", "definite"),
    Row("cg", "none", "csr", "definite"),
    *(
        Row("cg", name, "csr", "definite")
        for name in ("block_jacobi(size=7)", "ssor(omega=1.2)", "ic", "chebyshev(degree=3)", "amg", "low_rank(rank=4)")
    ),
    *(Row("cg", name, "dense", "definite") for name in ("block_jacobi(size=7)", "chebyshev")),
    *(
        Row("gmres", name, "csr", "general")
        for name in ("block_jacobi(size=7)", "ssor(omega=1.2)", "ilu", "ilut(drop=0.01)", "amg")
    ),
    Row("gmres", "amg", "dense", "general"),
    Row("bicgstab", "ilu", "csr", "general"),
    Row("bicgstab", "ilut", "csr", "zero_diagonal"),
    Row("minres", "ic", "csr", "definite"),
    *(Row("fcg", "jacobi", layout, "definite") for layout in ("dense", "csr")),
    *(Row("minres", "jacobi", layout, kind) for layout in ("dense", "csr") for kind in ("definite", "indefinite")),
    *(
        Row(method, "jacobi", layout, kind)
        for method in ("bicgstab", "gmres", "fgmres")
        for layout, kind in (("dense", "general"), ("csr", "general"), ("csr", "indefinite"))
    ),
    *(Row("lsmr", None, layout, "general") for layout in ("dense", "csr")),
    Row("cg", "jacobi", "dense", "definite", on_device=True),
    Row("cg", "jacobi", "csr", "definite", on_device=True),
    Row("cg", "none", "csr", "definite", on_device=True),
    Row("gmres", "jacobi", "dense", "general", on_device=True),
    Row("gmres", "jacobi", "csr", "general", on_device=True),
    Row("gmres", "none", "csr", "indefinite", on_device=True),
    *(
        Row("cg", name, layout, "definite", on_device=True)
        for name in ("amg", "chebyshev(degree=3)", "block_jacobi(size=7)")
        for layout in ("dense", "csr")
    ),
    Row("gmres", "amg", "csr", "general", on_device=True),
    Row("gmres", "block_jacobi(size=7)", "csr", "general", on_device=True),
    Row("gmres", "amg(kind=sa)", "dense", "general", on_device=True),
    Row("gmres", "chebyshev", "csr", "definite", on_device=True),
    Row("cudss", None, "csr", "general", on_device=True),
    Row("cudss", None, "csr", "indefinite", on_device=True),
    Row("cudss", None, "csr", "definite", on_device=True),
    Row("cudss", None, "csr", "triangular", on_device=True),
    Row("cudss", None, "csr", "zero_diagonal", on_device=True),
    *(
        Row(method, None, "csr", kind)
        for method in ("rslab", "rslab_klu", "klu")
        for kind in ("general", "indefinite", "triangular", "zero_diagonal")
    ),
    *(
        Row("pardiso", None, "csr", kind)
        for kind in ("general", "definite", "indefinite", "symmetric", "saddle", "triangular", "zero_diagonal")
    ),
    *(
        Row("mumps", None, "csr", kind)
        for kind in ("general", "definite", "indefinite", "symmetric", "saddle", "triangular", "zero_diagonal")
    ),
    Row("cholmod", None, "csr", "definite"),
    Row("cholmod", None, "csr", "definite_band"),
    *(Row("rslab_ldl", None, "csr", kind) for kind in ("symmetric", "real_saddle")),
)


def absent(method):
    """Why a method cannot be tried here, or None: a model stands in for what needs a CUDA device."""
    row = ROWS[method]
    if row.requires is None or row.only_cuda or method in methods():
        return None
    if row.extra is None:
        return f"the system's package {row.requires} is not installed"
    if find_spec(row.requires) is not None:
        return None  # what is here and not usable is to fail
    return f"the package {row.requires} of the extra {row.extra!r} is not installed"


TABLE = tuple(row for row in EVERY if absent(row.method) is None)
"""The rows whose libraries are installed here."""


def numbers(shape, dtype, seed):
    """Normal numbers, complex where the type is."""
    rng = np.random.default_rng(seed)
    real = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        real = real + 1j * rng.standard_normal(shape)
    return real.astype(dtype)


def _saddle(a):
    """Hermitian with zeros on the diagonal: pivots of two rows."""
    n = a.shape[0]
    a = a + a.conj().T
    a[np.arange(n), np.arange(n)] = 0
    pair = np.arange(n) ^ 1
    first = np.flatnonzero(pair < n)
    a[first, pair[first]] = 9.0
    a[-1, -1] += 9.0 * (n % 2)
    return a


def _swapped(a):
    """Neighbouring rows change places: no pivot stays on the diagonal."""
    return a[np.arange(a.shape[0]) ^ 1] if a.shape[0] % 2 == 0 else a


def _alternating(n):
    return np.diag(np.where(np.arange(n) % 3, 12.0, -12.0))


def _blocks(n):
    """Parts of two sizes, whose rows are not neighbours."""
    part = np.arange(n) % 7 // 2
    return part[:, None] == part


STRUCTURES = {
    "general": lambda a, full, shift: a + shift,
    "triangular": lambda a, full, shift: np.tril(a) + shift,
    "upper": lambda a, full, shift: np.triu(a) + shift,
    "diagonal": lambda a, full, shift: np.diag(8 + full.diagonal()),
    "definite": lambda a, full, shift: a @ a.conj().T + shift,
    "indefinite": lambda a, full, shift: a + a.conj().T + _alternating(len(a)),
    # Complex symmetric where it is complex: not Hermitian.
    "symmetric": lambda a, full, shift: a + a.T + _alternating(len(a)),
    "saddle": lambda a, full, shift: _saddle(a),
    "real_saddle": lambda a, full, shift: _saddle(a.real),
    # Rows moved by one: the diagonal is neither full nor large.
    "zero_diagonal": lambda a, full, shift: np.roll(a + shift, 1, axis=0),
    "band": lambda a, full, shift: _swapped(np.triu(np.tril(full, 1), -1) + shift),
    "tridiagonal": lambda a, full, shift: np.triu(np.tril(full, 1), -1) + shift,
    "definite_band": lambda a, full, shift: _mirrored(np.tril(np.triu(full), 3)) + 2 * shift,
    "blocks": lambda a, full, shift: np.where(_blocks(len(a)), full, 0) + shift,
    "circulant": lambda a, full, shift: _rotated(full[:, 0] / 2) + 2 * shift,
    "toeplitz": lambda a, full, shift: _rotated(full[:, 0] / 2, full[0] / 2) + 2 * shift,
}
"""Each kind from a sparse `a`, a full array, and a multiple of the identity."""


def _rotated(column, row=None):
    """Constant along each diagonal; of a column alone cyclically so."""
    lag = np.subtract.outer(np.arange(len(column)), np.arange(len(column)))
    return column[lag] if row is None else np.where(lag >= 0, column[lag], row[-lag])


def _mirrored(a):
    return a + a.conj().T


def array(structure, dtype, n=40, seed=830_174_662):
    """A well-conditioned matrix of a kind, mostly zeros, as a full array."""
    rng = np.random.default_rng(seed)
    full = numbers((n, n), dtype, seed + 1)
    a = np.where(rng.random((n, n)) < 0.1, full, 0)
    return np.ascontiguousarray(STRUCTURES[structure](a, full, 8 * np.eye(n)).astype(dtype))


def structured(method, a):
    """The matrix of the method's kind that has these entries, `[n, n]` or `[batch, n, n]`."""
    n = a.shape[-1]
    flat = (*a.shape[:-2], -1) if n else (*a.shape[:-2], 0)
    if method == "woodbury":
        # diag(d) + U Iᴴ with all of A off the diagonal in U: of full rank, so that any A can be given.
        d = np.diagonal(a, axis1=-2, axis2=-1)
        v = np.broadcast_to(np.eye(n), a.shape)
        u = np.where(np.eye(n, dtype=bool), 0, a)
        values = [d, u.reshape(flat), v.reshape(flat)]
        return Matrix(StructuredPattern("low_rank", (n, n)), np.concatenate(values, axis=-1).astype(a.dtype))
    if method == "kronecker":
        return Matrix(StructuredPattern("kronecker", (n,)), a.reshape(flat))
    column = a[..., :, 0] if n else np.zeros(flat)
    if method == "circulant":
        return Matrix(StructuredPattern("circulant", (n,)), column.astype(a.dtype))
    if method == "toeplitz":
        row = a[..., 0, :0:-1] if n else column
        return Matrix(StructuredPattern("toeplitz", (n,)), np.concatenate([row, column], axis=-1).astype(a.dtype))
    raise ValueError(method)


def matrix(layout, a, method=None):
    """The canonical matrix of a full array, `[n, n]` or `[batch, n, n]` on one pattern."""
    n = a.shape[-1]
    if layout == "structured":
        return structured(method, a)
    if layout == "dense":
        return Matrix(DensePattern((n, n)), a)
    stored = np.any(a != 0, axis=0) if a.ndim == 3 else a != 0
    index = csr_array(stored)
    rows = np.repeat(np.arange(n), np.diff(index.indptr))
    return Matrix(Pattern(index.indptr, index.indices, (n, n)), np.ascontiguousarray(a[..., rows, index.indices]))


def factor(row, a) -> Factor:
    """Analyse and factorize a full array with the method of `row`."""
    return factor_of(row.method, matrix(row.layout, a, row.method), row.preconditioner, on_device=row.on_device)


def solver_of(row):
    """The class that a row tests; those of CUDA devices run on torch's CPU."""
    return solver(row.method, "cuda" if row.on_device else "cpu")


def factor_of(method, m, preconditioner=None, *, on_device=False) -> Factor:
    """Analyse and factorize a matrix."""
    chosen = solver(method, "cuda" if on_device else "cpu")
    spec = FactorSpec(method, preconditioner, m.dtype.name, "cpu")
    return chosen.factorize(chosen.analyze(m.pattern, spec), Operand(m), spec)


def op(a, trans):
    """The operator that `trans` names, in double precision."""
    wide = a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)
    return {"N": wide, "T": wide.swapaxes(-1, -2), "H": wide.conj().swapaxes(-1, -2)}[trans]


def poisson(side, shift=0.0, dtype="float64"):
    """The 5-point Laplacian on a square of `side` x `side` inner points, as a canonical sparse matrix."""
    n = side * side
    cell = np.arange(n).reshape(side, side)
    pairs = np.concatenate(
        [
            np.stack([cell[:, 1:].ravel(), cell[:, :-1].ravel()]),
            np.stack([cell[1:].ravel(), cell[:-1].ravel()]),
        ],
        axis=1,
    )
    rows = np.concatenate([np.arange(n), pairs[0], pairs[1]])
    columns = np.concatenate([np.arange(n), pairs[1], pairs[0]])
    values = np.concatenate([np.full(n, 4.0 + shift), np.full(2 * pairs.shape[1], -1.0)]).astype(dtype)
    a = csr_array((values, (rows, columns)), shape=(n, n))
    a.sort_indices()
    return Matrix(Pattern.from_csr(a), a.data)
