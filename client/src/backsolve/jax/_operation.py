"""How an operation of JAX's is made of a request: with numbers, inside of a compiled program, and under vmap.

Its operands are `(values, rhs, method, [x0])`, its outputs x, the method that answered, and the other fields of
`Stats`. Derivatives are added by whoever makes it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from ..types import Array as HostArray
from ..types import OnFailure
from . import _fold, _words
from ._asked import Asked
from ._rules import varying_alike, whole
from .statistics import NAME_BYTES

Kind = tuple[tuple[int, ...], Any]
"""Shape and element type."""

_PER_SYSTEM: Final = 4
"""Of the outputs behind x and the method, these have a number for each system; the others one for all."""


Answer = Callable[
    [Asked, HostArray, HostArray, HostArray, HostArray | None, OnFailure],
    tuple[HostArray, ...],
]
"""The request itself, on arrays of NumPy: `(asked, values, rhs, method, x0, on_failure)`, see `_host`."""


def operation(name: str, answer: Answer, rows: Callable[[Asked], int]) -> Primitive:
    """A primitive without derivatives.

    Args:
        name: in printed programs.
        answer: makes the request.
        rows: of x.
    """
    made = Primitive(name)
    made.multiple_results = True
    made.def_abstract_eval(partial(_abstract, rows))  # type: ignore[no-untyped-call]
    made.def_impl(partial(_eager, answer))  # type: ignore[no-untyped-call]
    mlir.register_lowering(made, mlir.lower_fun(partial(_compiled, answer, rows), multiple_results=True))
    batching.primitive_batchers[made] = partial(_map, made)
    return made


def bind(
    primitive: Primitive, values: Array, rhs: Array, x0: Array | None, chosen: Array | None, asked: Asked
) -> list[Array]:
    """Apply an operation.

    Args:
        primitive: which.
        values: `[(batch,) *entries]`.
        rhs: `[(batch,) m]` or `[(batch,) m, k]`.
        x0: first iterate, shaped like rhs.
        chosen: the method of the forward, as it is among the outputs of that; None in the forward itself.
        asked: everything that is no array.

    Returns:
        x, the method, and the other fields of `Stats` in their order.
    """
    known = jnp.zeros(NAME_BYTES, np.uint8) if chosen is None else chosen
    operands = whole(values, rhs, known, *(() if x0 is None else (x0,)))
    return bound(primitive, varying_alike(*operands), asked)


def bound(primitive: Primitive, operands: Sequence[Any], asked: Asked) -> list[Array]:
    """`Primitive.bind`, typed."""
    found: list[Array] = primitive.bind(*operands, asked=asked)  # type: ignore[no-untyped-call]
    return found


def _kinds(rows: int, values: Any, rhs: Any, asked: Asked) -> list[Kind]:
    """Shape and type of each output."""
    systems = tuple(values.shape[: values.ndim - asked.entries])
    real = np.zeros(0, rhs.dtype).real.dtype
    whole = np.dtype(np.int32)
    columns = tuple(rhs.shape[len(systems) + 1 :])
    return [
        ((*systems, rows, *columns), rhs.dtype),
        ((NAME_BYTES,), np.dtype(np.uint8)),
        (systems, whole),
        (systems, whole),
        (systems, real),
        (systems, real),
        ((), real),
        ((), whole),
        ((), np.dtype(np.bool_)),
    ]


def _abstract(rows: Callable[[Asked], int], values: Any, rhs: Any, *_: Any, asked: Asked) -> list[Any]:
    def like(shape: tuple[int, ...], dtype: Any) -> Any:
        spec = PartitionSpec(*(None,) * len(shape))  # type: ignore[no-untyped-call]
        sharding = NamedSharding(rhs.sharding.mesh, spec)
        return rhs.update(shape=shape, dtype=dtype, weak_type=False, sharding=sharding)

    return [like(*each) for each in _kinds(rows(asked), values, rhs, asked)]


# -- with numbers --------------------------------------------------------------------------


def _eager(answer: Answer, *operands: Any, asked: Asked) -> list[Array]:
    values, rhs, chosen, x0 = _arrays(operands)
    return _placed(answer(asked, values, rhs, chosen, x0, "raise"), operands)


def _arrays(operands: Sequence[Any]) -> tuple[HostArray, HostArray, HostArray, HostArray | None]:
    """The operands for an `Answer`; views where they lie in host memory."""
    values, rhs, chosen, *x0 = (np.ascontiguousarray(np.asarray(operand)) for operand in operands)
    return values, rhs, chosen, x0[0] if x0 else None


def _placed(found: Sequence[HostArray], operands: Sequence[Any]) -> list[Array]:
    """The outputs where the operands are: on the device that was asked for, if one was."""
    bound_to = next((o for o in operands if isinstance(o, Array) and o.committed), None)
    if bound_to is None:
        return [jnp.asarray(each) for each in found]
    x, *rest = found
    rhs = operands[1]
    if len(bound_to.sharding.device_set) > 1:
        alike = rhs.committed and x.shape == rhs.shape
        return [jax.device_put(x, rhs.sharding) if alike else jnp.asarray(x), *map(jnp.asarray, rest)]
    (device,) = bound_to.sharding.device_set
    return [jax.device_put(each, device) for each in found]


# -- inside of a compiled program ----------------------------------------------------------


def _compiled(answer: Answer, rows: Callable[[Asked], int], *operands: Array, asked: Asked) -> list[Array]:
    kinds = _kinds(rows(asked), operands[0], operands[1], asked)
    given = [(each.shape, each.dtype) for each in operands]
    wanted = [_words.struct(*each) for each in kinds]
    called = partial(_called, answer, asked, given)
    found: list[Array] = jax.pure_callback(called, wanted, *map(_words.packed, operands))
    return [_words.unpacked(each, dtype) for each, (_, dtype) in zip(found, kinds, strict=True)]


def _called(answer: Answer, asked: Asked, given: Sequence[Kind], *operands: Any) -> list[HostArray]:
    numbers = [_words.numbers(each, *kind) for each, kind in zip(operands, given, strict=True)]
    values, rhs, chosen, x0 = _arrays(numbers)
    # Copies of what a worker may still look at when this call has run out of time, and its memory is gone.
    start = None if x0 is None else x0.copy()
    return [_words.words(each) for each in answer(asked, values, rhs.copy(), chosen, start, "nan")]


# -- vmap ----------------------------------------------------------------------------------


def _map(
    primitive: Primitive, operands: Sequence[Any], dims: Sequence[int | None], *, asked: Asked
) -> tuple[list[Array], list[int | None]]:
    """One request for the whole mapped dimension."""
    size = next(o.shape[d] for o, d in zip(operands, dims, strict=True) if d is not None)
    values, rhs, chosen, *x0 = whole(*operands)
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
        x, *rest = bind(primitive, values, block, begun, chosen, asked)
        return [_fold.from_columns(x, b, systems), *rest], [0, *(None,) * len(rest)]
    batch = jnp.moveaxis(values, values_dim, 0)
    if batch.ndim == asked.entries + 1:
        x, method, *rest = bind(primitive, batch, b, start, chosen, asked)
    else:
        joined = None if start is None else _fold.joined(start)
        x, method, *rest = bind(primitive, _fold.joined(batch), _fold.joined(b), joined, chosen, asked)
        x = x.reshape((*batch.shape[:2], *x.shape[1:]))
        rest[:_PER_SYSTEM] = [each.reshape(batch.shape[:2]) for each in rest[:_PER_SYSTEM]]
    mapped = [0 if index < _PER_SYSTEM else None for index in range(len(rest))]
    return [x, method, *rest], [0, None, *mapped]
