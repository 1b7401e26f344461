"""One function to be checked, as arrays in and arrays out, whichever framework its inputs are of.

A framework is imported only when its tensors came in, so it is there already. Gradients are brought to one
convention: with respect to the conjugate, dL = Re⟨gradient, dz⟩, as PyTorch and TensorFlow have it; JAX's is
the conjugate of that.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np

from ..errors import InvalidDtypeError, InvalidShapeError
from ..types import DTYPES, Array


class Pipeline(ABC):
    """A user's function at given inputs."""

    name: str

    def __init__(self, f: Callable[..., Any], inputs: Sequence[Any]) -> None:
        self.f = f
        self.given = tuple(inputs)

    @abstractmethod
    def arrays(self) -> list[Array]:
        """The inputs."""

    @abstractmethod
    def outputs(self, arrays: Sequence[Array]) -> list[Array]:
        """What the function gives for other numbers in the inputs' place."""

    @abstractmethod
    def gradients(self, arrays: Sequence[Array], cotangents: Sequence[Array]) -> list[Array]:
        """`Jᵀ` of the cotangents, one an output, for each input; zeros where an input does not enter."""

    def pushed(self, arrays: Sequence[Array], tangents: Sequence[Array]) -> list[Array] | None:
        """`J` of the tangents by the framework's forward mode; None where there is none."""
        del arrays, tangents
        return None


@final
class NumpyPipeline(Pipeline):
    """`f(*arrays) -> (value, gradients)`, the gradient written by hand: one array, or as many as there are inputs."""

    name = "numpy"

    def arrays(self) -> list[Array]:
        """The inputs."""
        return [np.array(value) for value in self.given]

    def outputs(self, arrays: Sequence[Array]) -> list[Array]:
        """The value."""
        return [self._both(arrays)[0]]

    def gradients(self, arrays: Sequence[Array], cotangents: Sequence[Array]) -> list[Array]:
        """The gradients, times the cotangent of the value."""
        return [np.real(cotangents[0]) * gradient for gradient in self._both(arrays)[1]]

    def _both(self, arrays: Sequence[Array]) -> tuple[Array, list[Array]]:
        found = self.f(*(a.copy() for a in arrays))
        if not isinstance(found, tuple) or len(found) != 2:
            raise InvalidShapeError("of NumPy arrays f must return (value, gradient), or (value, (gradient, ...))")
        value, gradient = np.asarray(found[0]), found[1]
        if value.size != 1 or value.dtype.kind == "c":
            raise InvalidShapeError(f"the value must be one real number; it has shape {value.shape}, {value.dtype}")
        several = list(gradient) if isinstance(gradient, tuple | list) else [gradient]
        if [np.shape(g) for g in several] != [a.shape for a in arrays]:
            raise InvalidShapeError(
                f"f returned gradients of shapes {[np.shape(g) for g in several]}, "
                f"the inputs have {[a.shape for a in arrays]}"
            )
        return value, [np.asarray(g) for g in several]


