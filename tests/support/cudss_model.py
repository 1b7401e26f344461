"""What `libcudss.so.1` promises, computed by SciPy in the host's memory.

It stands for a library that needs a CUDA device, so that all of our own code around it runs where
there is none: through ctypes, with the real signatures, on pointers. It refuses what the library
documents as wrong order of calls, and replaces vanishing pivots as the library does.
"""

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_byte, c_int, c_int64
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace

import numpy as np
from scipy.linalg import lu_factor, lu_solve

from backsolve_service.engine.direct.cudss.constants import (
    Config,
    CudaType,
    CudssStatus,
    Data,
    MatrixType,
    Phase,
    SolveMode,
)
from backsolve_service.engine.direct.cudss.library import SIGNATURES

OK, WRONG = CudssStatus.CUDSS_STATUS_SUCCESS, CudssStatus.CUDSS_STATUS_INVALID_VALUE
DTYPES = {
    CudaType.CUDA_R_32F: np.float32,
    CudaType.CUDA_R_64F: np.float64,
    CudaType.CUDA_C_32F: np.complex64,
    CudaType.CUDA_C_64F: np.complex128,
    CudaType.CUDA_R_32I: np.int32,
    CudaType.CUDA_R_64I: np.int64,
}
PIVOT = {4: 1e-5, 8: 1e-13}
"""Relative size below which a pivot is replaced, by bytes of a real number."""


@dataclass
class Csr:
    n: int
    nnz: int
    indptr: int
    indices: int
    values: int
    index: np.dtype
    dtype: np.dtype
    kind: int
    view: int


@dataclass
class Dn:
    n: int
    k: int
    values: int
    dtype: np.dtype


@dataclass
class Work:
    perm: np.ndarray | None = None
    reordered: bool = False
    analysed: tuple | None = None
    factors: list = field(default_factory=list)
    info: int = 0
    pivots: int = 0


