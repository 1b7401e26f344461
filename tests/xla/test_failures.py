"""What goes wrong: exceptions of ours outside of compiled code, NaN and a status inside, refusals when traced."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.experimental import sparse
from scipy.sparse import csc_array

from backsolve import Client, Pattern, Status
from backsolve.errors import (
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
    UnreachableError,
)
from backsolve.jax import solve, spsolve
from support.jaxes import close, dense, reference, rhs, scattered, sparse_pattern, values_on

PATTERN = sparse_pattern(605_718_942)

pytestmark = pytest.mark.usefixtures("kept")


def _b(columns: tuple[int, ...] = ()) -> Array:
    return rhs(741_920_586, (6, *columns))


def _singular() -> Array:
    return dense(98_305_172).at[2].set(0.0)


def _spd() -> Array:
    half = dense(312_780_645)
    return half @ half.T + jnp.eye(6)


def _without_jit(f: Any, a: Array) -> Any:
    with jax.disable_jit():
        return jax.jit(f)(a)


EAGER: dict[str, Callable[[Callable[..., Array], Array], Any]] = {
    "solve": lambda f, a: f(a),
    "grad": lambda f, a: jax.grad(lambda a: f(a).sum())(a),
    "value_and_grad of jvp": lambda f, a: jax.value_and_grad(lambda a: jax.jvp(f, (a,), (a,))[1].sum())(a),
    "vmap": lambda f, a: jax.vmap(f)(jnp.stack([a, a])),
    "vmap of grad": lambda f, a: jax.vmap(jax.grad(lambda a: f(a).sum()))(jnp.stack([a, a])),
    "checkpoint": lambda f, a: jax.grad(lambda a: jax.checkpoint(f)(a).sum())(a),
    "hessian": lambda f, a: jax.hessian(lambda a: f(a).sum())(a),
    "disable_jit": _without_jit,
}


@pytest.mark.parametrize("way", EAGER)
def test_the_real_exception_outside_of_jit(way: str, client: Client) -> None:
    with pytest.raises(SingularMatrixError, match=r"solve A \+ shift"):
        EAGER[way](lambda a: solve(a, _b(), client=client), _singular())


def test_every_kind_of_failure_outside_of_jit(client: Client) -> None:
    with pytest.raises(NotPositiveDefiniteError):
        solve(-_spd(), _b(), method="cholesky", client=client)
    with pytest.raises(NonfiniteInputError):
        solve(_spd(), _b() * jnp.nan, client=client)
    with pytest.raises(NotConvergedError) as caught:
        solve(_spd(), _b(), method="cg", rtol=1e-12, maxiter=1, client=client)
    assert caught.value.solution is not None
    with pytest.raises(InvalidOptionError, match="damp"):
        solve(_spd(), _b(), damp=0.5, client=client)


def test_a_backward_that_fails_raises_outside_of_jit(client: Client) -> None:
    """The forward begins at its answer and needs no step; the adjoint has no such luck."""
    answer = reference(_spd(), _b())

    def pull(on_failure: Any) -> Array:
        x, back = jax.vjp(
            lambda a: solve(
                a, _b(), x0=answer, method="cg", rtol=1e-9, maxiter=1, on_failure=on_failure, client=client
            ),
            _spd(),
        )
        assert jnp.isfinite(x).all()
        return back(rhs(48_201_736, (6,)))[0]

    with pytest.raises(NotConvergedError, match="backward"):
        pull(None)
    with pytest.warns(NotConvergedWarning, match="backward"):
        pull("warn")
    assert jnp.isnan(pull("nan")).all()
    with pytest.raises(NonfiniteInputError):
        jax.vjp(lambda a: solve(a, _b(), client=client), _spd())[1](_b() * jnp.nan)


# -- inside of compiled code -----------------------------------------------------------------


def _reported(a: Array, b: Array, client: Client, **options: Any) -> tuple[Array, Any]:
    return jax.jit(lambda a, b: solve(a, b, client=client, return_stats=True, **options))(a, b)


@pytest.mark.parametrize(
    ("a", "options", "status"),
    [
        (_singular, {}, Status.SINGULAR_NUMERIC),
        (lambda: -_spd(), {"method": "cholesky"}, Status.NOT_POSITIVE_DEFINITE),
        (_spd, {"method": "cg", "rtol": 1e-12, "maxiter": 1}, Status.MAX_ITER),
        (lambda: _spd().at[1, 1].set(jnp.inf), {}, Status.NONFINITE_INPUT),
    ],
    ids=["singular", "indefinite", "maxiter", "infinite"],
)
def test_nan_and_a_status_inside_of_jit(a: Any, options: Any, status: Status, client: Client) -> None:
    x, stats = _reported(a(), _b(), client, **options)
    assert jnp.isnan(x).all()
    assert stats.worst is status
    assert stats.statuses == [status]
    gradient = jax.jit(jax.grad(lambda a: solve(a, _b(), client=client, **options).sum()))(a())
    assert jnp.isnan(gradient).all()


def test_only_what_fails_is_nan(embedded: Client) -> None:
    """Of a batch the systems, of mapped right-hand sides the columns; the rest is solved, and differentiated."""
    good, b = dense(208_471_639, (4,)), rhs(570_392_164, (4, 6))
    a = good.at[1].set(_singular()).at[3, 0, 0].set(jnp.nan)
    x, stats = jax.jit(lambda a, b: solve(a, b, client=embedded, return_stats=True))(a, b)
    assert stats.statuses == [Status.OK, Status.SINGULAR_NUMERIC, Status.OK, Status.NONFINITE_INPUT]
    assert stats.status.shape == (4,)
    close(x[::2], reference(good, b)[::2])
    assert jnp.isnan(x[1::2]).all()

    def loss(a: Array, b: Array) -> Array:
        return (solve(a, b, client=embedded) ** 2).sum()

    gradient = jax.jit(jax.vmap(jax.grad(loss)))(a, b)
    truth = jax.vmap(jax.grad(lambda a, b: (reference(a, b) ** 2).sum()))(good, b)
    close(gradient[::2], truth[::2])
    assert jnp.isnan(gradient[1::2]).all()


@pytest.mark.parametrize("columns", [(), (2,)])
def test_only_the_mapped_right_hand_sides_that_are_not_finite_are_nan(
    columns: tuple[int, ...], embedded: Client
) -> None:
    a, b = dense(834_102_957), rhs(19_574_038, (5, 6, *columns))
    spoiled = b.at[3, 2].set(jnp.nan)
    mapped = jax.jit(jax.vmap(lambda b: solve(a, b, client=embedded, return_stats=True)))
    x, stats = mapped(spoiled)
    truth = jax.vmap(lambda b: reference(a, b))(b)
    kept = jnp.array([0, 1, 2, 4])
    close(x[kept], truth[kept])
    assert jnp.isnan(x[3]).all()
    assert stats.worst is Status.NONFINITE_INPUT


def test_columns_and_first_iterates_that_are_not_finite(embedded: Client) -> None:
    a, b = _spd(), rhs(406_918_273, (6, 4))
    start = jnp.zeros_like(b).at[0, 2].set(jnp.inf)
    f = jax.jit(lambda a, b, start: solve(a, b, x0=start, method="cg", rtol=1e-13, maxiter=60, client=embedded))
    x = f(a, b.at[1, 0].set(jnp.nan), start)
    close(x[:, 1::2], reference(a, b)[:, 1::2], rtol=1e-8)
    assert jnp.isnan(x[:, ::2]).all()
    assert jnp.isnan(f(a, b * jnp.nan, start)).all()


@pytest.mark.parametrize("on_failure", ["raise", "warn"])
def test_what_is_asked_for_inside_of_jit(on_failure: Any, client: Client) -> None:
    def run() -> Array:
        f = jax.jit(lambda a: solve(a, _b(), client=client, on_failure=on_failure))
        return f(_singular()).block_until_ready()

    if on_failure == "warn":
        with pytest.warns(NotConvergedWarning, match="singular"):
            assert jnp.isnan(run()).all()
    else:
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"SingularMatrixError.*exactly singular"):
            run()


def test_what_no_status_can_say_stops_the_program() -> None:
    """NaN would hide that nothing was asked, or that an option was wrong."""
    with Client("http://127.0.0.1:9", timeout=60) as nobody:
        with pytest.raises(UnreachableError):
            solve(_spd(), _b(), client=nobody)
        with pytest.raises(jax.errors.JaxRuntimeError, match="UnreachableError"):
            jax.jit(lambda a: solve(a, _b(), client=nobody))(_spd()).block_until_ready()


def test_an_option_that_the_method_does_not_use(embedded: Client) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"InvalidOptionError.*maxiter"):
        jax.jit(lambda a: solve(a, _b(), method="lu", maxiter=3, client=embedded))(_spd()).block_until_ready()


def test_ill_conditioned_is_an_answer_with_a_warning(embedded: Client) -> None:
    hilbert = 1.0 / (jnp.arange(12.0)[:, None] + jnp.arange(12.0) + 1)
    for wrap in (lambda f: f, jax.jit):
        with pytest.warns(IllConditionedWarning):
            x, stats = wrap(lambda a: solve(a, rhs(77_120_483, (12,)), client=embedded, return_stats=True))(hilbert)
        assert stats.worst is Status.ILL_CONDITIONED
        assert jnp.isfinite(x).all()


# -- statistics ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::backsolve.errors.IllConditionedWarning")
def test_no_answer_is_worse_than_an_ill_conditioned_one(embedded: Client) -> None:
    """As the certificate of the batch has it, whatever the order of the numbers that stand for statuses."""
    seen: list[Any] = []
    hilbert = 1.0 / (jnp.arange(12.0)[:, None] + jnp.arange(12.0) + 1)
    a = jnp.stack([jnp.eye(12), hilbert, jnp.zeros((12, 12))])
    b = jnp.broadcast_to((-1.0) ** jnp.arange(12), (3, 12))  # an x so large that it tells the condition of its matrix
    options: Any = {"client": embedded, "on_failure": "nan", "return_stats": True, "observe": lambda *e: seen.append(e)}
    for a_part, worst in ((a[:2], Status.ILL_CONDITIONED), (a, Status.SINGULAR_NUMERIC)):
        _, stats = solve(a_part, b[: len(a_part)], **options)
        assert stats.worst is worst
        assert seen[-1][1].status is worst


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_statistics_are_those_of_the_certificate(dtype: str, embedded: Client) -> None:
    seen: list[Any] = []

    def watch(*each: Any) -> None:
        seen.append(each)

    a, b = dense(630_417_298, (2,), dtype=dtype), rhs(184_027_365, (2, 6), dtype)
    for wrap in (lambda f: f, jax.jit):
        seen.clear()
        x, stats = wrap(lambda a, b: solve(a, b, client=embedded, return_stats=True, observe=watch))(a, b)
        jax.block_until_ready(x)
        ((phase, certificate),) = seen
        assert phase == "solve"
        assert stats.statuses == [each.status for each in certificate.elements]
        assert stats.method_name == certificate.method
        assert bool(stats.factor_hit) is certificate.factor_hit
        real = np.zeros(0, dtype).real.dtype
        for field in ("relative_residual", "backward_error"):
            given = np.array([getattr(each, field) for each in certificate.elements])
            assert getattr(stats, field).dtype == real
            np.testing.assert_allclose(getattr(stats, field), given, rtol=1e-6)
        np.testing.assert_allclose(float(stats.condition_estimate), certificate.condition_estimate, rtol=1e-6)
        assert int(stats.refinements) == certificate.refinements


def test_statistics_count_iterations_and_keep_the_batch(embedded: Client) -> None:
    a = jnp.broadcast_to(_spd(), (2, 3, 6, 6))
    b = rhs(905_172_643, (2, 3, 6))
    _, stats = solve(a, b, method="cg", rtol=1e-8, client=embedded, return_stats=True)
    assert stats.iterations.shape == (2, 3)
    assert (stats.iterations > 1).all()
    _, mapped = jax.vmap(lambda a, b: solve(a, b, method="cg", rtol=1e-8, client=embedded, return_stats=True))(a, b)
    assert mapped.iterations.shape == (2, 3)
    assert (mapped.iterations == stats.iterations).all()


def test_a_mapped_batch_tells_which_system_failed(embedded: Client) -> None:
    a = jnp.broadcast_to(_spd(), (2, 3, 6, 6)).at[0, 2].set(0.0)
    b = rhs(386_250_914, (2, 3, 6))
    x, stats = jax.vmap(lambda a, b: solve(a, b, client=embedded, on_failure="nan", return_stats=True))(a, b)
    failed = np.array([[False, False, True], [False, False, False]])
    assert (np.asarray(stats.status != Status.OK.value) == failed).all()
    assert (np.isnan(np.asarray(x)).all(axis=-1) == failed).all()


def test_the_worst_of_no_systems(embedded: Client) -> None:
    _, stats = solve(jnp.zeros((0, 3, 3)), jnp.zeros((0, 3)), client=embedded, return_stats=True)
    assert (stats.worst, stats.statuses) == (Status.OK, [])


def test_statistics_steer_a_compiled_program(embedded: Client) -> None:
    """The status chooses what is done next; gradients go through x, not through the statistics."""

    @jax.jit
    def f(a: Array) -> Array:
        x, stats = solve(a, _b(), client=embedded, return_stats=True)
        return jnp.where(stats.status == Status.OK.value, x, 0.0).sum() + 0.0 * stats.relative_residual

    assert float(f(_singular())) != float(f(_spd()))
    truth = jax.grad(lambda a: reference(a, _b()).sum())(_spd())
    close(jax.grad(f)(_spd()), truth)


def test_names_need_numbers(embedded: Client) -> None:
    for name in ("worst", "statuses", "method_name"):
        with pytest.raises(InvalidOptionError, match=name):
            jax.jit(lambda a, name=name: getattr(solve(a, _b(), client=embedded, return_stats=True)[1], name) and a)(
                _spd()
            )


# -- refused when called or traced -----------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a list": (lambda: solve([[1.0]], jnp.ones(1)), InvalidDtypeError, "A must be an array"),
    "a matrix of SciPy": (lambda: solve(csc_array(np.eye(2)), jnp.ones(2)), InvalidDtypeError, r"spsolve\(A\.data"),
    "integers": (lambda: solve(jnp.eye(2, dtype=int), jnp.ones(2)), InvalidDtypeError, "astype"),
    "half precision": (lambda: solve(jnp.eye(2, dtype=jnp.bfloat16), jnp.ones(2)), InvalidDtypeError, "bfloat16"),
    "two types": (lambda: solve(jnp.eye(2), jnp.ones(2, "float32")), InvalidDtypeError, "b is float32"),
    "one dimension": (lambda: solve(jnp.ones(2), jnp.ones(2)), InvalidShapeError, "n, n"),
    "not square": (lambda: solve(jnp.ones((2, 3)), jnp.ones(2)), InvalidShapeError, "square"),
    "too long": (lambda: solve(jnp.eye(2), jnp.ones(3)), InvalidShapeError, r"\(2,\) for vectors"),
    "no batch": (lambda: solve(jnp.stack([jnp.eye(2)] * 3), jnp.ones(2)), InvalidShapeError, r"\(3, 2\)"),
    "x0 of another shape": (lambda: solve(jnp.eye(2), jnp.ones(2), x0=jnp.ones(3)), InvalidShapeError, "x0"),
    "a complex x0": (lambda: solve(jnp.eye(2), jnp.ones(2), x0=jnp.ones(2) * 1j), InvalidDtypeError, "x0.real"),
    "no pattern": (lambda: spsolve(jnp.ones(2), np.eye(2), jnp.ones(2)), InvalidPatternError, "Pattern"),
    "too few values": (lambda: spsolve(jnp.ones(3), PATTERN, _b()), InvalidShapeError, "pattern needs"),
    "sparse values": (
        lambda: spsolve(sparse.BCOO.fromdense(jnp.eye(2)), PATTERN, _b()),
        InvalidShapeError,
        "solve",
    ),
    "sparse b": (lambda: solve(jnp.eye(2), sparse.BCOO.fromdense(jnp.ones(2))), InvalidShapeError, "todense"),
    "an unknown option": (lambda: solve(jnp.eye(2), jnp.ones(2), rtoll=1), InvalidOptionError, "did you mean 'rtol'"),
    "a bad value": (lambda: solve(jnp.eye(2), jnp.ones(2), rtol="x"), InvalidOptionError, "rtol must be a number"),
    "another trans": (lambda: solve(jnp.eye(2), jnp.ones(2), trans="X"), InvalidOptionError, "trans must be"),
    "another choice": (lambda: solve(jnp.eye(2), jnp.ones(2), on_failure="x"), InvalidOptionError, "on_failure"),
    "sparse with dense blocks": (
        lambda: solve(sparse.BCOO.fromdense(jnp.eye(2), n_dense=1), jnp.ones(2)),
        InvalidShapeError,
        "n_dense",
    ),
    "sparse with two batches": (
        lambda: solve(sparse.BCOO.fromdense(jnp.ones((2, 2, 2, 2)), n_batch=2), jnp.ones((2, 2, 2))),
        InvalidShapeError,
        "n_batch=1",
    ),
    "a sparse batch of patterns": (
        lambda: solve(sparse.BCOO.fromdense(jnp.stack([jnp.eye(2), jnp.eye(2)[::-1]]), n_batch=1), jnp.ones((2, 2))),
        InvalidPatternError,
        "different entries",
    ),
    "sparse with a broken indptr": (
        lambda: solve(sparse.BCSR((jnp.ones(2), jnp.array([0, 1]), jnp.array([0, 3, 2])), shape=(2, 2)), jnp.ones(2)),
        InvalidPatternError,
        "indptr",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, error, text = REFUSED[case]
    with pytest.raises(error, match=text):
        call()
    # JAX makes no sparse matrix of a dense one inside of jit.
    if "sparse" not in case:
        with pytest.raises(error, match=text):
            jax.jit(call)()


def test_traced_indices_and_options_are_refused(embedded: Client) -> None:
    stored = sparse.BCOO.fromdense(_spd())
    with pytest.raises(NotSupportedError, match="spsolve"):
        jax.jit(lambda m: solve(m, _b(), client=embedded))(stored)
    with pytest.raises(InvalidOptionError, match="rtol"):
        jax.jit(lambda rtol: solve(_spd(), _b(), rtol=rtol, client=embedded))(1e-3)
    inside = jax.jit(lambda data: solve(sparse.BCOO((data, stored.indices), shape=(6, 6)), _b(), client=embedded))
    close(inside(stored.data), reference(_spd(), _b()))


def test_indices_of_numpy_inside_of_jit_are_refused_with_the_way_out(embedded: Client) -> None:
    """JAX wraps them as it does arguments; the same indices as an array of JAX's are a constant."""
    stored = sparse.BCOO.fromdense(_spd())
    indices = np.asarray(stored.indices)
    with pytest.raises(NotSupportedError, match=r"outside of the function, jnp\.asarray\(indices\)"):
        jax.jit(lambda data: solve(sparse.BCOO((data, indices), shape=(6, 6)), _b(), client=embedded))(stored.data)


