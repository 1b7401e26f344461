"""The solve as an operation of JAX's own, with a rule for every transform.

    tangent     op(A) dx = db - op(dA) x      the same operation, linear in its right-hand side
    transpose   op(A)ᵀ λ = cotangent          the same operation, with the transposed operator
    vmap        one request: columns of one block, or a batch on one pattern
    outside of jit the rule is called with numbers, so that what it raises reaches the caller as it is
    inside it is a callback of the compiled program

Gradients are what JAX makes of these: it transposes the tangent. All of them meet the forward's factor.

Source: Giles, "An extended collection of matrix derivative results", 2008, section 2.3.1.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from .._adapter.rules import tangent_rhs
from . import _fold, _host, _words
from ._asked import Asked
from ._rules import ALGEBRA, varying_alike
from .statistics import NAME_BYTES

solve_p: Final = Primitive("backsolve")
solve_p.multiple_results = True

_PER_SYSTEM: Final = 4
"""Of the outputs behind x and the method, these have a number for each system; the others one for all."""


def bind(values: Array, rhs: Array, x0: Array | None, chosen: Array | None, asked: Asked) -> list[Array]:
    """`x = M⁻¹ rhs` for the operator M that is asked for.

    Args:
        values: `[(batch,) *entries]`.
        rhs: `[(batch,) n]` or `[(batch,) n, k]`.
        x0: first iterate, shaped like rhs. No derivative: the answer does not depend on it.
        chosen: the method of the forward, as it is among the outputs of that; None in the forward itself.
        asked: the operator and everything that is no array.

    Returns:
        x, shaped like rhs, the method, and the other fields of `Stats` in their order.
    """
    known = jnp.zeros(NAME_BYTES, np.uint8) if chosen is None else chosen
    operands = varying_alike(values, rhs, known, *(() if x0 is None else (x0,)))
    return _bound(operands, asked)


def _bound(operands: Sequence[Any], asked: Asked) -> list[Array]:
    """`Primitive.bind`, typed."""
    found: list[Array] = solve_p.bind(*operands, asked=asked)  # type: ignore[no-untyped-call]
    return found


def _shapes(values: Any, rhs: Any, asked: Asked) -> list[tuple[tuple[int, ...], Any]]:
    """Shape and type of each output."""
    systems = tuple(values.shape[: values.ndim - asked.entries])
    real = np.zeros(0, rhs.dtype).real.dtype
    whole = np.dtype(np.int32)
    return [
        (rhs.shape, rhs.dtype),
        ((NAME_BYTES,), np.dtype(np.uint8)),
        (systems, whole),
        (systems, whole),
        (systems, real),
        (systems, real),
        ((), real),
        ((), whole),
        ((), np.dtype(np.bool_)),
    ]


def _abstract(values: Any, rhs: Any, *_: Any, asked: Asked) -> list[Any]:
    def like(shape: tuple[int, ...], dtype: Any) -> Any:
        spec = PartitionSpec(*(None,) * len(shape))  # type: ignore[no-untyped-call]
        sharding = NamedSharding(rhs.sharding.mesh, spec)
        return rhs.update(shape=shape, dtype=dtype, weak_type=False, sharding=sharding)

    return [like(*each) for each in _shapes(values, rhs, asked)]


# -- with numbers, and inside of a compiled program ----------------------------------------


def _eager(*operands: Any, asked: Asked) -> list[Array]:
    values, rhs, chosen, x0 = _arrays(operands)
    found = _host.answer(asked, values, rhs, chosen, x0, "raise")
    return _placed(found, operands)


def _arrays(operands: Sequence[Any]) -> tuple[np.ndarray[Any, Any], ...]:
    """The operands for `_host.answer`; views where they lie in host memory."""
    values, rhs, chosen, *x0 = (np.ascontiguousarray(np.asarray(operand)) for operand in operands)
    return values, rhs, chosen, x0[0] if x0 else None  # type: ignore[return-value]


def _placed(found: Sequence[np.ndarray[Any, Any]], operands: Sequence[Any]) -> list[Array]:
    """The outputs where the operands are: on the device that was asked for, if one was."""
    bound = next((o for o in operands if isinstance(o, Array) and o.committed), None)
    if bound is None:
        return [jnp.asarray(each) for each in found]
    x, *rest = found
    rhs = operands[1]
    if len(bound.sharding.device_set) > 1:
        return [jax.device_put(x, rhs.sharding) if rhs.committed else jnp.asarray(x), *map(jnp.asarray, rest)]
    (device,) = bound.sharding.device_set
    return [jax.device_put(each, device) for each in found]


def _compiled(*operands: Array, asked: Asked) -> list[Array]:
    kinds = _shapes(operands[0], operands[1], asked)
    given = [(each.shape, each.dtype) for each in operands]
    wanted = [_words.struct(*each) for each in kinds]
    called = partial(_called, asked, given)
    found: list[Array] = jax.pure_callback(called, wanted, *map(_words.packed, operands))
    return [_words.unpacked(each, dtype) for each, (_, dtype) in zip(found, kinds, strict=True)]


def _called(asked: Asked, given: Sequence[tuple[Any, Any]], *operands: Any) -> list[np.ndarray[Any, Any]]:
    numbers = [_words.numbers(each, *kind) for each, kind in zip(operands, given, strict=True)]
    values, rhs, chosen, x0 = _arrays(numbers)
    # Copies of what a worker may still look at when this call has run out of time, and its memory is gone.
    start = None if x0 is None else x0.copy()
    return [_words.words(each) for each in _host.answer(asked, values, rhs.copy(), chosen, start, "nan")]


solve_p.def_abstract_eval(_abstract)  # type: ignore[no-untyped-call]
solve_p.def_impl(_eager)  # type: ignore[no-untyped-call]
mlir.register_lowering(solve_p, mlir.lower_fun(_compiled, multiple_results=True))


# -- derivatives ---------------------------------------------------------------------------


def _push(primals: Sequence[Any], tangents: Sequence[Any], *, asked: Asked) -> tuple[list[Array], list[Any]]:
    """`M dx = drhs - dM x`."""
    values, rhs = primals[:2]
    found = _bound(primals, asked)
    x, chosen = found[:2]
    still = [ad.Zero(jax.typeof(each).to_tangent_aval()) for each in found]
    dvalues, drhs = (None if isinstance(each, ad.Zero) else each for each in tangents[:2])
    if dvalues is None and drhs is None:
        return found, still
    # A method that was asked for by name is no news, and a gradient that needs no x then needs no forward.
    method = chosen if asked.options.method == "auto" else None
    vectors = rhs.ndim == values.ndim - asked.entries + 1
    moved = tangent_rhs(ALGEBRA, asked.pattern, asked.operator, dvalues, x, drhs, vectors, values)
    return found, [bind(values, moved, None, method, asked.pushed_forward())[0], *still[1:]]


def _pull(cotangents: Sequence[Any], values: Any, rhs: Any, chosen: Any, *x0: Any, asked: Asked) -> list[Any]:
    """`Mᵀ λ = cotangent`."""
    nothing = [None] * len(x0)
    if isinstance(cotangents[0], ad.Zero):
        return [None, ad.Zero(rhs.aval), None, *nothing]
    return [None, bind(values, cotangents[0], None, chosen, asked.transposed())[0], None, *nothing]


ad.primitive_jvps[solve_p] = _push
ad.primitive_transposes[solve_p] = _pull


# -- vmap ----------------------------------------------------------------------------------


def _map(operands: Sequence[Any], dims: Sequence[int | None], *, asked: Asked) -> tuple[list[Array], list[int | None]]:
    size = next(o.shape[d] for o, d in zip(operands, dims, strict=True) if d is not None)
    values, rhs, chosen, *x0 = operands
    values_dim, rhs_dim, chosen_dim, *x0_dim = dims
    if chosen_dim is not None:
        # One request has one method.
        chosen = jnp.take(chosen, 0, axis=chosen_dim)
    b = _fold.lead(rhs, rhs_dim, size)
    start = _fold.lead(x0[0], x0_dim[0], size) if x0 else None
    if values_dim is None:
        systems = values.ndim - asked.entries
        block = _fold.to_columns(b, systems)
        begun = None if start is None else _fold.to_columns(start, systems)
        x, *rest = bind(values, block, begun, chosen, asked)
        return [_fold.from_columns(x, b, systems), *rest], [0, *(None,) * len(rest)]
    batch = jnp.moveaxis(values, values_dim, 0)
    if batch.ndim == asked.entries + 1:
        x, method, *rest = bind(batch, b, start, chosen, asked)
    else:
        joined = None if start is None else _fold.joined(start)
        x, method, *rest = bind(_fold.joined(batch), _fold.joined(b), joined, chosen, asked)
        x = x.reshape(b.shape)
        rest[:_PER_SYSTEM] = [each.reshape(batch.shape[:2]) for each in rest[:_PER_SYSTEM]]
    mapped = [0 if index < _PER_SYSTEM else None for index in range(len(rest))]
    return [x, method, *rest], [0, None, *mapped]


batching.primitive_batchers[solve_p] = _map
