"""Tensors that have a shape and no numbers: each refused with what to do, whatever asks for them."""

import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.masked import masked_tensor

from backsolve import Client
from backsolve.errors import InvalidOptionError, NotSupportedError
from backsolve.torch import LowRankPlusDiagonal, lstsq, solve, spsolve
from support.tensors import dense, rhs, sparse_pattern, values_on

A, B = dense(730_115_268), rhs(41_902_277, (6,))
PATTERN = sparse_pattern(902_226_113)
VALUES = values_on(PATTERN, 5_518_220)


def asked(client, move):
    """Every way to solve, of moved operands."""
    n = PATTERN.shape[0]
    yield lambda: solve(move(A), move(B), client=client)
    yield lambda: solve(move(A).requires_grad_(), move(B), client=client)
    yield lambda: lstsq(move(A), move(B), client=client)
    yield lambda: spsolve(move(VALUES), PATTERN, move(rhs(5_518_221, (n,))), client=client)
    low = LowRankPlusDiagonal(move(torch.full((6,), 3.0, dtype=A.dtype)), move(A[:, :2].contiguous()))
    yield lambda: solve(low, move(B), client=client)


def test_the_meta_device(embedded: Client) -> None:
    for ask in asked(embedded, lambda part: part.to("meta")):
        with pytest.raises(NotSupportedError, match="meta device has a shape and no numbers"):
            ask()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says once that compressed tensors are in beta
        layouts = (A.to_sparse_csr(), A.to_sparse())
    for sparse in layouts:
        with pytest.raises(NotSupportedError, match="meta device has a shape and no numbers"):
            solve(sparse.to("meta"), B.to("meta"), client=embedded)
    with pytest.raises(InvalidOptionError, match="A is on meta, b on cpu"):
        solve(A.to("meta"), B, client=embedded)


def test_fake_tensors(embedded: Client) -> None:
    mode = FakeTensorMode()
    for ask in asked(embedded, mode.from_tensor):
        with pytest.raises(NotSupportedError, match=r"FakeTensor has a shape and no numbers.*torch\.compile"):
            ask()
    with pytest.raises(NotSupportedError, match="FakeTensor"):
        solve(mode.from_tensor(A), B, client=embedded)
    with mode, pytest.raises(NotSupportedError, match="FakeTensor"):
        solve(mode.from_tensor(A), mode.from_tensor(B), client=embedded)


def test_subclasses_that_keep_their_numbers_elsewhere(embedded: Client) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # masked tensors are a prototype
        masked = masked_tensor(A, A != 0)
        with pytest.raises(NotSupportedError, match="MaskedTensor keeps its numbers in other tensors"):
            solve(masked, B, client=embedded)


def test_nested_tensors(embedded: Client) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([A, A])
    with pytest.raises(NotSupportedError, match="solve with each of its parts"):
        solve(nested, B, client=embedded)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_for_torchscript_is_right_or_refused(embedded: Client) -> None:
    """Sizes are tensors there; a pattern brings its own, and the solve is called back."""
    b = rhs(5_518_221, (PATTERN.n,))
    traced = torch.jit.trace(
        lambda values, b: spsolve(values, PATTERN, b, client=embedded), (VALUES, b), check_trace=False
    )
    torch.testing.assert_close(traced(1.5 * VALUES, 2 * b), spsolve(1.5 * VALUES, PATTERN, 2 * b, client=embedded))
    for call in (solve, lstsq):
        with pytest.raises(NotSupportedError, match=r"torch\.jit\.trace.*use torch\.compile or torch\.export"):
            torch.jit.trace(lambda A, b, call=call: call(A, b, client=embedded), (A, B))


def test_a_plain_subclass_is_a_tensor(embedded: Client) -> None:
    class Named(torch.Tensor):
        pass

    x = solve(A.as_subclass(Named), B, client=embedded)
    torch.testing.assert_close(torch.Tensor(x), torch.linalg.solve(A, B))
