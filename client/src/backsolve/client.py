"""The client: linear solves, their gradients and tangents, wherever the engine runs."""

from collections.abc import Mapping, Sequence
from threading import Lock
from types import TracebackType
from typing import Any, Unpack, final

import numpy as np

from ._calls import gradient, least_squares, operands, solve
from ._calls.operands import Terms
from ._fork import renew_after_fork
from ._opening import Opening
from ._session import Session
from ._transports.base import Transport
from .errors import UnreachableError
from .factorized import Factorized
from .matrix import Matrix
from .options import SolveOptions
from .retry import UNSET, Timeout
from .types import Array, Gradients, OnFailure, Options, ReplicaState, ServerInfo, Solution, Storage, Want


@final
class Client:
    """Solves `A x = b` in this process or on a server; the calls are the same.

    Thread-safe, usable as a context manager, and after `fork`. A matrix is sent once; later
    calls name it by the hash of its content, and a server that has lost it is sent it again. A pickled client
    connects anew where it is unpickled, to the same URLs, but without the token: that must not end up in
    a checkpoint, so there it comes from BACKSOLVE_TOKEN.

    Args:
        url: "http(s)://host:port", "grpc(s)://host:port", or "backsolve://host", which takes the fastest way
            that the host offers; of a Unix socket "unix:/path" (HTTP), "grpc+unix:/path" or
            "backsolve+unix:/path"; by default the environment's BACKSOLVE_URL, and without one the engine in
            this process. Of several replicas a list of URLs, or one text with commas between them, or
            "dns+http://name:port" (or "dns+grpc:") for every address of a name: each matrix then goes to the replica
            that its pattern belongs to (docs/adr/0039).
        token: bearer token; by default BACKSOLVE_TOKEN.
        timeout: seconds for each call, retries and uploads included; None waits for ever; by
            default BACKSOLVE_TIMEOUT, or 60.
        ca_file: certificate authorities to trust, a PEM file; by default BACKSOLVE_CA_FILE.
        transport: carries the calls, in place of what the URL names.

    Raises:
        InvalidOptionError: the URL cannot be understood.
        NotSupportedError: no URL, and the package `backsolve-service` is not installed.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        timeout: Timeout = UNSET,
        ca_file: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._opening = Opening.of(url, token, timeout, ca_file, custom=transport is not None)
        self._session = Session(self._opening.endpoints, self._opening.timeout, transport)
        self._exchange = self._session.exchange
        renew_after_fork(self, Client._renew)

    def _renew(self) -> None:
        self._exchange.forget_locks()

    def __reduce__(self) -> tuple[Any, ...]:
        return self._opening.reduced(Client)

    # -- solving ---------------------------------------------------------------------------

    def solve(
        self,
        A: Any,
        b: Any,
        *,
        x0: Any = None,
        storage: Storage = "general",
        on_failure: OnFailure = "raise",
        timeout: Timeout = UNSET,
        **options: Unpack[SolveOptions],
    ) -> Solution:
        """Solve `op(A) x = b`.

        Args:
            A: `[n, n]` or `[batch, n, n]` array, a SciPy sparse matrix, or a structured one such as
                `LowRankPlusDiagonal`. Integers count as float64; A and b are brought to their
                common type.
            b: vectors if `b.ndim == A.ndim - 1`, columns `[..., n, k]` if one more.
            x0: first iterate of an iterative method, shaped like b.
            storage: "general"; or of an A that equals its conjugate transpose "hermitian" (all of it is there;
                checked by the server), or "lower" (its lower triangle alone is sent: about half the bytes).
                Of a dense array the part above the diagonal is then not read, as in
                `numpy.linalg.cholesky`; a sparse A must have no entries there. The storage also says what
                gradients are with respect to (`backsolve.storage`).
            on_failure: for an answer that misses its tolerance, or has none: "raise", "warn"
                (NotConvergedWarning), or "nan".
            timeout: seconds; by default the client's.
            options: method, trans, tolerances and whatever else `SolveOptions` lists.

        Returns:
            x shaped like b, its status, and the certificate.

        Raises:
            BacksolveError: the subclass tells why (see `backsolve.errors`).
        """
        return self._session.run(solve.solve(self._exchange, A, b, x0, Terms(on_failure, timeout, storage), options))

    def solve_matrix(
        self,
        matrix: Matrix,
        rhs: Array,
        options: Options,
        *,
        x0: Array | None = None,
        timeout: Timeout = UNSET,
        on_failure: OnFailure = "raise",
    ) -> Solution:
        """`solve` for a matrix in canonical form, as the framework adapters call it.

        `matrix.ref` is computed once for the object, so a backward that reuses the forward's
        object hashes nothing. `rhs` and `x0` have the matrix's element type.
        """
        terms = Terms(on_failure, timeout)
        return self._session.run(solve.solve_matrix(self._exchange, matrix, rhs, x0, terms, options))

    def factorized(
        self,
        A: Any,
        *,
        storage: Storage = "general",
        on_failure: OnFailure = "raise",
        timeout: Timeout = UNSET,
        **options: Unpack[SolveOptions],
    ) -> "Factorized":
        """Factorize now, solve later: SciPy's `splu` and `factorized` in one handle.

        The handle holds digests and a private copy of the values, no memory of the server: it
        stays valid whatever the server forgets. Arguments and errors are those of `solve`, but for
        `trans`, which each solve of the handle says for itself.
        """
        steps = solve.hold(self._exchange, A, Terms(on_failure, timeout, storage), options)
        return Factorized(self._session, self._session.run(steps))

    # -- derivatives -----------------------------------------------------------------------

    def vjp(
        self,
        A: Any,
        x: Any,
        cotangent: Any,
        *,
        b: Any = None,
        want: tuple[Want, ...] = ("b", "values"),
        values_on: str = "client",
        storage: Storage = "general",
        on_failure: OnFailure = "raise",
        timeout: Timeout = UNSET,
        **options: Unpack[SolveOptions],
    ) -> Gradients:
        """Pull a cotangent of `x = op(A)⁻¹ b` back to b and to A's stored entries.

        One adjoint solve with the factor of the forward solve: `op(A)ᴴ λ = cotangent`, then
        `∂b = λ` and `∂A = -λ xᴴ` on A's entries (trans "N"). Of complex data this is the
        gradient with respect to the conjugate, as PyTorch has it.

        Args:
            A: as for `solve`.
            x: the forward answer; may be None when only "b" is wanted.
            cotangent: shaped like x.
            b: the forward's right-hand side; with it (and x) the reply has `corrected_value`, and
                with `condition=True` also `error_bound`.
            want: which gradients; the other is None.
            values_on: "client" (λ alone travels) or "server" (`∂A` is formed there).
            storage: as for `solve`; `values` is then the gradient of what is stored: with "hermitian"
                `(∂A + ∂Aᴴ) / 2`, with "lower" what both places of an entry receive, zero above a dense diagonal.
            on_failure, timeout: as for `solve`.
            options: those of the forward solve; `trans` names the forward's operator.

        Returns:
            `b` shaped like the cotangent, `values` in A's own layout and order; of a structured A an
            object of its class that holds the gradients of its parameters.

        Source: Giles, "An extended collection of matrix derivative results", 2008, sec. 2.3.1.
        """
        terms = Terms(on_failure, timeout, storage)
        return self._session.run(gradient.vjp(self._exchange, A, x, cotangent, b, want, values_on, terms, options))

    def vjp_matrix(
        self,
        matrix: Matrix,
        cotangent: Array,
        options: Options,
        *,
        timeout: Timeout = UNSET,
        on_failure: OnFailure = "raise",
    ) -> Gradients:
        """The adjoint solve alone, for a matrix in canonical form; `values` is None.

        `options` are those of the forward solve: `trans` names the forward's operator.
        """
        terms = Terms(on_failure, timeout)
        return self._session.run(gradient.adjoint(self._exchange, matrix, cotangent, ("b",), None, terms, options))

    def jvp(
        self,
        A: Any,
        x: Any,
        *,
        A_tangent: Any = None,
        b_tangent: Any = None,
        storage: Storage = "general",
        on_failure: OnFailure = "raise",
        timeout: Timeout = UNSET,
        **options: Unpack[SolveOptions],
    ) -> Solution:
        """Push tangents forward: `dx = op(A)⁻¹ (db - op(dA) x)`, one solve with the same factor.

        Args:
            A: as for `solve`.
            x: the forward answer; may be None when only b moves.
            A_tangent: like A, on the same stored entries; None: A does not move.
            b_tangent: shaped like x; None: b does not move.
            storage: as for `solve`, of A and of its tangent; of the latter the Hermitian part counts.
            on_failure, timeout: as for `solve`.
            options: those of the forward solve.

        Returns:
            dx, shaped like x, with the certificate of its solve.

        Raises:
            InvalidPatternError: `A_tangent` has other stored entries than A.
        """
        terms = Terms(on_failure, timeout, storage)
        return self._session.run(gradient.jvp(self._exchange, A, x, A_tangent, b_tangent, terms, options))

    def jvp_matrix(
        self,
        matrix: Matrix,
        tangent: Array,
        options: Options,
        *,
        timeout: Timeout = UNSET,
        on_failure: OnFailure = "raise",
    ) -> Solution:
        """The tangent solve alone, its right-hand side `db - op(dA) x` formed by the caller."""
        terms = Terms(on_failure, timeout)
        return self._session.run(gradient.tangent(self._exchange, matrix, tangent, terms, options))

    # -- least squares ---------------------------------------------------------------------

    def lstsq(
        self,
        A: Any,
        b: Any,
        *,
        on_failure: OnFailure = "raise",
        timeout: Timeout = UNSET,
        **options: Unpack[SolveOptions],
    ) -> Solution:
        """Minimise `||b - A x||² + damp² ||x||²`; of several minimisers, the shortest.

        The certificate's `relative_residual` and `backward_error` say what of the residual an x
        could still remove, not how large it is (`Certificate`). For dense matrices its `reason`
        tells the rank; where rounding may have decided it, the status is ILL_CONDITIONED.

        Args:
            A: `[m, n]` or `[batch, m, n]` array, or a SciPy sparse matrix, of any shape and rank.
            b: `[m]`, or `[m, k]` for k columns, with the batch axis if there is one.
            on_failure, timeout: as for `solve`.
            options: `damp`; `method` ("auto", or a name that begins with "lstsq"), and what it takes:
                `rcond`, `rtol`, `maxiter`, `refine`.

        Returns:
            x, `[n]` or `[n, k]`, its status, and the certificate.

        Raises:
            BacksolveError: the subclass tells why (see `backsolve.errors`).

        Source: Golub and Van Loan, "Matrix computations", 4th ed., chapter 5.
        """
        return self._session.run(least_squares.lstsq(self._exchange, A, b, Terms(on_failure, timeout), options))

    def lstsq_vjp(
        self,
        A: Any,
        b: Any,
        x: Any,
        cotangent: Any,
        *,
        on_failure: OnFailure = "raise",
        timeout: Timeout = UNSET,
        **options: Unpack[SolveOptions],
    ) -> Gradients:
        """Pull a cotangent of the least-squares solution back to b and to A's stored entries.

        One request, answered with the factor of the forward solve. The derivative exists while the
        rank of A stays what it is: a warning (IllConditionedWarning) says where it may not.

        Args:
            A, b: as for `lstsq`.
            x: the forward answer.
            cotangent: shaped like x.
            on_failure, timeout: as for `solve`.
            options: those of the forward solve.

        Returns:
            `b` shaped like b, `values` in A's own layout and order.

        Source: Golub and Pereyra, SIAM J. Numer. Anal. 10 (1973); see `backsolve.least_squares`.
        """
        terms = Terms(on_failure, timeout)
        return self._session.run(least_squares.lstsq_vjp(self._exchange, A, b, x, cotangent, terms, options))

    def lstsq_jvp(
        self,
        A: Any,
        b: Any,
        x: Any,
        *,
        A_tangent: Any = None,
        b_tangent: Any = None,
        on_failure: OnFailure = "raise",
        timeout: Timeout = UNSET,
        **options: Unpack[SolveOptions],
    ) -> Solution:
        """Push tangents of A and b forward to the least-squares solution.

        One solve for a tangent of b alone, up to two more requests for one of A; all with the
        factor of the forward solve.

        Args:
            A, b, x: as for `lstsq_vjp`.
            A_tangent: like A, on the same stored entries; None: A does not move.
            b_tangent: shaped like b; None: b does not move.
            on_failure, timeout, options: as for `lstsq_vjp`.

        Returns:
            dx, shaped like x, with the certificate of the first solve.
        """
        terms = Terms(on_failure, timeout)
        return self._session.run(least_squares.lstsq_jvp(self._exchange, A, b, x, A_tangent, b_tangent, terms, options))

    def lstsq_matrix(
        self,
        matrix: Matrix,
        rhs: Array,
        options: Options,
        *,
        timeout: Timeout = UNSET,
        on_failure: OnFailure = "raise",
    ) -> Solution:
        """`lstsq` for a matrix in canonical form, as the framework adapters call it."""
        terms = Terms(on_failure, timeout)
        return self._session.run(least_squares.lstsq_matrix(self._exchange, matrix, rhs, terms, options))

    def normal_matrix(
        self,
        matrix: Matrix,
        cotangent: Array,
        options: Options,
        *,
        timeout: Timeout = UNSET,
        on_failure: OnFailure = "raise",
    ) -> Gradients:
        """`b` = (AᴴA + damp² I)⁺ · cotangent, of which every derivative of least squares is made."""
        terms = Terms(on_failure, timeout)
        return self._session.run(least_squares.normal_matrix(self._exchange, matrix, cotangent, terms, options))

    # -- the other side --------------------------------------------------------------------

    def info(self, *, timeout: Timeout = UNSET) -> ServerInfo:
        """What answers: versions, limits, methods, devices."""
        return self._session.run(self._exchange.info(timeout))

    def stats(self, *, timeout: Timeout = UNSET) -> Mapping[str, float]:
        """Counters since the data plane started, and this client's `uploads`; of several replicas their sums."""
        return self._session.run(self._exchange.stats(timeout))

    def replicas(self, *, timeout: Timeout = UNSET) -> tuple[ReplicaState, ...]:
        """What this client knows of each replica, and the counters of those that answer."""
        return self._session.run(self._exchange.replicas(timeout))

    def empty(self, shape: int | tuple[int, ...], dtype: Any = np.float64) -> Array:
        """An array, not initialised, that can be sent without a copy where memory is shared with the server.

        That is so with "backsolve://" URLs of this machine whose server offers it (BACKSOLVE_UNIX_SHARED); elsewhere,
        or when the server's quota is used up, it is an ordinary array. When b (or the cotangent) lies in such
        memory, the answer does so too. An array keeps its part of the memory for as long as it, or a view of
        it, exists, also after `close`. Like all shared memory it stays shared with forked children: what one
        writes there, the other sees. Answers to ordinary arrays are ordinary arrays.

        Args:
            shape: of the array.
            dtype: float32, float64, complex64 or complex128.

        Raises:
            InvalidDtypeError: another element type.
            InvalidShapeError: a negative size.
        """
        sizes, kind = operands.allocated(shape, dtype)
        opened = self._session.transports
        return opened[0].empty(sizes, kind) if opened else np.empty(sizes, kind)

    @property
    def transport(self) -> Transport:
        """What carries the calls; of several replicas, those to the first.

        Raises:
            UnreachableError: the name of a dns+ URL was not looked up yet, or has no address.
        """
        opened = self._session.transports
        if not opened:
            raise UnreachableError("no address of the name was called yet: make a call first")
        return opened[0]

    def close(self) -> None:
        """Free connections, or this client's share of the embedded engine."""
        self._session.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Default:
    """The process-wide client, made when it is first asked for."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._renew()
        renew_after_fork(self, _Default._renew)

    def _renew(self) -> None:
        self._lock = Lock()

    def get(self) -> Client:
        with self._lock:
            if self._client is None:
                self._client = Client()
            return self._client


_default = _Default()


def default_client() -> Client:
    """The process-wide client that framework adapters use when they are given none."""
    return _default.get()
