"""Which shapes of one system, or of a batch of them, fit each other: the same texts in every framework."""

from collections.abc import Sequence
from typing import Any

from ..errors import InvalidShapeError

Shape = Sequence[Any]
"""Numbers, or what a framework has for them while it traces a function."""


def leading(
    values: Shape, b: Shape, x0: Shape | None, entries: tuple[int, ...], rows: int, name: str
) -> tuple[Any, ...]:
    """The batch dimensions of operands that fit each other.

    Args:
        values: `[*batch, *entries]`.
        b: `[*batch, rows]` or `[*batch, rows, k]`.
        x0: like b.
        entries: shape of one matrix's values.
        rows: of b.
        name: how the caller knows the values.

    Raises:
        InvalidShapeError: they do not fit.
    """
    values, b = tuple(values), tuple(b)
    lead = values[: len(values) - len(entries)]
    if len(values) < len(entries) or values[len(lead) :] != entries:
        raise InvalidShapeError(f"{name} has shape {values}, the pattern needs {entries} or (batch, *{entries})")
    known = (*lead, rows)
    if b[: len(known)] != known or len(b) not in (len(known), len(known) + 1):
        raise InvalidShapeError(
            f"b has shape {b}; this matrix takes {known} for vectors or {(*known, 'k')} for k columns"
        )
    if x0 is not None and tuple(x0) != b:
        raise InvalidShapeError(f"x0 has shape {tuple(x0)}, it must be shaped like b, {b}")
    return lead
