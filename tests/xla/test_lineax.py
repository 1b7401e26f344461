"""`Backsolve` in place of lineax's own solvers, there and in what is built on lineax."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix
import pytest
from jax import Array
from jax.test_util import check_grads

import backsolve.jax as bj
from backsolve import Client, Status
from backsolve.errors import (
    IllConditionedWarning,
    InvalidDtypeError,
    InvalidOptionError,
    InvalidPatternError,
    InvalidShapeError,
)
from backsolve.jax.lineax import _RESULTS, Backsolve, SparseLinearOperator
from support.jaxes import close, counted, dense, rhs, scalar, scattered, sparse_pattern, tolerance, values_on

PATTERN = sparse_pattern(428_159_736)

pytestmark = pytest.mark.usefixtures("kept")


def solved(operator: Any, b: Any, solver: Any, **more: Any) -> Any:
    return lx.linear_solve(operator, b, solver, **more).value


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_one_word_changes(dtype: str, embedded: Client) -> None:
    a, b = dense(517_203_948, dtype=dtype), rhs(83_491_057, (6,), dtype)

    def loss(a: Array, b: Array, solver: Any) -> Array:
        return scalar(solved(lx.MatrixLinearOperator(a), b, solver))

    ours = jax.value_and_grad(loss, (0, 1))(a, b, Backsolve(client=embedded))
    close(ours, jax.value_and_grad(loss, (0, 1))(a, b, lx.LU()), **tolerance(dtype))


def test_both_orders_in_both_modes(embedded: Client) -> None:
    values, b = values_on(PATTERN, 190_462_875), rhs(746_318_205, (6,))
    check_grads(
        lambda v, b: solved(SparseLinearOperator(v, PATTERN), b, Backsolve(client=embedded)), (values, b), order=2
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_the_conjugate_of_a_state_solves_with_the_conjugate(sparse: bool, embedded: Client) -> None:
    dtype = "complex128"
    values, b = values_on(PATTERN, 903_316_248, dtype=dtype), rhs(271_450_886, (6,), dtype)
    a = dense(517_203_948, dtype=dtype)
    operator = SparseLinearOperator(values, PATTERN) if sparse else lx.MatrixLinearOperator(a)
    solver = Backsolve(client=embedded)
    state, options = solver.conj(solver.init(operator, {}), {})
    x, _, _ = solver.compute(state, b, options)
    close(x, jnp.linalg.solve(operator.as_matrix().conj(), b))


def test_complex_equations_of_real_numbers_give_real_numbers(embedded: Client) -> None:
    a, x = dense(360_184_927, dtype="complex128"), rhs(845_309_162, (6,))
    operator = lx.FunctionLinearOperator(lambda y: a @ y, jax.ShapeDtypeStruct((6,), x.dtype))  # type: ignore[no-untyped-call]
    found = solved(operator, a @ x, Backsolve(client=embedded))
    assert found.dtype == x.dtype
    close(found, x)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_gradient_costs_two_solves_and_one_factor(sparse: bool, embedded: Client) -> None:
    values, b = values_on(PATTERN, 32_908_164), rhs(650_271_943, (6,))

    def loss(values: Array) -> Array:
        operator: Any = SparseLinearOperator(values, PATTERN)
        if not sparse:
            operator = lx.MatrixLinearOperator(operator.as_matrix())
        return scalar(solved(operator, b, Backsolve(client=embedded)))

    cost = counted(embedded, lambda: jax.grad(loss)(values))
    assert cost == {"factorizations": 1, "solves": 2, "adjoint_solves": 0, "tangent_solves": 0}
    close(jax.grad(loss)(values), jax.grad(lambda v: scalar(jnp.linalg.solve(scattered(v, PATTERN), b)))(values))


def test_vmap_is_one_request(embedded: Client) -> None:
    values, b = values_on(PATTERN, 914_650_328), rhs(27_851_094, (5, 6))
    operator = SparseLinearOperator(values, PATTERN)
    mapped = jax.vmap(lambda b: solved(operator, b, Backsolve(client=embedded)))
    assert counted(embedded, lambda: mapped(b))["solves"] == 1
    close(mapped(b), jnp.linalg.solve(scattered(values, PATTERN), b.T).T)


def _spd(seed: int) -> Array:
    half = dense(seed)
    return half @ half.T + jnp.eye(6)


TAGGED = {
    "symmetric": (lambda a: a + a.T, lx.symmetric_tag),
    "positive": (lambda a: a @ a.T, lx.positive_semidefinite_tag),
    "negative": (lambda a: -a @ a.T, lx.negative_semidefinite_tag),
    "lower": (jnp.tril, lx.lower_triangular_tag),
    "upper": (jnp.triu, lx.upper_triangular_tag),
    "diagonal": (lambda a: jnp.diag(jnp.diag(a)), lx.diagonal_tag),
    "tridiagonal": (lambda a: jnp.tril(jnp.triu(a, -1), 1), lx.tridiagonal_tag),
}


@pytest.mark.parametrize("tag", TAGGED)
def test_tags(tag: str, embedded: Client) -> None:
    shape, mark = TAGGED[tag]
    a, b = shape(dense(641_720_953)), rhs(530_918_246, (6,))
    pattern = bj_pattern(a)
    values = a[pattern.rows, pattern.indices]
    truth = jax.grad(lambda a: scalar(jnp.linalg.solve(a, b)))(a)[pattern.rows, pattern.indices]

    def loss(values: Array, solver: Any) -> Array:
        return scalar(solved(SparseLinearOperator(values, pattern, mark), b, solver))

    close(
        jax.grad(loss)(values, Backsolve(client=embedded)), jax.grad(loss)(values, lx.AutoLinearSolver(well_posed=True))
    )
    if tag in ("lower", "upper", "diagonal", "tridiagonal"):
        close(jax.grad(loss)(values, Backsolve(client=embedded)), truth)
    dense_operator = lx.MatrixLinearOperator(a, mark)
    close(solved(dense_operator, b, Backsolve(client=embedded)), jnp.linalg.solve(a, b))
    for check in (
        lx.is_symmetric,
        lx.is_diagonal,
        lx.is_lower_triangular,
        lx.is_upper_triangular,
        lx.is_tridiagonal,
        lx.is_positive_semidefinite,
        lx.is_negative_semidefinite,
        lx.has_unit_diagonal,
    ):
        assert check(SparseLinearOperator(values, pattern, mark)) == check(dense_operator)


def bj_pattern(a: Array) -> Any:
    from backsolve import Pattern

    rows, columns = np.nonzero(np.asarray(a))
    return Pattern(np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(a)))]), columns, a.shape)


def test_other_operators_and_other_solvers(embedded: Client) -> None:
    """Pytrees, sums and transposes go to `Backsolve`; the sparse operator goes to others' solvers."""
    values, b = values_on(PATTERN, 402_816_973), rhs(88_740_126, (6,))
    operator = SparseLinearOperator(values, PATTERN)
    full = scattered(values, PATTERN)
    close(solved(operator.T, b, Backsolve(client=embedded)), jnp.linalg.solve(full.T, b))
    close(operator.T.mv(b), full.T @ b)
    close(operator.mv(b), full @ b)
    both = operator + lx.DiagonalLinearOperator(b)
    close(solved(both, b, Backsolve(client=embedded)), jnp.linalg.solve(full + jnp.diag(b), b))
    close(solved(operator, b, lx.LU()), jnp.linalg.solve(full, b))
    conjugate = lx.conj(SparseLinearOperator(values + 1j, PATTERN))
    close(conjugate.as_matrix(), scattered(values - 1j, PATTERN))
    close(lx.diagonal(operator), jnp.diag(full))
    close(lx.tridiagonal(operator)[1], jnp.diag(full, -1))
    tree = {"p": b[:2], "q": b[2:].reshape(2, 2)}
    jacobian = lx.JacobianLinearOperator(lambda t, _: {"p": 3 * t["p"], "q": t["q"] @ t["q"].T + 9 * t["q"]}, tree)
    close(solved(jacobian, tree, Backsolve(client=embedded)), solved(jacobian, tree, lx.LU()))


