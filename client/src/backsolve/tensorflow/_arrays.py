"""TensorFlow's tensors with the methods that arrays of NumPy and tensors of PyTorch share.

The formulas of structured matrices (`backsolve.kinds`) are written in those. TensorFlow has a mode in which its own
tensors have them, which is one for the whole process: users, and what else they import, are not put into it.
"""

from collections.abc import Sequence
from typing import Any, final

import tensorflow as tf

from ..kinds.base import Ops

Tensor = Any


@final
class Arraylike:
    """A tensor; every operation is TensorFlow's, and differentiable."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[Any, ...]:
        """Numbers, where they are known before anything runs; else scalar tensors."""
        known = self.tensor.shape.as_list()
        if all(size is not None for size in known):
            return tuple(known)
        met = tf.unstack(tf.shape(self.tensor))
        return tuple(m if size is None else size for size, m in zip(known, met, strict=True))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.tensor.shape.rank)

    @property
    def dtype(self) -> Any:
        """TensorFlow's element type."""
        return self.tensor.dtype

    def reshape(self, *shape: Any) -> "Arraylike":
        """As NumPy's: the sizes, or one tuple of them."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        # One that is unknown is left to TensorFlow, which then knows the others.
        unknown = [index for index, size in enumerate(wanted) if tf.is_tensor(size)]
        sizes = [-1 if [index] == unknown else size for index, size in enumerate(wanted)]
        return Arraylike(tf.reshape(self.tensor, sizes))

    def conj(self) -> "Arraylike":
        """The complex conjugate; of real numbers, these themselves."""
        return Arraylike(tf.math.conj(self.tensor))

    def swapaxes(self, one: int, other: int) -> "Arraylike":
        """As NumPy's."""
        order = list(range(self.ndim))
        order[one], order[other] = order[other], order[one]
        return Arraylike(tf.transpose(self.tensor, order))

    def sum(self, axis: int) -> "Arraylike":
        """As NumPy's."""
        return Arraylike(tf.reduce_sum(self.tensor, axis))

    def __getitem__(self, key: Any) -> "Arraylike":
        return Arraylike(self.tensor[key])

    def __neg__(self) -> "Arraylike":
        return Arraylike(-self.tensor)

    def __add__(self, other: "Arraylike") -> "Arraylike":
        return Arraylike(self.tensor + other.tensor)

    def __mul__(self, other: "Arraylike") -> "Arraylike":
        return Arraylike(self.tensor * other.tensor)


@final
class _Fourier:
    """The transforms of `numpy.fft` along the last axis but one, the only one that is asked for."""

    def rfft(self, a: Arraylike, size: int, axis: int) -> Arraylike:
        return _along(a, lambda rows: tf.signal.rfft(rows, [size]))

    def irfft(self, a: Arraylike, size: int, axis: int) -> Arraylike:
        return _along(a, lambda rows: tf.signal.irfft(rows, [size]))

    def fft(self, a: Arraylike, size: int, axis: int) -> Arraylike:
        return _along(a, lambda rows: tf.signal.fft(_filled(rows, size)))

    def ifft(self, a: Arraylike, size: int, axis: int) -> Arraylike:
        return _along(a, lambda rows: tf.signal.ifft(_filled(rows, size)))


def _along(a: Arraylike, transform: Any) -> Arraylike:
    return Arraylike(transform(a.swapaxes(-1, -2).tensor)).swapaxes(-1, -2)


def _filled(rows: Tensor, size: int) -> Tensor:
    """Complex, and with zeros up to `size`, which is no smaller."""
    rows = rows if rows.dtype.is_complex else tf.complex(rows, tf.zeros_like(rows))
    missing = size - rows.shape[-1]
    return tf.pad(rows, [[0, 0]] * (rows.shape.rank - 1) + [[0, missing]]) if missing else rows


def _concatenate(arrays: Sequence[Arraylike], axis: int) -> Arraylike:
    return Arraylike(tf.concat([each.tensor for each in arrays], axis))


def _matmul(a: Arraylike, b: Arraylike) -> Arraylike:
    return Arraylike(tf.linalg.matmul(a.tensor, b.tensor))


OPS = Ops(_Fourier(), _concatenate, lambda a: bool(a.dtype.is_complex), _matmul)
"""For structured matrices."""
