"""Least squares as two operations that are each other's derivative, so that every order follows.

    Minimise:  x = G Aᴴ b          Normal:  λ = G g,    G = (AᴴA + damp² I)⁺

The derivatives of x are those of `backsolve.least_squares`. Of λ, with a cotangent c, μ = G c and,
without damping, q_g = g - AᴴA λ and q_c = c - AᴴA μ, what of them lies in the null space of A:

    ∂g = μ
    ∂A = -(A λ) μᴴ - (A μ) λᴴ + (A G μ) q_gᴴ + (A G λ) q_cᴴ

The last two terms come from dS⁺ = -S⁺ dS S⁺ + S⁺S⁺ dS (I - S S⁺) + (I - S S⁺) dS S⁺S⁺ for S = AᴴA, in
which all of dS but Aᴴ dA on one side and dAᴴ A on the other is projected out. With damping they are
not there. Everything is written in products with A and in these two operations.

Source: Golub and Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares
problems whose variables separate", SIAM J. Numer. Anal. 10 (1973), theorem 4.3.
"""

from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from .._session import Timeout
from ..client import Client
from ..matrix import Matrix
from ..pattern import AnyPattern
from ..types import Certificate, OnFailure, Options
from ._request import Observer, Phase, to_array, to_tensor
from ._rules import outer, product


@final
class Problem:
    """One matrix with what is asked of it, from the forward solve to its last derivative.

    Args:
        client: where to solve.
        pattern: of one matrix.
        options: of the forward solve.
        timeout: seconds for each request.
        on_failure: for forward and backward alike.
        observe: called after each request with its certificate.
    """

    def __init__(
        self,
        client: Client,
        pattern: AnyPattern,
        options: Options,
        timeout: Timeout,
        on_failure: OnFailure,
        observe: Observer | None = None,
    ) -> None:
        self.client, self.pattern, self.options = client, pattern, options
        self.timeout = timeout
        self.on_failure: OnFailure = on_failure
        self.observe = observe
        self.certificate: Certificate | None = None
        self._stamp: tuple[Any, ...] | None = None
        self._matrix: Matrix | None = None

    @property
    def damped(self) -> bool:
        """Whether there is damping."""
        return bool(self.options.damp)

    def matrix(self, values: Tensor) -> Matrix:
        """The canonical matrix of `values`, hashed once for the tensor that the forward met."""
        stamp = (values.data_ptr(), tuple(values.shape), values.stride(), values.is_conj(), values.is_neg())
        if self._matrix is None or stamp != self._stamp:
            self._matrix, self._stamp = Matrix(self.pattern, to_array(values)), stamp
        return self._matrix

    def minimise(self, values: Tensor, rhs: Tensor) -> Tensor:
        """`G Aᴴ rhs`; no derivative is recorded here."""
        solution = self.client.lstsq_matrix(
            self.matrix(values), to_array(rhs), self.options, timeout=self.timeout, on_failure=self.on_failure
        )
        if self.certificate is None:
            self.certificate = solution.stats
            self.options = replace(self.options, method=solution.stats.method)
        self._show("solve", solution.stats)
        return to_tensor(solution.x, rhs)

    def normal(self, values: Tensor, cotangent: Tensor) -> Tensor:
        """`G cotangent`, likewise."""
        reply = self.client.normal_matrix(
            self.matrix(values), to_array(cotangent), self.options, timeout=self.timeout, on_failure=self.on_failure
        )
        self._show("adjoint", reply.stats)
        return to_tensor(np.asarray(reply.b), cotangent)

    def _show(self, phase: Phase, certificate: Certificate) -> None:
        if self.observe is not None:
            self.observe(phase, certificate)


@final
@dataclass(frozen=True, slots=True)
class Products:
    """A, as differentiable products with columns `[..., rows, k]`."""

    pattern: AnyPattern
    values: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """`A x`."""
        return product(self.pattern, self.values, x, transposed=False)

    def adjoint(self, y: Tensor) -> Tensor:
        """`Aᴴ y`."""
        return product(self.pattern, self.values.conj(), y, transposed=True)

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """`left rightᴴ` on A's stored entries."""
        return outer(self.pattern, left, right)


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
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        """`λ = G grad`, `∂b = A λ`, and `∂A` as the module says."""
        if grad is None:
            return None, None, None
        values, rhs, x = ctx.saved_tensors
        a = Products(ctx.problem.pattern, values)
        lam = normal(values, grad, ctx.problem)
        u = a.apply(lam)
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = a.outer(rhs - a.apply(x), lam) - a.outer(u, x)
            if not ctx.problem.damped:
                w = a.apply(normal(values, x, ctx.problem))
                gradient = gradient + a.outer(w, grad - a.adjoint(u))
        return gradient, u if ctx.needs_input_grad[1] else None, None


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
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        """`μ = G grad` is the gradient of g; that of A is as the module says."""
        if grad is None:
            return None, None, None
        values, g, lam = ctx.saved_tensors
        problem: Problem = ctx.problem
        a = Products(problem.pattern, values)
        mu = normal(values, grad, problem)
        gradient = None
        if ctx.needs_input_grad[0]:
            image, other = a.apply(lam), a.apply(mu)
            gradient = -a.outer(image, mu) - a.outer(other, lam)
            if not problem.damped:
                gradient = gradient + a.outer(a.apply(normal(values, mu, problem)), g - a.adjoint(image))
                gradient = gradient + a.outer(a.apply(normal(values, lam, problem)), grad - a.adjoint(other))
        return gradient, mu if ctx.needs_input_grad[1] else None, None


def minimise(values: Tensor, rhs: Tensor, problem: Problem) -> Tensor:
    """`Minimise.apply`, typed."""
    x: Tensor = Minimise.apply(values, rhs, problem)  # type: ignore[no-untyped-call]
    return x


def normal(values: Tensor, cotangent: Tensor, problem: Problem) -> Tensor:
    """`Normal.apply`, typed."""
    lam: Tensor = Normal.apply(values, cotangent, problem)  # type: ignore[no-untyped-call]
    return lam