class Model:
    """The library's state; `library` is what `library.load` returns."""

    def __init__(self):
        self.objects, self.ids = {}, count(1000)
        self.phases, self.perms, self.modes, self.kinds, self.destroyed = [], [], [], [], []
        self.settings_seen, self.streams = [], []
        self.fail = {}
        self.library = SimpleNamespace()
        for name, parameters in SIGNATURES.items():
            kind = CFUNCTYPE(c_int, *parameters)
            setattr(self.library, name, kind(self._guarded(name)))

    def _guarded(self, name):
        method = getattr(self, name)

        def call(*arguments):
            try:
                code = method(*arguments)
            except Exception as error:  # an exception cannot leave a callback
                self.error = error
                return int(CudssStatus.CUDSS_STATUS_INTERNAL_ERROR)
            return int(OK if code is None else code)

        return call

    def new(self, out, made):
        number = next(self.ids)
        self.objects[number] = made
        out[0] = number

    def cudssGetProperty(self, which, out):  # noqa: N802
        out[0] = (1, 0, 0)[which]

    def cudssCreate(self, out):  # noqa: N802
        self.new(out, "handle")

    def cudssDestroy(self, handle):  # noqa: N802
        self.destroyed.append(self.objects.pop(handle))

    def cudssSetStream(self, handle, stream):  # noqa: N802
        assert self.objects[handle] == "handle"
        self.streams.append(stream)

    def cudssConfigCreate(self, out):  # noqa: N802
        self.new(out, {})

    cudssConfigDestroy = cudssDestroy  # noqa: N815
    cudssMatrixDestroy = cudssDestroy  # noqa: N815

    def cudssConfigSet(self, config, name, value, size):  # noqa: N802
        if size != 4:
            return WRONG
        self.objects[config][Config(name)] = ctypes.cast(value, POINTER(c_int))[0]
        self.settings_seen.append((Config(name), ctypes.cast(value, POINTER(c_int))[0]))
        return OK

    def cudssDataCreate(self, handle, out):  # noqa: N802
        assert self.objects[handle] == "handle"
        self.new(out, Work())

    def cudssDataDestroy(self, handle, data):  # noqa: N802
        assert self.objects[handle] == "handle"
        self.destroyed.append(self.objects.pop(data))

    def cudssDataSet(self, handle, data, name, value, size):  # noqa: N802
        assert name == Data.CUDSS_DATA_USER_PERM
        self.objects[data].perm = np.frombuffer((c_byte * size).from_address(value), dtype=np.int32).copy()
        self.perms.append(self.objects[data].perm)

    def cudssDataGet(self, handle, data, name, out, size, written):  # noqa: N802
        work = self.objects[data]
        if name == Data.CUDSS_DATA_PERM_REORDER_ROW:
            if not work.reordered:
                return WRONG
            order = np.arange(size // 4, dtype=np.int32)[::-1].copy()
            ctypes.memmove(out, order.ctypes.data, size)
        elif name == Data.CUDSS_DATA_MEMORY_ESTIMATES:
            estimates = np.zeros(16, dtype=np.int64)
            estimates[0] = sum(f[0].nbytes for f in work.factors if f is not None)
            ctypes.memmove(out, estimates.ctypes.data, size)
        else:
            kind = c_int64 if name == Data.CUDSS_DATA_LU_NNZ else c_int
            if size != ctypes.sizeof(kind):
                return WRONG
            number = {
                Data.CUDSS_DATA_INFO: work.info,
                Data.CUDSS_DATA_NPIVOTS: work.pivots,
                Data.CUDSS_DATA_LU_NNZ: sum(f[0].size for f in work.factors if f is not None),
            }[name]
            ctypes.cast(out, POINTER(kind))[0] = number
        written[0] = size
        return OK

    def cudssMatrixCreateCsr(  # noqa: N802
        self, out, n, columns, nnz, start, end, indices, values, offset, index, dtype, kind, view, base
    ):
        assert (n, end, offset, base) == (columns, None, index, 0)
        self.kinds.append(MatrixType(kind))
        self.new(
            out,
            Csr(n, nnz, start, indices, values, np.dtype(DTYPES[index]), np.dtype(DTYPES[dtype]), kind, view),
        )

    def cudssMatrixCreateDn(self, out, n, k, ld, values, dtype, layout):  # noqa: N802
        if ld < n or layout != 0:
            return WRONG
        self.new(out, Dn(n, k, values, np.dtype(DTYPES[dtype])))
        return OK

    def cudssExecute(self, handle, phase, config, data, a, x, b):  # noqa: N802
        assert self.objects[handle] == "handle"
        settings, work, matrix = self.objects[config], self.objects[data], self.objects[a]
        phase = Phase(phase)
        self.phases.append(phase)
        if phase in self.fail:
            return self.fail.pop(phase)
        batch = settings.get(Config.CUDSS_CONFIG_UBATCH_SIZE, 1)
        if phase & Phase.CUDSS_PHASE_REORDERING:
            work.reordered = True
        if phase == Phase.CUDSS_PHASE_ANALYSIS:
            work.analysed = (settings.copy(), matrix)
        elif phase == Phase.CUDSS_PHASE_FACTORIZATION:
            if work.analysed is None:
                return WRONG
            self.factorize(work, matrix, batch)
        elif phase == Phase.CUDSS_PHASE_REFACTORIZATION:
            if not work.factors:
                return WRONG
            self.factorize(work, matrix, batch, [pivots for _, pivots in work.factors])
        elif phase == Phase.CUDSS_PHASE_SOLVE:
            if not work.factors:
                return WRONG
            mode = SolveMode(settings.get(Config.CUDSS_CONFIG_SOLVE_MODE, 0))
            self.modes.append(mode)
            self.sweep(work, self.objects[x], self.objects[b], batch, mode)
        return OK

    def factorize(self, work, matrix, batch, exchanges=None):
        """With rows exchanged as they were before, if that is given, whatever the values are now."""
        work.factors, work.info, work.pivots = [], 0, 0
        for index, full in enumerate(self.full(matrix, batch)):
            if matrix.kind in (MatrixType.CUDSS_MTYPE_SPD, MatrixType.CUDSS_MTYPE_HPD):
                try:
                    np.linalg.cholesky(full)
                except np.linalg.LinAlgError:
                    work.info = 1
            with np.errstate(all="ignore"):
                lu, pivots = _lu(full) if exchanges is None else _lu_again(full, exchanges[index])
                small = PIVOT[full.real.dtype.itemsize] * np.abs(full).max(initial=0.0)
                bad = np.abs(np.diag(lu)) <= small
                work.pivots += int(bad.sum())
                lu[np.diag_indices(lu.shape[0])] = np.where(bad, small, np.diag(lu))
            work.factors.append((lu, pivots))

    def full(self, matrix, batch):
        """Each system as a full array, of a symmetric one from its lower triangle alone."""
        indptr = _view(matrix.indptr, matrix.n + 1, matrix.index)
        indices = _view(matrix.indices, matrix.nnz, matrix.index)
        rows = np.repeat(np.arange(matrix.n), np.diff(indptr))
        for values in _view(matrix.values, batch * matrix.nnz, matrix.dtype).reshape(batch, matrix.nnz):
            full = np.zeros((matrix.n, matrix.n), dtype=matrix.dtype)
            full[rows, indices] = values
            if matrix.kind != MatrixType.CUDSS_MTYPE_GENERAL:
                assert matrix.view == 1
                below = np.tril(full, -1)
                symmetric = matrix.kind == MatrixType.CUDSS_MTYPE_SYMMETRIC
                full = below + np.diag(np.diag(full)) + (below.T if symmetric else below.conj().T)
            yield full

    def sweep(self, work, x, b, batch, mode):
        size = b.n * b.k
        rhs = _view(b.values, batch * size, b.dtype).reshape(batch, b.k, b.n)
        out = _view(x.values, batch * size, x.dtype).reshape(batch, x.k, x.n)
        for index, (lu, pivots) in enumerate(work.factors):
            with np.errstate(all="ignore"):
                out[index] = lu_solve((lu, pivots), rhs[index].T, trans=int(mode), check_finite=False).T


def _lu(full):
    """LU with partial pivoting; LAPACK's warning of an exact zero is not wanted."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lu_factor(full, check_finite=False)


def _lu_again(full, pivots):
    """LU with rows exchanged as LAPACK's `pivots` say, and no search."""
    lu = full.copy()
    for row, other in enumerate(pivots):
        lu[[row, other]] = lu[[other, row]]
    for step in range(len(lu)):
        lu[step + 1 :, step] /= lu[step, step]
        lu[step + 1 :, step + 1 :] -= np.outer(lu[step + 1 :, step], lu[step, step + 1 :])
    return lu, pivots


def _view(pointer, size, dtype):
    dtype = np.dtype(dtype)
    if not size:
        return np.zeros(0, dtype=dtype)
    return np.frombuffer((c_byte * (size * dtype.itemsize)).from_address(pointer), dtype=dtype)
