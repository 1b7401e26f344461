"""Products of matrices that an autocast region does not reduce, nor any derivative of them.

Switching autocast off around a product protects that product alone: PyTorch computes its derivative
later, and where the backward itself stands inside a region, in half precision.
"""

from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from ._dual import primal


@final
class Product(torch.autograd.Function):
    """`a @ b` of blocks of matrices, `[..., m, n]` and `[..., n, k]`."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        """Multiply."""
        return _plain(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep both."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """`grad bᴴ` and `aᴴ grad`, summed over what was broadcast."""
        if grad is None:
            return None, None
        a, b = ctx.saved_tensors
        of_a, of_b = ctx.needs_input_grad
        return (
            _summed(matmul(grad, b.mH), a.shape) if of_a else None,
            _summed(matmul(a.mH, grad), b.shape) if of_b else None,
        )

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, db: Tensor | None) -> Tensor | None:
        """`da b + a db`."""
        # As in `Solve.jvp`: an enclosing forward mode would be dropped here without a word.
        with _set_fwd_grad_enabled(True):
            a, b = (primal(t) for t in ctx.saved_tensors)
            moved = [matmul(primal(da), b)] if da is not None else []
            if db is not None:
                moved.append(matmul(a, primal(db)))
            return sum(moved[1:], start=moved[0]) if moved else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], a: Tensor, b: Tensor) -> tuple[Tensor, int]:
        """The mapped dimension leads the batch."""
        ndim = max(t.ndim - (dim is not None) for t, dim in zip((a, b), in_dims, strict=True))
        return matmul(_leading(a, in_dims[0], ndim), _leading(b, in_dims[1], ndim)), 0


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` in the type of a and b, in every derivative too."""
    # Nothing is recorded: forward mode differentiates at once, and a compiler writes types into its graph.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _plain(a, b)
    result: Tensor = Product.apply(a, b)  # type: ignore[no-untyped-call]
    return result


def _plain(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _summed(gradient: Tensor, shape: torch.Size) -> Tensor:
    lead = gradient.ndim - len(shape)
    if lead:
        gradient = gradient.sum(tuple(range(lead)))
    broadcast = tuple(i for i, size in enumerate(shape) if size == 1 and gradient.shape[i] != 1)
    return gradient.sum(broadcast, keepdim=True) if broadcast else gradient


def _leading(tensor: Tensor, dim: int | None, ndim: int) -> Tensor:
    """The mapped dimension first, and behind it as many as the other factor has."""
    if dim is None:
        return tensor
    first = tensor.movedim(dim, 0)
    return first.reshape(first.shape[0], *(1,) * (ndim + 1 - first.ndim), *first.shape[1:])
