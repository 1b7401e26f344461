"""What callers may pass: types, shapes, devices, autocast; each bad input its own error."""

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from scipy.sparse import csc_array
from torch import Tensor

from backsolve import Client, Pattern
from backsolve.errors import (
    BacksolveError,
    IllConditionedWarning,
    InvalidDtypeError,
    InvalidOptionError,
    InvalidPatternError,
    InvalidShapeError,
    NonfiniteInputError,
    NotConvergedError,
    NotConvergedWarning,
    NotPositiveDefiniteError,
    NotSupportedError,
    SingularMatrixError,
)
from backsolve.torch import LinearSolve, solve, spsolve
from backsolve_service.embedded import EmbeddedTransport
from support.tensors import close, dense, reference, rhs, scattered, sparse_pattern, values_on

PATTERN = sparse_pattern(462_907_138)
A, B = dense(219_483_750), rhs(683_150_942, (6,))


def _spd(n: int = 6) -> Tensor:
    noise = dense(870_265_149, (), n)
    return noise @ noise.mT + (noise @ noise.mT).mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_single_precision_stays(embedded: Client, dtype: torch.dtype) -> None:
    a, b = dense(150_937_264, dtype=dtype).requires_grad_(), rhs(38_517_264, (6,), dtype)
    x = solve(a, b, client=embedded)
    assert x.dtype is dtype
    (of_a,) = torch.autograd.grad(x.abs().sum(), a)
    assert of_a.dtype is dtype
    close(x, reference(a, b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_other_types_are_refused(embedded: Client, dtype: torch.dtype) -> None:
    with pytest.raises(InvalidDtypeError, match=r"A is .*to\(torch\.float64\)"):
        solve(A.to(dtype), B.to(dtype), client=embedded)
    with pytest.raises(InvalidDtypeError, match="b is"):
        solve(A, B.to(dtype), client=embedded)


def test_mixed_types_and_arrays_are_refused(embedded: Client) -> None:
    with pytest.raises(InvalidDtypeError, match=r"b\.to\(A\.dtype\)"):
        solve(A, B.float(), client=embedded)
    with pytest.raises(InvalidDtypeError, match=r"torch\.Tensor"):
        solve(A.numpy(), B, client=embedded)  # type: ignore[call-overload]
    with pytest.raises(InvalidDtypeError, match=r"A is a csc_array of SciPy.*spsolve\(torch\.from_numpy\(A\.data\)"):
        solve(csc_array(A.numpy()), B, client=embedded)  # type: ignore[call-overload]


def test_devices_must_agree(embedded: Client) -> None:
    with pytest.raises(InvalidOptionError, match="move"):
        solve(A, B.to("meta"), client=embedded)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((6, 5), (6,)),
        ((6,), (6,)),
        ((6, 6), (5,)),
        ((6, 6), (2, 6)),
        ((6, 6), (2, 6, 3)),
        ((2, 6, 6), (6,)),
        ((2, 6, 6), (3, 6)),
        ((2, 6, 6), (6, 2)),
        ((2, 3, 6, 6), (3, 2, 6)),
    ],
)
def test_shapes_must_fit(embedded: Client, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(InvalidShapeError):
        solve(torch.ones(a).double(), torch.ones(b).double(), client=embedded)


def test_spsolve_checks_its_operands(embedded: Client) -> None:
    values = values_on(PATTERN, 92_476_183)
    with pytest.raises(InvalidShapeError, match="pattern"):
        spsolve(values[1:], PATTERN, B, client=embedded)
    with pytest.raises(InvalidPatternError, match="Pattern"):
        spsolve(values, (PATTERN.indptr, PATTERN.indices), B, client=embedded)  # type: ignore[call-overload]
    with pytest.raises(InvalidShapeError, match="x0"):
        spsolve(values, PATTERN, B, x0=B[1:], client=embedded)
    with pytest.raises(InvalidShapeError, match="stored numbers"):
        spsolve(A.to_sparse(), PATTERN, B, client=embedded)


@pytest.mark.parametrize(
    "option", [{"method": "no-such"}, {"trans": "X"}, {"rtol": "tight"}, {"on_failure": "ignore"}, {"maxiter": 3}]
)
def test_options_are_checked(embedded: Client, option: dict[str, Any]) -> None:
    with pytest.raises(BacksolveError):
        solve(A, B, client=embedded, **option)


def test_strided_input_and_gradient(embedded: Client) -> None:
    """Views with steps, transposed and conjugated: right answers, gradients in the base."""
    base = dense(704_981_263, (2,), 6, torch.complex128).requires_grad_()
    wide = rhs(315_086_249, (6, 4), torch.complex128).requires_grad_()
    results = []
    for f in (lambda a, b: solve(a, b, client=embedded), reference):
        x = f(base[1].mH, wide[:, ::2].conj())
        results.append((x, *torch.autograd.grad((x.abs() ** 3).sum(), (base, wide))))
    for mine, theirs in zip(*results, strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_nothing_to_solve(embedded: Client, shape: tuple[int, ...]) -> None:
    """n = 0 gives an empty answer with empty gradients."""
    a, b = torch.zeros(0, 0).double().requires_grad_(), torch.zeros(shape).double().requires_grad_()
    x = solve(a, b, client=embedded)
    assert x.shape == shape
    x.sum().backward()
    assert a.grad is not None
    assert a.grad.shape == (0, 0)


def test_no_columns_and_one_by_one(embedded: Client) -> None:
    assert solve(A, torch.zeros(6, 0).double(), client=embedded).shape == (6, 0)
    close(solve(torch.tensor([[4.0]]).double(), torch.tensor([2.0]).double(), client=embedded)[0].item(), 0.5)


def test_a_batch_of_none(embedded: Client) -> None:
    a, b = torch.zeros(0, 6, 6).double().requires_grad_(), torch.zeros(0, 6).double().requires_grad_()
    x = solve(a, b, client=embedded)
    assert x.shape == (0, 6)
    x.sum().backward()
    assert a.grad is not None
    assert a.grad.shape == a.shape


@pytest.mark.parametrize("half", [torch.bfloat16])
def test_autocast_solves_in_single_precision(embedded: Client, half: torch.dtype) -> None:
    """Forward and backward inside the region: no product of the gradient drops to half precision."""
    weight, b = dense(501_728_364, dtype=torch.float32).requires_grad_(), rhs(729_460_185, (6, 40), torch.float32)
    results = []
    for autocast in (True, False):
        with torch.autocast("cpu", dtype=half, enabled=autocast):
            x = solve(weight, b, client=embedded)
            results.append((x, *torch.autograd.grad(x, weight, torch.ones_like(x))))
            if autocast:
                product = weight @ weight
                assert product.dtype is half
                assert solve(product, b, client=embedded).dtype is torch.float32
    for mine, theirs in zip(*results, strict=True):
        close(mine, theirs, rtol=1e-6, atol=1e-6)


# -- failures ------------------------------------------------------------------------------


def test_errors_of_the_system(client: Client) -> None:
    singular = torch.diag(torch.tensor([1.0, 0.0, 2.0]).double())
    with pytest.raises(SingularMatrixError):
        solve(singular, B[:3], client=client)
    with pytest.raises(NotPositiveDefiniteError):
        solve(-_spd(), B, method="cholesky", client=client)
    with pytest.raises(NonfiniteInputError):
        solve(A, B * float("nan"), client=client)
    with pytest.raises(NonfiniteInputError):
        solve(A * float("inf"), B, client=client)


def test_a_bad_cotangent_raises_in_the_backward(client: Client) -> None:
    a = A.clone().requires_grad_()
    with pytest.raises(NonfiniteInputError):
        solve(a, B, client=client).backward(B * float("nan"))


def test_unconverged_backward_says_so(client: Client) -> None:
    """The forward begins at its answer and needs no step; the adjoint has no such luck."""
    a = _spd().requires_grad_()
    answer = reference(a.detach(), B)

    def x(on_failure: Any) -> Tensor:
        return solve(a, B, x0=answer, method="cg", rtol=1e-9, maxiter=1, on_failure=on_failure, client=client)

    with pytest.raises(NotConvergedError, match="backward"):
        x("raise").backward(rhs(48_201_736, (6,)))
    with pytest.warns(NotConvergedWarning, match="backward"):
        x("warn").backward(rhs(48_201_736, (6,)))
    (of_a,) = torch.autograd.grad(x("nan"), a, rhs(48_201_736, (6,)))
    assert of_a.isnan().all()


def test_unconverged_forward(embedded: Client) -> None:
    with pytest.raises(NotConvergedError) as caught:
        solve(_spd(), B, method="cg", rtol=1e-12, maxiter=1, client=embedded)
    assert caught.value.solution is not None
    x = solve(_spd(), B, method="cg", rtol=1e-12, maxiter=1, on_failure="nan", client=embedded)
    assert x.isnan().all()


def test_ill_conditioned_warns(embedded: Client) -> None:
    hilbert = 1.0 / (torch.arange(12).double()[:, None] + torch.arange(12).double() + 1)
    with pytest.warns(IllConditionedWarning):
        solve(hilbert, rhs(77_120_483, (12,)), client=embedded)


def test_writing_in_place_between_forward_and_backward(embedded: Client) -> None:
    """Autograd's version counter guards the saved tensor; a write it cannot see changes nothing."""
    values = values_on(PATTERN, 358_170_926).requires_grad_()
    seen = values * 1.0
    x = spsolve(seen, PATTERN, B, client=embedded)
    with torch.no_grad():
        seen.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()
    (expected,) = torch.autograd.grad(reference(scattered(values, PATTERN), B).sum(), values)
    hidden = values.detach().clone().requires_grad_()
    x = spsolve(hidden, PATTERN, B, client=embedded)
    hidden.data.mul_(3.0)
    (got,) = torch.autograd.grad(x.sum(), hidden)
    close(got, expected)
    close(spsolve(hidden, PATTERN, B, client=embedded), reference(scattered(hidden, PATTERN), B))


# -- statistics and the layer --------------------------------------------------------------


def test_certificates(client: Client) -> None:
    seen: list[tuple[str, Any]] = []
    a = A.clone().requires_grad_()
    x, certificate = solve(a, B, client=client, return_stats=True, observe=lambda *event: seen.append(event))
    x.sum().backward()
    assert [phase for phase, _ in seen] == ["solve", "adjoint"]
    assert seen[0][1] is certificate
    assert all(stats.relative_residual < 1e-12 for _, stats in seen)
    assert seen[1][1].factor_hit


def test_layer(embedded: Client) -> None:
    layer = LinearSolve(trans="T", client=embedded, rtol=1e-9, method="auto")
    close(layer(A, B), reference(A, B, "T"))
    assert repr(layer) == "LinearSolve(trans='T', rtol=1e-09, method='auto')"
    assert not list(layer.parameters())
    sparse = LinearSolve(PATTERN, client=embedded)
    values = values_on(PATTERN, 691_720_358)
    close(sparse(values, B), reference(scattered(values, PATTERN), B))
    assert "nnz=" in repr(sparse)
    copy = deepcopy(torch.nn.Sequential(sparse))[0]
    assert copy.options["client"] is embedded
    assert copy.pattern is PATTERN
    close(copy(values, B), sparse(values, B))


def test_layer_refuses_bad_options() -> None:
    with pytest.raises(InvalidOptionError, match="unknown option"):
        LinearSolve(tolerance=1e-3)  # type: ignore[call-arg]
    with pytest.raises(InvalidOptionError):
        LinearSolve(trans="X")  # type: ignore[arg-type]


def test_pickling(embedded: Client) -> None:
    pattern: Pattern = pickle.loads(pickle.dumps(PATTERN))
    assert pattern.same_as(PATTERN)
    layer = pickle.loads(pickle.dumps(LinearSolve(PATTERN, trans="H", maxiter=None)))
    assert layer.pattern.same_as(PATTERN)
    assert layer.options == {"trans": "H", "maxiter": None}
    own = LinearSolve(client=embedded)
    with pickle.loads(pickle.dumps(own)).options["client"] as client:
        assert client is not embedded
        close(LinearSolve(client=client)(A, B), own(A, B))
    with pytest.raises(NotSupportedError, match="pickle its URL"), Client(transport=EmbeddedTransport()) as custom:
        pickle.dumps(LinearSolve(client=custom))
