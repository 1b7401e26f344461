"""Checks of what callers pass, and batches brought to one leading dimension."""

import math
from dataclasses import dataclass
from typing import Any, Final, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .._adapter.shapes import leading
from ..errors import InvalidDtypeError, InvalidOptionError

_TYPES: Final = tuple(np.dtype(name) for name in ("float32", "float64", "complex64", "complex128"))


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """Operands with at most one leading batch dimension, and the shapes to give back."""

    values: Array
    rhs: Array
    x0: Array | None
    lead: tuple[int, ...]
    shape: tuple[int, ...]


def array(value: object, name: str) -> Array:
    """A JAX array that can be solved with. One of NumPy's becomes one, as in JAX's own functions.

    Raises:
        InvalidDtypeError: no array, or of another element type.
    """
    if hasattr(value, "tocsr"):
        raise InvalidDtypeError(
            f"{name} is a {type(value).__name__} of SciPy: with A = {name}.tocsr() call spsolve(A.data, "
            "Pattern.from_csr(A), b), or solve(BCSR.from_scipy_sparse(A), b)"
        )
    if not isinstance(value, jax.Array | np.ndarray):
        raise InvalidDtypeError(
            f"{name} must be an array of JAX or NumPy, e.g. jnp.asarray({name}); tensors of PyTorch go to "
            "backsolve.torch.solve"
        )
    found = jnp.asarray(value)
    if found.dtype not in _TYPES:
        raise InvalidDtypeError(
            f"{name} is {found.dtype}; solves run in float32, float64, complex64 and complex128: convert it first, "
            f"e.g. {name}.astype(jnp.float32)"
        )
    return found


def pair(values: Array, b: Array, name: str) -> None:
    """Refuse operands that differ in element type, or that were put on different devices.

    Raises:
        InvalidDtypeError: the element types differ.
        InvalidOptionError: the devices differ.
    """
    if values.dtype != b.dtype:
        raise InvalidDtypeError(f"{name} is {values.dtype}, b is {b.dtype}: convert one, e.g. b.astype({name}.dtype)")
    if any(isinstance(each, jax.core.Tracer) or not each.committed for each in (values, b)):
        return
    if values.devices() != b.devices():
        raise InvalidOptionError(f"{name} is on {_names(values)}, b on {_names(b)}: move one of them")


def first_iterate(x0: Any, b: Array, name: str) -> Array:
    """Where an iteration begins: of b's type, and without a gradient, since the answer does not depend on it.

    Raises:
        InvalidDtypeError: no array, of another element type, or complex where b is real.
    """
    start = lax.stop_gradient(array(x0, name))
    if jnp.iscomplexobj(start) and not jnp.iscomplexobj(b):
        raise InvalidDtypeError(f"{name} is {start.dtype}, b is {b.dtype}: begin at a real one, e.g. {name}.real")
    return start.astype(b.dtype)


def _names(array: Array) -> str:
    return ", ".join(sorted(map(str, array.devices())))


def packed(A: Array) -> Array:
    """The lower triangles of `[*batch, n, n]`, each row as far as the diagonal, as storage "lower" has them."""
    rows, columns = np.tril_indices(A.shape[-2], 0, A.shape[-1])
    return A[..., rows, columns]


def batch(values: Array, b: Array, x0: Array | None, entries: tuple[int, ...], n: int, name: str) -> Batch:
    """Fold any number of leading batch dimensions into one.

    Args:
        values: `[*batch, *entries]`.
        b: `[*batch, n]` or `[*batch, n, k]`.
        x0: shaped like b.
        entries: shape of one matrix's values.
        n: rows of one matrix.
        name: how the caller knows `values`.

    Raises:
        InvalidShapeError: shapes do not fit each other.
    """
    lead = leading(values.shape, b.shape, None if x0 is None else x0.shape, entries, n, name)
    shape = tuple(b.shape)
    if len(lead) > 1:
        size = math.prod(lead)
        values = values.reshape((size, *entries))
        b = b.reshape((size, *shape[len(lead) :]))
        x0 = None if x0 is None else x0.reshape(b.shape)
    return Batch(values, b, x0, lead, shape)
