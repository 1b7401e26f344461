"""Random linear systems of every unpleasant kind, the same in every run, a third of them harmless."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from backsolve.types import TRANS, Array, Trans

SEED = 771_640_923
COUNT = 500


@final
@dataclass(frozen=True, slots=True)
class System:
    """One system.

    Attributes:
        kind: what is hard about it, or its structure if nothing is.
        control: nothing is: each method that takes the structure must solve it.
        a: `[n, n]`; what is zero is not stored where the layout is sparse.
        b: `[n]`, or `[n, k]`.
        trans: the operator to solve with.
    """

    kind: str
    control: bool
    a: Array
    b: Array
    trans: Trans


@final
class Source:
    """Random numbers of one element type.

    Args:
        rng: where they come from.
        dtype: NumPy name of their type.
    """

    def __init__(self, rng: np.random.Generator, dtype: str) -> None:
        self.rng, self.dtype = rng, np.dtype(dtype)

    def normal(self, *shape: int) -> Array:
        """Normal numbers, complex where the type is."""
        real = self.rng.standard_normal(shape)
        return real + 1j * self.rng.standard_normal(shape) if self.dtype.kind == "c" else real

    def sparse(self, n: int, density: float = 0.15) -> Array:
        """`[n, n]`, mostly zeros."""
        return np.where(self.rng.random((n, n)) < density, self.normal(n, n), 0)

    def general(self, n: int) -> Array:
        """Diagonally dominant, not symmetric."""
        a = self.sparse(n)
        return np.asarray(a + np.diag(2 + np.abs(a).sum(axis=1)))

    def definite(self, n: int) -> Array:
        """Hermitian positive definite."""
        a = self.sparse(n)
        return np.asarray(a @ a.conj().T + 4 * np.eye(n))

    def orthogonal(self, n: int) -> Array:
        """Unitary, full."""
        return np.linalg.qr(self.normal(n, n))[0]


def _indefinite(s: Source, n: int) -> Array:
    a = s.sparse(n)
    a = a + a.conj().T
    return np.asarray(a + np.diag(np.where(np.arange(n) % 3, 1, -1) * (2 + np.abs(a).sum(axis=1))))


def _symmetric(s: Source, n: int) -> Array:
    """Equal to its transpose, which for complex numbers is not Hermitian."""
    a = s.sparse(n)
    a = a + a.T
    return np.asarray(a + np.diag(2 + np.abs(a).sum(axis=1)))


def _singular(s: Source, n: int) -> Array:
    """Small whole numbers: two rows are equal to the last bit, or one is the sum of two others."""
    a = np.rint(2 * s.sparse(n, 0.3)) + 3 * np.eye(n)
    if n > 2 and s.rng.random() < 0.5:
        a[-1] = a[0] + a[1]
    else:
        a[-1] = a[0]
    return np.asarray(a)


def _semidefinite(s: Source, n: int) -> Array:
    """A graph Laplacian: Hermitian, its null space the constants."""
    weights = np.abs(s.sparse(n, 0.3)) + np.eye(n, k=1)
    weights = np.triu(weights, 1) + np.triu(weights, 1).T
    return np.asarray(np.diag(weights.sum(axis=1)) - weights)


def _zero_row(s: Source, n: int) -> Array:
    a = s.general(n)
    a[s.rng.integers(n)] = 0
    return a


def _zero_column(s: Source, n: int) -> Array:
    return np.ascontiguousarray(_zero_row(s, n).T)


def _near_singular(s: Source, n: int) -> Array:
    """Condition number 1e14 to 1e18, full."""
    spectrum = np.geomspace(1, 10.0 ** -s.rng.uniform(14, 18), n)
    return np.asarray((s.orthogonal(n) * spectrum) @ s.orthogonal(n))


def _near_semidefinite(s: Source, n: int) -> Array:
    """The same, Hermitian, and definite but for rounding."""
    q = s.orthogonal(n)
    a = (q * np.geomspace(1, 10.0 ** -s.rng.uniform(14, 18), n)) @ q.conj().T
    return np.asarray((a + a.conj().T) / 2)


def _badly_scaled(s: Source, n: int) -> Array:
    rows, columns = 10.0 ** s.rng.uniform(-8, 8, (2, n))
    return np.asarray(rows[:, None] * s.general(n) * columns)


def _badly_scaled_definite(s: Source, n: int) -> Array:
    scale = 10.0 ** s.rng.uniform(-8, 8, n)
    return np.asarray(scale[:, None] * s.definite(n) * scale)


def _permuted(s: Source, n: int) -> Array:
    """Rows in another order: the diagonal is zero, or small."""
    return np.roll(s.general(n), 1, axis=0)


def _saddle(s: Source, n: int) -> Array:
    """[[H, Bᴴ], [B, 0]]; in one of four, B has two equal rows and the whole is singular."""
    m = max(1, n // 3)
    a = np.zeros((n, n), dtype=s.dtype)
    a[: n - m, : n - m] = s.definite(n - m)
    b = s.normal(m, n - m)
    if m > 1 and s.rng.random() < 0.25:
        b[1] = b[0]
    a[n - m :, : n - m], a[: n - m, n - m :] = b, b.conj().T
    return a


def _skew(s: Source, n: int) -> Array:
    """Nearly skew: no symmetric method and no unpreconditioned iteration likes it."""
    a = s.normal(n, n)
    return np.asarray(a - a.conj().T + 0.01 * np.eye(n))


def _nan(s: Source, n: int) -> Array:
    a = s.definite(n)
    i, j = s.rng.choice(np.argwhere(a))
    a[i, j] = s.rng.choice([np.nan, np.inf, -np.inf])
    return a


def _tiny(s: Source, n: int) -> Array:
    """Every number near the smallest or the largest there are."""
    far = 1e290 if np.finfo(s.dtype).eps < 1e-10 else 1e30
    return np.asarray(s.definite(n) * (far if s.rng.random() < 0.5 else 1 / far))


CONTROLS: Mapping[str, Callable[[Source, int], Array]] = {
    "general": Source.general,
    "definite": Source.definite,
    "indefinite": _indefinite,
    "symmetric": _symmetric,
    "triangular": lambda s, n: np.tril(s.general(n)),
    "zero_diagonal": _permuted,
}

HARD: Mapping[str, Callable[[Source, int], Array]] = {
    "singular": _singular,
    "semidefinite": _semidefinite,
    "zero row": _zero_row,
    "zero column": _zero_column,
    "near singular": _near_singular,
    "near semidefinite": _near_semidefinite,
    "badly scaled": _badly_scaled,
    "badly scaled definite": _badly_scaled_definite,
    "saddle point": _saddle,
    "skew": _skew,
    "NaN": _nan,
    "extreme numbers": _tiny,
}


def systems(count: int = COUNT, seed: int = SEED) -> Iterator[System]:
    """The systems; every third is a control."""
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        control, turn = index % 3 == 0, index // 3 if index % 3 == 0 else index - index // 3 - 1
        kinds = CONTROLS if control else HARD
        kind = list(kinds)[turn % len(kinds)]
        dtype = rng.choice(["float64", "complex128", "float32", "complex64"], p=[0.45, 0.35, 0.1, 0.1])
        source, n = Source(rng, str(dtype)), int(rng.integers(3 if control else 2, 36))
        with np.errstate(all="ignore"):
            a = np.ascontiguousarray(kinds[kind](source, n).astype(dtype))
            yield System(kind, control, a, _right_side(source, a), TRANS[int(rng.integers(3))])


def _right_side(s: Source, a: Array) -> Array:
    """Of no particular kind, in the range of A, or enormous; one column or three."""
    n, choice = a.shape[0], s.rng.random()
    b: Any = s.normal(n, 3) if s.rng.random() < 0.3 else s.normal(n)
    if choice < 0.4 and np.isfinite(a).all():
        b = a @ b
    elif choice < 0.5:
        b = b * 1e12
    return np.asarray(b.astype(a.dtype))
