"""`gradcheck` passes gradients that are right, in each framework, and tells how others are wrong."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import backsolve
from backsolve.errors import InvalidDtypeError, InvalidOptionError, InvalidShapeError
from backsolve.testing import GradcheckError, gradcheck
from support.systems import dense, random_like

# PyTorch loads its own forward-mode rules through torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

N = 4
Numbers = np.ndarray


@pytest.fixture(scope="module")
def client() -> Any:
    with backsolve.Client("embedded") as opened:
        yield opened


def by_hand(client: backsolve.Client, spoil: Callable[[Numbers], Numbers] = lambda g: g, **options: Any) -> Any:
    """A pipeline of NumPy: a weighted norm of x, with the gradient of A and b from `vjp`."""
    weights = np.arange(1.0, N + 1)

    def f(a: Numbers, b: Numbers) -> tuple[float, tuple[Numbers, Numbers]]:
        x = client.solve(a, b, **options).x
        gradients = client.vjp(a, x, weights * x, **options)
        return float(np.sum(weights * np.abs(x) ** 2)) / 2, (spoil(gradients.values), gradients.b)

    return f


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("trans", ["N", "T", "H"])
def test_right_ones_pass(client: backsolve.Client, dtype: str, trans: str) -> None:
    a, b = dense(N, dtype), random_like((N,), dtype, 30_771)
    report = gradcheck(by_hand(client, trans=trans), (a, b))
    assert report.ok
    assert report.framework == "numpy"
    assert {e.input for e in report.directions} == {0, 1}
    assert len(report.entries) == N * N + N
    assert "right" in str(report)
    if dtype in ("float64", "complex128"):
        assert report.worst.error < 1e-7
        assert report.best_step < 1e-2


WRONG = {
    "one percent": (lambda g: 1.01 * g, "1.01 times"),
    "sign": (lambda g: -g, "-1 times"),
    "twice": (lambda g: 2 * g, "symmetric matrix counted twice"),
    "half": (lambda g: g / 2, "0.5 times what it should be (an entry of a symmetric matrix counted twice"),
    "transposed": (lambda g: g.T, "transposed"),
    "conjugate missing": (np.conj, "a conjugate is missing"),
    "adjoint": (lambda g: g.conj().T, "conjugate transpose"),
    "zero": (np.zeros_like, "gradient is zero"),
    "NaN": (lambda g: g * np.nan, "NaN or infinity"),
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_wrong_ones_are_caught_and_named(client: backsolve.Client, how: str, dtype: str) -> None:
    spoil, hint = WRONG[how]
    if dtype == "float64" and how in ("conjugate missing", "adjoint"):
        spoil, hint = {"conjugate missing": (lambda g: g.T, "transposed"), "adjoint": (lambda g: g.T, "transposed")}[
            how
        ]
    a, b = dense(N, dtype), random_like((N,), dtype, 30_772)
    with pytest.raises(GradcheckError, match="WRONG") as caught:
        gradcheck(by_hand(client, spoil), (a, b))
    report = caught.value.report
    assert hint in str(caught.value)
    assert report.worst.input == 0
    assert f"input 0, entry {report.worst.index}" in str(caught.value)
    x = client.solve(a, b).x
    right = client.vjp(a, x, np.arange(1.0, N + 1) * x).values[report.worst.index]
    assert report.worst.expected == pytest.approx(right, rel=1e-5, abs=1e-6 * abs(right))
    assert not gradcheck(by_hand(client, spoil), (a, b), raise_error=False).ok


def test_one_wrong_entry_of_many_is_found() -> None:
    """No entry that is looked at is wrong; the direction is, and halving finds which."""
    x = np.random.default_rng(8_812).standard_normal(500)
    for place in (0, 137, 499):

        def f(x: Numbers, place: int = place) -> tuple[float, Numbers]:
            gradient = 3 * x**2
            gradient[place] += 1.0
            return float(np.sum(x**3)), gradient

        report = gradcheck(f, x, entries=3, raise_error=False)
        assert not report.ok
        assert report.worst.index == (place,)


def _cubes(x: Numbers, wrong: Numbers | float = 0.0) -> tuple[float, Numbers]:
    return float(np.sum(x**3)), 3 * x**2 + wrong


def test_a_wrong_entry_that_no_direction_shows_is_caught_by_itself() -> None:
    """Along a direction an entry counts beside all others; alone it is held to the tolerance itself."""
    x = np.linspace(0.9, 1.0, 100)
    wrong = np.zeros(100)
    wrong[41] = 3 * 2e-3
    assert gradcheck(lambda x: _cubes(x, wrong), x, rtol=1e-3, entries=0).ok
    report = gradcheck(lambda x: _cubes(x, wrong), x, rtol=1e-3, entries=100, raise_error=False)
    assert not report.ok
    assert report.worst.index == (41,)


def test_an_absolute_error_is_allowed_for() -> None:
    x = np.ones(3)
    assert not gradcheck(lambda x: _cubes(x, 1e-4), x, raise_error=False).ok
    assert not gradcheck(lambda x: _cubes(x, 1e-4), x, atol=3e-5, raise_error=False).ok
    assert gradcheck(lambda x: _cubes(x, 1e-4), x, atol=3e-4).ok


def test_steps_are_relative_to_large_inputs() -> None:
    """A step of 1e-2 beside 1e10 is lost in rounding."""
    x = 1e10 * np.array([1.0, 2.0, 1.5])

    def f(x: Numbers) -> tuple[float, Numbers]:
        waves = np.sin(x / 1e10)
        return float(np.sum(waves)), np.cos(x / 1e10) / 1e10

    assert gradcheck(f, x).ok


def test_the_entries_that_are_looked_at_are_a_sample_of_all() -> None:
    x = np.linspace(1, 2, 1000)
    found = [entry.index[0] for entry in gradcheck(_cubes, x, entries=8).entries if entry.index is not None]
    assert len(set(found)) == 8
    assert max(found) > 500
    other = gradcheck(_cubes, x, entries=8, seed=90_332).entries
    assert [entry.index for entry in other] != [(place,) for place in found]


def torch_case(dtype: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    import backsolve.torch as bt

    return lambda a, b: (bt.solve(a, b), b.abs().sum()), tuple(
        torch.tensor(t) for t in (dense(N, dtype), random_like((N,), dtype, 30_773))
    )


def jax_case(dtype: str) -> tuple[Any, tuple[Any, ...]]:
    import jax.numpy as jnp

    import backsolve.jax as bj

    return lambda a, b: (bj.solve(a, b), jnp.abs(b).sum()), tuple(
        jnp.asarray(t) for t in (dense(N, dtype), random_like((N,), dtype, 30_773))
    )


def tensorflow_case(dtype: str) -> tuple[Any, tuple[Any, ...]]:
    import tensorflow as tf

    import backsolve.tensorflow as bt

    return lambda a, b: (bt.solve(a, b), tf.reduce_sum(tf.abs(b))), tuple(
        tf.constant(t) for t in (dense(N, dtype), random_like((N,), dtype, 30_773))
    )


CASES = {"torch": torch_case, "jax": jax_case, "tensorflow": tensorflow_case}


@pytest.mark.parametrize("framework", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_frameworks(framework: str, dtype: str) -> None:
    f, inputs = CASES[framework](dtype)
    if framework == "jax":
        import jax

        with jax.enable_x64(True):
            f, inputs = jax_case(dtype)
            report = gradcheck(f, inputs, forward=True)
    else:
        report = gradcheck(f, inputs, forward=True)
    assert report.framework == framework
    assert report.forward is not None
    assert report.forward < 1e-4


def test_a_wrong_rule_of_pytorch_is_caught() -> None:
    import torch

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.inv(x)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
            ctx.save_for_backward(output)

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            (y,) = ctx.saved_tensors
            return (-y.mT @ grad @ y.mT).mT

    a = torch.tensor(dense(N))
    with pytest.raises(GradcheckError, match="transposed"):
        gradcheck(Wrong.apply, a)
    with pytest.raises(GradcheckError, match="detached"):
        gradcheck(lambda a: torch.linalg.inv(a.detach()), a)
    assert gradcheck(torch.linalg.inv, a, forward=True).ok
    with pytest.raises(GradcheckError, match="both sides differ"):
        gradcheck(lambda x: torch.relu(x).sum(), torch.zeros(3, dtype=torch.float64))
    noise = torch.Generator().manual_seed(7)
    with pytest.raises(GradcheckError, match="do not settle"):
        gradcheck(lambda x: x * (1 + 1e-4 * torch.randn(1, generator=noise, dtype=x.dtype)), a)


def test_a_wrong_forward_rule_is_told_from_a_right_backward() -> None:
    import torch

    class Lopsided(torch.autograd.Function):
        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * 2

        @staticmethod
        def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
            return tangent * (2 + off[0])

    off = [0.0]
    x = torch.ones(3, dtype=torch.float64)
    for scale in (1.0, 1e-9):
        for off[0] in (2e-2, 2e-5):
            assert gradcheck(lambda x, scale=scale: scale * Lopsided.apply(x), x).ok
            with pytest.raises(GradcheckError, match="forward mode and reverse mode disagree"):
                gradcheck(lambda x, scale=scale: scale * Lopsided.apply(x), x, forward=True)
        off[0] = 0.0
        assert gradcheck(lambda x, scale=scale: scale * Lopsided.apply(x), x, forward=True).ok


def test_an_iterative_solve_that_stops_early_is_noise(client: backsolve.Client) -> None:
    """A tolerance of 1e-2: x is a rough function of A, whatever its gradient."""
    rng = np.random.default_rng(5_110)
    a = np.diag(np.linspace(1, 40, 30)) + 0.3 * np.ones((30, 30))
    b = rng.standard_normal(30)

    def f(b: Numbers) -> tuple[float, Numbers]:
        x = client.solve(a, b, method="cg", rtol=3e-2).x
        return float(x @ x), 2 * client.vjp(a, x, x, method="lu", want=("b",)).b

    with pytest.raises(GradcheckError):
        gradcheck(f, b, entries=4)


def test_what_cannot_be_checked_is_refused() -> None:
    import torch

    x = np.ones(3)
    with pytest.raises(InvalidShapeError, match="no inputs"):
        gradcheck(lambda: 1, ())
    with pytest.raises(InvalidDtypeError, match="several frameworks"):
        gradcheck(lambda a, b: a, (x, torch.ones(3)))
    with pytest.raises(InvalidDtypeError, match="input 1 is int64"):
        gradcheck(lambda a, b: a, (torch.ones(3), torch.arange(3)))
    for half in (torch.float16, torch.bfloat16):
        with pytest.raises(InvalidDtypeError, match="float64"):
            gradcheck(lambda a: a, torch.ones(3, dtype=half))
        with pytest.raises(InvalidDtypeError, match="float64"):
            gradcheck(lambda a, half=half: a.to(half), torch.ones(3))
    with pytest.raises(InvalidShapeError, match="f returned dict"):
        gradcheck(lambda a: {"a": a}, torch.ones(3))
    with pytest.raises(InvalidDtypeError, match="complex128"):
        gradcheck(lambda a: (a.sum(), a), x.astype("longdouble"))
    with pytest.raises(InvalidDtypeError, match="sparse"):
        gradcheck(lambda a: a, torch.eye(3).to_sparse())
    with pytest.raises(InvalidShapeError, match=r"\(value, gradient\)"):
        gradcheck(lambda a: a, x)
    with pytest.raises(InvalidShapeError, match="one real number"):
        gradcheck(lambda a: (a, a), x)
    with pytest.raises(InvalidShapeError, match="gradients of shapes"):
        gradcheck(lambda a: (a.sum(), a[:2]), x)
    with pytest.raises(InvalidOptionError, match="steps"):
        gradcheck(lambda a: (a.sum(), a), x, steps=[1e-3])
    with pytest.raises(InvalidOptionError, match="forward"):
        gradcheck(lambda a: (a.sum(), np.ones(3)), x, forward=True)


def test_no_framework_is_imported() -> None:
    code = (
        "import sys, numpy as np; from backsolve.testing import gradcheck; "
        "gradcheck(lambda a: (float(a @ a), 2 * a), np.ones(3)); "
        "print([m for m in ('torch', 'jax', 'tensorflow', 'scipy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
