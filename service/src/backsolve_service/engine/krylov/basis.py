"""How much memory the bases of GMRES may take: columns beyond that are solved in groups, one after the other.

Every column has a basis of its own, `restart` times as large as the column itself: a block of a
hundred would hold thousands of vectors that no admission has counted.
"""

from collections.abc import Iterator
from typing import Final

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


def columns_at_once(each: int) -> int | None:
    """How many columns of `each` bytes are solved together; None: any number."""
    return max(1, BASIS_BYTES // each) if each else None


def groups(count: int, width: int | None) -> Iterator[slice]:
    """`count` columns in groups of at most `width`."""
    step = max(width or count, 1)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
