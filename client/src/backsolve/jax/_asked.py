"""What a solve is, apart from its arrays: the static part of the operation, compared by value."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Final, final

from .._adapter.request import Observer
from ..client import Client
from ..kinds.base import Operator
from ..pattern import AnyPattern, Pattern, StructuredPattern, parameters
from ..retry import Timeout
from ..types import OnFailure, Options

TRANSPOSED: Final[dict[Operator, Operator]] = {"N": "T", "T": "N", "H": "C", "C": "H"}
"""The operator of a transposed solve; JAX transposes without conjugating."""


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """One solve with one operator of a matrix. Two that are equal may share a compiled program.

    Attributes:
        key: tells the pattern from others.
        pattern: of one matrix.
        options: of the forward solve.
        client: where to solve; None: the process-wide client, when the time comes.
        timeout: seconds for each request.
        on_failure: None: "raise" outside of compiled code, "nan" inside.
        observe: called after each request.
        adjoint: solve with the transpose of `options.trans`'s operator.
        tangent: the right-hand side is a tangent.
        cotangent: the right-hand side is a cotangent, of a transposed solve.
        derived: this solve comes after a forward, and is told the method that answered that.
    """

    key: Hashable
    pattern: AnyPattern = field(compare=False)
    options: Options
    client: Client | None
    timeout: Timeout
    on_failure: OnFailure | None
    observe: Observer | None
    adjoint: bool = False
    tangent: bool = False
    cotangent: bool = False
    derived: bool = False

    @property
    def operator(self) -> Operator:
        """What is solved with."""
        trans = self.options.trans
        return TRANSPOSED[trans] if self.adjoint else trans

    @property
    def entries(self) -> int:
        """Dimensions of one matrix's values."""
        return len(parameters(self.pattern))

    def transposed(self) -> "Asked":
        """What a cotangent of this one's answer needs."""
        return replace(self, adjoint=not self.adjoint, tangent=False, cotangent=self.adjoint, derived=True)

    def pushed_forward(self) -> "Asked":
        """What a tangent of this one's input needs."""
        return replace(self, tangent=True, cotangent=False, derived=True)


def key_of(pattern: AnyPattern) -> Hashable:
    """What is equal where patterns are: of sparse ones the object, of others their sizes."""
    if isinstance(pattern, Pattern):
        return pattern
    if isinstance(pattern, StructuredPattern):
        base = None if pattern.base is None else key_of(pattern.base)
        return (pattern.kind.name, pattern.dims, base)
    return (pattern.shape, pattern.storage)
