"""Least squares as operations that `torch.compile` can put into a graph; see `_compiled`. First order only."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._adapter.least_squares_rules import Products, pull_minimise
from .._adapter.request import System
from ..client import Client
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
from ._least_squares import Problem
from ._request import matrix_of, stamp
from ._rules import ALGEBRA


def minimise(
    values: Tensor,
    rhs: Tensor,
    pattern: AnyPattern,
    client: Client | None,
    options: Options,
    timeout: Timeout,
    on_failure: OnFailure,
) -> Tensor:
    """`G Aᴴ rhs` inside a graph, for columns `[(batch,) m, k]`.

    Raises:
        NotSupportedError: inside a derivative of `torch.func`.
    """
    refuse_derivatives()
    spec = spec_of(options, timeout, on_failure)
    x: Tensor = _minimise(values, rhs, *place_of(pattern), number_of(client), *spec)[0]
    return x


@torch.library.custom_op("backsolve::minimise", mutates_args=())
def _minimise(
    values: Tensor,
    rhs: Tensor,
    pattern: int,
    kind: str,
    dims: Sequence[int],
    client: int,
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
    spec = (names, trans, *figures, timeout, default_timeout, on_failure)
    problem = _problem(values, None, (pattern, kind, dims), client, spec)
    return problem.minimise(values, rhs), digests_of(matrix_of(problem.system, values))


@_minimise.register_fake
def _(values: Tensor, rhs: Tensor, *place: Any) -> tuple[Tensor, Tensor]:
    return rhs.new_empty((*rhs.shape[:-2], pattern_at(place[:3], values).n, rhs.shape[-1])), no_digests()


@torch.library.custom_op("backsolve::minimise_gradient", mutates_args=())
def _minimise_gradient(
    values: Tensor,
    rhs: Tensor,
    x: Tensor,
    grad: Tensor,
    digest: Tensor,
    of_values: bool,
    pattern: int,
    kind: str,
    dims: Sequence[int],
    client: int,
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
    """Gradients of the values (empty unless `of_values`) and of rhs."""
    figures = (rtol, atol, damp, rcond, maxiter, restart, refine, recycle, condition)
    spec = (names, trans, *figures, timeout, default_timeout, on_failure)
    problem = _problem(values, digest, (pattern, kind, dims), client, spec)

    def normal(v: Tensor) -> Tensor:
        return problem.normal(values, v)

    a = Products(ALGEBRA, problem.pattern, values)
    of_a, of_b = pull_minimise(a, rhs, x, grad, normal, damped=problem.damped, of_values=of_values)
    return values.new_empty(0) if of_a is None else of_a.resolve_conj().contiguous(), of_b.contiguous()


@_minimise_gradient.register_fake
def _(values: Tensor, rhs: Tensor, x: Tensor, grad: Tensor, digest: Tensor, of_values: bool, *_: Any) -> Any:
    return values.new_empty(values.shape if of_values else (0,)), rhs.new_empty(rhs.shape)


_minimise_gradient.register_autograd(refuse_second)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, rhs, *ctx.rest = inputs
    ctx.save_for_backward(values, rhs, *output)


def _backward(ctx: Any, grad: Tensor, _digest: Any) -> tuple[Any, ...]:
    values, rhs, x, digest = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    of_a, of_b = _minimise_gradient(values, rhs, x, grad.contiguous(), digest, wanted[0], *ctx.rest)
    return (of_a if wanted[0] else None, of_b if wanted[1] else None, *(None,) * len(ctx.rest))


_minimise.register_autograd(_backward, setup_context=_setup_context)


@_minimise.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], values: Tensor, rhs: Tensor, *rest: Any) -> Any:
    digests = []

    def unmapped(flat: Tensor, b: Tensor, _: Tensor | None) -> Tensor:
        x, digest = _minimise(flat.contiguous(), b.contiguous(), *rest)
        digests.append(digest)
        return torch.as_tensor(x)

    x = fold(info.batch_size, (*in_dims[:2], None), entries_at(rest[:3]), values, rhs, None, unmapped)
    return (x, digests[0]), (0, None)


def _problem(values: Tensor, digest: Tensor | None, place: Any, client: int, spec: Any) -> Problem:
    asked = Asked(spec)
    pattern = pattern_at(place, values)
    problem = Problem(System(client_of(client), pattern, asked.options, asked.timeout, asked.on_failure))
    problem.system.adopt(stamp(values), matrix_at(pattern, values, digest))
    return problem
