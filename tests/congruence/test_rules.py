"""What every way in must hold: derivatives against finite differences, honest certificates, counted work."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from backsolve import Client, Pattern, Status
from backsolve.errors import NotConvergedError, NotConvergedWarning, NotPositiveDefiniteError
from backsolve.torch import solve, spsolve
from support.fresh import new_rng
from support.systems import convection, laplacian, op, random_like
from support.tensors import close, dense, generator, reference, rhs, scattered, sparse_pattern, values_on

each_kind = pytest.mark.parametrize("kind", ["dense", "sparse"])
each_trans = pytest.mark.parametrize("trans", ["N", "T", "H"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
each_batch = pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=["single", "batch", "two-batches"])
each_width = pytest.mark.parametrize("columns", [(), (4,)], ids=["vector", "columns"])
each_tolerance = pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-6, 1e-8])

PATTERN = sparse_pattern(716_049_358, 4)
ASKED = {"atol": 1e-6, "rtol": 1e-4}

Solve = Callable[[Tensor, Tensor], Tensor]


def _ours(client: Client, kind: str, trans: Any, pattern: Pattern = PATTERN) -> Solve:
    """Our solve as a function of the stored numbers and b."""
    if kind == "dense":
        return lambda A, b: solve(A, b, trans=trans, client=client)
    return lambda values, b: spsolve(values, pattern, b, trans=trans, client=client)


def _stored(kind: str, batch: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if kind == "dense":
        return dense(380_615_927, batch, 4, dtype)
    return values_on(PATTERN, 961_304_275, batch, dtype)


def _residual(a: Any, x: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(b - a @ x) / np.linalg.norm(b))


# -- R1: finite differences ---------------------------------------------------------------------


@each_kind
@each_trans
@each_dtype
@each_batch
@each_width
def test_gradients_are_those_of_finite_differences(
    client: Client, kind: str, trans: str, dtype: torch.dtype, batch: tuple[int, ...], columns: tuple[int, ...]
) -> None:
    """Along random directions, whichever of A and b needs a gradient."""
    f = _ours(client, kind, trans)
    for of_a, of_b in ((True, False), (False, True), (True, True)):
        a = _stored(kind, batch, dtype).requires_grad_(of_a)
        b = rhs(204_871_693, (*batch, 4, *columns), dtype).requires_grad_(of_b)
        assert gradcheck(f, (a, b), fast_mode=True, **ASKED)


@each_kind
@each_trans
@each_dtype
def test_every_entry_of_the_jacobian(client: Client, kind: str, trans: str, dtype: torch.dtype) -> None:
    a = _stored(kind, (), dtype).requires_grad_()
    b = rhs(540_918_326, (4,), dtype).requires_grad_()
    assert gradcheck(_ours(client, kind, trans), (a, b), **ASKED)


@each_kind
@each_trans
@each_dtype
def test_second_derivatives_are_those_of_finite_differences(
    client: Client, kind: str, trans: str, dtype: torch.dtype
) -> None:
    a = _stored(kind, (2,), dtype).requires_grad_()
    b = rhs(133_570_948, (2, 4), dtype).requires_grad_()
    assert gradgradcheck(_ours(client, kind, trans), (a, b), fast_mode=True, **ASKED)


# -- R2: the gradient on the stored entries -----------------------------------------------------


@each_trans
@each_dtype
def test_the_gradient_on_a_pattern_is_the_dense_one_there(client: Client, trans: str, dtype: torch.dtype) -> None:
    n = 200
    pattern = sparse_pattern(427_935_016, n, 0.03)
    values = values_on(pattern, 815_662_049, (), dtype).requires_grad_()
    b = rhs(690_237_514, (n, 2), dtype)

    def loss(x: Tensor) -> Tensor:
        return (x.abs() ** 3).sum()

    (ours,) = torch.autograd.grad(loss(_ours(client, "sparse", trans, pattern)(values, b)), values)
    (truth,) = torch.autograd.grad(loss(reference(scattered(values, pattern), b, trans)), values)
    assert float((ours - truth).norm() / truth.norm()) < 1e-12


@each_trans
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@each_width
def test_where_the_gradient_is_formed_makes_no_difference(
    client: Client, trans: str, dtype: str, columns: tuple[int, ...]
) -> None:
    a = convection(14, dtype, seed=308_117_462)
    b, g = (random_like((196, *columns), dtype, seed) for seed in (578_240_913, 912_306_754))
    x = client.solve(a, b, trans=trans).x
    here = client.vjp(a, x, g, trans=trans, values_on="client").values
    there = client.vjp(a, x, g, trans=trans, values_on="server").values
    assert np.linalg.norm(here.data - there.data) <= 1e-14 * np.linalg.norm(here.data)


def _coordinates(a: sparse.csr_array) -> sparse.coo_array:
    """In any order, each entry split in two."""
    coo = a.tocoo()
    order = np.random.default_rng(650_917_328).permutation(2 * a.nnz)
    rows, columns, halves = (np.concatenate([part, part])[order] for part in (coo.row, coo.col, coo.data / 2))
    return sparse.coo_array((halves, (rows, columns)), shape=a.shape)


STORAGE: dict[str, Callable[[sparse.csr_array], Any]] = {
    "dense": lambda a: a.toarray(),
    "csr": lambda a: a,
    "csc": lambda a: a.tocsc(),
    "coo": _coordinates,
}


def _numbers(a: Any) -> np.ndarray:
    """What a gradient has one number for."""
    return a.data if sparse.issparse(a) else a


def _moved(a: Any, step: complex, direction: np.ndarray) -> Any:
    if not sparse.issparse(a):
        return a + step * direction
    other = a.copy()  # `astype` would add up duplicated entries
    other.data = a.data + step * direction
    return other


@pytest.mark.parametrize("storage", STORAGE)
@each_trans
def test_a_directional_derivative_by_a_complex_step(client: Client, storage: str, trans: str) -> None:
    """x is analytic in A and b, so an imaginary step has no cancellation. (Of "H" it is the conjugate that is.)"""
    a = STORAGE[storage](convection(5, seed=771_503_824))
    b, db, g = (random_like((25,), "float64", seed) for seed in (846_170_325, 192_735_608, 530_946_217))
    da = random_like(_numbers(a).shape, "float64", 407_158_923)
    x = client.solve(a, b, trans=trans).x
    pulled = client.vjp(a, x, g, trans=trans)
    slope = np.vdot(_numbers(pulled.values), da) + np.vdot(pulled.b, db)
    step = 1e-20j
    stepped = client.solve(_moved(a, step if trans != "H" else -step, da), b + step * db, trans=trans).x
    assert slope == pytest.approx(float(g @ stepped.imag) / 1e-20, rel=1e-11)


@pytest.mark.parametrize("storage", STORAGE)
@each_trans
def test_a_directional_derivative_by_central_differences(client: Client, storage: str, trans: str) -> None:
    """Complex data: the real part of the inner product with the gradient is the slope."""
    a = STORAGE[storage](convection(5, "complex128", seed=663_820_471))
    b, db, g = (random_like((25,), "complex128", seed) for seed in (318_294_706, 950_671_832, 274_508_193))
    da = random_like(_numbers(a).shape, "complex128", 129_680_574)
    da /= np.abs(da).max()
    x = client.solve(a, b, trans=trans).x
    pulled = client.vjp(a, x, g, trans=trans)
    slope = (np.vdot(_numbers(pulled.values), da) + np.vdot(pulled.b, db)).real
    # The cube root of the unit roundoff balances cancellation against curvature; two steps remove the h^2 term.
    one, two = (
        np.vdot(
            g,
            client.solve(_moved(a, h, da), b + h * db, trans=trans).x
            - client.solve(_moved(a, -h, da), b - h * db, trans=trans).x,
        ).real
        / (2 * h)
        for h in (2e-4, 4e-4)
    )
    assert slope == pytest.approx((4 * one - two) / 3, rel=1e-8)


# -- R3: certificates of iterative solves -------------------------------------------------------


@each_tolerance
def test_certificates_state_the_residual_that_is_there(client: Client, rtol: float) -> None:
    """2-D Poisson on 60 x 60 points: forward and adjoint residuals as computed here."""
    a = laplacian(60)
    b, g = (random_like((3600,), "float64", seed) for seed in (735_018_264, 481_629_350))
    forward = client.solve(a, b, method="cg", rtol=rtol)
    backward = client.vjp(a, forward.x, g, method="cg", rtol=rtol)
    assert backward.b is not None
    for stats, true in (
        (forward.stats, _residual(a, forward.x, b)),
        (backward.stats, _residual(op(a, "H"), backward.b, g)),
    ):
        assert stats.relative_residual == pytest.approx(true, rel=1e-8, abs=1e-14)
        assert stats.relative_residual <= rtol
        assert stats.status is Status.OK
        assert stats.method == "cg"
        assert stats.iterations > 0


@each_tolerance
def test_a_run_stopped_early_never_says_ok(client: Client, rtol: float) -> None:
    """OK exactly where the residual computed here meets the tolerance, forward and backward."""
    a = laplacian(60)
    b, g = (random_like((3600,), "float64", seed) for seed in (294_107_583, 860_352_914))
    stopped = 0
    for maxiter in (1, 5, 25, 60, 110, 400):
        how: dict[str, Any] = {"method": "cg", "rtol": rtol, "maxiter": maxiter, "on_failure": "warn"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConvergedWarning)
            forward = client.solve(a, b, **how)
            backward = client.vjp(a, forward.x, g, **how)
        for stats, true in (
            (forward.stats, _residual(a, forward.x, b)),
            (backward.stats, _residual(a.T, backward.b, g)),
        ):
            assert stats.relative_residual == pytest.approx(true, rel=1e-8, abs=1e-14)
            assert (stats.status is Status.OK) == (true <= rtol)
            assert stats.iterations <= maxiter
            stopped += stats.status is Status.MAX_ITER
    assert stopped >= 4
    with pytest.raises(NotConvergedError) as caught:
        client.solve(a, b, method="cg", rtol=rtol, maxiter=5)
    assert caught.value.solution is not None
    assert caught.value.solution.status is Status.MAX_ITER


def test_the_scale_of_the_right_hand_side_changes_nothing(client: Client) -> None:
    a = laplacian(30)
    exact = random_like((900,), "float64", 517_286_039)
    b = a @ exact
    for rtol in (1e-4, 1e-8):
        unit = np.linalg.norm(client.solve(a, b, method="cg", rtol=rtol).x - exact)
        for scale in (1e-6, 1e-30, 1e12):
            scaled = np.linalg.norm(client.solve(a, scale * b, method="cg", rtol=rtol).x / scale - exact)
            assert unit / 2 <= scaled <= 2 * unit


# -- R4: counted work ---------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("trans", ["T", "H"])
def test_a_hessian_vector_product_factors_nothing(client: Client, kind: str, trans: str) -> None:
    """Complex, with columns, the operator not A itself; and equal to the dense product."""
    pattern = sparse_pattern(870_546_213, 8)
    noise = 1e-3 * new_rng().standard_normal()
    a = dense(605_839_142, (), 8, torch.complex128) if kind == "dense" else values_on(pattern, 258_693_017)
    a = (a.to(torch.complex128) * (1 + noise)).requires_grad_()
    b = rhs(943_160_287, (8, 3), torch.complex128).requires_grad_()
    direction = rhs(371_859_046, tuple(a.shape), a.dtype), rhs(628_403_195, (8, 3), a.dtype)
    ours = _ours(client, kind, trans, pattern)
    counts: list[tuple[float, float]] = []

    def count() -> None:
        stats = client.stats()
        counts.append((stats["factorizations"], stats["solves"] + stats["adjoint_solves"]))

    def product(x: Tensor, after: Callable[[], None]) -> tuple[Tensor, ...]:
        after()
        grads = torch.autograd.grad((x.abs() ** 3).sum(), (a, b), create_graph=True)
        after()
        result = torch.autograd.grad(grads, (a, b), direction)
        after()
        return result

    count()
    mine = product(ours(a, b), count)
    assert [after[0] - counts[0][0] for after in counts] == [0, 1, 1, 1]
    assert [after[1] - counts[0][1] for after in counts] == [0, 1, 2, 4]
    full = a if kind == "dense" else scattered(a, pattern)
    for one, other in zip(mine, product(reference(full, b, trans), lambda: None), strict=True):
        close(one, other, rtol=1e-9, atol=1e-11)


# -- R5: a matrix that a network made -----------------------------------------------------------


def _network_matrix(n: int, symmetric: bool) -> Tensor:
    """`[n, n]` out of two linear layers; its symmetric part has eigenvalues of both signs."""
    with torch.random.fork_rng():
        torch.manual_seed(590_274_381)
        network = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, n * n)).double()
    made = network(torch.randn(5, generator=generator(146_803_297), dtype=torch.float64)).unflatten(0, (n, n))
    part = made + made.mT
    eigenvalues = torch.linalg.eigvalsh(part.detach())
    assert eigenvalues[0] < -0.1
    assert eigenvalues[-1] > 0.1
    return part if symmetric else made


@pytest.mark.parametrize("method", ["cg", "cholesky"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "general"])
@each_kind
def test_methods_for_definite_matrices_refuse_what_a_network_made(
    client: Client, method: str, symmetric: bool, kind: str
) -> None:
    a, b = _network_matrix(12, symmetric), rhs(804_361_529, (12,))
    if kind == "dense":
        with pytest.raises(NotPositiveDefiniteError):
            solve(a, b, method=method, client=client)
        return
    pattern = Pattern.from_csr(sparse.csr_array(np.ones((12, 12))))
    with pytest.raises(NotPositiveDefiniteError):
        spsolve(a.flatten(), pattern, b, method=method, client=client)
