"""Arrays and tensors: the way to the device, the one way back, and the stream they travel on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from backsolve.types import Array

from ..direct.dense import memory_guard

_streams = threading.local()


@contextmanager
def working(device: str) -> Iterator[None]:
    """Compute on `device`, in this thread's own stream, and wait for it at the end of the block.

    What a block leaves behind may be used from every other thread: nothing of it is pending. On
    the CPU there is no stream, and nothing to wait for.

    Raises:
        DeviceOutOfMemoryError: the device has no room.
        MemoryBudgetError: the host has none.
    """
    place = torch.device(device)
    with memory_guard(device):
        if place.type != "cuda":
            yield
            return
        with torch.cuda.device(place):
            stream = _stream(torch.cuda.current_device())
            with torch.cuda.stream(stream):
                try:
                    yield
                finally:
                    stream.synchronize()


def upload(array: Array, device: str) -> torch.Tensor:
    """A copy of `array` on `device`, in C order; of the CPU too, so that nobody else writes to it."""
    return torch.from_numpy(np.array(array, order="C", copy=True)).to(device)


def fetch(tensor: torch.Tensor) -> Array:
    """The numbers of a tensor: the host waits here for all that its stream was given."""
    return np.asarray(tensor.cpu().numpy())


def torch_dtype(dtype: "np.dtype[Any]") -> torch.dtype:
    """Torch's name of an element type."""
    found = getattr(torch, dtype.name)
    assert isinstance(found, torch.dtype)
    return found


def _stream(index: int) -> "torch.cuda.Stream":
    """This thread's stream on a CUDA device: made on first use, never the default one, which waits for all others."""
    streams: dict[int, torch.cuda.Stream] = _streams.__dict__.setdefault("by_device", {})
    if index not in streams:
        streams[index] = torch.cuda.Stream(device=index)  # type: ignore[no-untyped-call]
    return streams[index]