def test_results_and_statistics(embedded: Client) -> None:
    a, b = dense(760_143_895), rhs(219_407_583, (6,))
    good = lx.linear_solve(lx.MatrixLinearOperator(a), b, Backsolve(client=embedded))
    assert good.result == lx.RESULTS.successful
    assert Status(int(good.stats["status"])) is Status.OK
    assert float(good.stats["relative_residual"]) < 1e-12
    zero = lx.MatrixLinearOperator(a.at[2].set(0.0))
    bad = lx.linear_solve(zero, b, Backsolve(client=embedded), throw=False)
    assert bad.result == lx.RESULTS.singular
    with pytest.raises(eqx.EquinoxRuntimeError, match="singular"):
        lx.linear_solve(zero, b, Backsolve(client=embedded))
    lame = Backsolve(client=embedded, method="cg", rtol=1e-14, maxiter=1)
    slow = lx.linear_solve(lx.MatrixLinearOperator(_spd(4_916_327)), b, lame, throw=False)
    assert slow.result == lx.RESULTS.max_steps_reached
    assert int(slow.stats["num_steps"]) == 1
    started = lx.linear_solve(
        lx.MatrixLinearOperator(_spd(4_916_327)),
        b,
        Backsolve(client=embedded, method="cg", maxiter=1, rtol=1e-10),
        options={"y0": jnp.linalg.solve(_spd(4_916_327), b)},
    )
    assert int(started.stats["num_steps"]) <= 1
    missing = lx.linear_solve(lx.MatrixLinearOperator(a), b.at[1].set(jnp.nan), Backsolve(client=embedded), throw=False)
    assert missing.result == lx.RESULTS.nonfinite_input
    assert missing.value.dtype == a.dtype


