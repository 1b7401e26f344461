"""One solve as the adapter sees it: tensors in, a request to the client, a tensor out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, final

import numpy as np
import torch
from torch import Tensor

from ..client import Client
from ..errors import NotSupportedError
from ..matrix import Matrix
from ..pattern import AnyPattern, StructuredPattern
from ..retry import Timeout
from ..types import Array, Certificate, OnFailure, Options, Trans

Operator = Literal["N", "T", "H", "C"]
"""What a request solves with: `trans`, or "C", the conjugate of A, which is the adjoint of "T"."""

Phase = Literal["solve", "adjoint", "tangent"]
Observer = Callable[[Phase, Certificate], None]

ADJOINT: Final[dict[Operator, Operator]] = {"N": "H", "H": "N", "T": "C", "C": "T"}


@final
class System:
    """One matrix with what is asked of it, from the forward solve to its last derivative.

    Its digests are computed by the forward solve; every later solve of the same graph reuses
    them, and the server finds the factor by them. The numbers are not copied where the tensor
    lies in host memory: autograd's version counter watches the tensor between forward and
    backward, and the digest catches what that counter misses when the numbers are sent again.

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
        self._stamp: tuple[Any, ...] | None = None
        self._matrix: Matrix | None = None

    def matrix(self, values: Tensor) -> Matrix:
        """The canonical matrix of `values`, hashed once for the tensor that the forward met."""
        if self._matrix is None or _stamp(values) != self._stamp:
            return self.adopt(values, Matrix.of_parameters(self.pattern, to_array(values)))
        return self._matrix

    def adopt(self, values: Tensor, matrix: Matrix) -> Matrix:
        """Know `matrix` as that of `values`."""
        self._matrix, self._stamp = matrix, _stamp(values)
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

    def run(self, values: Tensor, rhs: Tensor, x0: Tensor | None) -> Tensor:
        """Solve. No derivative is recorded here; the answer shares no memory with the input."""
        system = self.system
        if values.ndim > 1 and isinstance(system.pattern, StructuredPattern) and system.pattern.base is not None:
            # A mapped update: each has its own S as far as can be seen, and S is cached under its own name.
            starts = [None] * values.shape[0] if x0 is None else list(x0)
            return torch.stack([self.run(*each) for each in zip(values, rhs, starts, strict=True)])
        x, phase, certificate = call(
            system.client,
            system.matrix(values),
            to_array(rhs),
            None if x0 is None else to_array(x0),
            self,
        )
        system.record(phase, certificate)
        return to_tensor(x, rhs)


def call(
    client: Client, matrix: Matrix, rhs: Array, x0: Array | None, request: Request
) -> tuple[Array, Phase, Certificate]:
    """Make the one call that a request stands for."""
    system = request.system
    if request.adjoint:
        reply = client.vjp_matrix(matrix, rhs, system.derived, timeout=system.timeout, on_failure=system.on_failure)
        return np.asarray(reply.b), "adjoint", reply.stats
    if request.tangent:
        tangent = client.jvp_matrix(matrix, rhs, system.derived, timeout=system.timeout, on_failure=system.on_failure)
        return tangent.x, "tangent", tangent.stats
    if request.cotangent and system.options.nullspace is not None:
        return _forward_of_cotangent(client, matrix, rhs, system)
    solution = client.solve_matrix(
        matrix, rhs, system.options, x0=x0, timeout=system.timeout, on_failure=system.on_failure
    )
    return solution.x, "solve", solution.stats


def _forward_of_cotangent(
    client: Client, matrix: Matrix, rhs: Array, system: System
) -> tuple[Array, Phase, Certificate]:
    """`op(A)⁺ rhs` as the adjoint of the adjoint: only that takes a right-hand side outside the range of A."""
    conjugated = system.options.trans == "T"
    flipped: dict[Trans, Trans] = {"N": "H", "H": "N", "T": "N"}
    options = replace(system.derived, trans=flipped[system.options.trans])
    # Aᵀ x = b is the conjugate of Aᴴ conj(x) = conj(b), and Aᴴ is the adjoint of "N".
    given = np.conj(rhs) if conjugated else rhs
    reply = client.vjp_matrix(matrix, given, options, timeout=system.timeout, on_failure=system.on_failure)
    x = np.asarray(reply.b)
    return np.conj(x) if conjugated else x, "solve", reply.stats


def _stamp(values: Tensor) -> tuple[Any, ...]:
    """What tells a tensor from another that a derivative is handed in its place.

    A transform may hand a backward the values in another arrangement (say, folded into another
    batch); that is another matrix to the server, and is hashed as one.
    """
    return (values.data_ptr(), tuple(values.shape), values.stride(), values.is_conj(), values.is_neg())


def to_array(tensor: Tensor) -> Array:
    """The numbers of a tensor in C order; a view where it already lies so in host memory.

    Raises:
        NotSupportedError: the tensor is one of PyTorch's legacy vmap.
    """
    if torch._C._functorch.is_legacy_batchedtensor(tensor):
        raise NotSupportedError(
            "is_grads_batched, vectorize=True and check_batched_grad use PyTorch's legacy vmap, which cannot map a "
            "solve: use torch.func.vmap, jacrev or jacfwd"
        )
    return np.ascontiguousarray(tensor.detach().numpy(force=True))


def to_tensor(array: Array, like: Tensor) -> Tensor:
    """An answer on the device of the question."""
    # PyTorch warns about arrays that it may not write to, such as views of a received message.
    own = array if array.flags.writeable and array.flags.c_contiguous else np.array(array, order="C")
    return torch.from_numpy(own).to(like.device)
