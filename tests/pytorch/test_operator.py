"""Operators for linear_operator and GPyTorch: solves, determinants, and the training of a Gaussian process."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backsolve import Client, Pattern
from backsolve.errors import (
    InvalidDtypeError,
    InvalidPatternError,
    InvalidShapeError,
    NotPositiveDefiniteError,
    NotSupportedError,
)
from support.tensors import close, rhs, scattered

pytest.importorskip("linear_operator")

# linear_operator compiles functions by torch.jit.script when it is loaded.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

N = 9


def _classes() -> Any:
    """The module, loaded where its warnings are filtered."""
    from backsolve.torch import operator

    return operator


def _pattern(n: int = N) -> Pattern:
    """Symmetric, with a full diagonal."""
    stored = np.random.default_rng(438_201_957).random((n, n)) < 0.3
    stored |= stored.T
    np.fill_diagonal(stored, True)
    rows, columns = np.nonzero(stored)
    return Pattern(np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]), columns, (n, n))


PATTERN = _pattern()


def _made(seed: int, batch: tuple[int, ...] = ()) -> Tensor:
    """Values of symmetric definite matrices on the pattern."""
    full = rhs(seed, (*batch, N, N))
    full = (full + full.mT) / 2 + 3 * N**0.5 * torch.eye(N, dtype=full.dtype)
    return full[..., torch.tensor(PATTERN.rows).long(), torch.tensor(PATTERN.indices).long()]


Build = Callable[..., Any]


@pytest.fixture(params=["dense", "sparse"])
def build(request: pytest.FixtureRequest, embedded: Client) -> Build:
    """An operator of values on the pattern."""
    classes = _classes()
    if request.param == "dense":
        return lambda values, **options: classes.SolveLinearOperator(
            scattered(values, PATTERN), client=embedded, **options
        )
    return lambda values, **options: classes.SparseSolveLinearOperator(
        values, pattern=PATTERN, client=embedded, **options
    )


def _gradients(f: Callable[..., Tensor], *leaves: Tensor) -> tuple[Tensor, ...]:
    """A value, its gradients, and a product with its Hessian."""
    value = f(*leaves)
    first = torch.autograd.grad(value, leaves, create_graph=True)
    second = torch.autograd.grad(first, leaves, [leaf.detach().cos() for leaf in leaves])
    return value, *first, *second


# -- a Gaussian process ----------------------------------------------------------------------


def _process(client: Client | None, x: Tensor, y: Tensor) -> Any:
    """Regression with an RBF kernel: with GPyTorch's own Cholesky, or with our solves."""
    import gpytorch

    operator = _classes().SolveLinearOperator

    class Process(gpytorch.models.ExactGP):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
            self.mean = gpytorch.means.ConstantMean()
            self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, x: Tensor) -> Any:
            covariance = self.kernel(x)
            if client is not None:
                covariance = operator(covariance.to_dense(), client=client)
            return gpytorch.distributions.MultivariateNormal(self.mean(x), covariance)

    return Process().double()


STEPS = 4


def _trained(client: Client | None) -> tuple[list[float], list[Tensor], Tensor, Tensor]:
    """Losses and gradients of some steps of Adam, then what the trained process predicts."""
    import gpytorch

    x = torch.linspace(0, 1, 40, dtype=torch.float64)
    y = torch.sin(7 * x) + 0.1 * rhs(853_210_746, (40,))
    process = _process(client, x, y)
    optimiser = torch.optim.Adam(process.parameters(), lr=0.1)
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(process.likelihood, process)
    losses, gradients = [], []
    process.train()
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = -marginal(process(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([p.grad.flatten().clone() for p in process.parameters()]))
        optimiser.step()
    process.eval()
    with torch.no_grad():
        prediction = process.likelihood(process(torch.linspace(0.05, 1.2, 7, dtype=torch.float64)))
        return losses, gradients, prediction.mean, prediction.variance


def test_a_gaussian_process_learns_what_it_learns_with_gpytorch(embedded: Client) -> None:
    """Losses, gradients of all hyperparameters, and predictions; one factorization a step."""
    before = embedded.stats()
    ours = _trained(embedded)
    after = embedded.stats()
    spent = {name: after[name] - before[name] for name in ("factorizations", "solves", "adjoint_solves")}
    # The trained process is solved with once for its mean and once for its variances.
    assert spent == {"factorizations": STEPS + 1, "solves": STEPS + 2, "adjoint_solves": STEPS}
    theirs = _trained(None)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-10)
    for mine, wanted in zip(ours[1], theirs[1], strict=True):
        close(mine, wanted, rtol=1e-8, atol=1e-10)
    close(ours[2], theirs[2], rtol=1e-7, atol=1e-9)
    close(ours[3], theirs[3], rtol=1e-7, atol=1e-9)
    assert len(set(theirs[0])) == STEPS


