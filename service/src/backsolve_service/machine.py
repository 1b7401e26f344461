"""What of this machine the process may use."""

import ctypes
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Parameters of glibc's `mallopt`."""

_LARGEST_KEPT = 32 << 20
"""Bytes of a buffer that is not mapped for itself; glibc takes no more."""

_KEPT = (1 << 31) - 1
"""Free bytes that are not given back before the allocator is asked to (`scheduling.threads.trim`)."""


def usable_cpus() -> int:
    """Processors this process may run on, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Main memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def keep_buffers() -> None:
    """Have the allocator (glibc) keep buffers of some MB, instead of returning them and faulting them in on every call.

    Touching memory anew takes as long as solving with it. What the environment says (`MALLOC_TRIM_THRESHOLD_`,
    `MALLOC_MMAP_THRESHOLD_`) is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
    mallopt(_TRIM_THRESHOLD, _KEPT)