def test_every_status_without_an_answer_is_a_failure_to_lineax() -> None:
    assert {Status.OK, Status.ILL_CONDITIONED} | _RESULTS.keys() == set(Status)


def test_an_ill_conditioned_answer_is_one(embedded: Client) -> None:
    hilbert = 1.0 / (jnp.arange(12.0)[:, None] + jnp.arange(12.0) + 1)
    with pytest.warns(IllConditionedWarning):
        found = lx.linear_solve(lx.MatrixLinearOperator(hilbert), rhs(61_907_352, (12,)), Backsolve(client=embedded))
    assert found.result == lx.RESULTS.successful
    assert Status(int(found.stats["status"])) is Status.ILL_CONDITIONED


def test_what_is_refused(embedded: Client) -> None:
    values = values_on(PATTERN, 571_829_436)
    with pytest.raises(InvalidOptionError, match="did you mean 'rtol'"):
        Backsolve(rtoll=1e-3)  # type: ignore[call-arg]
    for name, value in (("trans", "T"), ("on_failure", "nan"), ("nullspace", "constant")):
        with pytest.raises(InvalidOptionError, match=name):
            Backsolve(**{name: value})
    with pytest.raises(InvalidShapeError, match="square"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.ones((3, 2))), jnp.ones(3), Backsolve(client=embedded))
    with pytest.raises(InvalidOptionError, match="preconditioner"):
        solved(lx.MatrixLinearOperator(jnp.eye(2)), jnp.ones(2), Backsolve(), options={"preconditioner": None})
    for start, error in ((jnp.ones(3), InvalidShapeError), (jnp.ones(2) * 1j, InvalidDtypeError)):
        with pytest.raises(error, match="y0"):
            solved(lx.MatrixLinearOperator(jnp.eye(2)), jnp.ones(2), Backsolve(), options={"y0": start})
    with pytest.raises(InvalidPatternError):
        SparseLinearOperator(values, np.eye(6))  # type: ignore[arg-type]
    with pytest.raises(InvalidShapeError):
        SparseLinearOperator(values[1:], PATTERN)


def test_an_implicit_method_of_diffrax(embedded: Client) -> None:
    """Robertson's stiff reactions; every Newton step of Kvaerno's method solves with us, and its gradient too."""

    def field(_: Any, y: Array, k: Array) -> Array:
        a, b = k[0] * y[0], k[1] * y[1] ** 2
        c = k[2] * y[1] * y[2]
        return jnp.stack([c - a, a - b - c, b])

    def end(k: Array, solver: Any) -> Array:
        finder = optimistix.Chord(rtol=1e-8, atol=1e-8, linear_solver=solver)
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Kvaerno3(root_finder=finder),
            0.0,
            2.0,
            0.1,
            jnp.array([1.0, 0.0, 0.0]),
            args=k,
            stepsize_controller=diffrax.ConstantStepSize(),
            max_steps=32,
        )
        return (found.ys[-1] ** 2).sum()

    k = jnp.array([0.04, 3e3, 1e2])
    before = embedded.stats()["solves"]
    ours = jax.jit(jax.value_and_grad(lambda k: end(k, Backsolve(client=embedded))))(k)
    assert embedded.stats()["solves"] - before > 20
    close(ours, jax.jit(jax.value_and_grad(lambda k: end(k, lx.LU())))(k), rtol=1e-6, atol=1e-14)


class Layer(eqx.Module):
    """Solve with learnt numbers on a pattern."""

    values: Array
    scale: float
    client: Client = eqx.field(static=True)

    def __call__(self, b: Array) -> Array:
        return self.scale * bj.spsolve(self.values, PATTERN, b, client=self.client)


def test_training_with_equinox_and_optax(embedded: Client) -> None:
    """Filtered jit, vmap and grad; one factorization a step, and the loss falls."""
    layer = Layer(values_on(PATTERN, 237_916_480), 2.0, embedded)
    b, target = rhs(914_305_726, (8, 6)), rhs(60_817_935, (8, 6))
    optimiser = optax.adam(0.1)
    state = optimiser.init(eqx.filter(layer, eqx.is_array))

    def loss(layer: Layer) -> Array:
        return ((eqx.filter_vmap(layer)(b) - target) ** 2).mean()

    @eqx.filter_jit
    def step(layer: Layer, state: Any) -> tuple[Layer, Any, Array]:
        value, gradient = eqx.filter_value_and_grad(loss)(layer)
        updates, state = optimiser.update(gradient, state)
        return eqx.apply_updates(layer, updates), state, value

    before, losses = embedded.stats(), []
    for _ in range(6):
        layer, state, value = step(layer, state)
        losses.append(float(value))
    after = embedded.stats()
    assert losses[-1] < losses[0]
    for name in ("factorizations", "solves", "adjoint_solves"):
        assert after[name] - before[name] == 6
