"""The solve as an operation that autograd and `torch.func` know every derivative of.

Each rule is written in terms of the operation itself, with the adjoint or the same operator, so
derivatives of derivatives are right to every order, and all of them meet the same factor: one
solve forward, one for a gradient, two more for a Hessian-vector product.
"""

from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from .._adapter.request import Request
from ._dual import primal
from ._fold import Dims, fold
from ._guard import guard
from ._request import run
from ._rules import tangent_rhs, values_gradient


@final
class Solve(torch.autograd.Function):
    """`x = M⁻¹ rhs` for the operator M of a request."""

    @staticmethod
    def forward(values: Tensor, rhs: Tensor, x0: Tensor | None, request: Request) -> Tensor:
        """Solve.

        Args:
            values: `[nnz]` or `[batch, nnz]`; dense `[n, n]` or `[batch, n, n]`.
            rhs: `[(batch,) n]` or `[(batch,) n, k]`.
            x0: first iterate, shaped like rhs. No derivative: the answer does not depend on it.
            request: the operator.

        Returns:
            x, shaped like rhs.
        """
        return run(request, values, rhs, x0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the values (not a copy), x, and the request with its digests."""
        values, rhs, _, request = inputs
        ctx.save_for_backward(values, output)
        ctx.save_for_forward(values, output)
        ctx.request = request
        ctx.vectors = _vectors(values, rhs, request)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        """`Mᴴ λ = grad`; then `∂rhs = λ` and `∂values` on the pattern."""
        if grad is None:
            return None, None, None, None
        values, x = ctx.saved_tensors
        request: Request = ctx.request
        lam = apply(values, grad, None, request.pulled_back())
        grad_values = None
        if ctx.needs_input_grad[0]:
            grad_values = values_gradient(request.system.pattern, request.operator, lam, x, ctx.vectors, values)
            if grad_values.requires_grad:
                guard(values)
        return grad_values, lam if ctx.needs_input_grad[1] else None, None, None

    @staticmethod
    def jvp(ctx: Any, dvalues: Tensor | None, drhs: Tensor | None, _x0: Any, _request: Any) -> Tensor:
        """`M dx = drhs - dM x`: one more solve with the same factor."""
        request: Request = ctx.request
        # PyTorch calls this rule with forward derivatives switched off, and so drops, without a
        # word, those of an enclosing `torch.func.jvp`. They are switched on again here, for
        # operands without the tangents that this very rule is there to handle.
        with _set_fwd_grad_enabled(True):
            values, x = (primal(t) for t in ctx.saved_tensors)
            moved = None if dvalues is None else primal(dvalues)
            db = None if drhs is None else primal(drhs)
            rhs = tangent_rhs(request.system.pattern, request.operator, moved, x, db, ctx.vectors, values)
            return apply(values, rhs, None, request.pushed_forward())

    @staticmethod
    def vmap(
        info: Any, in_dims: Dims, values: Tensor, rhs: Tensor, x0: Tensor | None, request: Request
    ) -> tuple[Tensor, int]:
        """One request for the whole mapped dimension."""

        def solve(flat: Tensor, b: Tensor, start: Tensor | None) -> Tensor:
            return apply(flat, b, start, request)

        entries = len(request.system.pattern.entries)
        return fold(info.batch_size, in_dims[:3], entries, values, rhs, x0, solve), 0


def apply(values: Tensor, rhs: Tensor, x0: Tensor | None, request: Request) -> Tensor:
    """`Solve.apply`, typed."""
    x: Tensor = Solve.apply(values, rhs, x0, request)  # type: ignore[no-untyped-call]
    return x


def _vectors(values: Tensor, rhs: Tensor, request: Request) -> bool:
    """Whether each system has one vector, rather than columns."""
    return rhs.ndim == values.ndim - len(request.system.pattern.entries) + 1
