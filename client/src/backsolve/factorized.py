"""A matrix that is factorized once and solved with many times, held by its digests alone."""

from dataclasses import replace
from typing import Any, final

import numpy as np

from ._session import Session, Timeout
from .canonical import as_array
from .errors import InvalidDtypeError
from .matrix import Matrix
from .options import check_trans
from .types import Array, OnFailure, Options, Trans


@final
class Factorized:
    """A matrix ready to be solved with; made by `Client.factorized`.

    Attributes:
        shape: `(n, n)`.
        dtype: element type of the values, and of the answers.
        last: certificate of the latest call.
    """

    def __init__(
        self, session: Session, matrix: Matrix, options: Options, on_failure: OnFailure, timeout: Timeout
    ) -> None:
        self._session = session
        self._matrix = matrix
        self._options = options
        self._on_failure: OnFailure = on_failure
        self._timeout = timeout
        self.shape = matrix.pattern.shape
        self.dtype = matrix.dtype
        # No columns to solve for: the call factorizes, and reports a singular matrix, now.
        nothing = np.zeros((*matrix.systems_shape, matrix.n, 0), dtype=matrix.dtype)
        self.last = session.solve(matrix, nothing, options, None, timeout, on_failure).stats

    def solve(self, b: Any, trans: Trans = "N") -> Array:
        """Solve `op(A) x = b` with the kept factor.

        Args:
            b: `[n]` or `[n, k]`; converted to A's type if that loses nothing.
            trans: "N", "T" or "H".

        Raises:
            InvalidDtypeError: b does not fit A's type.
        """
        rhs = as_array(b, "b")
        if not np.can_cast(rhs.dtype, self.dtype, "safe"):
            raise InvalidDtypeError(
                f"b is {rhs.dtype}, the factor {self.dtype}: factorize A.astype({rhs.dtype.name!r})"
            )
        options = replace(self._options, trans=check_trans(trans))
        solution = self._session.solve(
            self._matrix, rhs.astype(self.dtype, copy=False), options, None, self._timeout, self._on_failure
        )
        self.last = solution.stats
        return solution.x
