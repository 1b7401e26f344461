"""How far an answer may be from the dense one of its own framework, in double precision."""

import numpy as np

VALUES, GRADIENTS, PRODUCTS = 1e-10, 1e-9, 1e-8


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Of the largest entry, relative to the largest; shapes and types must be the same."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
