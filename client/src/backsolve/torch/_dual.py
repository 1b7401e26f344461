"""Dual numbers inside the rules of forward mode."""

from torch import Tensor
from torch.autograd.forward_ad import unpack_dual


def primal(dual: Tensor) -> Tensor:
    """A tensor without its tangent at the innermost level."""
    primal: Tensor = unpack_dual(dual, level=0).primal  # type: ignore[no-untyped-call]
    return primal
