"""The solve, and least squares, as operations that TensorFlow's tapes know every derivative of.

The gradient's rule is written in terms of the solve and of its answer, and the answer in it is tied
to the same rule again: so an outer tape sees how x depends on A and b, without solving for x once
more, and derivatives are right to every order. One solve forward, one for a gradient, two more for a
Hessian-vector product. A forward accumulator transposes the gradient's rule: two requests.

Those of least squares are of `backsolve._adapter.least_squares_rules`, given these very operations to be written in.
"""

from dataclasses import dataclass, replace
from typing import Any, Final, final
from uuid import uuid4

import numpy as np
import tensorflow as tf

from .._adapter.least_squares_rules import Operation, Products, pull_minimise, pull_normal
from .._adapter.request import ADJOINT
from ..errors import InvalidOptionError, NotSupportedError
from ..kinds.base import Operator
from ..pattern import StructuredPattern
from ..types import Certificate
from ._forward import tied, unseen
from ._request import Asked, Operands, answer
from ._rules import ANY, Place, Tensor, algebra, shaped, structured_gradient, values_gradient

_LOST: Final = (
    "TensorFlow has dropped the gradient of a solve on its way: a gradient outside of tf.vectorized_map, or of a "
    "Jacobian by pfor, or of a SavedModel. Use tf.map_fn, one solve for the whole batch, or "
    "jacobian(experimental_use_pfor=False)"
)

_NAME: Final = "backsolve_solves_in_Python__which_no_SavedModel_holds__build_the_model_from_its_code"
"""Of the operation: where a graph was loaded without the function, TensorFlow's error has this and no word of ours."""

NO_NOTE: Final = np.zeros(0, dtype=np.uint8)


