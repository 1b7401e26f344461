"""The objects of cuDSS as Python objects: made, used under their lock, and destroyed once.

A handle has one stream and, because results have been wrong otherwise (cuDSS 0.7.1, CUDSS-1019),
one element type. Each thread makes its own for each type; a factor keeps the handle that it was
made with, and whoever solves with it, from whichever thread, holds the handle's lock meanwhile and
lends it the stream of the moment.
"""

import ctypes
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_int, c_int64, c_size_t, c_void_p
from typing import Any, final

import numpy as np
import torch

from .constants import Base, Config, CudaType, Data, DenseLayout, MatrixType, Phase, SolveMode, View
from .library import check, load

_VALUE = {
    torch.float32: CudaType.CUDA_R_32F,
    torch.float64: CudaType.CUDA_R_64F,
    torch.complex64: CudaType.CUDA_C_32F,
    torch.complex128: CudaType.CUDA_C_64F,
}
_INDEX = {torch.int32: CudaType.CUDA_R_32I, torch.int64: CudaType.CUDA_R_64I}

_ESTIMATES = 16
"""Numbers that `CUDSS_DATA_MEMORY_ESTIMATES` writes; the first is what stays allocated on the device."""

_own = threading.local()


@final
class Handle:
    """A library context of one thread, one device and one element type."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.library = load()
        self.lock = threading.RLock()
        pointer = c_void_p()
        check(self.library.cudssCreate(byref(pointer)), "start of cuDSS", device)
        self.pointer = pointer
        weakref.finalize(self, self.library.cudssDestroy, pointer)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Alone with the handle, which works on the calling thread's current stream meanwhile."""
        with self.lock:
            cuda = torch.device(self.device).type == "cuda"
            stream = torch.cuda.current_stream().cuda_stream if cuda else 0
            check(self.library.cudssSetStream(self.pointer, stream), "choice of a stream", self.device)
            yield


def handle(device: str, dtype: torch.dtype) -> Handle:
    """This thread's handle."""
    handles: dict[tuple[str, torch.dtype], Handle] = _own.__dict__.setdefault("handles", {})
    key = (device, dtype)
    if key not in handles:
        handles[key] = Handle(device)
    return handles[key]


@final
class Sparse:
    """A matrix in compressed rows, or a batch on one pattern, whose tensors it keeps alive."""

    def __init__(
        self, at: Handle, indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, kind: MatrixType
    ) -> None:
        self.tensors = (indptr, indices, values)
        n, nnz = indptr.shape[0] - 1, indices.shape[0]
        index = _INDEX[indices.dtype]
        # Of a symmetric matrix one triangle is read, whatever else is stored.
        view = View.CUDSS_MVIEW_FULL if kind is MatrixType.CUDSS_MTYPE_GENERAL else View.CUDSS_MVIEW_LOWER
        pointer = c_void_p()
        code = at.library.cudssMatrixCreateCsr(
            *(byref(pointer), n, n, nnz),
            *(indptr.data_ptr(), None, indices.data_ptr(), values.data_ptr()),
            *(index, index, _VALUE[values.dtype], kind, view, Base.CUDSS_BASE_ZERO),
        )
        check(code, "description", at.device)
        self.pointer = pointer
        weakref.finalize(self, at.library.cudssMatrixDestroy, pointer)


@final
class Dense:
    """Vectors one after another, `[k, n]` or `[batch, k, n]`: to the library, columns in column-major order."""

    def __init__(self, at: Handle, rows: torch.Tensor) -> None:
        self.tensor = rows
        k, n = rows.shape[-2:]
        pointer = c_void_p()
        code = at.library.cudssMatrixCreateDn(
            *(byref(pointer), n, k, n, rows.data_ptr()), _VALUE[rows.dtype], DenseLayout.CUDSS_LAYOUT_COL_MAJOR
        )
        check(code, "description", at.device)
        self.pointer = pointer
        weakref.finalize(self, at.library.cudssMatrixDestroy, pointer)


@final
class Work:
    """One data object with its settings: an analysis, and at most one factorization.

    The library keeps both in one object, so each factor has its own; what factors of one pattern
    share is the permutation, given to each as the user's.
    """

    def __init__(self, at: Handle, settings: dict[Config, int]) -> None:
        self.handle = at
        library, settled, data = at.library, c_void_p(), c_void_p()
        check(library.cudssConfigCreate(byref(settled)), "settings", at.device)
        self._settings = settled
        weakref.finalize(self, library.cudssConfigDestroy, settled)
        for name, value in settings.items():
            self._set(name, value)
        check(library.cudssDataCreate(at.pointer, byref(data)), "preparation", at.device)
        self._data = data
        weakref.finalize(self, _destroy, at, data)

    def permute(self, permutation: np.ndarray[Any, Any]) -> None:
        """Give the permutation, instead of having one searched."""
        code = self.handle.library.cudssDataSet(
            self.handle.pointer,
            self._data,
            Data.CUDSS_DATA_USER_PERM,
            permutation.ctypes.data_as(c_void_p),
            permutation.nbytes,
        )
        check(code, "permutation", self.handle.device)

    def execute(self, phase: Phase, a: Sparse, x: Dense, b: Dense, mode: SolveMode | None = None) -> None:
        """Run a phase; the handle is in use by the caller."""
        if mode is not None:
            self._set(Config.CUDSS_CONFIG_SOLVE_MODE, mode)
        code = self.handle.library.cudssExecute(
            self.handle.pointer, phase, self._settings, self._data, a.pointer, x.pointer, b.pointer
        )
        check(code, phase.name.removeprefix("CUDSS_PHASE_").lower(), self.handle.device)

    def number(self, name: Data) -> int:
        """A single number that the last phase has left; waits for the device."""
        value = c_int64(0)
        if name is not Data.CUDSS_DATA_LU_NNZ:
            small = c_int(0)
            self._get(name, byref(small), ctypes.sizeof(small))
            return small.value
        self._get(name, byref(value), ctypes.sizeof(value))
        return value.value

    def permutation(self, n: int, dtype: "np.dtype[Any]") -> np.ndarray[Any, Any]:
        """The order that the library chose for rows and columns, `[n]`."""
        order = np.zeros(n, dtype=dtype)
        self._get(Data.CUDSS_DATA_PERM_REORDER_ROW, order.ctypes.data_as(c_void_p), order.nbytes)
        return order

    def resident_bytes(self) -> int:
        """What the library expects to keep on the device."""
        estimates = np.zeros(_ESTIMATES, dtype=np.int64)
        self._get(Data.CUDSS_DATA_MEMORY_ESTIMATES, estimates.ctypes.data_as(c_void_p), estimates.nbytes)
        return int(estimates[0])

    def _set(self, name: Config, value: int) -> None:
        number = c_int(value)
        code = self.handle.library.cudssConfigSet(self._settings, name, byref(number), ctypes.sizeof(number))
        check(code, f"setting {name.name}", self.handle.device)

    def _get(self, name: Data, to: Any, nbytes: int) -> None:
        written = c_size_t()
        code = self.handle.library.cudssDataGet(
            self.handle.pointer, self._data, name, ctypes.cast(to, c_void_p), nbytes, byref(written)
        )
        check(code, f"query {name.name}", self.handle.device)


def _destroy(at: Handle, data: c_void_p) -> None:
    with at.lock:
        at.library.cudssDataDestroy(at.pointer, data)
