"""The ways to solve that are compared: SciPy by hand, and backsolve embedded, over HTTP and over gRPC."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, diags_array, eye_array, kron
from scipy.sparse.linalg import splu

import backsolve
from backsolve.fingerprint import values_digest

Floats = NDArray[np.float64]


def laplacian(side: int) -> csr_array:
    """5-point Laplacian of a `side` x `side` grid, plus the identity so that it is well conditioned."""
    line = diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    unit = eye_array(side)
    grid = csr_array(kron(line, unit) + kron(unit, line) + eye_array(side * side))
    grid.sort_indices()
    return grid


@final
class ByHand:
    """The reference: `scipy.sparse.linalg.splu` in symmetric mode, its factor kept by the caller."""

    def __init__(self, A: csr_array) -> None:
        # SuperLU's best settings for this matrix; its defaults fill in more and would flatter us.
        self._lu = splu(
            csc_array(A), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
        self._rows = np.repeat(np.arange(A.shape[0]), np.diff(A.indptr))
        self._columns = A.indices

    def solve(self, b: Floats) -> Floats:
        """`A⁻¹ b`."""
        return np.asarray(self._lu.solve(b))

    def vjp(self, x: Floats, cotangent: Floats) -> tuple[Floats, Floats]:
        """Gradients for b and for the stored entries of A."""
        adjoint = np.asarray(self._lu.solve(cotangent, trans="T"))
        return adjoint, -adjoint[self._rows] * x[self._columns]


@final
class Served:
    """The same through a client; the matrix is cached after the first call."""

    def __init__(self, A: csr_array, client: backsolve.Client) -> None:
        self._A = A
        self._client = client
        self._handle = client.factorized(A)

    def solve(self, b: Floats) -> Floats:
        """`client.solve`: the values are hashed on every call."""
        return self._client.solve(self._A, b).x

    def solve_by_handle(self, b: Floats) -> Floats:
        """`factorized(A).solve`: the handle knows the digest."""
        return self._handle.solve(b)

    def vjp(self, x: Floats, cotangent: Floats) -> tuple[Floats, Floats]:
        """`client.vjp`, both gradients."""
        gradients = self._client.vjp(self._A, x, cotangent)
        return np.asarray(gradients.b), np.asarray(gradients.values.data)


@dataclass(frozen=True)
class Task:
    """One thing to time.

    Attributes:
        call: what is timed; takes a fresh right-hand side.
        operation: "solve", "handle", "vjp" or "hash".
        way: "by hand", "embedded", "http" or "grpc".
    """

    operation: str
    way: str
    call: Callable[[Floats], Any]


def tasks(A: csr_array, clients: dict[str, backsolve.Client], x: Floats) -> list[Task]:
    """Everything that is timed for one matrix, factors already cached, answers already checked."""
    reference = ByHand(A)
    listed = [
        Task("solve", "by hand", reference.solve),
        Task("vjp", "by hand", partial(reference.vjp, x)),
    ]
    b = A @ x
    for way, client in clients.items():
        served = Served(A, client)
        for answer in (served.solve(b), served.solve_by_handle(b)):
            np.testing.assert_allclose(answer, reference.solve(b), rtol=1e-9, atol=1e-12)
        for ours, theirs in zip(served.vjp(x, b), reference.vjp(x, b), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
        listed += [
            Task("solve", way, served.solve),
            Task("handle", way, served.solve_by_handle),
            Task("vjp", way, partial(served.vjp, x)),
        ]
    pattern = backsolve.Pattern.from_csr(A)
    listed.append(Task("hash", "by hand", lambda b: values_digest(pattern, A.data)))
    return listed