@final
@dataclass(frozen=True, slots=True)
class Where:
    """What of a matrix is not numbers to differentiate.

    Attributes:
        place: of the entries, of an update those of S; None for a dense matrix, and for parameters.
        indices, shape: of a `tf.SparseTensor`, which are read when it is solved with.
    """

    place: Place | None = None
    indices: Tensor | None = None
    shape: Tensor | None = None

    def here(self) -> "Where":
        """The same in tensors of the graph that is being built."""
        if self.place is None or tf.executing_eagerly():
            return self
        if self.indices is not None:
            return of_indices(tf.identity(self.indices), tf.identity(self.shape), self.place.static)
        return Where(replace(self.place, rows=tf.identity(self.place.rows), columns=tf.identity(self.place.columns)))


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a solve.

    Attributes:
        x: tied to the operands.
        certificate: None while a graph is built: nothing has been solved then.
    """

    x: Tensor
    certificate: Certificate | None


def of_indices(indices: Tensor, shape: Tensor, static: tuple[int | None, int | None]) -> Where:
    """Where the entries of a `tf.SparseTensor` are.

    Args:
        indices: `[nnz, 2]`.
        shape: `[2]`.
        static: what is known of the shape.
    """
    rows, columns = tf.unstack(indices, axis=1)
    return Where(Place(rows, columns, tuple(tf.unstack(shape)), static), indices, shape)


def solve(asked: Asked, where: Where, values: Tensor, rhs: Tensor, x0: Tensor | None, note: Tensor | None) -> Answer:
    """`x = M⁻¹ rhs` for the operator M that is asked for, or another operation on rhs.

    Args:
        asked: the operation.
        where: the entries of A.
        values: `[*batch, nnz]`; dense `[*batch, m, n]`.
        rhs: `[*batch, n]` or `[*batch, n, k]`; of least squares columns alone.
        x0: first iterate. No derivative: the answer does not depend on it.
        note: of the forward solve, for those that come after it.
    """
    x, told, certificate = _call(asked, where, values, rhs, x0, NO_NOTE if note is None else note)
    return Answer(_tied(asked, where, values, rhs, x, told), certificate)


def told(found: Answer, return_stats: bool) -> Tensor | tuple[Tensor, Certificate]:
    """What a caller is given.

    Raises:
        InvalidOptionError: a certificate is asked for, and nothing was solved.
    """
    if not return_stats:
        return found.x
    if found.certificate is None:
        raise InvalidOptionError("there is no certificate: nothing was solved")
    return found.x, found.certificate


def _call(
    asked: Asked, where: Where, values: Tensor, rhs: Tensor, x0: Tensor | None, note: Tensor
) -> tuple[Tensor, Tensor, Certificate | None]:
    """The request, at once or as an operation of the graph; x and the note are constants to every tape."""
    optional = {"x0": x0, "indices": where.indices, "shape": where.shape}
    names = [name for name, tensor in optional.items() if tensor is not None]
    tensors = [values, rhs, note, *(optional[name] for name in names)]

    def operands(arrays: Any) -> Operands:
        a, b, said = arrays[:3]
        more = dict(zip(names, arrays[3:], strict=True))
        return Operands(a, b, said, more.get("x0"), more.get("indices"), more.get("shape"))

    if tf.executing_eagerly():
        # Errors of our own arrive here as they are, not as one of TensorFlow's.
        x, told, certificate = answer(asked, operands([np.asarray(tensor) for tensor in tensors]))
        with tf.device(rhs.device):
            return tf.convert_to_tensor(x), told, certificate
    mark = uuid4().bytes

    def called_back(told: Any, *arrays: Any) -> tuple[Any, ...]:
        if told.tobytes() != mark:
            # TensorFlow numbers such functions anew in every process.
            raise NotSupportedError(
                "this graph was saved in another process, and loaded without the function that solves: a SavedModel "
                "cannot hold a solve; build the model from its code, or save the Keras model as .keras"
            )
        return answer(asked, operands(arrays))[:2]

    marked = tf.constant(np.frombuffer(mark, dtype=np.uint8))
    # Stateless: a graph that does not need an answer need not ask for it.
    with unseen(values, rhs):
        x, told = tf.numpy_function(called_back, [marked, *tensors], [rhs.dtype, tf.uint8], stateful=False, name=_NAME)
        x.set_shape(_shape(asked, where, values, rhs))
        told.set_shape([None])
        # To TensorFlow x is a constant. Where it drops the rule that ties x to A and b, its gradient would be zero.
        return tf.raw_ops.PreventGradient(input=x, message=_LOST), told, None


def _tied(asked: Asked, where: Where, values: Tensor, rhs: Tensor, x: Tensor, note: Tensor) -> Tensor:
    """x, as the solution that belongs to `values` and `rhs`."""
    returned: list[Tensor] = []
    # The rule may use what is in the graph of its solve, a branch or a body, and not what that graph captured; a
    # derivative of the rule may be built in a third graph, for which the same holds.
    where, values, rhs, x, note = where.here(), _here(values), _here(rhs), _here(x), _here(note)

    def pull(grad: Tensor) -> tuple[Tensor | None, Tensor]:
        # What the caller was given, so that its cotangents and those of this rule are solved with at once.
        # A forward accumulator runs the rule before that; x is tied anew then.
        answer = returned[0] if returned else _tied(asked, where, values, rhs, x, note)
        return _pulled(asked, where, values, rhs, answer, note, shaped(_dense(grad, x), x.shape))

    solution = tf.custom_gradient(lambda values, rhs: (tf.identity(x), pull))
    returned.append(tied(solution, pull, values, rhs))
    return returned[0]


def _pulled(
    asked: Asked, where: Where, values: Tensor, rhs: Tensor, x: Tensor, note: Tensor, grad: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Gradients of the values and of rhs, from the cotangent of x."""
    if asked.operation != "solve":
        a, inverse = Products(algebra(where.place), ANY, values), _normal(asked, where, values, note)
        damped = bool(asked.options.damp)
        if asked.operation == "minimise":
            return pull_minimise(a, rhs, x, grad, inverse, damped=damped, of_values=True)
        return pull_normal(a, rhs, x, grad, inverse, damped=damped, of_values=True)
    # `Mᴴ λ = grad`; then `∂rhs = λ` and `∂values` on the stored entries.
    lam = solve(asked.pulled_back(), where, values, grad, None, note).x
    pattern = asked.pattern
    if isinstance(pattern, StructuredPattern):
        vectors = rhs.shape.rank == values.shape.rank
        return structured_gradient(pattern, where.place, _operator(asked), lam, x, values, vectors), lam
    vectors = rhs.shape.rank == values.shape.rank - (2 if where.place is None else 1) + 1
    storage = asked.storage if pattern is None else pattern.storage
    return values_gradient(where.place, storage, _operator(asked), lam, x, vectors), lam


def _normal(asked: Asked, where: Where, values: Tensor, note: Tensor) -> Operation:
    """`(AᴴA + damp² I)⁺`, with the factor of the forward."""
    inverse = replace(asked, operation="normal")
    return lambda v: solve(inverse, where, values, v, None, note).x


def _shape(asked: Asked, where: Where, values: Tensor, rhs: Tensor) -> Any:
    """What is known of the shape of x: that of rhs, but for the rows of least squares."""
    if asked.operation != "minimise":
        return rhs.shape
    columns = values.shape[-1] if where.place is None else where.place.static[1]
    return rhs.shape[:-2].concatenate([columns, rhs.shape[-1]])


def _here(tensor: Tensor) -> Tensor:
    """A tensor of the graph that is being built, rather than one that it captures."""
    return tensor if tf.executing_eagerly() else tf.identity(tensor)


def _operator(asked: Asked) -> Operator:
    trans: Operator = asked.options.trans
    return ADJOINT[trans] if asked.adjoint else trans


def _dense(grad: Any, x: Tensor) -> Tensor:
    """A cotangent of x that may have come as rows with their places, as those of `tf.gather` do."""
    if isinstance(grad, tf.IndexedSlices):
        # Those of a user's own rule may lack the shape of the whole.
        return tf.math.unsorted_segment_sum(grad.values, grad.indices, tf.shape(x)[0])
    return tf.convert_to_tensor(grad)
