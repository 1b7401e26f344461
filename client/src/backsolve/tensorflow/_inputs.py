"""Checks of what callers pass, as far as they can be made before there are numbers."""

from typing import Any, Final

import tensorflow as tf

from ..errors import InvalidDtypeError, InvalidOptionError, InvalidShapeError, NotSupportedError
from ..pattern import StructuredPattern, parameters
from ._function import Where, of_indices
from ._request import Asked
from ._rules import Tensor, shaped

_TYPES: Final = (tf.float32, tf.float64, tf.complex64, tf.complex128)


def tensor(value: Any, name: str) -> Tensor:
    """A dense tensor that can be solved with, of whatever TensorFlow makes one of.

    Raises:
        InvalidDtypeError: it cannot be made one, or is of another element type.
        InvalidShapeError: it is sparse or ragged.
    """
    if isinstance(value, tf.SparseTensor | tf.RaggedTensor | tf.IndexedSlices):
        dense = {tf.SparseTensor: f"tf.sparse.to_dense({name})", tf.RaggedTensor: f"{name}.to_tensor()"}
        raise InvalidShapeError(
            f"{name} is a {type(value).__name__}; pass a dense tensor, e.g. "
            f"{dense.get(type(value), f'tf.convert_to_tensor({name})')}, or a sparse matrix as the A of solve(A, b)"
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


def first_iterate(x0: Any, b: Tensor) -> Tensor:
    """Where an iteration begins: of b's type.

    Raises:
        InvalidDtypeError: no tensor, of another element type, or complex where b is real.
    """
    start = tensor(x0, "x0")
    if start.dtype.is_complex and not b.dtype.is_complex:
        raise InvalidDtypeError(f"x0 is {start.dtype.name}, b is {b.dtype.name}: begin at a real one, tf.math.real(x0)")
    return tf.cast(start, b.dtype)


def sparse(A: tf.SparseTensor) -> Where:
    """Where the entries of a sparse matrix are.

    Raises:
        InvalidShapeError: it is no matrix.
    """
    if A.shape.rank not in (None, 2):
        raise InvalidShapeError(
            f"a sparse A must be a matrix, its shape is {tuple(A.shape)}; for a batch on one pattern use the form "
            "for values and a pattern, spsolve(values, pattern, b)"
        )
    m, n = A.shape if A.shape.rank == 2 else (None, None)
    return of_indices(A.indices, A.dense_shape, (m, n))


def sizes(asked: Asked, where: Where, values: Tensor) -> tuple[tuple[int | None, ...], int | None, int | None]:
    """Shape of one matrix's values, and its rows and columns, as far as they are known."""
    if isinstance(asked.pattern, StructuredPattern):
        return (parameters(asked.pattern), *asked.pattern.shape)
    if where.place is not None:
        return ((where.place.rows.shape[0],), *where.place.static)
    m, n = values.shape[-2:]
    return ((m, n), m, n)


def fitting(
    values: Tensor, b: Tensor, x0: Tensor | None, entries: tuple[int | None, ...], rows: int | None, name: str
) -> Tensor:
    """B, of which the number of rows is known where that of the matrix is.

    Raises:
        InvalidShapeError: shapes do not fit.
    """
    fault = _misfit(values, b, x0, entries, rows)
    if fault is not None:
        raise InvalidShapeError(f"{name} {fault}")
    lead = values.shape.rank - len(entries)
    if rows is None or b.shape[lead] is not None:
        return b
    return shaped(b, [*b.shape[:lead], rows, *b.shape[lead + 1 :]])


def refuse_statistics(return_stats: bool) -> None:
    """Refuse to tell what came of a solve that is not made yet.

    Raises:
        InvalidOptionError: a graph is being built.
    """
    if return_stats and not tf.executing_eagerly():
        raise InvalidOptionError(
            "return_stats does not work inside tf.function, where nothing is solved yet: use observe",
            option="return_stats",
        )


def _misfit(values: Tensor, b: Tensor, x0: Tensor | None, entries: tuple[int | None, ...], n: int | None) -> str | None:
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
