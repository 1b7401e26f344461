"""What "solved" means where the caller did not say."""

from typing import Any

import numpy as np

from backsolve.types import DTYPES

ITERATIONS_PER_ROW = 10
"""Default iteration limit in units of n: exact arithmetic needs n, rounding delays it by a few times that."""

REFINEMENTS = 2
"""Default limit on refinement steps; a third step has never improved what two could not."""

MIXED_REFINEMENTS = 30
"""The same with a factor in single precision: a step gains 7 digits less those of the condition number."""

ATTAINABLE = 8.0
"""An answer whose backward error is within so many roundings cannot be improved in its own element type."""

SINGLE_EPS = float(np.finfo(np.float32).eps)


_EPSILON = {dtype: float(np.finfo(dtype).eps) for dtype in DTYPES}


def epsilon(dtype: "np.dtype[Any]") -> float:
    """Unit roundoff (spacing at 1) of an element type."""
    return _EPSILON[dtype]


def safe_magnitude(dtype: "np.dtype[Any]") -> float:
    """Right-hand sides between this and its inverse need no scaling: no square of theirs leaves the range."""
    return 1e12 if epsilon(dtype) >= SINGLE_EPS else 1e100


def iterative_rtol(dtype: "np.dtype[Any]") -> float:
    """Default relative residual of an iterative method."""
    return 1e-6 if epsilon(dtype) >= SINGLE_EPS else 1e-10


def direct_backward_error(dtype: "np.dtype[Any]") -> float:
    """Backward error above which the answer of a direct method is refined."""
    return 1e-5 if epsilon(dtype) >= SINGLE_EPS else 1e-12


def wrong_backward_error(dtype: "np.dtype[Any]") -> float:
    """Backward error above which x solves another system, and a warning is not enough."""
    return 1e-3 if epsilon(dtype) >= SINGLE_EPS else 1e-6


def pivoting_backward_error(dtype: "np.dtype[Any]") -> float:
    """Backward error above which a factor with restricted pivoting is thrown away."""
    return 1e-4 if epsilon(dtype) >= SINGLE_EPS else 1e-10
