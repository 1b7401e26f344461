"""Small systems for iterative methods, and their residuals."""

from typing import Any

import numpy as np


def random(n: int, kind: str, seed: int) -> np.ndarray:
    """Random numbers between 0 and 1, for kind "c" complex."""
    rng = np.random.default_rng(seed)
    a = rng.random((n, n))
    return a + 1j * rng.random((n, n)) if kind == "c" else a


def residual(a: Any, x: np.ndarray, b: np.ndarray) -> float:
    """In double precision, whatever the data are."""
    wide = np.result_type(a.dtype, np.float64)
    return float(np.linalg.norm(b.astype(wide) - a.astype(wide) @ x.astype(wide)))


def definite(n: int = 10, seed: int = 168_441_431) -> tuple[np.ndarray, np.ndarray]:
    """A dense definite matrix, condition about 4, and a right-hand side."""
    rng = np.random.default_rng(seed)
    a = rng.random((n, n))
    return a @ a.T + n * np.eye(n), rng.random(n)
