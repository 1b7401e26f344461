"""Matrices given by parameters: what each kind computes with them, for NumPy and for PyTorch alike."""

from collections.abc import Mapping

from ..errors import InvalidPatternError
from .base import Kind
from .circulant import Circulant
from .kronecker import Kronecker
from .low_rank import LowRank
from .toeplitz import Toeplitz
from .update import Update

_KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (LowRank(), Kronecker(), Circulant(), Toeplitz())}

UPDATE: Kind = Update()
"""The one kind that stands on another matrix."""


def names() -> tuple[str, ...]:
    """Every kind that stands alone."""
    return tuple(_KINDS)


def kind(name: str) -> Kind:
    """The kind of that name.

    Raises:
        InvalidPatternError: there is none.
    """
    found = UPDATE if name == UPDATE.name else _KINDS.get(name)
    if found is None:
        known = ", ".join((*_KINDS, UPDATE.name))
        raise InvalidPatternError(f"this kind of structured matrix is not known: there are {known}")
    return found
