"""Checks of what callers pass, as far as they can be made before there are numbers."""

from typing import Any, Final

import tensorflow as tf

from ..errors import InvalidDtypeError, InvalidShapeError, NotSupportedError
from ._rules import Tensor

_TYPES: Final = (tf.float32, tf.float64, tf.complex64, tf.complex128)


def tensor(value: Any, name: str) -> Tensor:
    """A dense tensor that can be solved with, of whatever TensorFlow makes one of.

    Raises:
        InvalidDtypeError: it cannot be made one, or is of another element type.
        InvalidShapeError: it is sparse or ragged.
    """
    if isinstance(value, tf.SparseTensor | tf.RaggedTensor | tf.IndexedSlices):
        raise InvalidShapeError(
            f"{name} is a {type(value).__name__}; pass a dense tensor, e.g. tf.sparse.to_dense({name}), "
            "or a sparse matrix as the A of solve(A, b)"
        )
    try:
        dense = tf.convert_to_tensor(value)
    except (TypeError, ValueError) as err:
        raise InvalidDtypeError(
            f"{name} is a {type(value).__name__}, of which TensorFlow makes no tensor: pass a tf.SparseTensor for "
            "a sparse matrix, spsolve(values, pattern, b) for computed values, and use the layer LinearSolve in a "
            "functional model of Keras"
        ) from err
    if dense.dtype not in _TYPES:
        raise InvalidDtypeError(
            f"{name} is {dense.dtype.name}; solves run in float32, float64, complex64 and complex128: convert it "
            f"first, e.g. tf.cast({name}, tf.float64)"
        )
    return dense


def pair(values: Tensor, b: Tensor, name: str) -> None:
    """Refuse operands that differ in element type, and ranks that are not known.

    Raises:
        InvalidDtypeError: the element types differ.
        InvalidShapeError: a rank is not known.
    """
    if values.dtype != b.dtype:
        raise InvalidDtypeError(
            f"{name} is {values.dtype.name}, b is {b.dtype.name}: convert one, e.g. tf.cast(b, {name}.dtype)"
        )
    for operand, what in ((values, name), (b, "b")):
        if operand.shape.rank is None:
            raise InvalidShapeError(
                f"nothing is known of the shape of {what}, and vectors cannot be told from columns: give it a rank, "
                f"e.g. tf.ensure_shape({what}, [None, None])"
            )


def shapes(values: Tensor, b: Tensor, x0: Tensor | None, entries: tuple[int | None, ...], n: int | None) -> str | None:
    """What does not fit as far as shapes are known, or None; the rest is checked with the numbers.

    Args:
        values: `[*batch, *entries]`.
        b: `[*batch, n]` or `[*batch, n, k]`.
        x0: shaped like b.
        entries: shape of one matrix's values.
        n: rows of one matrix.
    """
    rank = values.shape.rank - len(entries)
    if rank < 0 or not values.shape[rank:].is_compatible_with(entries):
        return f"has shape {_told(values)}, the pattern needs {entries} or (batch, *{entries})"
    known = values.shape[:rank].concatenate([n])
    if b.shape.rank not in (rank + 1, rank + 2) or not b.shape[: rank + 1].is_compatible_with(known):
        wanted = tuple(known.as_list())
        return f"takes a b of shape {wanted} for vectors or {(*wanted, 'k')} for k columns, not {_told(b)}"
    if x0 is not None and not x0.shape.is_compatible_with(b.shape):
        return f"takes an x0 shaped like b, {_told(b)}, not {_told(x0)}"
    return None


def refuse_compilation() -> None:
    """Refuse to be traced into a graph that XLA will compile.

    Raises:
        NotSupportedError: this is such a graph.
    """
    graph: Any = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        # TensorFlow offers no public way to ask; where this one is gone, its own error names the operation PyFunc.
        asked = getattr(graph, "_get_control_flow_context", None)
        context = None if asked is None else asked()
        while context is not None:
            if context.IsXLAContext():
                raise NotSupportedError(
                    "XLA cannot compile a solve, which happens outside of the graph: leave jit_compile=True out of "
                    "the tf.function (Keras: compile(jit_compile=False)) that solves; what it calls may be compiled"
                )
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)


def _told(tensor: Tensor) -> tuple[int | None, ...]:
    return tuple(tensor.shape.as_list())
