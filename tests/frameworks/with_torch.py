"""PyTorch for the suite of all frameworks."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from backsolve.torch import lstsq, solve, spsolve
from frameworks.adapters import Adapter, Function
from frameworks.cases import Case
from support.tensors import scattered


class Torch(Adapter):
    name = "torch"

    def array(self, numbers: np.ndarray) -> Tensor:
        return torch.tensor(numbers)

    def spsolve(self, values: Tensor, case: Case, b: Tensor, **options: Any) -> Tensor:
        return spsolve(values, case.pattern, b, **options)

    def dense_solve(self, values: Tensor, case: Case, b: Tensor, **options: Any) -> Tensor:
        return solve(values, b, **options)

    def reference(self, case: Case) -> Function:
        def f(values: Tensor, b: Tensor) -> Tensor:
            if case.sparse:
                values = scattered(values, case.pattern)
            A = {"N": values, "T": values.mT, "H": values.mH}[case.trans]
            return torch.linalg.solve(A, b) if case.columns else torch.linalg.solve(A, b.unsqueeze(-1)).squeeze(-1)

        return f

    def minimise(self, **options: Any) -> Function:
        return lambda A, b: lstsq(A, b, **options)

    def normal_equations(self) -> Function:
        return lambda A, b: torch.linalg.solve(A.mH @ A, A.mH @ b)

    def _loss(self, f: Function, case: Case, values: Tensor, b: Tensor) -> Tensor:
        x = f(values, b)
        fourth, first = (torch.tensor(w) for w in case.weights)
        return (fourth * (x * x.conj()).real ** 2 + first * x.real).sum()

    def _leaves(self, case: Case, values: np.ndarray | None) -> list[Tensor]:
        return [self.array(a).requires_grad_() for a in (case.values if values is None else values, case.b)]

    def grad(self, f: Function, case: Case, values: np.ndarray | None = None) -> list[np.ndarray]:
        leaves = self._leaves(case, values)
        return [g.resolve_conj().numpy() for g in torch.autograd.grad(self._loss(f, case, *leaves), leaves)]

    def hvp(self, f: Function, case: Case, values: np.ndarray | None = None) -> list[np.ndarray]:
        leaves = self._leaves(case, values)
        gradients = torch.autograd.grad(self._loss(f, case, *leaves), leaves, create_graph=True)
        directions = self.array(case.values_direction), self.array(case.b_direction)
        along = sum(((g.conj() * d).real.sum() for g, d in zip(gradients, directions, strict=True)), torch.tensor(0.0))
        return [g.resolve_conj().numpy() for g in torch.autograd.grad(along, leaves)]

    def jvp(self, f: Function, case: Case) -> np.ndarray:
        inputs, directions = (case.values, case.b), (case.values_direction, case.b_direction)
        tangent = torch.func.jvp(f, tuple(map(self.array, inputs)), tuple(map(self.array, directions)))[1]
        return tangent.resolve_conj().numpy()

    def vmap(self, f: Function, values: np.ndarray, b: np.ndarray, mapped: tuple[bool, bool]) -> np.ndarray:
        axes = tuple(0 if each else None for each in mapped)
        return torch.func.vmap(f, in_dims=axes)(self.array(values), self.array(b)).numpy()

    def compiled(self, f: Function) -> Function:
        torch._dynamo.reset()
        return torch.compile(f, fullgraph=True, backend="aot_eager")
