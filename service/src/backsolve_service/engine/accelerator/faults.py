"""Failures of a device that end its process: a CUDA context that has met one answers nothing any more."""

from backsolve.errors import InternalError

_STICKY = (
    "illegal memory access",
    "illegal address",
    "illegal instruction",
    "misaligned address",
    "invalid address space",
    "invalid program counter",
    "device-side assert",
    "hardware stack error",
    "launch timed out",
    "unspecified launch failure",
    "launch failure",
    "uncorrectable ECC",
    "NVLink",
    "device unavailable",
    "has fallen off the bus",
    "out of sync",
)
"""Of the texts of `cudaGetErrorString`, those after which "the process must be terminated and relaunched"."""


class DeviceFaultError(InternalError):
    """The device failed in a way that poisons its context: nothing else that this process asks of it can succeed."""


def is_fault(error: BaseException) -> bool:
    """Whether an error, or what caused it, leaves the CUDA context of this process unusable.

    torch reports such errors as `AcceleratorError`, older releases as `RuntimeError`; both quote
    CUDA's own text.
    """
    if isinstance(error, DeviceFaultError):
        return True
    if not isinstance(error, RuntimeError):
        return error.__cause__ is not None and is_fault(error.__cause__)
    text = str(error)
    return "CUDA" in text and any(phrase in text for phrase in _STICKY)
