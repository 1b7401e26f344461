"""The shared vocabulary: statuses, error codes, certificates and what a call may ask for.

NumPy and the standard library only: the engine, the data plane, every transport and every
framework adapter speak in these words.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Trans = Literal["N", "T", "H"]
"""Which operator a solve applies: `A`, its transpose, or its conjugate transpose."""

TRANS: tuple[Trans, ...] = get_args(Trans)

Storage = Literal["general", "hermitian", "lower"]
"""What the stored entries say: all of A; all of an A that equals Aᴴ; or its lower triangle, the rest being Aᴴ's."""

STORAGES: tuple[Storage, ...] = get_args(Storage)

Array = NDArray[Any]
"""Values of one of `DTYPES`, in C order."""

DTYPES: tuple[np.dtype[Any], ...] = tuple(np.dtype(name) for name in ("float32", "float64", "complex64", "complex128"))
"""The element types a system may have, on the wire and in the engine."""

LARGEST_INTEGER = 2**63 - 1
"""The largest whole number that an option may have: every way in can carry it."""

OnFailure = Literal["raise", "warn", "nan"]
Want = Literal["b", "values"]

DIGEST_BYTES = 32
DIGEST_VERSION = 1


@unique
class ErrorCode(Enum):
    """Every reason for which a call may fail; the values are those of `errors.proto`."""

    INTERNAL = 1
    MALFORMED = 2
    INVALID_SHAPE = 3
    INVALID_DTYPE = 4
    INVALID_PATTERN = 5
    INVALID_OPTION = 6
    NONFINITE_INPUT = 7
    SINGULAR_MATRIX = 8
    NOT_POSITIVE_DEFINITE = 9
    NOT_SUPPORTED = 10
    UNSUPPORTED_MEDIA = 11
    NOT_ACCEPTABLE = 12
    NEED_MATRIX = 13
    NEED_VALUES = 14
    DIGEST_MISMATCH = 15
    PAYLOAD_TOO_LARGE = 16
    MEMORY_BUDGET = 17
    QUEUE_FULL = 18
    DRAINING = 19
    RATE_LIMITED = 20
    DEVICE_OUT_OF_MEMORY = 21
    DEADLINE = 22
    CANCELLED = 23
    UNAUTHENTICATED = 24
    PERMISSION_DENIED = 25
    UNREACHABLE = 26
    NOT_FOUND = 27
    NOT_HERMITIAN = 28


@unique
class Status(Enum):
    """How a solve that ran has ended; the values are those of `types.proto`."""

    OK = 1
    MAX_ITER = 2
    STAGNATION = 3
    BREAKDOWN = 4
    SINGULAR_STRUCTURAL = 5
    SINGULAR_NUMERIC = 6
    NOT_POSITIVE_DEFINITE = 7
    ILL_CONDITIONED = 8
    NONFINITE_INPUT = 9
    INCONSISTENT = 10
    OUT_OF_RANGE = 11

    @property
    def advice(self) -> str:
        """What happened and what to try next, in one sentence."""
        return _ADVICE[self]


_ADVICE: Mapping[Status, str] = {
    Status.OK: "the answer meets the tolerance",
    Status.MAX_ITER: "the iteration limit came before the tolerance: raise maxiter, or use a direct method",
    Status.STAGNATION: "the residual stopped falling before the tolerance: loosen rtol, use a direct method (if this "
    "is one, another), or precision='full' in place of 'mixed'",
    Status.BREAKDOWN: "the iteration met a zero denominator: use a direct method such as 'superlu' or 'lu'",
    Status.SINGULAR_STRUCTURAL: "the pattern admits no nonzero diagonal in any order, so no values make it invertible: "
    "look for an empty row or column",
    Status.SINGULAR_NUMERIC: "a pivot is exactly zero, or so small beside the others that its inverse overflows: "
    "solve A + shift*I, or remove the dependent row",
    Status.NOT_POSITIVE_DEFINITE: "the matrix is not Hermitian positive definite: use method='lu' or 'superlu'",
    Status.ILL_CONDITIONED: "the matrix is so ill-conditioned that digits of x may be lost: rescale or regularise it",
    Status.NONFINITE_INPUT: "A or b holds NaN or infinity: check what computed it",
    Status.INCONSISTENT: "the right-hand side is outside the range of the singular matrix: project it first",
    Status.OUT_OF_RANGE: "x is too large or too small for its element type: rescale A or b (other units), or use "
    "a wider type",
}


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent on one call in each phase.

    `hash` is the client's: taking the digests of the matrix, 0 where they were known. The others
    are measured by the side that solved.
    """

    queue: float = 0.0
    hash: float = 0.0
    analyze: float = 0.0
    factor: float = 0.0
    solve: float = 0.0


@dataclass(frozen=True, slots=True)
class Element:
    """What is known of one system of a batch: the fields are those of `Certificate`."""

    status: Status
    iterations: int
    relative_residual: float
    backward_error: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a reply proves about itself.

    Attributes:
        status: how the solve ended; of a batch, the worst element's.
        method: the method that really computed x, never "auto".
        reason: why that method was chosen.
        precision: NumPy name of the type the factor was computed in.
        iterations: Krylov iterations, 0 for a direct method (largest of all columns).
        refinements: steps of iterative refinement that were taken.
        relative_residual: ||b - op(A) x|| / ||b|| in the 2-norm, computed in float64 from
            the returned x; largest of all columns.
            Of least squares, where that says nothing, what of the residual an x could still remove:
            the least of ||b - A x|| / ||b||, of ||Aᴴ(b - A x)|| / (||A|| ||b - A x||), and of what
            one more solve would remove, over ||b||; damping is part of A and b there.
        backward_error: ||b - op(A) x|| / (||A|| ||x|| + ||b||) in the maximum norm, in float64. Of
            least squares a bound on the relative change of A or b that makes x exact, in the 2-norm.
        condition_estimate: an estimate of, or a lower bound on, the condition number; None
            where the factor does not make one cheap.
        symbolic_hit: the pattern's analysis was already cached.
        factor_hit: the factor was already cached, so nothing was factorized for this call.
        seconds: time by phase.
        instance: identity of the process that solved it.
        elements: one entry a system when values were batched, else empty.
        preconditioner: of an iterative method, with its parameters.
        inverse_norm: an estimate of a bound on ||A⁻¹||₂, where `condition` was asked for.
    """

    status: Status
    method: str
    reason: str
    precision: str
    iterations: int
    relative_residual: float
    backward_error: float
    condition_estimate: float | None
    symbolic_hit: bool
    factor_hit: bool
    seconds: Timings
    instance: str
    refinements: int = 0
    elements: tuple[Element, ...] = ()
    preconditioner: str | None = None
    inverse_norm: float | None = None


