"""What derivatives and transforms cost: requests and factorizations, by the engine's own counters."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import Array

from backsolve import Client, Pattern
from backsolve.jax import solve, spsolve
from support.fresh import new_rng
from support.jaxes import close, counted, dense, reference, rhs, scalar, scattered, sparse_pattern, values_on

PATTERN = sparse_pattern(503_817_249, 12)


def _fresh(batch: tuple[int, ...] = ()) -> Array:
    """Numbers that no cache has met, whatever ran before on the same server."""
    noise = new_rng().standard_normal((*batch, PATTERN.nnz))
    return values_on(PATTERN, 276_940_185, batch) + 1e-3 * noise


def _cost(factorizations: int, solves: int, adjoint: int, tangent: int = 0) -> dict[str, float]:
    return {
        "factorizations": factorizations,
        "solves": solves,
        "adjoint_solves": adjoint,
        "tangent_solves": tangent,
    }


@pytest.mark.parametrize("wrap", ["eager", "jit"])
def test_one_factorization_and_two_requests_a_gradient(client: Client, wrap: str) -> None:
    b = rhs(618_034_297, (12,))
    gradient = jax.grad(lambda v: scalar(spsolve(v, PATTERN, b, client=client)))
    action = jax.jit(gradient) if wrap == "jit" else gradient
    assert counted(client, lambda: action(_fresh())) == _cost(1, 1, 1)


@pytest.mark.parametrize("wrap", ["eager", "jit"])
def test_a_hessian_vector_product_costs_two_further_solves(embedded: Client, wrap: str) -> None:
    b, v = rhs(730_924_186, (12,)), rhs(158_260_973, (PATTERN.nnz,))

    def loss(values: Array) -> Array:
        return scalar(spsolve(values, PATTERN, b, client=embedded))

    products: list[tuple[Any, dict[str, float]]] = [
        (jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), v)), _cost(1, 2, 2)),
        (lambda x: jax.jvp(jax.grad(loss), (x,), (v,)), _cost(1, 1, 2, 1)),
    ]
    for product, cost in products:
        action = jax.jit(product) if wrap == "jit" else product
        assert counted(embedded, lambda action=action: action(_fresh())) == cost


def test_a_tangent_costs_one_solve(embedded: Client) -> None:
    b, v = rhs(41_308_726, (12,)), rhs(862_975_130, (PATTERN.nnz,))
    push = jax.jit(lambda x: jax.jvp(lambda x: spsolve(x, PATTERN, b, client=embedded), (x,), (v,)))
    assert counted(embedded, lambda: push(_fresh())) == _cost(1, 1, 0, 1)


@pytest.mark.parametrize("wrap", ["eager", "jit"])
def test_sixty_four_mapped_right_hand_sides_are_one_request(client: Client, wrap: str) -> None:
    values, b = _fresh(), rhs(395_820_461, (64, 12))
    mapped = jax.vmap(lambda b: spsolve(values, PATTERN, b, client=client))
    action = jax.jit(mapped) if wrap == "jit" else mapped
    before = client.stats()
    x = action(b)
    jax.block_until_ready(x)
    after = client.stats()
    assert after["solves"] - before["solves"] == 1
    assert after["columns"] - before["columns"] == 64
    assert after["factorizations"] - before["factorizations"] == 1
    close(x, reference(scattered(values, PATTERN), b.T).T)


def test_the_values_of_mapped_right_hand_sides_are_sent_once(server: Any) -> None:
    """What is not mapped is not repeated on its way: one upload of one matrix, digests after that."""
    with Client(server.http_url) as client:
        values, b = _fresh(), rhs(284_153_907, (64, 12))
        before = client.stats()["uploads"]
        jax.block_until_ready(jax.jit(jax.vmap(lambda b: spsolve(values, PATTERN, b, client=client)))(b))
        jax.block_until_ready(jax.vmap(lambda b: spsolve(values, PATTERN, b, client=client))(b))
        assert client.stats()["uploads"] - before == 1


@pytest.mark.parametrize("wrap", ["eager", "jit"])
def test_mapped_values_are_one_batch(embedded: Client, wrap: str) -> None:
    values, b = _fresh((5,)), rhs(170_936_254, (12,))
    each = jax.value_and_grad(lambda v: scalar(spsolve(v, PATTERN, b, client=embedded)))
    mapped = jax.vmap(each)
    action = jax.jit(mapped) if wrap == "jit" else mapped
    assert counted(embedded, lambda: action(values)) == _cost(1, 1, 1)
    truth = jax.vmap(jax.value_and_grad(lambda v: scalar(reference(scattered(v, PATTERN), b))))
    close(action(values), truth(values))


def test_a_map_of_hessians_under_jit(embedded: Client) -> None:
    """All tangents of all right-hand sides travel together: four requests, as for one product."""
    values, b = _fresh(), rhs(845_027_163, (3, 12))

    def loss(solution: Any) -> Any:
        return lambda v, b: scalar(solution(v, b))

    ours = jax.jit(jax.vmap(jax.hessian(loss(lambda v, b: spsolve(v, PATTERN, b, client=embedded)), 1), (None, 0)))
    found: list[Array] = []
    assert counted(embedded, lambda: found.append(ours(values, b))) == _cost(1, 1, 2, 1)
    truth = jax.vmap(jax.hessian(loss(lambda v, b: reference(scattered(v, PATTERN), b)), 1), (None, 0))
    close(found[0], truth(values, b))


def test_maps_of_maps(embedded: Client) -> None:
    """Values mapped outside, right-hand sides inside: a batch of blocks, one request for each derivative."""
    values, b = _fresh((3,)), rhs(607_219_483, (4, 12))
    inner = jax.vmap(jax.grad(lambda v, b: scalar(spsolve(v, PATTERN, b, client=embedded))), (None, 0))
    truth = jax.vmap(jax.grad(lambda v, b: scalar(reference(scattered(v, PATTERN), b))), (None, 0))
    both, other = jax.vmap(inner, (0, None)), jax.vmap(truth, (0, None))
    assert counted(embedded, lambda: both(values, b)) == _cost(1, 1, 1)
    close(both(values, b), other(values, b))
    twice = jax.vmap(jax.vmap(lambda v: spsolve(v, PATTERN, b[0], client=embedded)))
    grid = jnp.stack([values, values * 1.5])
    assert counted(embedded, lambda: twice(grid)) == _cost(1, 1, 0)
    close(twice(grid), reference(scattered(grid, PATTERN), jnp.broadcast_to(b[0], (2, 3, 12))))


@pytest.mark.parametrize(
    ("in_axes", "columns"),
    [((1, 0), ()), ((0, 1), ()), ((None, 1), ()), ((2, 1), (2,)), ((None, 2), (2,)), ((2, None), (2,))],
)
def test_mapped_axes_anywhere(embedded: Client, in_axes: Any, columns: tuple[int, ...]) -> None:
    a, b = dense(751_308_246, (4,)), rhs(38_190_657, (4, 6, *columns))
    given = [each if at is None else jnp.moveaxis(each, 0, at) for each, at in zip((a, b), in_axes, strict=True)]
    if None in in_axes:
        given[in_axes.index(None)] = (a, b)[in_axes.index(None)][0]
    ours = jax.vmap(lambda a, b: solve(a, b, client=embedded), in_axes, 1)(*given)
    close(ours, jax.vmap(reference, in_axes, 1)(*given))


def test_the_method_of_the_forward_is_that_of_the_backward(embedded: Client) -> None:
    """Only the forward has x0; the adjoint must meet the forward's factor all the same, inside of jit too."""
    half, b = dense(492_610_738), rhs(861_035_294, (6,))
    a = half @ half.T + jnp.eye(6)
    for wrap in (lambda f: f, jax.jit):
        seen: list[str] = []

        def watch(_: str, certificate: Any, seen: list[str] = seen) -> None:
            seen.append(certificate.method)

        gradient = wrap(jax.grad(lambda a, watch=watch: solve(a, b, x0=b, client=embedded, observe=watch).sum()))
        jax.block_until_ready(gradient(a))
        assert seen == ["cg", "cg"]


