"""Least squares as two operations that are each other's derivative, so that every order follows.

    Minimise:  x = G Aᴴ b          Normal:  λ = G g,    G = (AᴴA + damp² I)⁺

The formulas are those of `backsolve._adapter.least_squares_rules`, given these very operations to be written in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from .._adapter.least_squares_rules import (
    Operation,
    Products,
    pull_minimise,
    pull_normal,
    push_minimise,
    push_normal,
)
from .._adapter.request import System
from ..pattern import AnyPattern
from ._dual import primal
from ._fold import Dims, fold
from ._guard import guard
from ._request import matrix_of, to_array, to_tensor, untraced
from ._rules import ALGEBRA


@final
@dataclass(frozen=True, slots=True)
class Problem:
    """One matrix with what is asked of it: the two operations, as requests to the client."""

    system: System

    @property
    def pattern(self) -> AnyPattern:
        """Of one matrix."""
        return self.system.pattern

    @property
    def damped(self) -> bool:
        """Whether there is damping."""
        return bool(self.system.options.damp)

    @untraced
    def minimise(self, values: Tensor, rhs: Tensor) -> Tensor:
        """`G Aᴴ rhs`; no derivative is recorded here."""
        system = self.system
        solution = system.client.lstsq_matrix(
            matrix_of(system, values),
            to_array(rhs),
            system.derived,
            timeout=system.timeout,
            on_failure=system.on_failure,
        )
        system.record("solve", solution.stats)
        return to_tensor(solution.x, rhs)

    @untraced
    def normal(self, values: Tensor, cotangent: Tensor) -> Tensor:
        """`G cotangent`, likewise."""
        system, given = self.system, to_array(cotangent)
        reply = system.client.normal_matrix(
            matrix_of(system, values), given, system.derived, timeout=system.timeout, on_failure=system.on_failure
        )
        system.record("adjoint", reply.stats)
        return to_tensor(np.asarray(reply.b), cotangent)


@final
class Minimise(torch.autograd.Function):
    """`x = G Aᴴ b`."""

    @staticmethod
    def forward(values: Tensor, rhs: Tensor, problem: Problem) -> Tensor:
        """Solve; `rhs` is `[(batch,) m, k]`, the answer `[(batch,) n, k]`."""
        return problem.minimise(values, rhs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the operands and x."""
        values, rhs, ctx.problem = inputs
        ctx.save_for_backward(values, rhs, output)
        ctx.save_for_forward(values, rhs, output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        """One request for `∂b`; for `∂A` without damping another."""
        if grad is None:
            return None, None, None
        values, rhs, x = ctx.saved_tensors
        problem: Problem = ctx.problem
        a, inverse = Products(ALGEBRA, problem.pattern, values), _inverse(values, problem)
        wanted = ctx.needs_input_grad
        of_a, of_b = pull_minimise(a, rhs, x, grad, inverse, damped=problem.damped, of_values=wanted[0])
        return _watched(of_a, values), of_b if wanted[1] else None, None

    @staticmethod
    def jvp(ctx: Any, dvalues: Tensor | None, drhs: Tensor | None, _problem: Any) -> Tensor:
        """One request for a tangent of b alone; for one of A up to three more."""
        problem: Problem = ctx.problem
        # As in `Solve.jvp`: an enclosing forward mode would be dropped here without a word.
        with _set_fwd_grad_enabled(True):
            values, rhs, x = (primal(t) for t in ctx.saved_tensors)
            db = torch.zeros_like(rhs) if drhs is None else primal(drhs)
            if dvalues is None:
                return minimise(values, db, problem)
            a, da = Products(ALGEBRA, problem.pattern, values), Products(ALGEBRA, problem.pattern, primal(dvalues))
            answer, inverse = (lambda v: minimise(values, v, problem)), _inverse(values, problem)
            tangent: Tensor = push_minimise(a, da, rhs, x, db, answer, inverse, damped=problem.damped)
            return tangent

    @staticmethod
    def vmap(info: Any, in_dims: Dims, values: Tensor, rhs: Tensor, problem: Problem) -> tuple[Tensor, int]:
        """One request for the whole mapped dimension."""
        return _folded(info.batch_size, in_dims, values, rhs, problem, minimise), 0


@final
class Normal(torch.autograd.Function):
    """`λ = G g`."""

    @staticmethod
    def forward(values: Tensor, cotangent: Tensor, problem: Problem) -> Tensor:
        """Solve; `cotangent` and the answer are `[(batch,) n, k]`."""
        return problem.normal(values, cotangent)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the operands and λ."""
        values, cotangent, ctx.problem = inputs
        ctx.save_for_backward(values, cotangent, output)
        ctx.save_for_forward(values, cotangent, output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        """One request for `∂g`; for `∂A` without damping two more."""
        if grad is None:
            return None, None, None
        values, g, lam = ctx.saved_tensors
        problem: Problem = ctx.problem
        a, inverse = Products(ALGEBRA, problem.pattern, values), _inverse(values, problem)
        wanted = ctx.needs_input_grad
        of_a, of_g = pull_normal(a, g, lam, grad, inverse, damped=problem.damped, of_values=wanted[0])
        return _watched(of_a, values), of_g if wanted[1] else None, None

    @staticmethod
    def jvp(ctx: Any, dvalues: Tensor | None, dcotangent: Tensor | None, _problem: Any) -> Tensor:
        """One request for a tangent of g alone; for one of A without damping four more."""
        problem: Problem = ctx.problem
        with _set_fwd_grad_enabled(True):
            values, g, lam = (primal(t) for t in ctx.saved_tensors)
            dg = torch.zeros_like(g) if dcotangent is None else primal(dcotangent)
            if dvalues is None:
                return normal(values, dg, problem)
            a, da = Products(ALGEBRA, problem.pattern, values), Products(ALGEBRA, problem.pattern, primal(dvalues))
            tangent: Tensor = push_normal(a, da, g, lam, dg, _inverse(values, problem), damped=problem.damped)
            return tangent

    @staticmethod
    def vmap(info: Any, in_dims: Dims, values: Tensor, cotangent: Tensor, problem: Problem) -> tuple[Tensor, int]:
        """One request for the whole mapped dimension."""
        return _folded(info.batch_size, in_dims, values, cotangent, problem, normal), 0


def minimise(values: Tensor, rhs: Tensor, problem: Problem) -> Tensor:
    """`Minimise.apply`, typed."""
    x: Tensor = Minimise.apply(values, rhs, problem)  # type: ignore[no-untyped-call]
    return x


def normal(values: Tensor, cotangent: Tensor, problem: Problem) -> Tensor:
    """`Normal.apply`, typed."""
    lam: Tensor = Normal.apply(values, cotangent, problem)  # type: ignore[no-untyped-call]
    return lam


def _inverse(values: Tensor, problem: Problem) -> Operation:
    return lambda v: normal(values, v, problem)


def _watched(gradient: Tensor | None, values: Tensor) -> Tensor | None:
    """The gradient of A; while it can be differentiated again, what PyTorch does with it is watched."""
    if gradient is not None and gradient.requires_grad:
        guard(values)
    return gradient


def _folded(
    size: int,
    in_dims: Dims,
    values: Tensor,
    columns: Tensor,
    problem: Problem,
    operation: Callable[[Tensor, Tensor, Problem], Tensor],
) -> Tensor:
    entries = len(problem.pattern.entries)
    return fold(size, (*in_dims[:2], None), entries, values, columns, None, lambda v, b, _: operation(v, b, problem))