@dataclass(frozen=True, slots=True)
class Solution:
    """The answer to a solve, usable wherever an array is.

    Attributes:
        x: shaped like `b`.
        status: how the solve ended (`stats.status`).
        stats: the certificate.
    """

    x: Array
    status: Status
    stats: Certificate

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Let NumPy functions take the solution itself."""
        # In words that NumPy 1 knows too: there `copy=None` is refused, and `copy=False` may copy.
        found = np.asarray(self.x, dtype=dtype)
        if copy is False and found is not self.x:
            raise ValueError(f"x is of type {self.x.dtype}: to have it as {found.dtype} it must be copied")
        return found.copy() if copy and found is self.x else found


@dataclass(frozen=True, slots=True)
class Gradients:
    """Cotangents of `A x = b`; what was not wanted is None.

    Attributes:
        b: shaped like `b`.
        values: on A's own stored entries, in the caller's layout and order.
        stats: the certificate of the adjoint solve.
        corrected_value: Re(gᴴx + λᴴr), if b was given: the linear functional Re(gᴴx) whose gradient
            this is, with the error of x corrected to first order.
        error_bound: bound on the Frobenius norm of the error of `values`, if b was given and the
            condition asked for.
    """

    b: Array | None
    values: Any
    stats: Certificate
    corrected_value: float | None = None
    error_bound: float | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What one solve asks for: the method, and the solve spec.

    None means the method's default. An option that the method does not use is an error. What the
    options mean to a caller is told once, at `backsolve.options.SolveOptions`.
    """

    method: str = "auto"
    preconditioner: str | None = None
    trans: Trans = "N"
    rtol: float | None = None
    atol: float | None = None
    maxiter: int | None = None
    refine: int | None = None
    restart: int | None = None
    precision: str | None = None
    ordering: str | None = None
    reuse: str | None = None
    recycle: int | None = None
    nullspace: str | None = None
    damp: float | None = None
    rcond: float | None = None
    condition: bool | None = None


_UNNAMED = bytes(DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class MatrixRef:
    """The identity of a matrix: BLAKE3-256 of its pattern and of its values.

    Attributes:
        pattern, values: the digests.
        route: the digest that the matrix is routed by, where that is not its pattern's: an update belongs where the
            matrix is that it stands on. Not part of the identity.
    """

    pattern: bytes
    values: bytes
    route: bytes = field(default=b"", compare=False, repr=False)

    @classmethod
    def unnamed(cls, pattern: bytes) -> "MatrixRef":
        """Of values that a call brings and that nobody has hashed yet: whoever receives them does."""
        return cls(pattern, _UNNAMED)

    @property
    def is_unnamed(self) -> bool:
        """Whether the digest of the values is still to be found out."""
        return self.values == _UNNAMED

    @property
    def route_key(self) -> str:
        """By what calls find the replica that a matrix belongs to.

        Its pattern alone: the symbolic work on that is what lasts when values change.
        """
        return (self.route or self.pattern)[:8].hex()

    @property
    def key(self) -> str:
        """The name of the matrix in a URL: `{pattern-hex}-{values-hex}`."""
        return f"{self.pattern.hex()}-{self.values.hex()}"


@unique
class Holding(Enum):
    """How much of a matrix a server holds; the values are those of `solver.proto`."""

    ABSENT = 1
    PATTERN = 2
    VALUES = 3
    FACTOR = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server accepts in one call, in bytes."""

    max_message_bytes: int
    max_payload_bytes: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is and offers.

    Attributes:
        http_port, grpc_port: where it listens; None of an embedded engine.
        unix_http, unix_grpc: paths of its Unix sockets, on its own machine.
        unix_shared: path of the socket over which callers on its machine share memory.
    """

    version: str
    api_versions: tuple[str, ...]
    digest_version: int
    instance: str
    device: str
    dtypes: tuple[str, ...]
    methods: tuple[str, ...]
    preconditioners: tuple[str, ...]
    limits: Limits
    extensions: tuple[str, ...] = ()
    http_port: int | None = None
    grpc_port: int | None = None
    unix_http: str | None = None
    unix_grpc: str | None = None
    unix_shared: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One of the replicas that a client knows, as it sees it.

    Attributes:
        url: what names it.
        in_flight: calls of this client under way there.
        calls: attempts that this client has made there.
        spilled: calls among them whose matrix belongs to another replica, which was dead or had its hands full.
        uploads: matrices that this client has sent there.
        stats: its own counters (`Client.stats`); None: it does not answer.
    """

    url: str
    in_flight: int
    calls: int
    spilled: int
    uploads: int
    stats: Mapping[str, float] | None