# -- solves --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "shape"),
    [((), (N,)), ((), (N, 3)), ((), (4, N, 3)), ((2,), (2, N, 3)), ((2,), (N, 3)), ((2,), (5, 2, N, 1))],
)
def test_solves_and_their_derivatives(build: Build, batch: tuple[int, ...], shape: tuple[int, ...]) -> None:
    values, b = _made(591_037_286, batch).requires_grad_(), rhs(74_829_106, shape).requires_grad_()

    def truth(values: Tensor, b: Tensor) -> Tensor:
        columns = b.unsqueeze(-1) if b.ndim == 1 else b
        x = torch.linalg.inv(scattered(values, PATTERN)) @ columns
        return x.squeeze(-1) if b.ndim == 1 else x

    close(build(values).solve(b), truth(values, b))
    if not batch:
        close(torch.linalg.solve(build(values), b), truth(values, b))
    ours = _gradients(lambda v, b: (build(v).solve(b) ** 3).sum(), values, b)
    for mine, wanted in zip(ours, _gradients(lambda v, b: (truth(v, b) ** 3).sum(), values, b), strict=True):
        close(mine, wanted, rtol=1e-9, atol=1e-11)


def test_a_left_factor(build: Build) -> None:
    values, left, right = _made(320_915_748), rhs(95_172_604, (2, N)), rhs(613_470_928, (N, 3))
    close(build(values).solve(right, left), left @ torch.linalg.solve(scattered(values, PATTERN), right))


def test_a_solve_and_its_gradient_share_one_factor(build: Build, embedded: Client) -> None:
    """Whatever the number of columns or of right-hand sides in a batch: one request each."""
    values, b = _made(806_324_519).requires_grad_(), rhs(157_920_483, (4, N, 3)).requires_grad_()
    before = embedded.stats()
    build(values).solve(b).sum().backward()
    after = embedded.stats()
    spent = {name: after[name] - before[name] for name in ("factorizations", "solves", "adjoint_solves")}
    assert spent == {"factorizations": 1, "solves": 1, "adjoint_solves": 1}


def test_what_operators_are_made_of_keeps_the_solver(build: Build, embedded: Client) -> None:
    """Sums with diagonals, multiples, transposes, rebuilt and expanded operators solve on the same client."""
    from linear_operator.operators import ConstantDiagLinearOperator

    values, b = _made(462_087_135), rhs(238_590_471, (N, 2))
    full, eye = scattered(values, PATTERN), torch.eye(N, dtype=torch.float64)
    diagonal = rhs(590_216_378, (N,)).abs()
    noise = ConstantDiagLinearOperator(torch.tensor([0.7], dtype=torch.float64), diag_shape=N)
    made = build(values)
    cases = [
        (made + noise, full + 0.7 * eye),
        (made.add_diagonal(diagonal), full + torch.diag(diagonal)),
        (made.add_jitter(0.25), full + 0.25 * eye),
        (made * 3.0, 3 * full),
        (made.mT, full.mT),
        (made.representation_tree()(*made.representation()), full),
        (made.evaluate_kernel(), full),
        (made.unsqueeze(0), full.unsqueeze(0)),
        (made.expand(2, N, N), full.expand(2, N, N)),
        (made.detach(), full),
    ]
    for operator, expected in cases:
        assert type(operator) is type(made)
        close(operator.to_dense(), expected)
        close(operator.diagonal(dim1=-1, dim2=-2), expected.diagonal(dim1=-1, dim2=-2))
        close(operator @ b, expected @ b)
        before = embedded.stats()["solves"]
        close(operator.solve(b), torch.linalg.solve(expected, b.expand(*expected.shape[:-2], N, 2)))
        assert embedded.stats()["solves"] == before + 1


def test_products_and_entries_are_differentiated_twice(build: Build) -> None:
    """linear_operator's own product drops the second derivative without a word."""
    values, b = _made(274_816_093).requires_grad_(), rhs(590_127_834, (N, 2)).requires_grad_()
    for ours, truth in (
        (lambda v, b: build(v) @ b, lambda v, b: scattered(v, PATTERN) @ b),
        (lambda v, b: build(v).to_dense() @ b, lambda v, b: scattered(v, PATTERN) @ b),
        (lambda v, b: build(v).mT @ b[:, 0], lambda v, b: scattered(v, PATTERN).mT @ b[:, 0]),
    ):
        results = [_gradients(lambda v, b, f=f: (f(v, b) ** 3).sum(), values, b) for f in (ours, truth)]
        for mine, wanted in zip(*results, strict=True):
            close(mine, wanted)


def test_nonsymmetric_matrices_are_solved_right(embedded: Client) -> None:
    """Operators expect symmetry, solves do not; a transpose is one."""
    pattern = Pattern([0, 2, 3, 5], [0, 2, 1, 1, 2], (3, 3))
    values, b = torch.tensor([4.0, 1.0, 3.0, -2.0, 5.0], dtype=torch.float64), rhs(830_914_267, (3,))
    full = scattered(values, pattern)
    for operator in (
        _classes().SparseSolveLinearOperator(values, pattern=pattern, client=embedded),
        _classes().SolveLinearOperator(full, client=embedded),
    ):
        close(operator.solve(b), torch.linalg.solve(full, b))
        close(operator.mT.solve(b), torch.linalg.solve(full.mT, b))
        close(operator.mT.to_dense(), full.mT)