def test_arrays_of_numpy_are_welcome(embedded: Client) -> None:
    a, b = np.asarray(dense(518_360_274)), np.asarray(_b())
    x = solve(a, b, client=embedded)
    assert isinstance(x, Array)
    close(x, reference(jnp.asarray(a), jnp.asarray(b)))


def test_single_precision_stays_single(embedded: Client) -> None:
    """With 64-bit types switched off, as JAX is by default, and with them on."""
    for on in (False, True):
        with jax.enable_x64(on):
            a, b = dense(61_938_250, dtype="float32"), rhs(4_781_502, (6,), "float32")
            for wrap in (lambda f: f, jax.jit):
                x, stats = wrap(lambda a, b: solve(a, b, client=embedded, return_stats=True))(a, b)
                assert (x.dtype, stats.backward_error.dtype) == (jnp.float32, jnp.float32)
                close(x, reference(a, b), rtol=1e-4, atol=1e-5)
                gradient = wrap(jax.grad(lambda a, b: solve(a, b, client=embedded).sum()))(a, b)
                assert gradient.dtype == jnp.float32


@pytest.mark.parametrize("shapes", [((4, 0, 0), (4, 0, 2)), ((0, 3, 3), (0, 3, 2)), ((3, 3), (3, 2)), ((0, 0), (0, 2))])
@pytest.mark.parametrize("size", [0, 2])
def test_mapped_columns_of_empty_systems(shapes: tuple[tuple[int, ...], ...], size: int, embedded: Client) -> None:
    a, b = jnp.zeros(shapes[0]) + jnp.eye(shapes[0][-1]), jnp.ones((size, *shapes[1]))
    f = jax.vmap(lambda b: solve(a, b, client=embedded))
    assert f(b).shape == b.shape
    assert jax.grad(lambda b: f(b).sum())(b).shape == b.shape


