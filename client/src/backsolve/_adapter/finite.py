"""NaN in, NaN out: in a compiled program a number that is not finite must not stop what it has nothing to do with.

The server answers each matrix of a batch by itself, and refuses a single matrix whose numbers, or those of any of its
right-hand sides, are not all finite. Where failures are to be NaN, the columns that are finite are solved all the same.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import NonfiniteInputError
from ..matrix import Matrix
from ..types import Array, Certificate, Options, Status, Timings
from .request import Phase, Request, System, call

Ask = Callable[[Array, Array | None], tuple[Array, Phase, Certificate]]
"""Makes a request with these right-hand sides and first iterates."""


def call_finite(matrix: Matrix, rhs: Array, x0: Array | None, request: Request) -> tuple[Array, Phase, Certificate]:
    """As `request.call`; with `on_failure="nan"` what is not finite is answered by NaN and NONFINITE_INPUT."""
    phase: Phase = "adjoint" if request.adjoint else "tangent" if request.tangent else "solve"
    return ask_finite(lambda b, start: call(matrix, b, start, request), matrix, rhs, x0, request.system, phase)


def ask_finite(
    ask: Ask, matrix: Matrix, rhs: Array, x0: Array | None, system: System, phase: Phase
) -> tuple[Array, Phase, Certificate]:
    """As `ask(rhs, x0)`, likewise.

    Args:
        ask: the request.
        matrix, rhs, x0: what it is made of; x has as many rows as the matrix has columns.
        system: says what happens on failure.
        phase: of a request that need not be made.
    """
    try:
        return ask(rhs, x0)
    except NonfiniteInputError:
        if system.on_failure != "nan":
            raise
    bad = _not_finite(rhs) if x0 is None else _not_finite(rhs) | _not_finite(x0)
    if not np.isfinite(matrix.parameters).all() or bad.all():
        return np.full((matrix.n, *rhs.shape[1:]), np.nan, rhs.dtype), phase, _nothing(rhs, system.options)
    start = None if x0 is None else np.where(bad, 0, x0).astype(rhs.dtype)
    x, phase, certificate = ask(np.where(bad, 0, rhs).astype(rhs.dtype), start)
    lost = replace(certificate, status=Status.NONFINITE_INPUT, relative_residual=np.nan, backward_error=np.nan)
    return np.where(bad, np.nan, x).astype(rhs.dtype), phase, lost


def _not_finite(rhs: Array) -> Array:
    """`[1, k]`, or `[1]` of a vector: which columns hold NaN or infinity."""
    return np.asarray(~np.isfinite(rhs).all(axis=0, keepdims=True))


def _nothing(rhs: Array, options: Options) -> Certificate:
    """The certificate where there was nothing to solve."""
    return Certificate(
        status=Status.NONFINITE_INPUT,
        method=options.method,
        reason="nothing that was given is finite",
        precision=rhs.dtype.name,
        iterations=0,
        relative_residual=float("nan"),
        backward_error=float("nan"),
        condition_estimate=None,
        symbolic_hit=False,
        factor_hit=False,
        seconds=Timings(),
        instance="",
    )
