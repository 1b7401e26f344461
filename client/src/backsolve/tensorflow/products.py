"""Hessian-vector products, Gauss-Newton products and Jacobians of functions that solve, with few solves.

Counted in solves with the one factor of the forward, for a function with one solve in it:

    value and gradient        1 + 1
    hvp                       2 more
    gnvp                      value 1, J v 1, Jᵀ w 1
    jacobian                  value 1, and 1 for each row, or for each column

The functions are the user's own, of real or complex tensors; complex gradients are with respect to the conjugate,
as TensorFlow's are, and products with a Hessian are those of the real inner product Re⟨·, ·⟩. All of them work inside
`tf.function` too.

Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994; Schraudolph, "Fast curvature matrix-vector
products for second-order gradient descent", 2002.
"""

from collections.abc import Callable
from typing import Any, Final, Literal, final

import tensorflow as tf

from ..errors import InvalidDtypeError, InvalidOptionError, InvalidShapeError
from ._rules import Tensor

Inputs = Any
"""What a function is called with: one tensor, or a tuple of several."""

_ZERO: Final = tf.UnconnectedGradients.ZERO


@final
class HessianProducts:
    """The Hessian of a scalar function at one point, as an operator: the value and gradient are computed once.

        H = HessianProducts(f, x)
        step = cg(H, -H.gradient)        # each H(v) costs two solves

    Args:
        f: of as many tensors as `inputs` has; a real scalar.
        inputs: where; not changed.

    Attributes:
        value: f there.
        gradient: shaped like the inputs, one or several.

    Raises:
        InvalidShapeError: f is no real scalar.
        InvalidDtypeError: an input is no tensor of floating-point numbers.
        BacksolveError: as of the solves in f.
    """

    def __init__(self, f: Callable[..., Tensor], inputs: Inputs) -> None:
        self._one = not isinstance(inputs, tuple | list)
        self._inputs = _several(inputs, "inputs")
        with tf.GradientTape(persistent=True) as self._tape:
            self._tape.watch(self._inputs)
            with tf.GradientTape() as inner:
                inner.watch(self._inputs)
                value = _scalar(f(*self._inputs), "f")
            self._gradient = [_dense(g) for g in inner.gradient(value, self._inputs, unconnected_gradients=_ZERO)]
        self.value = tf.stop_gradient(value)
        self.gradient: Inputs = self._like([tf.stop_gradient(g) for g in self._gradient])

    def __call__(self, v: Inputs) -> Inputs:
        """`H v`: two solves for each solve in f.

        Args:
            v: shaped like the inputs.

        Returns:
            Shaped like the inputs.

        Raises:
            InvalidShapeError, InvalidDtypeError: v is not like the inputs.
        """
        along = _alike(v, self._inputs, "v")
        found = self._tape.gradient(self._gradient, self._inputs, output_gradients=along, unconnected_gradients=_ZERO)
        return self._like([tf.stop_gradient(_dense(each)) for each in found])

    def _like(self, tensors: list[Tensor]) -> Inputs:
        return tensors[0] if self._one else tuple(tensors)


def hvp(f: Callable[..., Tensor], inputs: Inputs, v: Inputs) -> tuple[Tensor, Inputs]:
    """Value of a scalar function, and the product of its Hessian with a vector.

    For one solve in f that is four solves with one factor: x, the gradient's adjoint, and two more. For more
    products at one point, `HessianProducts` does the first two once.

    Args:
        f: of as many tensors as `inputs` has; a real scalar.
        inputs: where.
        v: shaped like the inputs.

    Returns:
        The value, and `H v` shaped like the inputs; no tape goes through them.

    Raises:
        InvalidShapeError, InvalidDtypeError: f is no real scalar, or v not like the inputs.
    """
    _alike(v, _several(inputs, "inputs"), "v")
    products = HessianProducts(f, inputs)
    return products.value, products(v)


def gnvp(
    model: Callable[..., Tensor], loss: Callable[[Tensor], Tensor] | None, inputs: Inputs, v: Inputs
) -> tuple[Tensor, Inputs]:
    """Product of the Gauss-Newton matrix `Jᵀ H J` of `loss(model(inputs))` with a vector.

    J is the Jacobian of the model, H the Hessian of the loss with respect to the model's output. For a convex
    loss the matrix is positive semidefinite where the Hessian need not be.

    Args:
        model: of as many tensors as `inputs` has; one tensor.
        loss: of that tensor; a real scalar. None: half the sum of squares, `H = I`, of a residual.
        inputs: where.
        v: shaped like the inputs.

    Returns:
        The loss, and the product, shaped like the inputs; no tape goes through them.

    Raises:
        InvalidShapeError, InvalidDtypeError: the loss is no real scalar, or v not like the inputs.
    """
    points = _several(inputs, "inputs")
    along = _alike(v, points, "v")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(points)
        residual = _tensor(model(*points), "model")
    transposed, w, pulled = _transposed(tape, residual, points)
    moved = transposed.gradient(pulled, w, output_gradients=along, unconnected_gradients=_ZERO)
    value, curved = _curvature(loss, tf.stop_gradient(residual), tf.stop_gradient(_dense(moved)))
    found = tape.gradient(residual, points, output_gradients=curved, unconnected_gradients=_ZERO)
    product = tuple(tf.stop_gradient(_dense(each)) for each in found)
    return value, product if isinstance(inputs, tuple | list) else product[0]


def jacobian(
    f: Callable[..., Tensor], inputs: Inputs, *, mode: Literal["auto", "reverse", "forward"] = "auto"
) -> tuple[Tensor, Inputs]:
    """Value and Jacobian of a function, whose rows (or columns) are one request each for each solve in f.

    TensorFlow maps no operation that leaves its graph: what it vectorizes of f, it does around those requests.

    Args:
        f: of as many tensors as `inputs` has; one tensor.
        inputs: real.
        mode: "reverse" pulls back each number of the output, "forward" pushes each number of the inputs; "auto"
            takes the fewer.

    Returns:
        The value, and for each input `∂f/∂input`, `[*output, *input]`; no tape goes through them.

    Raises:
        InvalidDtypeError: complex inputs, where a derivative is no Jacobian of complex numbers: take the real and the
            imaginary part as two inputs.
        InvalidShapeError: mode is "auto", and sizes are not known while a `tf.function` is traced.
        InvalidOptionError: no such mode; or "reverse" of a complex output.
    """
    points = _several(inputs, "inputs")
    if any(point.dtype.is_complex for point in points):
        raise InvalidDtypeError("a Jacobian is of real inputs: take the real and the imaginary part as two inputs")
    if mode not in ("auto", "reverse", "forward"):
        raise InvalidOptionError("mode must be 'auto', 'reverse' or 'forward'", option="mode")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(points)
        value = _tensor(f(*points), "f")
    if value.dtype.is_complex and mode == "reverse":
        raise InvalidOptionError("f is complex: use mode='forward'", option="mode")
    if _backwards(mode, value, points):
        found = tape.jacobian(value, points, unconnected_gradients=_ZERO)
    else:
        transposed, w, pulled = _transposed(tape, value, points)
        with transposed:
            flat = tf.concat([tf.reshape(each, [-1]) for each in pulled], 0)
        found = _columns(transposed.jacobian(flat, w, unconnected_gradients=_ZERO), points)
    jacobians = tuple(tf.stop_gradient(each) for each in found)
    return tf.stop_gradient(value), jacobians if isinstance(inputs, tuple | list) else jacobians[0]


