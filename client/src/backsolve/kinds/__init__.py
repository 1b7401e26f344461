"""Matrices given by parameters: what each kind computes with them, for NumPy and for PyTorch alike."""

from collections.abc import Mapping

from ..errors import InvalidPatternError
from .base import Kind
from .circulant import Circulant
from .kronecker import Kronecker
from .low_rank import LowRank
from .toeplitz import Toeplitz

_KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (LowRank(), Kronecker(), Circulant(), Toeplitz())}


def names() -> tuple[str, ...]:
    """Every kind."""
    return tuple(_KINDS)


def kind(name: str) -> Kind:
    """The kind of that name.

    Raises:
        InvalidPatternError: there is none.
    """
    found = _KINDS.get(name)
    if found is None:
        raise InvalidPatternError(f"this kind of structured matrix is not known: there are {', '.join(_KINDS)}")
    return found
