"""Matrices that only a digest over every byte tells apart."""

import numpy as np

from backsolve.pattern import Pattern
from support.systems import convection


def collision_set(scale: float = 1.0) -> dict[str, tuple[Pattern, np.ndarray]]:
    """Matrices that a sampled or summed key would confuse with the first one.

    Args:
        scale: factor on all values, for a set that no server has met.
    """
    a = convection(6)
    a.data *= scale
    pattern = Pattern.from_csr(a)
    values = a.data
    swapped, flipped, moved, zeroed = (values.copy() for _ in range(4))
    swapped[[10, 11]] = swapped[[11, 10]]
    flipped[17] = -flipped[17]
    diagonal = np.flatnonzero(pattern.rows == pattern.indices)
    moved[diagonal[2]] += 1.0
    moved[diagonal[5]] -= 1.0
    zeroed[4] = 0.0
    permuted = np.random.default_rng(271_828_459).permutation(values)
    negative_zero = zeroed.copy()
    negative_zero[4] = -0.0
    wider = a.copy()
    wider.data[4] = 0.0
    wider.eliminate_zeros()
    return {
        "original": (pattern, values),
        "two values swapped": (pattern, swapped),
        "one sign flipped": (pattern, flipped),
        "mass moved on the diagonal": (pattern, moved),
        "values permuted": (pattern, permuted),
        "another type": (pattern, values.astype(np.float32)),
        "an explicit zero": (pattern, zeroed),
        "a negative zero": (pattern, negative_zero),
        "the zero not stored": (Pattern.from_csr(wider), wider.data),
        "complex": (pattern, values.astype(np.complex128)),
    }
