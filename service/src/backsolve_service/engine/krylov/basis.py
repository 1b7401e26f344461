"""How much memory an iteration takes, and how much the bases of GMRES may take: columns beyond that wait their turn.

Every column has a basis of its own, `restart` times as large as the column itself, and every method
keeps a handful of vectors a column: they are counted when a solve is admitted, before they exist.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Final

RESTART: Final = 30
"""Default length of a GMRES basis, as everywhere."""

BASES: Final[Mapping[str, int]] = {"gmres": 1, "fgmres": 2}
"""Bases of `restart` vectors that a method keeps for each column; others keep none."""

VECTORS: Final[Mapping[str, int]] = {
    "cg": 8,
    "fcg": 14,
    "minres": 19,
    "bicgstab": 19,
    "gmres": 12,
    "fgmres": 12,
    "lsmr": 14,
    "lstsq_lsmr": 19,
}
"""Vectors that a solve holds at its peak for each column beside the bases: measured, with n = 2e5, and tested."""

BASIS_BYTES: Final = 1 << 28
"""Of the bases of one solve, together; a single column may need more, and gets it."""


def basis_bytes(n: int, itemsize: int, restart: int, bases: int) -> int:
    """Bytes that each column's bases may come to, with the triangular matrix over them.

    Args:
        n: rows.
        itemsize: bytes of a number.
        restart: most vectors of a basis.
        bases: how many the method keeps: none, one, or two of a flexible one.
    """
    length = min(restart, n)
    return itemsize * (bases * length * n + length**2 + n) if bases else 0


def work_bytes(method: str, n: int, columns: int, itemsize: int, restart: int | None) -> int:
    """Bytes that a solve by an iterative method holds at its peak beside right-hand sides and answers; 0 of others.

    Args:
        method: a row of the registry.
        n: rows, or columns if they are more.
        columns: right-hand sides.
        itemsize: bytes of a number in double precision, real or complex.
        restart: of GMRES; None: its default.
    """
    vectors = VECTORS.get(method)
    if vectors is None:
        return 0
    basis = basis_bytes(n, itemsize, restart or RESTART, BASES.get(method, 0))
    together = min(columns, columns_at_once(basis) or columns)
    return together * (vectors * n * itemsize + basis)


def largest_restart(method: str, n: int, itemsize: int, limit: int) -> int:
    """The longest basis of one column that `work_bytes` puts within `limit`; 0 where none is."""
    each, room = BASES.get(method, 0) * n, limit // itemsize - (VECTORS.get(method, 0) + 1) * n
    if not each or room <= 0:
        return 0
    # The larger root of length² + each length = room.
    return min(int((math.sqrt(each * each + 4 * room) - each) / 2), n)


def columns_at_once(each: int) -> int | None:
    """How many columns of `each` bytes are solved together; None: any number."""
    return max(1, BASIS_BYTES // each) if each else None


def groups(count: int, width: int | None) -> Iterator[slice]:
    """`count` columns in groups of at most `width`."""
    step = max(width or count, 1)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
