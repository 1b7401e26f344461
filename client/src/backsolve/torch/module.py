"""A linear solve as a layer."""

from copy import deepcopy
from typing import Any, Unpack, final

import torch
from torch import Tensor

from ..options import KINDS, check_names, make_options
from ..pattern import Pattern
from ._options import SolveOptions
from .functional import solve, spsolve


@final
class LinearSolve(torch.nn.Module):
    """Solve `op(A) x = b` with fixed options; the layer has no parameters of its own.

    Args:
        pattern: of a sparse A; `forward` then takes its values. Without it `forward` takes A.
        options: keyword arguments of `backsolve.torch.solve`, but for `x0` and `return_stats`.

    Raises:
        InvalidOptionError: an option of the wrong type.

    A pickled module with a `client` connects anew where it is unpickled, as clients do (without a
    token); without one it uses the process-wide client there. Copies share the client and the pattern.
    """

    def __init__(self, pattern: Pattern | None = None, **options: Unpack[SolveOptions]) -> None:
        super().__init__()
        check_names(options, SolveOptions.__annotations__, "LinearSolve")
        make_options(**{name: v for name, v in options.items() if name in KINDS})  # type: ignore[arg-type]
        self.pattern = pattern
        self.options = options

    def forward(self, A: Tensor, b: Tensor, x0: Tensor | None = None) -> Tensor:
        """Solve.

        Args:
            A: `[*batch, n, n]`, or with a pattern the values `[*batch, nnz]`.
            b: `[*batch, n]` or `[*batch, n, k]`.
            x0: first iterate of an iterative method.

        Returns:
            x, shaped like b.
        """
        if self.pattern is None:
            return solve(A, b, x0=x0, **self.options)
        return spsolve(A, self.pattern, b, x0=x0, **self.options)

    def extra_repr(self) -> str:
        """The options that were given."""
        parts = [] if self.pattern is None else [f"pattern={self.pattern!r}"]
        parts += [f"{name}={value!r}" for name, value in self.options.items() if name not in ("client", "observe")]
        return ", ".join(parts)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LinearSolve":
        for shared in (self.pattern, self.options.get("client"), self.options.get("observe")):
            memo[id(shared)] = shared
        copy = self.__class__.__new__(self.__class__)
        memo[id(self)] = copy
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy
