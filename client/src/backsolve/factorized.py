"""A matrix that is factorized once and solved with many times, held by its digests alone."""

from typing import Any, final

from ._calls.solve import Held
from ._session import Session
from .types import Array, Certificate, Trans


@final
class Factorized:
    """A matrix ready to be solved with; made by `Client.factorized`.

    Attributes:
        shape: `(n, n)`.
        dtype: element type of the values, and of the answers.
    """

    def __init__(self, session: Session, held: Held) -> None:
        self._session = session
        self._exchange = session.exchange
        self._held = held
        self.shape = held.matrix.pattern.shape
        self.dtype = held.matrix.dtype

    @property
    def last(self) -> Certificate:
        """Certificate of the latest call."""
        return self._held.last

    def solve(self, b: Any, trans: Trans = "N") -> Array:
        """Solve `op(A) x = b` with the kept factor.

        Args:
            b: `[n]` or `[n, k]`; converted to A's type if that loses nothing.
            trans: "N", "T" or "H".

        Raises:
            InvalidDtypeError: b does not fit A's type.
        """
        return self._session.run(self._held.solve(self._exchange, b, trans))
