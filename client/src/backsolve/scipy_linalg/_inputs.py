"""What callers of SciPy hand in, made fit for a client; what a service cannot know is refused with what to do."""

import math
import operator
from typing import Any

import numpy as np
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from ..canonical import as_array, native
from ..errors import InvalidOptionError, InvalidShapeError, NotSupportedError
from ..types import LARGEST_INTEGER, Array

_WRAPPED = type(aslinearoperator(np.eye(1)))
"""The operator that SciPy wraps a matrix in: the matrix is at hand, so it is no black box."""


def matrix(A: Any, name: str) -> Any:
    """A as a sparse matrix or a 2-D array.

    Args:
        A: what the caller passed.
        name: of the function, for messages.

    Raises:
        NotSupportedError: a linear operator, whose entries nobody knows.
        InvalidShapeError: no matrix.
    """
    if type(A) is _WRAPPED:
        A = A.A
    if isinstance(A, LinearOperator) or hasattr(A, "matvec"):
        raise NotSupportedError(
            f"{name} was given A as a linear operator, and the service has to know its entries: pass the matrix "
            f"itself, or call scipy.sparse.linalg.{name}, which computes in this process"
        )
    if hasattr(A, "psolve"):
        raise NotSupportedError(f"A brings a preconditioner along (psolve), which cannot be sent: {_cure(name)}")
    a = A if issparse(A) else array(A, "A")
    if a.ndim != 2:
        raise InvalidShapeError(f"A must be a matrix, it has {a.ndim} dimensions")
    return a


def square(A: Any, name: str) -> Any:
    """`matrix`, of as many rows as columns.

    Raises:
        NotSupportedError, InvalidShapeError: as `matrix`, or it is not square.
    """
    a = matrix(A, name)
    if a.shape[0] != a.shape[1]:
        raise InvalidShapeError(f"{name} takes a square matrix, and A has shape {tuple(a.shape)}; lsmr takes any shape")
    return a


def array(values: Any, what: str) -> Array:
    """A dense array of an element type that can be solved in; half precision and integers become float64.

    Raises:
        InvalidDtypeError, InvalidShapeError: no array of numbers.
    """
    if getattr(values, "dtype", None) == np.float16:
        values = np.asarray(values, dtype=np.float64)
    return as_array(values, what)


def vector(b: Any, rows: int, what: str) -> Array:
    """A vector `[rows]` of one that may be a column.

    Raises:
        InvalidShapeError: another shape.
        InvalidDtypeError: no numbers.
    """
    v = array(b, what)
    if v.shape not in ((rows,), (rows, 1)):
        raise InvalidShapeError(f"{what} has shape {v.shape}, this matrix takes ({rows},) or ({rows}, 1)")
    return v.reshape(rows)


def dtype_of(a: Any, *others: Array) -> "np.dtype[Any]":
    """The element type in which a system is solved: the common one; integers count as float64."""
    own = native(np.empty(0, a.dtype), "A").dtype
    return np.result_type(own, *(other.dtype for other in others))


def preconditioner(M: Any, name: str) -> str:
    """The service's name for a preconditioner; SciPy's default is none.

    Raises:
        NotSupportedError: a matrix, an operator or a function.
    """
    if M is None:
        return "none"
    if isinstance(M, str):
        return M
    raise NotSupportedError(f"{name} was given M as an object of this process, which cannot be sent: {_cure(name)}")


def first_iterate(x0: Any, M: Any, b: Array, name: str) -> Array | None:
    """x0 in b's element type; "Mb" is SciPy's word for `M @ b`.

    Raises:
        InvalidShapeError: not shaped like b.
        InvalidOptionError: another word.
        NotSupportedError: "Mb" with a preconditioner of the service.
    """
    if x0 is None:
        return None
    if isinstance(x0, str):
        if x0 != "Mb":
            raise InvalidOptionError(f"x0 of {name} is an array, or 'Mb'", option="x0")
        if M is not None:
            raise NotSupportedError(f"x0='Mb' needs M in this process: leave x0 out of {name}, or M", option="x0")
        return b.copy()
    given = np.asarray(x0)
    if given.shape not in (b.shape, (b.size, 1)):
        raise InvalidShapeError(f"x0 has shape {given.shape}, this matrix takes ({b.size},) or ({b.size}, 1)")
    return given.reshape(b.size).astype(b.dtype)  # warns, as SciPy does, where an imaginary part is lost


def no_callback(callback: Any, name: str) -> None:
    """Refuse a function that is to be called within the iteration.

    Raises:
        NotSupportedError: there is one.
    """
    if callback is not None:
        raise NotSupportedError(
            f"{name} iterates where the service is, and cannot call back into this process at each step: leave "
            f"callback out, or call scipy.sparse.linalg.{name}; backsolve.Client().solve(A, b, method={name!r}) tells "
            "how many iterations it took (stats.iterations)"
        )


def number(value: Any, name: str, what: str) -> float:
    """A tolerance or factor: a real number, 0 or more; infinity is one.

    Raises:
        InvalidOptionError: it is not.
    """
    try:
        read = float(value)
    except (TypeError, ValueError, OverflowError) as err:
        raise InvalidOptionError(f"{what} of {name} must be a number, 0 or more", option=what) from err
    if math.isnan(read) or read < 0 or isinstance(value, str):
        raise InvalidOptionError(f"{what} of {name} must be a number, 0 or more", option=what)
    return read


def count(value: Any, name: str, what: str, least: int = 1) -> int:
    """A whole number.

    Raises:
        InvalidOptionError: it is not, or less than `least`.
    """
    try:
        read = operator.index(int(value) if isinstance(value, float) and value.is_integer() else value)
    except TypeError as err:
        raise InvalidOptionError(f"{what} of {name} must be an integer, {least} or more", option=what) from err
    if read < least:
        raise InvalidOptionError(f"{what} of {name} must be an integer, {least} or more", option=what)
    return min(read, LARGEST_INTEGER)


def _cure(name: str) -> str:
    return (
        "name one of the service's preconditioners instead, such as M='jacobi', 'ilu' or 'amg' "
        f"(backsolve.Client().info().preconditioners lists them), or call scipy.sparse.linalg.{name}"
    )
