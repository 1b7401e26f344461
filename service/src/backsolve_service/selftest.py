"""Before the service calls itself ready: does every method it offers solve N, T and H rightly here?

A library that was built for another processor, or with another BLAS, can answer wrongly without a
word; a wrong adjoint would spoil every gradient. A method of an optional library that fails is
left out. The systems are tiny, so this also pays for first-use imports before a caller waits for
them.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np

from backsolve._transports.base import PutCall, SolveCall, SolveReply
from backsolve.errors import BacksolveError
from backsolve.kinds.base import NUMPY, apply
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern, StructuredPattern
from backsolve.types import TRANS, Array, MatrixRef, Options, Trans

from .context import CallContext
from .engine.device import CPU
from .engine.registry import ROWS, Row, methods

_log = logging.getLogger(__name__)

N = 7
DIMS = {
    "low_rank": (N, 2),
    "kronecker": (1, N),
    "circulant": (N,),
    "toeplitz": (N,),
}  # of each kind of structured matrix
TOLERANCE = 1e-6  # an iterative method stops at its own tolerance; a wrong operator is off by order 1
TIMEOUT_SECONDS = 120.0


class Plane(Protocol):
    """What is tested."""

    def put(self, call: PutCall, context: CallContext) -> MatrixRef: ...  # noqa: D102
    def solve(self, call: SolveCall, context: CallContext) -> SolveReply: ...  # noqa: D102


class SelfTestError(Exception):
    """A method answers wrongly on this machine."""


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """What the test found.

    Attributes:
        fit: the methods that answer rightly.
        unfit: methods of optional libraries that do not, and why; the service does without them.
    """

    fit: tuple[str, ...]
    unfit: Mapping[str, str]


def run(plane: Plane, device: str = CPU) -> Verdict:
    """Solve with every method that can run here, and check the answers against the matrix itself.

    Args:
        plane: what is tested.
        device: where it computes what can be computed there.

    Raises:
        SelfTestError: a method that needs no optional library failed, or its answer does not satisfy the system.
    """
    fit: list[str] = []
    unfit: dict[str, str] = {}
    for method in methods(device):
        try:
            for matrix, a in _matrices(ROWS[method]):
                _check(plane, method, matrix, a)
            fit.append(method)
        except Exception as error:  # a broken library may raise anything, ImportError above all
            if ROWS[method].requires is None:
                raise
            _log.warning("method %r is left out: it failed its self-test: %s", method, error)
            unfit[method] = f"it failed the self-test when this service started ({error})"
    return Verdict(tuple(fit), unfit)


def _matrices(row: Row) -> Iterator[tuple[Matrix, Array]]:
    """Complex matrices that the method takes, one a layout, with all entries; A is not Aᵀ where it can be."""
    if "structured" in row.layouts:
        yield _structured(row.needs)
        return
    rng = np.random.default_rng(480_926_117)
    general = rng.standard_normal((N, N)) + 1j * rng.standard_normal((N, N)) + 4.0 * np.eye(N)
    mirrored = general + general.conj().T
    a = {
        "square": general,
        "rectangular": general,
        "diagonal": np.diag(general.diagonal()),
        "triangular": np.tril(general),
        "symmetric": mirrored,
        "hermitian": mirrored,
        "transpose": general + general.T,
        "definite": general @ general.conj().T + N * np.eye(N),
    }[row.needs]
    if "dense" in row.layouts:
        yield Matrix(DensePattern((N, N)), a), a
    if "csr" in row.layouts:
        rows, columns = np.nonzero(a)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=N))])
        yield Matrix(Pattern(indptr, columns, (N, N)), a[rows, columns]), a


def _structured(kind: str) -> tuple[Matrix, Array]:
    """A complex matrix of a kind, and all its entries."""
    rng = np.random.default_rng(480_926_118)
    pattern = StructuredPattern(kind, DIMS[kind])
    values = rng.standard_normal(pattern.entries) + 1j * rng.standard_normal(pattern.entries)
    return Matrix(pattern, values), apply(pattern.kind, NUMPY, pattern.split(values), np.eye(N), "N")


def _check(plane: Plane, method: str, matrix: Matrix, a: Array) -> None:
    """Solve in all three directions, of which least squares has one; `a` holds the entries of `matrix`."""
    b = np.linspace(1.0, 2.0, N) - 1j * np.linspace(0.5, -1.0, N)
    operators: dict[Trans, Array] = {"N": a, "T": a.T, "H": a.conj().T}
    directions: tuple[Trans, ...] = ("N",) if ROWS[method].least_squares else TRANS
    for trans in directions:
        context = CallContext.within(TIMEOUT_SECONDS, "embedded")
        try:
            ref = plane.put(PutCall(matrix.ref, matrix), context)
            x = plane.solve(SolveCall(ref, Options(method=method, trans=trans), b), context).x
        except BacksolveError as err:
            raise SelfTestError(f"method {method!r} with trans={trans!r} failed: {err}") from err
        residual = float(np.linalg.norm(b - operators[trans] @ x) / np.linalg.norm(b))
        if not residual <= TOLERANCE:
            raise SelfTestError(
                f"method {method!r} answers wrongly for trans={trans!r} (relative residual {residual:.1e}): "
                "reinstall the numerical libraries of this machine; the service does not run with it"
            )
