"""Numbers of 64 bits as pairs of 32, on their way through a callback.

JAX converts the operands of a callback once more in the thread that runs it, by the setting of that thread. Under
`with jax.enable_x64(True)`, which is a setting of the caller's thread, it would cut double precision to single there.
"""

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_WORD: Final = np.dtype(np.uint32)


def _wide(dtype: Any) -> bool:
    return np.zeros(0, dtype).real.dtype.itemsize > _WORD.itemsize


def _tail(dtype: Any) -> tuple[int, ...]:
    """The axes that a number becomes."""
    return () if not _wide(dtype) else (2, 2) if np.dtype(dtype).kind == "c" else (2,)


def struct(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """What a callback returns for an array of this kind."""
    kind = _WORD if _wide(dtype) else dtype
    return jax.ShapeDtypeStruct((*shape, *_tail(dtype)), kind)  # type: ignore[no-untyped-call]


def packed(array: Array) -> Array:
    """An operand as words; the same bytes, but that those of complex numbers are copied."""
    if not _wide(array.dtype):
        return array
    parts = jnp.stack([array.real, array.imag], -1) if jnp.iscomplexobj(array) else array
    return lax.bitcast_convert_type(parts, _WORD)


def unpacked(array: Array, dtype: Any) -> Array:
    """The inverse of `packed`."""
    if not _wide(dtype):
        return array
    parts = lax.bitcast_convert_type(array, np.zeros(0, dtype).real.dtype)
    return lax.complex(parts[..., 0], parts[..., 1]) if np.dtype(dtype).kind == "c" else parts


def numbers(array: Any, shape: tuple[int, ...], dtype: Any) -> "np.ndarray[Any, Any]":
    """`unpacked` on the host; a view."""
    found: np.ndarray[Any, Any] = np.ascontiguousarray(np.asarray(array)).reshape(-1).view(dtype).reshape(shape)
    return found


def words(array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """`packed` on the host; a view."""
    if not _wide(array.dtype):
        return array
    return np.ascontiguousarray(array).reshape(-1).view(_WORD).reshape((*array.shape, *_tail(array.dtype)))
