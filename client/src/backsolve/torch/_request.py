"""Tensors in, a request to the client, a tensor out."""

import sys
from collections.abc import Callable, Hashable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from .._adapter.request import Request, System
from ..errors import NotSupportedError
from ..matrix import Matrix
from ..pattern import StructuredPattern
from ..types import Array
from ._numbers import check_numbers

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Nothing in `function` is compiled where a graph was broken before it.

    Dynamo would go through the client, and through the engine where that is in this process: hundreds of functions that
    no graph can hold. Whoever compiles has loaded Dynamo; for others it would take a second to load.
    """
    disabled = cache(lambda: torch.compiler.disable(function))  # type: ignore[no-untyped-call]

    @wraps(function)
    def call(*args: P.args, **more: P.kwargs) -> R:
        result: R = (disabled() if "torch._dynamo" in sys.modules else function)(*args, **more)
        return result

    return call


def matrix_of(system: System, values: Tensor) -> Matrix:
    """The canonical matrix of `values`, hashed once for the tensor that the forward met.

    Autograd's version counter watches that tensor between forward and backward.
    """
    check_numbers(values)
    return system.matrix(stamp(values), lambda: to_array(values))


@untraced
def run(request: Request, values: Tensor, rhs: Tensor, x0: Tensor | None) -> Tensor:
    """Solve. No derivative is recorded here; the answer shares no memory with the input."""
    system = request.system
    if values.ndim > 1 and isinstance(system.pattern, StructuredPattern) and system.pattern.base is not None:
        # A mapped update: each has its own S as far as can be seen, and S is cached under its own name.
        starts = [None] * values.shape[0] if x0 is None else list(x0)
        return torch.stack([run(request, *each) for each in zip(values, rhs, starts, strict=True)])
    start = None if x0 is None else to_array(x0)
    return to_tensor(request.run(matrix_of(system, values), to_array(rhs), start), rhs)


def stamp(values: Tensor) -> Hashable:
    """What tells a tensor from another that a derivative is handed in its place.

    A transform may hand a backward the values in another arrangement (say, folded into another
    batch); that is another matrix to the server, and is hashed as one.
    """
    return (values.data_ptr(), tuple(values.shape), values.stride(), values.is_conj(), values.is_neg())


def to_array(tensor: Tensor) -> Array:
    """The numbers of a tensor in C order; a view where it already lies so in host memory.

    Raises:
        NotSupportedError: the tensor is one of PyTorch's legacy vmap, or has no numbers (`_numbers.py`).
    """
    check_numbers(tensor)
    if torch._C._functorch.is_legacy_batchedtensor(tensor):
        raise NotSupportedError(
            "is_grads_batched, vectorize=True and check_batched_grad use PyTorch's legacy vmap, which cannot map a "
            "solve: use torch.func.vmap, jacrev or jacfwd"
        )
    return np.ascontiguousarray(tensor.detach().numpy(force=True))


def to_tensor(array: Array, like: Tensor) -> Tensor:
    """An answer on the device of the question."""
    # PyTorch warns about arrays that it may not write to, such as views of a received message.
    own = array if array.flags.writeable and array.flags.c_contiguous else np.array(array, order="C")
    return torch.from_numpy(own).to(like.device)
