"""Hessian-vector and Gauss-Newton products of functions that solve, with few solves.

Forward over reverse: for a function with one solve in it four solves with one factor, of which two are those of the
value and the gradient. JAX's own `jacrev` and `jacfwd` ask for all rows, or columns, in one request already.
Complex gradients are JAX's: the conjugate of the gradient with respect to the conjugate.

Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994; Schraudolph, "Fast curvature matrix-vector
products for second-order gradient descent", 2002.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..errors import InvalidDtypeError, InvalidShapeError

Inputs = Any
"""An array, or a tuple of what the function is called with: arrays, or trees of them."""


def hvp(f: Callable[..., Array], inputs: Inputs, v: Inputs) -> tuple[Array, Inputs]:
    """Value of a scalar function, and the product of its Hessian with a vector.

    Args:
        f: of as many arguments as `inputs` has; a real scalar.
        inputs: where: an array, or a tuple of arrays or trees of them.
        v: like the inputs.

    Returns:
        The value, and `H v`, like the inputs.

    Raises:
        InvalidShapeError, InvalidDtypeError: f is no real scalar, or v not like the inputs.
        BacksolveError: as of the solves in f.
    """
    points, along = _several(inputs), _alike(v, inputs)

    def value_and_gradient(*where: Any) -> tuple[Array, Any]:
        value, pull = jax.vjp(f, *where)
        _scalar(value, "f")
        return value, pull(jnp.ones_like(value))

    (value, _), (_, product) = jax.jvp(value_and_gradient, points, along)
    return value, product if isinstance(inputs, tuple) else product[0]


def gnvp(
    model: Callable[..., Any], loss: Callable[[Any], Array] | None, inputs: Inputs, v: Inputs
) -> tuple[Array, Inputs]:
    """Product of the Gauss-Newton matrix `Jᵀ H J` of `loss(model(inputs))` with a vector.

    J is the Jacobian of the model, H the Hessian of the loss with respect to the model's output. The model is
    evaluated once: beside its own solve there is one for `J v` and one for `Jᵀ w`.

    Args:
        model: of as many arguments as `inputs` has.
        loss: of the model's output; a real scalar. None: half the sum of squares, `H = I`, of a residual.
        inputs: where: an array, or a tuple of arrays or trees of them.
        v: like the inputs.

    Returns:
        The loss, and the product, like the inputs.

    Raises:
        InvalidShapeError, InvalidDtypeError: the loss is no real scalar, or v not like the inputs.
    """
    points, along = _several(inputs), _alike(v, inputs)
    residual, push = jax.linearize(model, *points)
    pull = jax.linear_transpose(push, *along)
    # In a tuple of one: what the model returns may be a tuple itself.
    value, (curved,) = hvp(_half_square if loss is None else loss, (residual,), (push(*along),))
    product = pull(curved)
    return value, product if isinstance(inputs, tuple) else product[0]


def _half_square(residual: Any) -> Array:
    squares = [jnp.sum(jnp.real(r) ** 2 + jnp.imag(r) ** 2) / 2 for r in jax.tree.leaves(residual)]
    return jnp.sum(jnp.stack(squares))


def _several(inputs: Inputs) -> tuple[Any, ...]:
    several = inputs if isinstance(inputs, tuple) else (inputs,)
    leaves = jax.tree.leaves(several)
    if not leaves:
        raise InvalidShapeError("inputs is empty: there is nothing to differentiate with respect to")
    if not all(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves):
        raise InvalidDtypeError("inputs must be arrays of floating-point numbers")
    return jax.tree.map(jnp.asarray, several)  # type: ignore[no-any-return]


def _alike(v: Inputs, inputs: Inputs) -> tuple[Any, ...]:
    given, wanted = _several(v), _several(inputs)
    if str(jax.tree.structure(given)) != str(jax.tree.structure(wanted)):
        raise InvalidShapeError("v must be a tree like the inputs")
    for one, other in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
        if one.shape != other.shape:
            raise InvalidShapeError(f"v has shape {one.shape} where the inputs have {other.shape}")
        if one.dtype != other.dtype:
            raise InvalidDtypeError(f"v is {one.dtype} where the inputs are {other.dtype}")
    return given


def _scalar(value: Any, name: str) -> None:
    if jnp.shape(value) != () or jnp.iscomplexobj(value):
        raise InvalidShapeError(f"{name} must be a real scalar, it has shape {jnp.shape(value)}")
