"""The shared library `libcudss.so.1`: where it is, which of its functions are called, and what its codes mean."""

import ctypes
import importlib.util
from ctypes import POINTER, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from backsolve.errors import DeviceOutOfMemoryError, InternalError, NotSupportedError

from ...accelerator.faults import DeviceFaultError
from .constants import VERSION, CudssStatus, Property

PACKAGE = "nvidia-cudss-cu13"

_FILE = "libcudss.so.1"
_WHEELS = ("cu13", "cu12")
"""Where the wheels put it, inside the namespace package `nvidia`."""

Out = POINTER(c_void_p)

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cudssGetProperty": (c_int, POINTER(c_int)),
    "cudssCreate": (Out,),
    "cudssDestroy": (c_void_p,),
    "cudssSetStream": (c_void_p, c_void_p),
    "cudssConfigCreate": (Out,),
    "cudssConfigDestroy": (c_void_p,),
    "cudssConfigSet": (c_void_p, c_int, c_void_p, c_size_t),
    "cudssDataCreate": (c_void_p, Out),
    "cudssDataDestroy": (c_void_p, c_void_p),
    "cudssDataSet": (c_void_p, c_void_p, c_int, c_void_p, c_size_t),
    "cudssDataGet": (c_void_p, c_void_p, c_int, c_void_p, c_size_t, POINTER(c_size_t)),
    "cudssExecute": (c_void_p, c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    "cudssMatrixCreateDn": (Out, c_int64, c_int64, c_int64, c_void_p, c_int, c_int),
    "cudssMatrixCreateCsr": (
        *(Out, c_int64, c_int64, c_int64),
        *(c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_int, c_int, c_int, c_int, c_int, c_int),
    ),
    "cudssMatrixDestroy": (c_void_p,),
}
"""Every function of the library that is called, with its parameters; each returns a `cudssStatus_t`."""


def installed() -> bool:
    """Whether the library's file is here; it is not loaded for that."""
    return find() is not None


@cache
def find() -> Path | None:
    """The library's file in one of NVIDIA's wheels."""
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    files = [Path(place) / wheel / "lib" / _FILE for wheel in _WHEELS for place in places]
    here = [file for file in files if file.is_file()]
    return min(here, key=_foreign) if len(here) > 1 else next(iter(here), None)


@cache
def load() -> Any:
    """The library with the signatures of its functions.

    Raises:
        NotSupportedError: it is not here, cannot be loaded, or is older than 1.0.
    """
    file = find()
    if file is None:
        raise NotSupportedError(f"method 'cudss' needs the package {PACKAGE!r}: pip install 'backsolve-service[cuda]'")
    try:
        library = ctypes.CDLL(str(file))
    except OSError as err:
        raise NotSupportedError(
            f"{_FILE} cannot be loaded: it needs cuBLAS and NVRTC of the same CUDA release, "
            "which pip installs beside it; use method 'superlu'"
        ) from err
    declare(library)
    version = tuple(_property(library, which) for which in (Property.MAJOR_VERSION, Property.MINOR_VERSION))
    if version < VERSION:
        raise NotSupportedError(
            f"cuDSS {'.'.join(map(str, version))} is too old, {'.'.join(map(str, VERSION))} is needed: "
            f"pip install --upgrade {PACKAGE}"
        )
    return library


def declare(library: Any) -> None:
    """Give every function that is called its parameters, so that ctypes converts and checks them."""
    for name, parameters in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = parameters
        function.restype = c_int


def check(code: int, what: str, device: str) -> None:
    """Turn a status into an error.

    Raises:
        DeviceOutOfMemoryError: an allocation failed.
        NotSupportedError: this combination of matrix and options is not implemented there.
        DeviceFaultError: the device failed, and with it everything that this process has there.
        InternalError: the library was called wrongly.
    """
    if code == CudssStatus.CUDSS_STATUS_SUCCESS:
        return
    if code == CudssStatus.CUDSS_STATUS_ALLOC_FAILED:
        raise DeviceOutOfMemoryError(f"{device} has no room for the {what} of this matrix: use device 'cpu'")
    if code == CudssStatus.CUDSS_STATUS_NOT_SUPPORTED:
        raise NotSupportedError(f"cuDSS cannot do this {what}: use method 'superlu'")
    name = CudssStatus(code).name if code in list(CudssStatus) else f"status {code}"
    if code == CudssStatus.CUDSS_STATUS_EXECUTION_FAILED:
        raise DeviceFaultError(f"the {what} failed on {device}: {name}")
    raise InternalError(f"the {what} failed: {name}")


def _property(library: Any, which: Property) -> int:
    value = c_int()
    check(library.cudssGetProperty(which, ctypes.byref(value)), "query of the version", "the host")
    return value.value


def _foreign(file: Path) -> bool:
    """Whether a wheel is for another CUDA release than torch's: of the same, both share cuBLAS and NVRTC."""
    import torch  # noqa: PLC0415  (asked for only where there is a choice)

    return f"cu{(torch.version.cuda or '').partition('.')[0]}" not in file.parts
