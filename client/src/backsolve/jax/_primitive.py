"""The solve as an operation of JAX's own, with a rule for every transform (docs/adr/0048).

    tangent     op(A) dx = db - op(dA) x      the same operation, linear in its right-hand side
    transpose   op(A)ᵀ λ = cotangent          the same operation, with the transposed operator

Gradients are what JAX makes of these: it transposes the tangent. All of them meet the forward's factor.

Source: Giles, "An extended collection of matrix derivative results", 2008, section 2.3.1.
"""

from collections.abc import Sequence
from typing import Any, Final

import jax
from jax import Array
from jax.interpreters import ad

from . import _host, _operation
from ._asked import Asked
from ._rules import tangent_rhs

solve_p: Final = _operation.operation("backsolve", _host.answer, lambda asked: asked.pattern.n)


def bind(values: Array, rhs: Array, x0: Array | None, chosen: Array | None, asked: Asked) -> list[Array]:
    """`x = M⁻¹ rhs` for the operator M that is asked for; see `_operation.bind`.

    No derivative goes to x0: the answer does not depend on it.
    """
    return _operation.bind(solve_p, values, rhs, x0, chosen, asked)


def _push(primals: Sequence[Any], tangents: Sequence[Any], *, asked: Asked) -> tuple[list[Array], list[Any]]:
    """`M dx = drhs - dM x`."""
    values = primals[0]
    found = _operation.bound(solve_p, primals, asked)
    x, chosen = found[:2]
    dvalues, drhs = (None if isinstance(each, ad.Zero) else each for each in tangents[:2])
    if dvalues is None and drhs is None:
        return found, still(found)
    # A method that was asked for by name is no news, and a gradient that needs no x then needs no forward.
    method = chosen if asked.options.method == "auto" else None
    moved = tangent_rhs(asked.pattern, asked.operator, dvalues, x, drhs, values)
    return found, [bind(values, moved, None, method, asked.pushed_forward())[0], *still(found)[1:]]


def still(found: Sequence[Array]) -> list[Any]:
    """Tangents of outputs that do not move."""
    return [ad.Zero(jax.typeof(each).to_tangent_aval()) for each in found]


def _pull(cotangents: Sequence[Any], values: Any, rhs: Any, chosen: Any, *x0: Any, asked: Asked) -> list[Any]:
    """`Mᵀ λ = cotangent`."""
    nothing = [None] * len(x0)
    if isinstance(cotangents[0], ad.Zero):
        return [None, ad.Zero(rhs.aval), None, *nothing]
    return [None, bind(values, cotangents[0], None, chosen, asked.transposed())[0], None, *nothing]


ad.primitive_jvps[solve_p] = _push
ad.primitive_transposes[solve_p] = _pull
