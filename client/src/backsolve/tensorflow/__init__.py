"""Differentiable linear solves on tensors of TensorFlow.

    from backsolve.tensorflow import solve
    x = solve(A, b)                  # dense or tf.SparseTensor; real or complex; batched
    tape.gradient(loss(x), [A, b])   # one adjoint solve with the factor of the forward

Works eagerly and in `tf.function`, with tapes and forward accumulators in any nesting.
"""

from .functional import solve, spsolve

__all__ = ["solve", "spsolve"]
