"""`torch.utils.checkpoint`: the forward runs twice, the matrix is factorized once, and the gradients are the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from backsolve import Client
from backsolve.errors import SingularMatrixError
from backsolve.torch import LinearSolve, solve, spsolve
from support.fresh import new_rng
from support.tensors import close, dense, rhs, scattered, sparse_pattern, values_on

PATTERN = sparse_pattern(650_274_918, 8)
COUNTED = ("factorizations", "solves", "adjoint_solves")

each_way = pytest.mark.parametrize("reentrant", [False, True], ids=["saved hooks", "reentrant"])


def _fresh() -> Tensor:
    """Numbers that no cache has met, whatever ran before on the same server."""
    noise = torch.as_tensor(new_rng().standard_normal(PATTERN.nnz))
    return (values_on(PATTERN, 307_592_846) + 1e-3 * noise).requires_grad_()


def _steps(values: Tensor, b: Tensor, client: Client) -> Tensor:
    """Two solves with one matrix, something nonlinear between them."""
    x = spsolve(values, PATTERN, b, client=client)
    return spsolve(values, PATTERN, x.sin() + b, client=client)


@each_way
def test_gradients_and_costs(client: Client, reentrant: bool) -> None:
    b = rhs(294_860_175, (8,)).requires_grad_()
    values = _fresh()
    before = client.stats()
    x = checkpoint(_steps, values, b, client, use_reentrant=reentrant)
    gradients = torch.autograd.grad((x**2).sum(), (values, b)) if not reentrant else _by_backward(x, values, b)
    after = client.stats()
    spent = {name: after[name] - before[name] for name in COUNTED}
    # Two solves forward, the same two again, and one adjoint solve for each.
    assert spent == {"factorizations": 1, "solves": 4, "adjoint_solves": 2}

    plain = _steps(values, b, client)
    assert torch.equal(x, plain)
    for mine, wanted in zip(gradients, torch.autograd.grad((plain**2).sum(), (values, b)), strict=True):
        assert torch.equal(mine, wanted)
    inverse = torch.linalg.inv(scattered(values, PATTERN))
    truth = inverse @ ((inverse @ b).sin() + b)
    for mine, wanted in zip(gradients, torch.autograd.grad((truth**2).sum(), (values, b)), strict=True):
        close(mine, wanted)


def _by_backward(x: Tensor, *leaves: Tensor) -> list[Tensor]:
    """The reentrant way takes `backward()` alone."""
    (x**2).sum().backward()
    found = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return [gradient for gradient in found if gradient is not None]


@each_way
def test_nothing_is_kept_between(embedded: Client, reentrant: bool) -> None:
    """What a checkpointed region computes is not held until the backward: only its inputs are."""
    saved: list[int] = []

    def region(values: Tensor, b: Tensor) -> Tensor:
        return _steps(values * 2, b, embedded)

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    values, b = _fresh(), rhs(518_207_364, (8,)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        checkpoint(region, values, b, use_reentrant=reentrant)
    assert set(saved) <= {values.data_ptr(), b.data_ptr()}


def test_second_derivatives(embedded: Client) -> None:
    """The way of saved hooks alone; PyTorch refuses the other one."""
    values, b = _fresh(), rhs(840_175_293, (8,)).requires_grad_()

    def product(f: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad((f() ** 3).sum(), (values, b), create_graph=True)
        return torch.autograd.grad(gradients, (values, b), (values.detach(), b.detach()))

    ours = product(lambda: checkpoint(_steps, values, b, embedded, use_reentrant=False))
    for mine, wanted in zip(ours, product(lambda: _steps(values, b, embedded)), strict=True):
        assert torch.equal(mine, wanted)


def test_layers_in_segments(embedded: Client) -> None:
    """A sequence of modules, as for a deep network with a solve in each layer."""

    class Layer(torch.nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(dense(seed))
            self.solve = LinearSolve(client=embedded)

        def forward(self, b: Tensor) -> Tensor:
            out: Tensor = self.solve(self.weight, b).tanh()
            return out

    network = torch.nn.Sequential(*(Layer(714_905_362 + index) for index in range(4)))
    b = rhs(67_320_498, (6, 3)).requires_grad_()
    gradients = []
    for f in (lambda b: checkpoint_sequential(network, 2, b, use_reentrant=False), network):
        gradients.append(torch.autograd.grad(f(b).sum(), [b, *network.parameters()]))
    for mine, wanted in zip(*gradients, strict=True):
        assert torch.equal(mine, wanted)


@each_way
def test_an_error_of_the_region_is_raised_as_it_is(embedded: Client, reentrant: bool) -> None:
    A, b = torch.zeros(3, 3).double().requires_grad_(), rhs(430_928_175, (3,))
    with pytest.raises(SingularMatrixError):
        checkpoint(lambda A, b: solve(A, b, client=embedded), A, b, use_reentrant=reentrant)
