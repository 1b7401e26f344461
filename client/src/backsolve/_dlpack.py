"""Arrays of other libraries, read where they lie: by NumPy's own protocols, or by DLPack.

A library's `__array__` is asked first: it knows what its arrays mean beyond their memory (a tensor of PyTorch
that stands for the negative of what is stored exports the stored numbers by DLPack), and on the host copies no
more than DLPack does.

Source: the DLPack specification, https://dmlc.github.io/dlpack/latest/python_spec.html.
"""

from typing import Any, Final

import numpy as np

from .errors import InvalidDtypeError, NotSupportedError
from .types import Array

_HOST: Final = (1, 3, 11, 13)
"""kDLCPU, kDLCUDAHost, kDLROCMHost, kDLCUDAManaged: memory that the host reads."""

_NAMES: Final = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI", 15: "WebGPU"}


def read(values: Any, what: str) -> Array:
    """The numbers of an array of any library, or of nested lists; views of the caller's memory where that can be.

    Args:
        values: anything that NumPy makes an array of, or with `__dlpack__`.
        what: named in the texts of errors.

    Raises:
        NotSupportedError: they lie on a device, of which nothing is copied unasked.
        InvalidDtypeError: the array has a type that NumPy does not know.
        TypeError, ValueError, RuntimeError: as NumPy, or the library, refuses it.
    """
    if isinstance(values, np.ndarray) or not hasattr(values, "__dlpack__"):
        return np.asarray(values)
    device = _device(values)
    if device is not None and device[0] not in _HOST:
        name = f"{_NAMES.get(device[0], 'another')} device {device[1]}"
        raise NotSupportedError(
            f"{what} lies on {name}, of which nothing is copied unasked: copy it to the host first, e.g. "
            f"{what}.cpu() of PyTorch, {what}.get() of CuPy or numpy.asarray({what}) of JAX; backsolve.torch.solve "
            "takes CUDA tensors"
        )
    if hasattr(values, "__array__"):
        return np.asarray(values)
    try:
        return np.from_dlpack(values)
    except (BufferError, RuntimeError, TypeError) as err:
        raise InvalidDtypeError(f"{what} cannot be read by DLPack: convert it to an array of NumPy") from err


def _device(values: Any) -> tuple[int, int] | None:
    """Kind and number of the device; None where the library names none, e.g. of an array on several."""
    try:
        kind, number = values.__dlpack_device__()
        return int(kind), int(number)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return None
