"""Control flow, rematerialisation, several devices, threads: a solve inside of whatever JAX compiles."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from backsolve import Client
from backsolve.jax import solve, spsolve
from support.fresh import new_rng
from support.jaxes import close, counted, dense, reference, rhs, scattered, sparse_pattern, tolerance, values_on

PATTERN = sparse_pattern(730_284_916)
HERE = Path(__file__).resolve().parent

pytestmark = pytest.mark.usefixtures("kept")


def _march(values: Array, b: Array, step: Any, *, remat: bool) -> Array:
    """An implicit time stepper: each step solves with the same matrix."""

    def advance(x: Array, _: None) -> tuple[Array, Array]:
        new = step(values, x + b)
        return new, new

    return jax.lax.scan(jax.checkpoint(advance) if remat else advance, b, None, length=20)[1]


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_time_stepper(wrap: Any, remat: bool, embedded: Client) -> None:
    # Numbers that no cache has met.
    values = values_on(PATTERN, 915_402_637) + 1e-3 * new_rng().standard_normal(PATTERN.nnz)
    b = rhs(340_617_285, (6,))

    def ours(values: Array, b: Array) -> Array:
        return (_march(values, b, lambda v, r: spsolve(v, PATTERN, r, client=embedded), remat=remat) ** 2).sum()

    def truth(values: Array, b: Array) -> Array:
        return (_march(values, b, lambda v, r: reference(scattered(v, PATTERN), r), remat=False) ** 2).sum()

    gradient = wrap(jax.grad(ours, (0, 1)))
    cost = counted(embedded, lambda: gradient(values, b))
    assert cost == {
        "factorizations": 1,
        "solves": 40 if remat else 20,
        "adjoint_solves": 20,
        "tangent_solves": 0,
    }
    close(gradient(values, b), jax.jit(jax.grad(truth, (0, 1)))(values, b))


def test_second_derivatives_through_a_scan(embedded: Client) -> None:
    values, b, v = values_on(PATTERN, 27_418_936), rhs(806_419_357, (6,)), rhs(652_093_148, (PATTERN.nnz,))

    def product(step: Any) -> Array:
        def loss(values: Array) -> Array:
            return (_march(values, b, step, remat=True) ** 2).sum()

        return jax.jit(lambda values: jax.jvp(jax.grad(loss), (values,), (v,))[1])(values)

    close(
        product(lambda v, r: spsolve(v, PATTERN, r, client=embedded)),
        product(lambda v, r: reference(scattered(v, PATTERN), r)),
        rtol=1e-8,
    )


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_while_and_cond(wrap: Any, embedded: Client) -> None:
    """A fixed point by a while loop, whose branches solve or do not; forward mode goes through both."""
    a, b = dense(548_206_719), rhs(170_493_826, (6,))

    def loop(one: Any) -> Any:
        def body(state: tuple[Array, Array]) -> tuple[Array, Array]:
            x, k = state
            return jax.lax.cond(k % 2 == 0, lambda x: one(a, x + b), lambda x: x * 0.5, x), k + 1

        return lambda b: jax.lax.while_loop(lambda state: state[1] < 7, body, (b, jnp.array(0)))[0]

    ours, truth = loop(lambda a, r: solve(a, r, client=embedded)), loop(reference)
    close(wrap(ours)(b), truth(b))
    close(wrap(lambda b: jax.jvp(ours, (b,), (b,)))(b), jax.jvp(truth, (b,), (b,)))
    close(wrap(jax.vmap(ours))(jnp.stack([b, 2 * b])), jax.vmap(truth)(jnp.stack([b, 2 * b])))


def test_maps_by_a_loop_and_associative_scans(embedded: Client) -> None:
    a, b = dense(261_094_758, (3,)), rhs(81_730_426, (3, 6))
    close(jax.lax.map(lambda each: solve(*each, client=embedded), (a, b)), reference(a, b))
    batched = jax.lax.map(lambda each: solve(*each, client=embedded), (a, b), batch_size=2)
    close(batched, reference(a, b))


def test_custom_rules_around_a_solve(embedded: Client) -> None:
    a, b = dense(937_514_062), rhs(408_263_175, (6,))

    @jax.custom_jvp
    def f(b: Array) -> Array:
        return solve(a, b, client=embedded)

    f.defjvp(lambda primals, tangents: (f(*primals), 2 * f(*tangents)))
    close(jax.jit(jax.grad(lambda b: f(b).sum()))(b), 2 * jnp.linalg.solve(a.T, jnp.ones(6)))


def test_a_linearised_solve_is_pulled_back_many_times(embedded: Client) -> None:
    """One forward, one factor; each application of the linear map is a solve."""
    values, b = values_on(PATTERN, 370_285_194), rhs(96_104_572, (6,))
    held: list[Any] = []

    def forward() -> Array:
        x, push = jax.linearize(lambda v: spsolve(v, PATTERN, b, client=embedded), values)
        held.append(push)
        return x

    assert counted(embedded, forward)["factorizations"] == 1
    cost = counted(embedded, lambda: [held[0](values * k) for k in range(1, 4)])
    assert cost == {"factorizations": 0, "solves": 0, "adjoint_solves": 0, "tangent_solves": 3}
    pulled = jax.linear_transpose(held[0], values)(b)[0]
    truth = jax.vjp(lambda v: reference(scattered(v, PATTERN), b), values)[1](b)[0]
    close(pulled, truth)


def test_donated_buffers(embedded: Client) -> None:
    """The memory of b becomes that of x; what the engine has kept of either is its own."""
    a, b = dense(613_940_287, n=64), rhs(275_019_364, (64,))
    f = jax.jit(lambda a, b: (a * 1.0, solve(a, b, client=embedded)), donate_argnums=(0, 1))
    for _ in range(3):
        given = (a + 0.0, b + 0.0)
        close(f(*given)[1], reference(a, b))
        assert given[1].is_deleted()


def test_many_solves_on_many_threads(embedded: Client) -> None:
    """Compiled loops in several threads, on the engine in this very process: nothing waits for itself."""
    wrong: list[Any] = []
    program = jax.jit(
        lambda a, b: jax.lax.scan(lambda x, _: (solve(a, x + b, client=embedded), None), b, None, length=40)[0]
    )
    truth = jax.jit(lambda a, b: jax.lax.scan(lambda x, _: (jnp.linalg.solve(a, x + b), None), b, None, length=40)[0])

    def work(seed: int) -> None:
        with jax.enable_x64(True):
            a, b = dense(seed, n=20), rhs(seed + 1, (20,))
            try:
                close(program(a, b), truth(a, b))
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(70_381_529 + 1000 * k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def _fresh_process(program: str, *, cores: int | None = None, devices: int = 1) -> str:
    """Run a program that has JAX to itself: flags of XLA are read once."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    pin = f"import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:{cores}])\n" if cores else ""
    command = [sys.executable, "-W", "error", "-c", pin + program]
    done = subprocess.run(
        command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_large_arrays_on_one_core() -> None:
    """JAX copies large arrays on threads of its own; with one core, whoever waits for them in a callback never ends."""
    program = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from backsolve import Client, Pattern
from backsolve.jax import spsolve
n = 300_000
pattern = Pattern(np.arange(n + 1), np.arange(n), (n, n))
with Client("embedded") as client:
    @jax.jit
    def f(values, b):
        def step(x, _):
            # Slices and sums lie wherever XLA puts them.
            return spsolve(values[1:] + 1.0, pattern, x[:, :2] + b, client=client), None
        return jax.lax.scan(step, b, None, length=4)[0]
    values, b = jnp.ones(n + 1), jnp.ones((n, 2))
    np.testing.assert_allclose(f(values, b), 0.5 + 0.25 + 0.125 + 0.0625 + 0.0625)
    gradient = jax.jit(jax.grad(lambda v: f(v, b).sum()))(values)
    assert gradient.shape == (n + 1,) and bool(jnp.isfinite(gradient).all())
print("done")
"""
    assert _fresh_process(program, cores=1).split() == ["done"]


@pytest.mark.parametrize("dtype", ["float32", "complex64", "float64", "complex128"])
def test_double_precision_of_one_thread_reaches_the_threads_of_callbacks(dtype: str, embedded: Client) -> None:
    """Double precision is switched on for this thread alone here; callbacks may run on threads where it is off."""
    a, b = dense(409_182_637, n=20, dtype=dtype), rhs(72_039_185, (20, 3), dtype)
    program = jax.jit(lambda a, b: solve(a, b, client=embedded, return_stats=True)).lower(a, b).compile()
    with jax.enable_x64(False):
        x, stats = program(a, b)
    close(x, reference(a, b), **tolerance(dtype))
    assert float(stats.backward_error) < 4 * np.finfo(dtype).eps


def test_several_devices() -> None:
    assert (HERE / "several_devices.py").exists()
    program = (HERE / "several_devices.py").read_text()
    assert _fresh_process(program, devices=2).splitlines()[-1] == "done"