def _transposed(tape: Any, value: Tensor, points: list[Tensor]) -> tuple[Any, Tensor, list[Tensor]]:
    """What a cotangent w of `value` is pulled back to, which is linear in it: its derivative is the Jacobian.

    Forward mode would do the same for each tangent, and from a w that has to be solved with.

    Returns:
        The tape that knows it, w (which is zero), and what w is pulled back to.
    """
    w = tf.zeros_like(value)
    with tf.GradientTape(persistent=True) as transposed:
        transposed.watch(w)
        pulled = tape.gradient(value, points, output_gradients=w, unconnected_gradients=_ZERO)
        pulled = [_dense(each) for each in pulled]
    return transposed, w, pulled


def _backwards(mode: str, value: Tensor, points: list[Tensor]) -> bool:
    """Whether rows are pulled back, rather than columns pushed forward."""
    if mode != "auto" or value.dtype.is_complex:
        return mode == "reverse"
    rows, columns = value.shape.num_elements(), [point.shape.num_elements() for point in points]
    if rows is None or None in columns:
        raise InvalidShapeError(
            "the sizes of f and of its inputs are not known while the tf.function is traced: say mode='reverse' or "
            "mode='forward'"
        )
    return bool(rows <= sum(columns))


def _columns(columns: Tensor, points: list[Tensor]) -> list[Tensor]:
    """`[*output, *input]` for each input, from the `[count, *output]` of all of them in a row."""
    rank, found = columns.shape.rank, []
    for part, point in zip(tf.split(columns, [tf.size(point) for point in points]), points, strict=True):
        last = tf.transpose(part, [*range(1, rank), 0])
        shaped = tf.reshape(last, tf.concat([tf.shape(last)[:-1], tf.shape(point)], 0))
        found.append(tf.ensure_shape(shaped, columns.shape[1:].concatenate(point.shape)))
    return found


def _curvature(loss: Callable[[Tensor], Tensor] | None, residual: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and its Hessian at the residual times `moved`."""
    if loss is None:
        return tf.reduce_sum(tf.math.real(residual * tf.math.conj(residual))) / 2, moved
    products = HessianProducts(loss, residual)
    return products.value, products(moved)


def _several(inputs: Any, name: str) -> list[Tensor]:
    several = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    found = []
    for each in several:
        if not (tf.is_tensor(each) or isinstance(each, tf.Variable)) or isinstance(each, tf.SparseTensor):
            raise InvalidDtypeError(f"{name} must be a dense tensor of floating-point numbers, or a tuple of such")
        given = tf.stop_gradient(tf.convert_to_tensor(each))
        if not (given.dtype.is_floating or given.dtype.is_complex):
            raise InvalidDtypeError(f"{name} must be a dense tensor of floating-point numbers, or a tuple of such")
        found.append(given)
    if not found:
        raise InvalidShapeError(f"{name} is empty: there is nothing to differentiate with respect to")
    return found


def _alike(v: Any, inputs: list[Tensor], name: str) -> list[Tensor]:
    several = _several(v, name)
    if len(several) != len(inputs) or not all(
        a.shape.is_compatible_with(b.shape) for a, b in zip(several, inputs, strict=True)
    ):
        raise InvalidShapeError(
            f"{name} has shapes {[tuple(t.shape) for t in several]}, the inputs {[tuple(t.shape) for t in inputs]}"
        )
    if any(a.dtype != b.dtype for a, b in zip(several, inputs, strict=True)):
        raise InvalidDtypeError(f"{name} must have the element types of the inputs")
    return several


def _tensor(value: Any, name: str) -> Tensor:
    if not tf.is_tensor(value) or isinstance(value, tf.SparseTensor | tf.IndexedSlices | tf.RaggedTensor):
        raise InvalidShapeError(f"{name} must return one dense tensor, not {type(value).__name__}")
    return value


def _scalar(value: Any, name: str) -> Tensor:
    if _tensor(value, name).shape.num_elements() not in (None, 1) or value.dtype.is_complex:
        raise InvalidShapeError(
            f"{name} must be a real scalar, it has shape {tuple(value.shape)} and {value.dtype.name}"
        )
    return value


def _dense(gradient: Tensor) -> Tensor:
    """A gradient that may have come as slices."""
    return tf.convert_to_tensor(gradient)
