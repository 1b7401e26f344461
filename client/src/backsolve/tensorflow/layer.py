"""A linear solve as a layer of Keras."""

from typing import Any, Final, Unpack, final

import keras

from ..errors import InvalidOptionError, NotSupportedError
from ..options import KINDS, check_names, make_options
from ..pattern import Pattern
from ._options import SolveOptions
from ._rules import Tensor
from .functional import solve, spsolve

_OF_KERAS: Final = ("name", "trainable", "dtype")
_UNSAVED: Final = ("client", "observe")


@final
@keras.saving.register_keras_serializable("backsolve")
class LinearSolve(keras.layers.Layer):
    """Solve `op(A) x = b` with fixed options; the layer has no weights of its own.

    Args:
        pattern: of a sparse A; the layer is then called with its values. Without it it is called with A.
        options: keyword arguments of `backsolve.tensorflow.solve`, but for `x0` and `return_stats`; and
            Keras's `name`, `trainable` and `dtype`.

    Raises:
        InvalidOptionError: an unknown option, or one of the wrong type.
        NotSupportedError: Keras runs on another backend than TensorFlow.

    Numbers are solved with in the type that they come in: Keras's policies convert nothing here. A model with
    this layer is not compiled by XLA, and can be saved and loaded (`.keras`), unless the layer has a `client` or
    `observe` of its own. Keras's `export` makes a SavedModel, which cannot hold a solve.
    """

    def __init__(self, pattern: Pattern | None = None, **options: Unpack[SolveOptions]) -> None:
        if keras.backend.backend() != "tensorflow":
            raise NotSupportedError(
                f"Keras runs on {keras.backend.backend()}, this layer on TensorFlow: set KERAS_BACKEND=tensorflow "
                "before Keras is imported, or use backsolve.torch"
            )
        given: dict[str, Any] = dict(options)
        of_keras = {name: given.pop(name) for name in _OF_KERAS if name in given}
        super().__init__(autocast=False, **of_keras)
        check_names(given, SolveOptions.__annotations__, "LinearSolve")
        make_options(**{name: value for name, value in given.items() if name in KINDS})
        self.pattern = pattern
        self.options = given
        self.supports_jit = False

    def call(self, A: Tensor, b: Tensor, x0: Tensor | None = None) -> Tensor:
        """Solve.

        Args:
            A: `[*batch, n, n]` or a `tf.SparseTensor`; with a pattern the values `[*batch, nnz]`.
            b: `[*batch, n]` or `[*batch, n, k]`.
            x0: first iterate of an iterative method.

        Returns:
            x, shaped like b.
        """
        if self.pattern is None:
            return solve(A, b, x0=x0, **self.options)
        return spsolve(A, self.pattern, b, x0=x0, **self.options)

    def compute_output_spec(self, A: Any, b: Any, x0: Any = None) -> Any:
        """X has the shape and type of b."""
        return keras.KerasTensor(b.shape, dtype=b.dtype)

    def get_config(self) -> dict[str, Any]:
        """What the layer is made again of.

        Raises:
            InvalidOptionError: it has a client or an observer of its own.
        """
        kept = [name for name in _UNSAVED if self.options.get(name) is not None]
        if kept:
            raise InvalidOptionError(
                f"a LinearSolve with its own {kept[0]} cannot be saved or cloned: leave it out, and name the server by "
                "BACKSOLVE_URL",
                option=kept[0],
            )
        config: dict[str, Any] = {**super().get_config(), **self.options, "pattern": None}
        if self.pattern is not None:
            config["pattern"] = {
                "indptr": self.pattern.indptr.tolist(),
                "indices": self.pattern.indices.tolist(),
                "shape": list(self.pattern.shape),
                "storage": self.pattern.storage,
            }
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LinearSolve":
        """The layer that `get_config` has told of."""
        given = dict(config)
        stored = given.pop("pattern")
        pattern = None
        if stored is not None:
            pattern = Pattern(stored["indptr"], stored["indices"], tuple(stored["shape"]), stored["storage"])
        return cls(pattern, **given)