@final
class TorchPipeline(Pipeline):
    """Tensors of PyTorch."""

    name = "torch"

    def arrays(self) -> list[Array]:
        """The inputs."""
        import torch  # noqa: PLC0415  (its tensors came in)

        if any(t.layout is not torch.strided for t in self.given):
            raise InvalidDtypeError("a sparse input cannot be moved entry by entry: let f take its values")
        return [np.array(_of_torch(t)) for t in self.given]

    def outputs(self, arrays: Sequence[Array]) -> list[Array]:
        """The function's tensors."""
        import torch  # noqa: PLC0415

        with torch.no_grad():
            return [_of_torch(t) for t in _answers(self.f(*self._tensors(arrays)))]

    def gradients(self, arrays: Sequence[Array], cotangents: Sequence[Array]) -> list[Array]:
        """By `torch.autograd.grad`."""
        import torch  # noqa: PLC0415

        leaves = [t.requires_grad_() for t in self._tensors(arrays)]
        with torch.enable_grad():
            outputs = _several(self.f(*leaves))
        pairs = [(o, torch.as_tensor(c).to(o)) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        if not pairs:
            return [np.zeros_like(a) for a in arrays]
        outs, given = zip(*pairs, strict=True)
        found = torch.autograd.grad(outs, leaves, given, allow_unused=True)
        return [
            np.zeros_like(a) if g is None else g.to_dense().resolve_conj().numpy(force=True)
            for g, a in zip(found, arrays, strict=True)
        ]

    def pushed(self, arrays: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        """By `torch.func.jvp`."""
        import torch  # noqa: PLC0415

        along = tuple(self._tensors(tangents))
        found = torch.func.jvp(self.f, tuple(self._tensors(arrays)), along)[1]
        return [t.detach().resolve_conj().numpy(force=True) for t in _several(found)]

    def _tensors(self, arrays: Sequence[Array]) -> list[Any]:
        import torch  # noqa: PLC0415

        return [torch.tensor(a).to(t) for a, t in zip(arrays, self.given, strict=True)]


def _of_torch(tensor: Any) -> Array:
    import torch  # noqa: PLC0415

    if tensor.dtype == torch.bfloat16:
        raise InvalidDtypeError("NumPy has no bfloat16: check the pipeline in float32 or float64")
    found: Array = tensor.detach().resolve_conj().numpy(force=True)
    return found


@final
class JaxPipeline(Pipeline):
    """Arrays of JAX."""

    name = "jax"

    def arrays(self) -> list[Array]:
        """The inputs."""
        if any(not hasattr(a, "at") for a in self.given):
            raise InvalidDtypeError("a sparse input cannot be moved entry by entry: let f take its data")
        return [np.array(a) for a in self.given]

    def outputs(self, arrays: Sequence[Array]) -> list[Array]:
        """The function's arrays."""
        return [np.asarray(a) for a in _answers(self.f(*self._arrays(arrays)))]

    def gradients(self, arrays: Sequence[Array], cotangents: Sequence[Array]) -> list[Array]:
        """By `jax.vjp`, whose conjugate convention is taken out."""
        import jax  # noqa: PLC0415  (its arrays came in)

        found, pull = jax.vjp(self.f, *self._arrays(arrays))
        given = [jax.numpy.asarray(np.conj(c)) for c in cotangents]
        packed = tuple(given) if isinstance(found, tuple) else given if isinstance(found, list) else given[0]
        return [np.conj(np.asarray(g)) for g in pull(packed)]

    def pushed(self, arrays: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        """By `jax.jvp`."""
        import jax  # noqa: PLC0415

        found = jax.jvp(self.f, self._arrays(arrays), self._arrays(tangents))[1]
        return [np.asarray(a) for a in _several(found)]

    @staticmethod
    def _arrays(arrays: Sequence[Array]) -> tuple[Any, ...]:
        import jax  # noqa: PLC0415

        return tuple(jax.numpy.asarray(a) for a in arrays)


@final
class TensorflowPipeline(Pipeline):
    """Tensors of TensorFlow, or variables."""

    name = "tensorflow"

    def arrays(self) -> list[Array]:
        """The inputs."""
        return [np.array(t.numpy()) for t in self.given]

    def outputs(self, arrays: Sequence[Array]) -> list[Array]:
        """The function's tensors."""
        import tensorflow as tf  # noqa: PLC0415  (its tensors came in)

        return [t.numpy() for t in _answers(self.f(*(tf.constant(a) for a in arrays)))]

    def gradients(self, arrays: Sequence[Array], cotangents: Sequence[Array]) -> list[Array]:
        """By a `tf.GradientTape`."""
        import tensorflow as tf  # noqa: PLC0415

        tensors = [tf.constant(a) for a in arrays]
        with tf.GradientTape() as tape:
            for tensor in tensors:
                tape.watch(tensor)
            outputs = _several(self.f(*tensors))
        found = tape.gradient(outputs, tensors, [tf.constant(c) for c in cotangents], tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(g).numpy() for g in found]

    def pushed(self, arrays: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        """By a `tf.autodiff.ForwardAccumulator`."""
        import tensorflow as tf  # noqa: PLC0415

        tensors = [tf.constant(a) for a in arrays]
        with tf.autodiff.ForwardAccumulator(tensors, [tf.constant(t) for t in tangents]) as accumulator:
            outputs = _several(self.f(*tensors))
        found = accumulator.jvp(list(outputs), tf.UnconnectedGradients.ZERO)
        return [t.numpy() for t in found]


_KINDS: dict[str, type[Pipeline]] = {
    "torch": TorchPipeline,
    "jax": JaxPipeline,
    "jaxlib": JaxPipeline,
    "tensorflow": TensorflowPipeline,
}


def pipeline(f: Callable[..., Any], inputs: Any) -> Pipeline:
    """The function as its inputs' framework sees it.

    Raises:
        InvalidShapeError: there are no inputs.
        InvalidDtypeError: they are of several frameworks, or no floating-point numbers.
    """
    several = _several(inputs)
    if not several:
        raise InvalidShapeError("there are no inputs: nothing can be checked")
    kinds = {_kind(value) for value in several}
    if len(kinds) > 1:
        raise InvalidDtypeError(f"the inputs are of several frameworks, {sorted(k.name for k in kinds)}: use one")
    made = kinds.pop()(f, several)
    for number, array in enumerate(made.arrays()):
        if array.dtype not in DTYPES:
            raise InvalidDtypeError(
                f"input {number} is {array.dtype}: only floating-point numbers have gradients, and they are checked in "
                "float32, float64, complex64 and complex128"
            )
    return made


def checked(outputs: Sequence[Array]) -> list[Array]:
    """Outputs that can be checked; integers may be among them, which do not move.

    Raises:
        InvalidDtypeError: half precision, or another that differences cannot be taken in.
    """
    for number, array in enumerate(outputs):
        if array.dtype not in DTYPES and array.dtype.kind not in "biu":
            raise InvalidDtypeError(
                f"output {number} is {array.dtype}: gradients are checked in float32, float64, complex64 and complex128"
            )
    return list(outputs)


def _kind(value: Any) -> type[Pipeline]:
    for base in type(value).__mro__:
        kind = _KINDS.get(base.__module__.partition(".")[0])
        if kind is not None:
            return kind
    return NumpyPipeline


def _answers(value: Any) -> tuple[Any, ...]:
    """What f returned.

    Raises:
        InvalidShapeError: something that is no tensor.
    """
    several = _several(value)
    for each in several:
        if not hasattr(each, "dtype") or not hasattr(each, "shape"):
            raise InvalidShapeError(
                f"f returned {type(each).__name__}: it must return a tensor of the inputs' framework, or several"
            )
    return several


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
