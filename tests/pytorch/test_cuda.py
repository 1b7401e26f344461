"""CUDA tensors: answers and gradients come back to the device they were asked from."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from backsolve import Client
from backsolve.errors import InvalidOptionError, NotSupportedError
from backsolve.torch import solve, spsolve
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.embedded import EmbeddedTransport
from support.tensors import close, dense, reference, rhs, scattered, sparse_pattern, values_on

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    # PyTorch announces that its compressed layouts are in beta.
    pytest.mark.filterwarnings("ignore:Sparse C:UserWarning"),
]

DEVICE = "cuda"
RTOL = {torch.float32: 1e-4, torch.complex64: 1e-4, torch.float64: 1e-10, torch.complex128: 1e-10}


@pytest.fixture(params=["cpu", DEVICE])
def engine(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of an engine that computes on the CPU, then of one on the device."""
    plane = DataPlane(PlaneConfig(device=request.param, workers=1))
    with Client(transport=EmbeddedTransport(plane)) as client:
        yield client
    assert plane.close()


def on_device(tensor: Tensor) -> Tensor:
    return tensor.to(DEVICE).requires_grad_()


def compare(actual: Tensor, expected: Tensor) -> None:
    """On the device, and the same numbers as on the CPU."""
    assert actual.device.type == DEVICE
    rtol = RTOL[expected.dtype]
    close(actual.cpu(), expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", RTOL, ids=str)
@pytest.mark.parametrize("trans", ["N", "T", "H"])
@pytest.mark.parametrize(("batch", "columns"), [((), ()), ((), (3,)), ((2,), (3,))], ids=["one", "columns", "batch"])
def test_dense_answers_and_gradients(
    engine: Client, dtype: torch.dtype, trans: Any, batch: tuple[int, ...], columns: tuple[int, ...]
) -> None:
    a0, b0 = dense(416_902_775, batch, dtype=dtype), rhs(95_307_221, (*batch, 6, *columns), dtype)
    cotangent = rhs(788_143_650, tuple(b0.shape), dtype)
    A, b = on_device(a0), on_device(b0)
    x = solve(A, b, trans=trans, client=engine)
    gradients = torch.autograd.grad(x, (A, b), cotangent.to(DEVICE))

    a0.requires_grad_()
    b0.requires_grad_()
    expected = reference(a0, b0, trans)
    compare(x.detach(), expected.detach())
    for actual, wanted in zip(gradients, torch.autograd.grad(expected, (a0, b0), cotangent), strict=True):
        compare(actual, wanted)


@pytest.mark.parametrize("dtype", RTOL, ids=str)
def test_sparse_answers_and_gradients(engine: Client, dtype: torch.dtype) -> None:
    pattern = sparse_pattern(540_118_296)
    v0, b0 = values_on(pattern, 207_735_914, dtype=dtype), rhs(861_420_573, (6, 2), dtype)
    cotangent = rhs(33_976_108, (6, 2), dtype)
    values, b = on_device(v0), on_device(b0)
    x = spsolve(values, pattern, b, client=engine)
    gradients = torch.autograd.grad(x, (values, b), cotangent.to(DEVICE))

    v0.requires_grad_()
    b0.requires_grad_()
    expected = reference(scattered(v0, pattern), b0)
    compare(x.detach(), expected.detach())
    for actual, wanted in zip(gradients, torch.autograd.grad(expected, (v0, b0), cotangent), strict=True):
        compare(actual, wanted)


@pytest.mark.parametrize("layout", ["csr", "coo"])
def test_a_sparse_tensor_has_its_gradient_on_its_device(engine: Client, layout: str) -> None:
    full, b = dense(629_004_417), rhs(150_886_732, (6,))
    A = (full.to_sparse_csr() if layout == "csr" else full.to_sparse_coo()).to(DEVICE).requires_grad_()
    x = solve(A, b.to(DEVICE), client=engine)
    (gradient,) = torch.autograd.grad(x.square().sum(), A)

    full.requires_grad_()
    expected = reference(full, b)
    compare(x.detach(), expected.detach())
    assert gradient.layout is A.layout
    compare(gradient.to_dense(), torch.autograd.grad(expected.square().sum(), full)[0])


def test_a_second_derivative(engine: Client) -> None:
    A, b = on_device(dense(905_361_284)), on_device(rhs(71_558_430, (6,)))
    assert torch.autograd.gradgradcheck(lambda A, b: solve(A, b, client=engine), (A, b))


def test_numpys_client_refuses_what_lies_on_a_device(engine: Client) -> None:
    a, b = dense(730_295_164), rhs(286_017_359, (6,))
    for given in ((a.to(DEVICE), b), (a, b.to(DEVICE))):
        with pytest.raises(NotSupportedError, match="lies on CUDA device 0"):
            engine.solve(*given)


def test_operands_on_two_devices_are_refused(engine: Client) -> None:
    with pytest.raises(InvalidOptionError, match="move one of them"):
        solve(dense(318_640_927).to(DEVICE), rhs(480_275_139, (6,)), client=engine)