def test_empty_systems(embedded: Client) -> None:
    for wrap in (lambda f: f, jax.jit):
        f = wrap(lambda a, b: solve(a, b, client=embedded))
        assert f(jnp.zeros((0, 0)), jnp.zeros(0)).shape == (0,)
        assert f(jnp.eye(3), jnp.zeros((3, 0))).shape == (3, 0)
        assert f(jnp.zeros((0, 3, 3)), jnp.zeros((0, 3))).shape == (0, 3)


def test_a_laplacian_and_its_gradient(embedded: Client) -> None:
    """nullspace="constant": cotangents outside of the range are projected, at every order."""
    pattern = Pattern([0, 2, 5, 7], [0, 1, 0, 1, 2, 1, 2], (3, 3))

    def values(w: Array) -> Array:
        return jnp.stack([w[0], -w[0], -w[0], w[0] + w[1], -w[1], -w[1], w[1]])

    w, b = jnp.array([1.3, 0.7]), jnp.array([1.0, 0.5, -1.5])

    def ours(w: Array, b: Array) -> Array:
        return (spsolve(values(w), pattern, b - b.mean(), nullspace="constant", client=embedded) ** 3)[0]

    def truth(w: Array, b: Array) -> Array:
        full = scattered(values(w), pattern)
        x = jnp.linalg.solve(full + 1 / 3, b - b.mean())
        return (x**3)[0]

    for wrap in (lambda f: f, jax.jit):
        close(wrap(jax.grad(ours, (0, 1)))(w, b), jax.grad(truth, (0, 1))(w, b), rtol=1e-9)
        close(wrap(jax.hessian(ours))(w, b), jax.hessian(truth)(w, b), rtol=1e-8)


def test_values_on_a_pattern_in_a_batch(embedded: Client) -> None:
    values, b = values_on(PATTERN, 427_980_136, (2, 2)), rhs(93_180_457, (2, 2, 6, 3))
    close(spsolve(values, PATTERN, b, client=embedded), reference(scattered(values, PATTERN), b))
