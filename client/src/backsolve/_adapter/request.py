"""One solve as an adapter sees it: an operator of one matrix, and the call that it stands for.

No framework appears here: arrays go in, arrays come out. An adapter turns its tensors into arrays,
says by a stamp whether they are those that it asked about before, and records the derivative.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Final, Literal, final

import numpy as np

from ..client import Client
from ..kinds.base import Operator
from ..matrix import Matrix
from ..pattern import AnyPattern
from ..retry import Timeout
from ..types import Array, Certificate, OnFailure, Options, Trans

Phase = Literal["solve", "adjoint", "tangent"]
Observer = Callable[[Phase, Certificate], None]

ADJOINT: Final[dict[Operator, Operator]] = {"N": "H", "H": "N", "T": "C", "C": "T"}
"""The operator that a cotangent is solved with; "C", the conjugate of A, is the adjoint of "T"."""


@final
class System:
    """One matrix with what is asked of it, from the forward solve to its last derivative.

    Its digests are computed by the forward solve; every later solve of the same graph reuses
    them, and the server finds the factor by them. The numbers are not copied where they lie in
    host memory: the digest catches a change when they are sent again.

    Args:
        client: where to solve.
        pattern: of one matrix.
        options: of the forward solve.
        timeout: seconds for each request.
        on_failure: for forward and backward alike.
        observe: called after each request with its certificate.
    """

    def __init__(
        self,
        client: Client,
        pattern: AnyPattern,
        options: Options,
        timeout: Timeout,
        on_failure: OnFailure,
        observe: Observer | None = None,
    ) -> None:
        self.client = client
        self.pattern = pattern
        self.options = options
        self.timeout = timeout
        self.on_failure: OnFailure = on_failure
        self.observe = observe
        self.certificate: Certificate | None = None
        self._stamp: Hashable = None
        self._matrix: Matrix | None = None

    def matrix(self, stamp: Hashable, numbers: Callable[[], Array]) -> Matrix:
        """The canonical matrix of `numbers`, made and hashed once for the same stamp.

        Args:
            stamp: tells these numbers from others that a derivative is handed in their place.
            numbers: the matrix's parameters, in C order.
        """
        if self._matrix is None or stamp != self._stamp:
            return self.adopt(stamp, Matrix.of_parameters(self.pattern, numbers()))
        return self._matrix

    def adopt(self, stamp: Hashable, matrix: Matrix) -> Matrix:
        """Know `matrix` as that of `stamp`."""
        self._matrix, self._stamp = matrix, stamp
        return matrix

    @property
    def derived(self) -> Options:
        """Options of every solve after the forward: its method by name, so that its factor is met.

        "auto" alone might choose another one: a first iterate, which only the forward has, asks
        for an iterative method. With `reuse` the forward may have had no factor of its own: what
        comes after it decides as it did.
        """
        if self.certificate is None or self.options.reuse is not None:
            return self.options
        return replace(self.options, method=self.certificate.method)

    def record(self, phase: Phase, certificate: Certificate) -> None:
        """Keep the forward's certificate, and show each to the observer."""
        if phase == "solve" and self.certificate is None:
            self.certificate = certificate
        if self.observe is not None:
            self.observe(phase, certificate)


@final
@dataclass(frozen=True, slots=True)
class Request:
    """A solve with one operator of a system.

    Attributes:
        system: the matrix.
        adjoint: solve with the adjoint of `options.trans`'s operator.
        tangent: the right-hand side is a tangent.
        cotangent: the right-hand side is a cotangent, of an adjoint that was differentiated.
    """

    system: System
    adjoint: bool = False
    tangent: bool = False
    cotangent: bool = False

    @property
    def operator(self) -> Operator:
        """What is solved with."""
        trans = self.system.options.trans
        return ADJOINT[trans] if self.adjoint else trans

    def pulled_back(self) -> "Request":
        """The request that a cotangent of this one's answer needs."""
        return Request(self.system, adjoint=not self.adjoint, cotangent=self.adjoint)

    def pushed_forward(self) -> "Request":
        """The request that a tangent of this one's input needs."""
        return Request(self.system, adjoint=self.adjoint, tangent=True)

    def run(self, matrix: Matrix, rhs: Array, x0: Array | None) -> Array:
        """Solve, and record the certificate; the answer shares no memory with the input."""
        x, phase, certificate = call(matrix, rhs, x0, self)
        self.system.record(phase, certificate)
        return x


def call(matrix: Matrix, rhs: Array, x0: Array | None, request: Request) -> tuple[Array, Phase, Certificate]:
    """Make the one call that a request stands for."""
    system = request.system
    client = system.client
    if request.adjoint:
        reply = client.vjp_matrix(matrix, rhs, system.derived, timeout=system.timeout, on_failure=system.on_failure)
        return np.asarray(reply.b), "adjoint", reply.stats
    if request.tangent:
        tangent = client.jvp_matrix(matrix, rhs, system.derived, timeout=system.timeout, on_failure=system.on_failure)
        return tangent.x, "tangent", tangent.stats
    if request.cotangent and system.options.nullspace is not None:
        return _forward_of_cotangent(matrix, rhs, system)
    solution = client.solve_matrix(
        matrix, rhs, system.options, x0=x0, timeout=system.timeout, on_failure=system.on_failure
    )
    return solution.x, "solve", solution.stats


def _forward_of_cotangent(matrix: Matrix, rhs: Array, system: System) -> tuple[Array, Phase, Certificate]:
    """`op(A)⁺ rhs` as the adjoint of the adjoint: only that takes a right-hand side outside the range of A."""
    conjugated = system.options.trans == "T"
    flipped: dict[Trans, Trans] = {"N": "H", "H": "N", "T": "N"}
    options = replace(system.derived, trans=flipped[system.options.trans])
    # Aᵀ x = b is the conjugate of Aᴴ conj(x) = conj(b), and Aᴴ is the adjoint of "N".
    given = np.conj(rhs) if conjugated else rhs
    reply = system.client.vjp_matrix(matrix, given, options, timeout=system.timeout, on_failure=system.on_failure)
    x = np.asarray(reply.b)
    return np.conj(x) if conjugated else x, "solve", reply.stats
