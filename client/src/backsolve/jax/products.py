"""Hessian-vector products, Gauss-Newton products and Jacobians of functions that solve, with few solves.

Forward over reverse: for a function with one solve in it four solves with one factor, of which two are those of the
value and the gradient. A Jacobian is JAX's own: all rows, or columns, of it are one request.
Complex gradients are JAX's: the conjugate of the gradient with respect to the conjugate.

Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994; Schraudolph, "Fast curvature matrix-vector
products for second-order gradient descent", 2002.
"""

from collections.abc import Callable
from typing import Any, Literal, final

import jax
import jax.numpy as jnp
from jax import Array

from ..errors import InvalidDtypeError, InvalidOptionError, InvalidShapeError

Inputs = Any
"""An array, or a tuple of what the function is called with: arrays, or trees of them."""


@final
class HessianProducts:
    """The Hessian of a scalar function at one point, as an operator: the value and gradient are computed once.

        H = HessianProducts(f, x)
        step = cg(H, -H.gradient)[0]     # each H(v) costs two solves

    Args:
        f: of as many arguments as `inputs` has; a real scalar.
        inputs: where: an array, or a tuple of arrays or trees of them.

    Attributes:
        value: f there.
        gradient: like the inputs, in JAX's convention.

    Raises:
        InvalidShapeError: f is no real scalar.
        InvalidDtypeError: an input is no array of floating-point numbers.
        BacksolveError: as of the solves in f.
    """

    def __init__(self, f: Callable[..., Array], inputs: Inputs) -> None:
        self._inputs = inputs

        def value_and_gradient(*where: Any) -> tuple[Array, Any]:
            value, pull = jax.vjp(f, *where)
            _scalar(value, "f")
            return value, pull(jnp.ones_like(value))

        (self.value, gradient), self._push = jax.linearize(value_and_gradient, *_several(inputs))
        self.gradient: Inputs = self._like(gradient)

    def __call__(self, v: Inputs) -> Inputs:
        """`H v`: two solves for each solve in f.

        Args:
            v: like the inputs.

        Returns:
            Like the inputs.

        Raises:
            InvalidShapeError, InvalidDtypeError: v is not like the inputs.
        """
        return self._like(self._push(*_alike(v, self._inputs))[1])

    def _like(self, several: Any) -> Inputs:
        return several if isinstance(self._inputs, tuple) else several[0]


def hvp(f: Callable[..., Array], inputs: Inputs, v: Inputs) -> tuple[Array, Inputs]:
    """Value of a scalar function, and the product of its Hessian with a vector.

    For more products at one point, `HessianProducts` computes the value and the gradient once.

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
    _alike(v, inputs)
    products = HessianProducts(f, inputs)
    return products.value, products(v)


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
    _inexact(residual, "the model must return")
    pull = jax.linear_transpose(push, *along)
    # In a tuple of one: what the model returns may be a tuple itself.
    value, (curved,) = hvp(_half_square if loss is None else loss, (residual,), (push(*along),))
    product = pull(curved)
    return value, product if isinstance(inputs, tuple) else product[0]


def jacobian(
    f: Callable[..., Any], inputs: Inputs, *, mode: Literal["auto", "reverse", "forward"] = "auto"
) -> tuple[Any, Inputs]:
    """Value and Jacobian of a function, all rows (or all columns) of it in one request for each solve in f.

    Args:
        f: of as many arguments as `inputs` has; an array, or a tree of them.
        inputs: real: an array, or a tuple of arrays or trees of them.
        mode: "reverse" pulls back each number of the output, "forward" pushes each number of the inputs; "auto"
            takes the fewer.

    Returns:
        The value, and for each input `∂f/∂input`, `[*output, *input]`.

    Raises:
        InvalidDtypeError: complex inputs, where a derivative is no Jacobian of complex numbers: take the real and the
            imaginary part as two inputs.
        InvalidOptionError: no such mode; or "reverse" of a complex output.
    """
    points = _several(inputs)
    if any(jnp.iscomplexobj(point) for point in jax.tree.leaves(points)):
        raise InvalidDtypeError("a Jacobian is of real inputs: take the real and the imaginary part as two inputs")
    if mode not in ("auto", "reverse", "forward"):
        raise InvalidOptionError("mode must be 'auto', 'reverse' or 'forward'", option="mode")
    outputs = jax.tree.leaves(jax.eval_shape(f, *points))
    complex_output = any(jnp.issubdtype(output.dtype, jnp.complexfloating) for output in outputs)
    if complex_output and mode == "reverse":
        raise InvalidOptionError("f is complex: use mode='forward'", option="mode")
    rows, columns = (sum(each.size for each in several) for several in (outputs, jax.tree.leaves(points)))
    backwards = mode == "reverse" or (mode == "auto" and rows <= columns and not complex_output)

    def twice(*where: Any) -> tuple[Any, Any]:
        value = f(*where)
        return value, value

    everything = tuple(range(len(points)))
    transform = jax.jacrev if backwards else jax.jacfwd
    found, value = transform(twice, argnums=everything, has_aux=True)(*points)
    if isinstance(inputs, tuple):
        return value, found
    return value, jax.tree.map(lambda _, each: each[0], jax.eval_shape(f, *points), found)


def _half_square(residual: Any) -> Array:
    squares = [jnp.sum(jnp.real(r) ** 2 + jnp.imag(r) ** 2) / 2 for r in jax.tree.leaves(residual)]
    return jnp.sum(jnp.stack(squares))


def _several(inputs: Inputs) -> tuple[Any, ...]:
    several = inputs if isinstance(inputs, tuple) else (inputs,)
    leaves = jax.tree.leaves(several)
    if not leaves:
        raise InvalidShapeError("inputs is empty: there is nothing to differentiate with respect to")
    _inexact(several, "inputs must be")
    return jax.tree.map(jnp.asarray, several)  # type: ignore[no-any-return]


def _inexact(tree: Any, what: str) -> None:
    for leaf in jax.tree.leaves(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise InvalidDtypeError(f"{what} arrays of floating-point numbers, and {dtype} is among them")


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
    if not jax.tree_util.all_leaves([value]):
        raise InvalidShapeError(f"{name} must return a real scalar, not {type(value).__name__}: leave the rest out")
    if jnp.shape(value) != ():
        raise InvalidShapeError(f"{name} must return a real scalar, not shape {jnp.shape(value)}: sum or weigh it")
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise InvalidDtypeError(
            f"{name} must return a real floating-point number, not {jnp.result_type(value)}: of complex ones take the "
            "real part or the square of the modulus; integers have no derivative"
        )
