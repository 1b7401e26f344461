"""What the process asks of its machine."""

import platform
import subprocess
import sys

import pytest

from backsolve_service.machine import memory_bytes, usable_cpus

FAULTS = """
import resource, sys
import numpy as np
from backsolve_service.machine import keep_buffers

def touched():
    return np.ones(size) + np.ones(size) + np.ones(size)

size = 1 << 18
if sys.argv[1] == "kept":
    keep_buffers()
for _ in range(3):
    touched()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    touched()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Page faults of 20 computations with temporaries of 2 MB, 512 pages each."""


def faults(how: str, **environment: str) -> int:
    """Of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), **environment},
    )
    return int(done.stdout)


def test_there_is_a_processor_and_some_memory() -> None:
    assert usable_cpus() >= 1
    assert memory_bytes() > 1 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_buffers_are_kept_unless_the_environment_has_its_own_wish() -> None:
    as_it_is = faults("as it is")
    assert as_it_is > 512, "the test shows nothing where memory is kept anyway"
    assert faults("kept") < as_it_is / 10
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072") > 512