def test_dense_sums_and_slices(embedded: Client) -> None:
    full, other = scattered(_made(719_204_586), PATTERN), scattered(_made(28_350_917), PATTERN)
    made = _classes().SolveLinearOperator(full, client=embedded)
    b = rhs(407_913_852, (4,))
    for operator, expected in ((made[2:6, 2:6], full[2:6, 2:6]), ((made + other)[:4, :4], (full + other)[:4, :4])):
        assert type(operator) is type(made)
        close(operator.solve(b), torch.linalg.solve(expected, b))
    close(made[1:3, 4:7].to_dense(), full[1:3, 4:7])


# -- quadratic forms and determinants ------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("reduce", [True, False])
def test_quadratic_form_and_determinant(build: Build, batch: tuple[int, ...], reduce: bool) -> None:
    """The numbers, shapes and derivatives that linear_operator's own Cholesky has."""
    from linear_operator.operators import DenseLinearOperator

    values, b = _made(945_310_728, batch).requires_grad_(), rhs(61_728_394, (*batch, N, 2)).requires_grad_()

    def value(made: Any, b: Tensor) -> Tensor:
        quad, determinant = made.inv_quad_logdet(b, logdet=True, reduce_inv_quad=reduce)
        total: Tensor = (quad**2).sum() + determinant.sum()
        return total

    ours = build(values).inv_quad_logdet(b, logdet=True, reduce_inv_quad=reduce)
    theirs = DenseLinearOperator(scattered(values, PATTERN)).inv_quad_logdet(b, logdet=True, reduce_inv_quad=reduce)
    for mine, wanted in zip(ours, theirs, strict=True):
        close(mine, wanted)
    close(build(values).logdet(), torch.logdet(scattered(values, PATTERN)))
    close(build(values).inv_quad(b, reduce_inv_quad=reduce), theirs[0])
    derivatives = _gradients(lambda v, b: value(build(v), b), values, b)
    truth = _gradients(
        lambda v, b: (
            (((torch.linalg.inv(scattered(v, PATTERN)) @ b) * b).sum((-2, -1) if reduce else -2) ** 2).sum()
            + torch.logdet(scattered(v, PATTERN)).sum()
        ),
        values,
        b,
    )
    for mine, wanted in zip(derivatives, truth, strict=True):
        close(mine, wanted, rtol=1e-9, atol=1e-11)


def test_what_no_solve_can_tell_is_refused(embedded: Client) -> None:
    """Estimates of determinants, and all entries of a sparse matrix that is larger than was allowed."""
    from linear_operator import settings

    made = _classes().SparseSolveLinearOperator(_made(386_129_047), pattern=PATTERN, client=embedded)
    b = rhs(170_385_926, (N, 1))
    with settings.max_cholesky_size(N - 1):
        with pytest.raises(NotSupportedError, match=rf"max_cholesky_size\({N}\)"):
            made.inv_quad_logdet(b, logdet=True)
        close(made.inv_quad_logdet(b)[0], made.inv_quad(b))
        dense = _classes().SolveLinearOperator(made.to_dense(), client=embedded)
        close(dense.logdet(), torch.logdet(made.to_dense()))
    with pytest.raises(NotSupportedError, match="logdet"):
        made._solve(b, num_tridiag=1)
    with pytest.raises(NotSupportedError, match="inv_quad_rhs"):
        made.inv_quad_logdet()
    with pytest.raises(NotPositiveDefiniteError, match="add_jitter"):
        (made * -1.0).logdet()


def test_bad_operands_have_their_own_errors(embedded: Client) -> None:
    dense, sparse = _classes().SolveLinearOperator, _classes().SparseSolveLinearOperator
    values = _made(528_470_193)
    with pytest.raises(InvalidDtypeError, match="to_dense"):
        dense(dense(scattered(values, PATTERN)))
    with pytest.raises(InvalidShapeError, match=r"\(9,\)"):
        dense(torch.ones(9))
    with pytest.raises(InvalidPatternError, match="Pattern"):
        sparse(values, pattern=scattered(values, PATTERN))
    with pytest.raises(InvalidShapeError, match="pattern needs"):
        sparse(values[1:], pattern=PATTERN)
    made = sparse(values, pattern=PATTERN, client=embedded)
    with pytest.raises(InvalidShapeError, match="needs 9 rows"):
        made.solve(torch.ones(8, 2).double())
    with pytest.raises(InvalidShapeError, match="fit each other"):
        sparse(_made(9_120_487, (2,)), pattern=PATTERN, client=embedded).solve(torch.ones(3, N, 1).double())
    with pytest.raises(InvalidShapeError, match="square"):
        dense(torch.ones(3, 4).double(), client=embedded).solve(torch.ones(4).double())
    hollow = sparse(torch.ones(2).double(), pattern=Pattern([0, 1, 2], [1, 0], (2, 2)), client=embedded)
    with pytest.raises(InvalidPatternError, match="diagonal"):
        hollow.add_jitter(1.0)
    close(hollow.diagonal(), torch.zeros(2).double())


def test_the_adapter_does_not_load_it() -> None:
    script = "import sys, backsolve.torch; assert not {'linear_operator', 'gpytorch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
