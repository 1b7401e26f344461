"""What each framework calls a solve, a gradient, a Hessian-vector product, a tangent, a map and a compiled function.

Arrays are NumPy's on both sides. Functions take `(values, b)` as arrays of the framework; each derivative is made of
any such function, so that a solve and the dense reference go through the same steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from backsolve import Client
from frameworks.cases import Case

Function = Callable[[Any, Any], Any]


class Adapter(ABC):
    """One framework."""

    name: str
    maps = True
    """What maps a solve makes one request of it; `tf.vectorized_map` loops over what it has no rule for."""

    @abstractmethod
    def array(self, numbers: np.ndarray) -> Any: ...

    @abstractmethod
    def spsolve(self, values: Any, case: Case, b: Any, **options: Any) -> Any: ...

    @abstractmethod
    def dense_solve(self, values: Any, case: Case, b: Any, **options: Any) -> Any: ...

    def solve(self, case: Case, client: Client, **options: Any) -> Function:
        """Ours."""
        call = self.spsolve if case.sparse else self.dense_solve
        return lambda values, b: call(values, case, b, trans=case.trans, client=client, **options)

    @abstractmethod
    def reference(self, case: Case) -> Function:
        """The framework's own dense solve with op(A), A scattered from its values."""

    @abstractmethod
    def minimise(self, **options: Any) -> Function:
        """Our least squares, of a dense A."""

    @abstractmethod
    def normal_equations(self) -> Function:
        """The framework's own solve of `AᴴA x = Aᴴb`, for a tall A of full rank and columns."""

    @abstractmethod
    def grad(self, f: Function, case: Case, values: np.ndarray | None = None) -> list[np.ndarray]:
        """Of the loss, with respect to the values and b."""

    @abstractmethod
    def hvp(self, f: Function, case: Case, values: np.ndarray | None = None) -> list[np.ndarray]:
        """The loss's Hessian with respect to values and b, along both directions, in reverse over reverse mode."""

    @abstractmethod
    def jvp(self, f: Function, case: Case) -> np.ndarray:
        """The tangent of x along both directions."""

    @abstractmethod
    def vmap(self, f: Function, values: np.ndarray, b: np.ndarray, mapped: tuple[bool, bool]) -> np.ndarray:
        """x, over the first axis of what is mapped."""

    @abstractmethod
    def compiled(self, f: Function) -> Function:
        """As users of the framework compile."""

    def __call__(self, f: Function, case: Case) -> np.ndarray:
        return np.asarray(f(self.array(case.values), self.array(case.b)))


def adapter(name: str) -> Adapter:
    """The frameworks are imported when they are asked for."""
    if name == "torch":
        from frameworks.with_torch import Torch

        return Torch()
    if name == "jax":
        from frameworks.with_jax import Jax

        return Jax()
    from frameworks.with_tensorflow import TensorFlow

    return TensorFlow()
