"""The PyTorch side of `compare_libraries.py`: its transforms, and one small class for each library."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

import backsolve
import backsolve.torch
from compare_system import Floats, Frame, Library, Solve, System, counted, counters


@final
class TorchFrame(Frame):
    """`torch.autograd` for gradients, as users of PyTorch take them; `torch.func` for vmap and jvp."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.values, self.b, self.weights = (torch.from_numpy(a) for a in (system.values, system.b, system.weights))
        self.index = torch.from_numpy(np.stack([system.rows, system.indices]).astype(np.int64))

    def dense_solve(self, values: Tensor, b: Tensor) -> Tensor:
        full = values.new_zeros(self.system.n, self.system.n).index_put((self.index[0], self.index[1]), values)
        return torch.as_tensor(torch.linalg.solve(full, b))

    def _loss(self, solve: Solve, values: Tensor, b: Tensor) -> Tensor:
        return torch.as_tensor((self.weights * solve(values, b) ** 3).sum())

    def answer(self, solve: Solve, values: Floats, b: Floats) -> Floats:
        return _array(solve(torch.from_numpy(values), torch.from_numpy(b)))

    def gradient(self, solve: Solve) -> Floats:
        values, b = self.values.clone().requires_grad_(), self.b.clone().requires_grad_()
        return _array(torch.cat(torch.autograd.grad(self._loss(solve, values, b), [values, b])))

    def hvp(self, solve: Solve) -> Floats:
        values, b = self.values.clone().requires_grad_(), self.b.clone()
        (gradient,) = torch.autograd.grad(self._loss(solve, values, b), values, create_graph=True)
        along = (gradient * torch.from_numpy(self.system.values_direction)).sum()
        return _array(torch.autograd.grad(along, values)[0])

    def jvp(self, solve: Solve) -> Floats:
        directions = torch.from_numpy(self.system.values_direction), torch.from_numpy(self.system.b_direction)
        return _array(torch.func.jvp(solve, (self.values, self.b), directions)[1])

    def vmap_b(self, solve: Solve, many: Floats) -> Floats:
        return _array(torch.func.vmap(lambda b: solve(self.values, b))(torch.from_numpy(many)))

    def vmap_values(self, solve: Solve, many: Floats) -> Floats:
        return _array(torch.func.vmap(lambda values: solve(values, self.b))(torch.from_numpy(many)))


def _array(tensor: Tensor) -> Floats:
    return np.asarray(tensor.detach().numpy(), np.float64)


@final
class Backsolve(Library):
    """`backsolve.torch.spsolve(values, pattern, b)`, solved where BACKSOLVE_URL says, else in this process."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.client = backsolve.Client()
        self.pattern = backsolve.Pattern(system.indptr, system.indices, (system.n, system.n))

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        return backsolve.torch.spsolve(values, self.pattern, b, client=self.client)

    def work(self, gradient: Callable[[], Any]) -> str:
        return counters(self.client, gradient)


@final
class TorchSla(Library):
    """`torch_sla.SparseTensor(values, row, column, shape).solve(b)`, the first example of its documentation."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.module = import_module("torch_sla")
        self.rows, self.columns = (torch.from_numpy(a.astype(np.int64)) for a in (system.rows, system.indices))

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        A = self.module.SparseTensor(values, self.rows, self.columns, (self.system.n, self.system.n))
        return torch.as_tensor(A.solve(b))

    def work(self, gradient: Callable[[], Any]) -> str:
        # On a CPU it solves through SciPy, which factorizes in each `spsolve`.
        linalg = import_module("scipy.sparse.linalg")
        with counted((linalg, "spsolve"), (linalg, "splu")) as calls:
            gradient()
        return ", ".join(f"scipy {name} {times}" for name, times in calls.items() if times) or "not counted"


class _TorchSparseGradUtils(Library):
    """`torchsparsegradutils.sparse_generic_solve(A, b)` on a COO tensor."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.module = import_module("torchsparsegradutils")
        self.utils = import_module("torchsparsegradutils.utils")
        self.index = torch.from_numpy(np.stack([system.rows, system.indices]).astype(np.int64))

    def matrix(self, values: Tensor) -> Tensor:
        """A; its entries are sorted and no two are in one place."""
        n = self.system.n
        return torch.sparse_coo_tensor(self.index, values, (n, n), is_coalesced=True, check_invariants=False)


@final
class TorchSparseGradUtils(_TorchSparseGradUtils):
    """As it is called without further arguments: MINRES, for A and for its transpose."""

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        return torch.as_tensor(self.module.sparse_generic_solve(self.matrix(values), b))

    def work(self, gradient: Callable[[], Any]) -> str:
        with counted((self.utils, "minres")) as calls:
            gradient()
        return f"minres {calls['minres']}"


class _Bicgstab(_TorchSparseGradUtils):
    """With the solver that its documentation names for nonsymmetric matrices."""

    def work(self, gradient: Callable[[], Any]) -> str:
        with counted((self.utils, "bicgstab")) as calls:
            gradient()
        return f"bicgstab {calls['bicgstab']}"


@final
class TorchSparseGradUtilsBicgstab(_Bicgstab):
    """As the example in its documentation calls it: `solve=bicgstab` alone."""

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        return torch.as_tensor(self.module.sparse_generic_solve(self.matrix(values), b, solve=self.utils.bicgstab))


@final
class TorchSparseGradUtilsTransposed(_Bicgstab):
    """And with a solver of the transpose, as the description of its arguments asks for."""

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        bicgstab = self.utils.bicgstab
        x = self.module.sparse_generic_solve(
            self.matrix(values), b, solve=bicgstab, transpose_solve=lambda A, g: bicgstab(A.t(), g)
        )
        return torch.as_tensor(x)
