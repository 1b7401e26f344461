"""Seconds on a device, and the speed of its memory."""

import statistics
import time
from collections.abc import Callable

import torch

_COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 24}
"""Large against every cache; on the CPU, where nothing is claimed, small."""


def wait(device: str) -> None:
    """Until the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: str, rounds: int, warm: int = 3) -> float:
    """Median time of `call` from its first launch to its last effect, after `warm` unmeasured calls."""
    for _ in range(warm):
        call()
    taken = []
    for _ in range(rounds):
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def copy_bandwidth(device: str, rounds: int) -> float:
    """Bytes a second of a copy within the device's memory; each byte is read and written."""
    size = _COPY_BYTES[torch.device(device).type]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device, rounds)
