"""The same solve as operations that `torch.compile` can put into a graph.

Dynamo refuses an `autograd.Function` with a `jvp`, and a registered operation has no rule for
forward mode, of which PyTorch drops the tangent without a word: hence both forms, chosen by
`torch.compiler.is_compiling()`, and a refusal of what this form cannot do. Second derivatives, which
only a graph that autograd itself runs can have, exist for dense matrices; of others they are refused.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from .._adapter.request import ADJOINT, Request, System, call
from ..client import Client
from ..kinds.base import Operator
from ..options import check_trans
from ..pattern import AnyPattern
from ..retry import Timeout
from ..types import OnFailure, Options
from ._fold import fold
from ._graph import (
    Asked,
    client_of,
    digests_of,
    entries_at,
    matrix_at,
    no_digests,
    number_of,
    pattern_at,
    place_of,
    refuse_derivatives,
    refuse_dual_numbers,
    refuse_second,
    spec_of,
)
from ._request import to_array, to_tensor
from ._rules import values_gradient as gradient_on_pattern

_OPERATOR: Final[dict[str, Operator]] = {name: name for name in ADJOINT}


def solve(
    values: Tensor,
    b: Tensor,
    x0: Tensor | None,
    pattern: AnyPattern,
    client: Client | None,
    options: Options,
    timeout: Timeout,
    on_failure: OnFailure,
) -> Tensor:
    """Solve inside a graph.

    Raises:
        NotSupportedError: inside a derivative of `torch.func`.
    """
    refuse_derivatives()
    spec = spec_of(options, timeout, on_failure)
    x: Tensor = _solve(values, b, x0, None, *place_of(pattern), number_of(client), False, False, *spec)[0]
    return x


@torch.library.custom_op("backsolve::solve", mutates_args=())
def _solve(
    values: Tensor,
    rhs: Tensor,
    x0: Tensor | None,
    digest: Tensor | None,
    pattern: int,
    kind: str,
    dims: Sequence[int],
    client: int,
    adjoint: bool,
    cotangent: bool,
    names: str,
    trans: str,
    rtol: float | None,
    atol: float | None,
    damp: float | None,
    rcond: float | None,
    maxiter: int | None,
    restart: int | None,
    refine: int | None,
    recycle: int | None,
    condition: bool | None,
    timeout: float | None,
    default_timeout: bool,
    on_failure: str,
) -> tuple[Tensor, Tensor]:
    """x, and the digests of the matrix."""
    refuse_dual_numbers()
    figures = (rtol, atol, damp, rcond, maxiter, restart, refine, recycle, condition)
    asked = Asked((names, trans, *figures, timeout, default_timeout, on_failure))
    matrix = matrix_at(pattern_at((pattern, kind, dims), values), values, digest)
    system = System(client_of(client), matrix.pattern, asked.options, asked.timeout, asked.on_failure)
    start = None if x0 is None else to_array(x0)
    request = Request(system, adjoint, cotangent=cotangent)
    x, _, _ = call(matrix, to_array(rhs), start, request)
    return to_tensor(x, rhs), digests_of(matrix)


@_solve.register_fake
def _(values: Tensor, rhs: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return rhs.new_empty(rhs.shape), no_digests()


@torch.library.custom_op("backsolve::values_gradient", mutates_args=())
def _values_gradient(
    lam: Tensor, x: Tensor, values: Tensor, pattern: int, kind: str, dims: Sequence[int], operator: str, vectors: bool
) -> Tensor:
    """Gradient on a sparse pattern's entries, or on the parameters of a structured matrix."""
    found = pattern_at((pattern, kind, dims), values)
    return gradient_on_pattern(found, _OPERATOR[operator], lam, x, vectors, values).contiguous()


@_values_gradient.register_fake
def _(lam: Tensor, x: Tensor, values: Tensor, *_: Any) -> Tensor:
    return values.new_empty(values.shape)


_values_gradient.register_autograd(refuse_second)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, rhs, _, _, *ctx.place, ctx.client, ctx.adjoint, _, names, trans = inputs[:12]
    ctx.spec = (names, trans, *inputs[12:])
    ctx.save_for_backward(values, *output)
    ctx.vectors = rhs.ndim == values.ndim - entries_at(tuple(ctx.place)) + 1
    ctx.inputs = len(inputs)


def _backward(ctx: Any, grad: Tensor, _digest: Any) -> tuple[Any, ...]:
    values, x, digest = ctx.saved_tensors
    place, adjoint = tuple(ctx.place), ctx.adjoint
    lam, _ = _solve(values, grad.contiguous(), None, digest, *place, ctx.client, not adjoint, adjoint, *ctx.spec)
    trans = check_trans(ctx.spec[1])
    operator = ADJOINT[trans] if adjoint else trans
    grad_values = None
    if ctx.needs_input_grad[0]:
        if entries_at(place) == 1:
            grad_values = _values_gradient(lam, x, values, *place, operator, ctx.vectors)
        else:
            grad_values = gradient_on_pattern(pattern_at(place, values), operator, lam, x, ctx.vectors)
    return (grad_values, lam if ctx.needs_input_grad[1] else None, *(None,) * (ctx.inputs - 2))


_solve.register_autograd(_backward, setup_context=_setup_context)


@_solve.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], values: Tensor, rhs: Tensor, x0: Tensor | None, *rest: Any) -> Any:
    digests = []

    def unmapped(flat: Tensor, b: Tensor, start: Tensor | None) -> Tensor:
        # The forward's digest names the unmapped values; a mapped batch is another matrix.
        kept = rest[0] if in_dims[0] is None else None
        x, digest = _solve(flat.contiguous(), b.contiguous(), start, kept, *rest[1:])
        digests.append(digest)
        return torch.as_tensor(x)

    x = fold(info.batch_size, in_dims[:3], entries_at(rest[1:4]), values, rhs, x0, unmapped)
    return (x, digests[0]), (0, None)