def test_what_nobody_needs_is_not_solved(embedded: Client) -> None:
    """In a compiled program; a derivative with respect to b alone needs no forward answer, if its method is known."""
    values = _fresh()
    gradient = jax.jit(jax.grad(lambda b: spsolve(values, PATTERN, b, method="superlu", client=embedded).sum()))
    assert counted(embedded, lambda: gradient(rhs(7_150_394, (12,)))) == _cost(1, 0, 1)


def test_wide_blocks_do_not_form_all_products_at_once(embedded: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way to form products, which large blocks take, gives the same derivatives."""
    from backsolve.jax import _rules

    values, b, v = values_on(PATTERN, 916_480_273), rhs(524_703_891, (12, 5)), rhs(60_817_249, (PATTERN.nnz,))

    def product(most: int) -> Any:
        monkeypatch.setattr(_rules, "_MOST", most)
        loss = jax.grad(lambda x: scalar(spsolve(x, PATTERN, b, client=embedded)))
        return loss(values), jax.jvp(loss, (values,), (v,))

    close(product(1), product(1 << 20), rtol=1e-12)


def test_two_patterns_in_one_program(embedded: Client) -> None:
    """As many numbers in the same shape: only the pattern tells one solve from the other."""
    lower, upper = (
        Pattern([0, *ends], indices, (2, 2)) for ends, indices in (([1, 3], [0, 0, 1]), ([2, 3], [0, 1, 1]))
    )
    v, b = jnp.array([2.0, 3.0, 5.0]), jnp.array([1.0, 7.0])
    f = jax.jit(lambda v: (spsolve(v, lower, b, client=embedded), spsolve(v, upper, b, client=embedded)))
    close(f(v), (reference(scattered(v, lower), b), reference(scattered(v, upper), b)))


def test_a_pattern_is_compiled_for_once(embedded: Client) -> None:
    traced: list[int] = []

    @jax.jit
    def f(values: Array, b: Array) -> Array:
        traced.append(1)
        return spsolve(values, PATTERN, b, client=embedded)

    for seed in (1_839_274, 90_274_615):
        f(_fresh(), rhs(seed, (12,)))
    assert len(traced) == 1
    assert isinstance(PATTERN, Pattern)
