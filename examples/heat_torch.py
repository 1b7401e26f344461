"""The misfit of `heat_inverse.py` and its gradient, by PyTorch."""

import torch
from scipy import sparse
from torch import Tensor

import backsolve
from backsolve.torch import spsolve
from heat_problem import DT, Experiment, Floats, HeatEquation, Misfit, Operations, simulate


def misfit(equation: HeatEquation, experiment: Experiment, client: backsolve.Client) -> Misfit:
    """A function of `log_k` that gives both."""
    mass, stiffness = _tensor(equation.mass), _tensor(equation.stiffness)
    mass_values = torch.from_numpy(equation.mass_values)
    operations = Operations(
        exp=torch.exp,
        mass=lambda u: mass @ u,
        values=lambda k: mass_values + DT * (stiffness @ k),
        solve=lambda values, rhs: spsolve(values, equation.pattern, rhs, client=client),
    )
    start, seen, data = (torch.from_numpy(a) for a in (experiment.start, experiment.seen, experiment.data))

    def value_and_gradient(log_k: Floats) -> tuple[float, Floats]:
        learned = torch.from_numpy(log_k).requires_grad_()
        u = torch.stack(simulate(operations, learned, start))
        loss = (u[:, seen] - data).square().mean()
        (gradient,) = torch.autograd.grad(loss, learned)
        return loss.item(), gradient.numpy()

    return value_and_gradient


def _tensor(matrix: sparse.coo_array) -> Tensor:
    index = torch.stack([torch.from_numpy(place).long() for place in matrix.coords])
    return torch.sparse_coo_tensor(index, torch.from_numpy(matrix.data), matrix.shape, check_invariants=True).coalesce()
