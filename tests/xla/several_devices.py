"""Run by `test_transforms.py` in a process of its own, with two devices of the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec

from backsolve import Client
from backsolve.errors import InvalidOptionError, SingularMatrixError
from backsolve.jax import solve

jax.config.update("jax_enable_x64", True)
first, second = jax.devices()
rng = np.random.default_rng(561_290_384)
A = jnp.asarray(rng.standard_normal((5, 5)) + 6 * np.eye(5))
B = jnp.asarray(rng.standard_normal((8, 5)))
truth = jnp.linalg.solve(A, B.T).T


def close(mine, theirs):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-13), mine, theirs)


with Client("embedded") as client:

    def one(a, b):
        return solve(a, b, client=client)

    # An answer lies where the question does, and operands that were put apart are refused.
    there, b_there = jax.device_put(A, second), jax.device_put(B[0], second)
    for f in (one, jax.jit(one), jax.grad(lambda a, b: one(a, b).sum())):
        assert f(there, b_there).devices() == {second}
    assert one(A, b_there).devices() == {second}
    assert one(there, B[0]).devices() == {second}
    close(one(there, b_there), truth[0])
    with pytest.raises(InvalidOptionError, match="move one"):
        one(jax.device_put(A, first), b_there)

    # shard_map: each device makes a request of its own right-hand sides; the gradient of the shared matrix is summed.
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))
    split = jax.shard_map(
        lambda a, b: jax.vmap(lambda b: one(a, b))(b), mesh=mesh, in_specs=(Spec(), Spec("i")), out_specs=Spec("i")
    )
    close(split(A, B), truth)
    before = client.stats()["solves"]
    close(jax.jit(split)(A, B), truth)
    assert client.stats()["solves"] - before == 2
    expected = jax.grad(lambda a, b: (jnp.linalg.solve(a, b.T) ** 2).sum(), (0, 1))(A, B)
    for wrap in (lambda f: f, jax.jit):
        close(wrap(jax.grad(lambda a, b: (split(a, b) ** 2).sum(), (0, 1)))(A, B), expected)
        pushed = wrap(lambda a, b: jax.jvp(split, (a, b), (a, b))[1])(A, B)
        close(pushed, jax.jvp(lambda a, b: jnp.linalg.solve(a, b.T).T, (A, B), (A, B))[1])
    unchecked = jax.shard_map(
        lambda a, b: jax.vmap(lambda b: one(a, b))(b),
        mesh=mesh,
        in_specs=(Spec(), Spec("i")),
        out_specs=Spec("i"),
        check_vma=False,
    )
    close(jax.jit(unchecked)(A, B), truth)

    # The other way round: matrices of their own, and one right-hand side for all.
    matrices = jnp.stack([A, 2 * A, A.T, A + 1])
    others = jax.shard_map(
        lambda a, b: jax.vmap(lambda a: one(a, b))(a), mesh=mesh, in_specs=(Spec("i"), Spec()), out_specs=Spec("i")
    )
    each = jax.vmap(jnp.linalg.solve, (0, None))
    for wrap in (lambda f: f, jax.jit):
        close(wrap(others)(matrices, B[0]), each(matrices, B[0]))
        close(
            wrap(jax.grad(lambda a, b: (others(a, b) ** 2).sum(), (0, 1)))(matrices, B[0]),
            jax.grad(lambda a, b: (each(a, b) ** 2).sum(), (0, 1))(matrices, B[0]),
        )

    # Statistics inside of shard_map.
    def reported(a, b):
        x, stats = solve(a, b, client=client, return_stats=True)
        return x, stats.status[None]

    both = jax.shard_map(
        lambda a, b: reported(a, b[0]), mesh=mesh, in_specs=(Spec(), Spec("i")), out_specs=(Spec("i"), Spec("i"))
    )
    x, status = jax.jit(both)(A, B[:2])
    close(x.reshape(2, 5), truth[:2])
    assert status.tolist() == [1, 1]

    # pmap, of solves and of gradients.
    close(jax.pmap(lambda b: one(A, b))(B[:2]), truth[:2])
    mapped = jax.pmap(jax.grad(lambda a, b: one(a, b).sum()), in_axes=(None, 0))
    close(mapped(A, B[:2]), jax.vmap(jax.grad(lambda a, b: jnp.linalg.solve(a, b).sum()), (None, 0))(A, B[:2]))

    # Arrays that are spread over devices, in a program that JAX partitions itself, and outside of any.
    spread = jax.device_put(B, NamedSharding(mesh, Spec("i")))
    close(jax.vmap(lambda b: one(A, b))(spread), truth)
    close(jax.jit(jax.vmap(lambda b: one(A, b)))(spread), truth)
    with pytest.raises(SingularMatrixError):
        jax.vmap(lambda b: one(A * 0, b))(spread)

    # A mesh with explicit axes, which `jax.make_mesh` makes by default: the types of arrays say how they are spread.
    expected_of_many = jax.grad(lambda a, b: (jax.vmap(jnp.linalg.solve)(a, b) ** 2).sum(), (0, 1))(matrices[:2], B[:2])
    explicit = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(explicit):
        spread = jax.device_put(B, NamedSharding(explicit, Spec("i")))
        several = jax.device_put(matrices[:2], NamedSharding(explicit, Spec("i")))
        two = jax.device_put(B[:2], NamedSharding(explicit, Spec("i")))
        everywhere = jax.device_put(A, NamedSharding(explicit, Spec()))

        def squares(a, b):
            return (jax.vmap(lambda b: one(a, b))(b) ** 2).sum()

        def of_many(a, b):
            return (jax.vmap(one)(a, b) ** 2).sum()

        for wrap in (lambda f: f, jax.jit):
            close(wrap(jax.grad(squares, (0, 1)))(everywhere, spread), expected)
            close(wrap(jax.grad(of_many, (0, 1)))(several, two), expected_of_many)
            close(wrap(lambda a, b: one(a, b.T))(everywhere, spread), truth.T)
        manual = jax.shard_map(
            lambda a, b: jax.vmap(lambda b: one(a, b))(b), in_specs=(Spec(), Spec("i")), out_specs=Spec("i")
        )
        close(jax.jit(manual)(everywhere, spread), truth)
        close(jax.jit(jax.grad(lambda a, b: (manual(a, b) ** 2).sum(), (0, 1)))(everywhere, spread), expected)
print("done")
