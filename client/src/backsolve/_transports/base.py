"""The seam between the client and whatever answers it: one set of calls, one abstract transport.

The data plane of the service takes the same calls, so a transport only carries them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..matrix import Matrix
from ..types import Array, Certificate, Holding, MatrixRef, Options, ServerInfo, Want

Meanwhile = Callable[[], None]
"""What this side has to do during a call in any case, and can do while it waits for the reply; once or more often."""


@dataclass(frozen=True, slots=True)
class SolveCall:
    """Solve `op(A) x = b`.

    Attributes:
        ref: identity of A.
        options: method and solve spec.
        rhs: `[n]`, `[n, k]`, or with a leading batch axis when A's values have one. Its
            element type is A's.
        x0: first iterate, shaped like `rhs`.
        answer_shape: of x, where it is not that of `rhs` (least squares); known to both ends, not sent.
        values: those of A, on the pattern that is held under `ref.pattern`: they are kept before the
            solve, and spare an upload of their own. None: they are held already. With them `ref` may be unnamed.
        meanwhile: never sent; done by transports that overlap, and by the client itself if it was not.
        repeated: the server had no room for it before.
    """

    ref: MatrixRef
    options: Options
    rhs: Array
    x0: Array | None = None
    answer_shape: tuple[int, ...] | None = None
    values: Array | None = None
    meanwhile: Meanwhile | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class SolveReply:
    """`x`, shaped like the right-hand side, and its certificate.

    Attributes:
        ref: of values that came with the call, as the digests were computed there.
    """

    x: Array
    certificate: Certificate
    ref: MatrixRef | None = None


@dataclass(frozen=True, slots=True)
class VjpCall:
    """Pull a cotangent of `x = op(A)⁻¹ b` back to `b` and A's values.

    Of least squares the reply's `b` is `λ = (AᴴA + damp² I)⁺ · cotangent`, shaped like the cotangent.

    Attributes:
        options: those of the forward solve; the adjoint operator follows from `trans`.
        cotangent: shaped like `x`.
        want: which gradients to form. The client asks for "b" alone and forms the gradient
            of the values from λ itself; "values" is for callers that cannot.
        x: the forward answer, needed for "values" only.
        meanwhile, repeated: as of a solve.
    """

    ref: MatrixRef
    options: Options
    cotangent: Array
    want: tuple[Want, ...] = ("b",)
    x: Array | None = None
    meanwhile: Meanwhile | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class VjpReply:
    """What was wanted: `b` shaped like the cotangent, `values` shaped like A's values."""

    b: Array | None
    values: Array | None
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class JvpCall:
    """Push tangents of A's values and of `b` forward to `x = op(A)⁻¹ b`.

    Attributes:
        x: the forward answer; needed with `values_tangent` only.
        b_tangent: shaped like `b`.
        values_tangent: shaped like A's values.
        meanwhile, repeated: as of a solve.
    """

    ref: MatrixRef
    options: Options
    x: Array | None
    b_tangent: Array | None
    values_tangent: Array | None
    meanwhile: Meanwhile | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class PutCall:
    """Send a matrix.

    Attributes:
        ref: what the sender believes its digests are; the server computes its own.
        matrix: pattern and values; of a values-only upload the receiver takes the pattern
            that it already holds under `ref.pattern`.
        values_only: whether the pattern's arrays are left out.
        repeated: as of a solve.
    """

    ref: MatrixRef
    matrix: Matrix
    values_only: bool = False
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class InfoCall:
    """Ask what answers."""


@dataclass(frozen=True, slots=True)
class StatsCall:
    """Ask for the counters of what answers."""


REPEATED_HEADER = "backsolve-repeated"
"""Header and metadata of a call that the server had no room for before: it has waited its turn."""

Call = SolveCall | VjpCall | JvpCall | PutCall | InfoCall | StatsCall
"""What a transport carries as a step of a client's call."""


class Wire(Protocol):
    """Counts the payload bytes a transport has moved.

    Attributes:
        sent: what a call sends depends on nothing but the call.
        received: over REST with the certificates, whose length varies with the digits of the seconds in them.
        received_arrays: the arrays alone, so that equal calls move equal numbers of bytes.
    """

    sent: int
    received: int
    received_arrays: int


class Transport(ABC):
    """Carries calls to a data plane. Thread-safe.

    Every method raises a class of `backsolve.errors`: what the other side raised, or
    `UnreachableError` when there is none. `timeout` is in seconds; None waits for ever.
    """

    @property
    def overlaps(self) -> bool:
        """Whether what a call has to do meanwhile is done while the reply is awaited."""
        return False

    @abstractmethod
    def solve(self, call: SolveCall, timeout: float | None) -> SolveReply:
        """Solve."""

    @abstractmethod
    def vjp(self, call: VjpCall, timeout: float | None) -> VjpReply:
        """One adjoint solve."""

    @abstractmethod
    def jvp(self, call: JvpCall, timeout: float | None) -> SolveReply:
        """One tangent solve."""

    @abstractmethod
    def put(self, call: PutCall, timeout: float | None) -> MatrixRef:
        """Upload a matrix, or its values alone; idempotent. Returns the server's digests."""

    @abstractmethod
    def find(self, refs: Sequence[MatrixRef], timeout: float | None) -> list[Holding]:
        """How much of each matrix the other side holds."""

    @abstractmethod
    def release(self, ref: MatrixRef, timeout: float | None) -> None:
        """Hint that this caller needs the matrix no longer."""

    @abstractmethod
    def info(self, timeout: float | None) -> ServerInfo:
        """Versions, limits and methods."""

    @abstractmethod
    def stats(self, timeout: float | None) -> Mapping[str, float]:
        """Counters of the data plane: factorizations, solves, cache hits and bytes."""

    def empty(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Array:
        """An array, not initialised; one that is sent without a copy, where the transport has such memory."""
        return np.empty(shape, dtype)

    @abstractmethod
    def close(self) -> None:
        """Free connections; later calls fail."""


def carry(transport: Transport, call: Call, timeout: float | None) -> object:
    """Make a call by the method of the transport that carries its kind, and return that method's reply."""
    match call:
        case SolveCall():
            return transport.solve(call, timeout)
        case VjpCall():
            return transport.vjp(call, timeout)
        case JvpCall():
            return transport.jvp(call, timeout)
        case PutCall():
            return transport.put(call, timeout)
        case InfoCall():
            return transport.info(timeout)
        case StatsCall():
            return transport.stats(timeout)
