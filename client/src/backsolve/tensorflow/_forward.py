"""Custom gradients that a `tf.autodiff.ForwardAccumulator` sees inside of a graph too.

While a graph is built, `tf.custom_gradient` is an identity with a gradient of its own, and accumulators push tangents
through the identity alone: that of the answer, which is a constant, would be zero without a word. Here the operation is
recorded once, with its gradient, as it is outside of a graph. TensorFlow has no public way to do that.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import record

from ._rules import Tensor


def tied(solution: Callable[[Tensor, Tensor], Tensor], pull: Callable[[Tensor], Any], *given: Tensor) -> Tensor:
    """`solution(*given)`, where a graph is built and any of the operands has a tangent with the derivative of `pull`.

    Args:
        solution: what `tf.custom_gradient` made, of whose answer `pull` is the gradient.
        pull: gradients of the operands, of the cotangent of the answer.
        given: operands.
    """
    if not _moved(given):
        return solution(*given)
    with record.stop_recording():
        answer = solution(*given)  # what gradients of the graph will find in it
    record.record_operation("Backsolve", [answer], list(given), pull)
    return answer


def unseen(*given: Tensor) -> AbstractContextManager[None]:
    """For operations of a graph on these operands that have no derivative: nested accumulators fail in them."""
    unrecorded: AbstractContextManager[None] = record.stop_recording()
    return unrecorded if _moved(given) else nullcontext()


def _moved(tensors: tuple[Tensor, ...]) -> bool:
    """Whether a graph is being built in which any of these has a tangent."""
    return not tf.executing_eagerly() and bool(pywrap_tfe.TFE_Py_PackJVPs(list(tensors))[1])
