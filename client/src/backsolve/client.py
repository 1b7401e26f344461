"""The client: linear solves, their gradients and tangents, wherever the engine runs."""

from collections.abc import Mapping
from dataclasses import replace
from threading import Lock
from types import TracebackType
from typing import Any, Unpack, final

import numpy as np

from ._entry import connect
from ._fork import renew_after_fork
from ._session import UNSET, Session, Timeout, Unset
from ._transports.base import Transport
from .canonical import Canonical, Parametrised, PatternMemo, as_array, canonicalise, is_sparse, native
from .config import default_timeout, resolve
from .errors import InvalidOptionError, InvalidPatternError, InvalidShapeError
from .factorized import Factorized
from .gradient import tangent_rhs, values_gradient
from .least_squares import pull, push
from .matrix import Matrix
from .options import SolveOptions, make_options
from .pattern import check_square
from .quality import Quality, quality
from .types import Array, Gradients, OnFailure, Options, ServerInfo, Solution, Want


@final
class Client:
    """Solves `A x = b` in this process or on a server; the calls are the same.

    Thread-safe, usable as a context manager, and after `fork`. A matrix is sent once; later
    calls name it by the hash of its content, and a server that has lost it is sent it again.

    Args:
        url: "http(s)://host:port", "grpc(s)://host:port" or "backsolve://host"; by default the
            environment's BACKSOLVE_URL, and without one the engine in this process.
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
        url: str | None = None,
        *,
        token: str | None = None,
        timeout: Timeout = UNSET,
        ca_file: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._session = Session(
            transport or connect(resolve(url, token, ca_file)),
            default_timeout() if isinstance(timeout, Unset) else timeout,
        )
        self._memo = PatternMemo()
        renew_after_fork(self, Client._renew)

    def _renew(self) -> None:
        self._memo.forget_locks()

    # -- solving ---------------------------------------------------------------------------

    def solve(
        self,
        A: Any,
        b: Any,
        *,
        x0: Any = None,
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
            on_failure: for an answer that misses its tolerance, or has none: "raise", "warn"
                (NotConvergedWarning), or "nan".
            timeout: seconds; by default the client's.
            options: method, trans, tolerances and whatever else `SolveOptions` lists.

        Returns:
            x shaped like b, its status, and the certificate.

        Raises:
            BacksolveError: the subclass tells why (see `backsolve.errors`).
        """
        asked = make_options(**options)
        canonical, (rhs, start) = self._common(A, b=as_array(b, "b"), x0=x0)
        assert rhs is not None
        return self._session.solve(canonical.matrix, rhs, asked, start, timeout, on_failure)

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
        return self._session.solve(matrix, rhs, options, x0, timeout, on_failure)

    def factorized(
        self,
        A: Any,
        *,
        on_failure: OnFailure = "raise",
        timeout: Timeout = UNSET,
        **options: Unpack[SolveOptions],
    ) -> "Factorized":
        """Factorize now, solve later: SciPy's `splu` and `factorized` in one handle.

        The handle holds digests and a private copy of the values, no memory of the server: it
        stays valid whatever the server forgets. Arguments and errors are those of `solve`, but for
        `trans`, which each solve of the handle says for itself.
        """
        if "trans" in options:
            raise InvalidOptionError("say trans in each solve of the handle, not when it is made", option="trans")
        asked = make_options(**options)
        canonical, _ = self._common(A)
        matrix = Matrix(canonical.matrix.pattern, canonical.matrix.values.copy())
        return Factorized(self._session, matrix, asked, on_failure, timeout)

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
            on_failure, timeout: as for `solve`.
            options: those of the forward solve; `trans` names the forward's operator.

        Returns:
            `b` shaped like the cotangent, `values` in A's own layout and order; of a structured A an
            object of its class that holds the gradients of its parameters.

        Source: Giles, "An extended collection of matrix derivative results", 2008, sec. 2.3.1.
        """
        asked = make_options(**options)
        _check_want(want, values_on, x)
        if b is not None and x is None:
            raise InvalidOptionError("judging the gradient needs x beside b: give both")
        needs_x = "values" in want
        canonical, (given, forward, rhs) = self._common(
            A, cotangent=as_array(cotangent, "the cotangent"), x=x if needs_x or b is not None else None, b=b
        )
        assert given is not None
        matrix = canonical.matrix
        served = values_on == "server" and needs_x
        # λ is needed here for whatever is formed here.
        from_server: tuple[Want, ...] = want if served and rhs is None else ("b", "values") if served else ("b",)
        reply = self._session.adjoint(
            matrix, given, asked, from_server, forward if served else None, timeout, on_failure
        )
        values = reply.values
        if needs_x and not served:
            assert forward is not None
            assert reply.b is not None
            values = values_gradient(
                matrix.pattern,
                reply.b,
                forward,
                asked.trans,
                batched=matrix.batch is not None,
                values=matrix.values,
            )
        found = Quality(None, None)
        if rhs is not None:
            assert forward is not None
            assert reply.b is not None
            found = quality(matrix, asked.trans, rhs, forward, given, reply.b, reply.stats.inverse_norm)
        return Gradients(
            b=reply.b if "b" in want else None,
            values=None if values is None else canonical.like_caller(values),
            stats=reply.stats,
            corrected_value=found.corrected_value,
            error_bound=found.error_bound,
        )

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
        return self._session.adjoint(matrix, cotangent, options, ("b",), None, timeout, on_failure)

    def jvp(
        self,
        A: Any,
        x: Any,
        *,
        A_tangent: Any = None,
        b_tangent: Any = None,
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
            on_failure, timeout: as for `solve`.
            options: those of the forward solve.

        Returns:
            dx, shaped like x, with the certificate of its solve.

        Raises:
            InvalidPatternError: `A_tangent` has other stored entries than A.
        """
        asked = make_options(**options)
        if A_tangent is None and b_tangent is None:
            raise InvalidOptionError("give A_tangent, b_tangent, or both: without a tangent there is nothing to push")
        tangents = None if A_tangent is None else canonicalise(A_tangent)
        extra = None if tangents is None else tangents.matrix.dtype
        if A_tangent is not None and x is None:
            raise InvalidOptionError("a tangent of A needs x, the forward answer")
        canonical, (forward, moved) = self._common(A, extra, x=x, b_tangent=b_tangent)
        matrix = canonical.matrix
        check_square(matrix.pattern)
        values = None
        if tangents is not None:
            if not matrix.pattern.same_as(tangents.matrix.pattern):
                raise InvalidPatternError("A_tangent must have the stored entries of A, explicit zeros included")
            if tangents.matrix.values.shape != matrix.values.shape:
                raise InvalidShapeError(
                    f"A_tangent has shape {tangents.matrix.values.shape}, A's values {matrix.values.shape}"
                )
            values = tangents.matrix.values.astype(matrix.dtype, copy=False)
        rhs = tangent_rhs(matrix.pattern, values, forward, moved, asked.trans, values=matrix.values)
        return self.jvp_matrix(matrix, rhs, asked, timeout=timeout, on_failure=on_failure)

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
        return self._session.tangent(matrix, tangent, options, timeout, on_failure)

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
        asked = least_squares_options(**options)
        canonical, (rhs,) = self._common(A, b=as_array(b, "b"))
        assert rhs is not None
        return self._session.least_squares(canonical.matrix, rhs, asked, timeout, on_failure)

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
        asked = least_squares_options(**options)
        canonical, (rhs, forward, given) = self._common(A, b=b, x=x, cotangent=cotangent)
        if rhs is None or forward is None or given is None:
            raise InvalidOptionError("the gradient of least squares needs b, x and the cotangent")
        matrix = canonical.matrix

        def normal(v: Array) -> Gradients:
            return self.normal_matrix(matrix, v, asked, timeout=timeout, on_failure=on_failure)

        u, values, stats = pull(matrix, rhs, forward, given, normal, damped=bool(asked.damp))
        return Gradients(u, canonical.like_caller(values), stats)

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
        asked = least_squares_options(**options)
        if A_tangent is None and b_tangent is None:
            raise InvalidOptionError("give A_tangent, b_tangent, or both: without a tangent there is nothing to push")
        tangents = None if A_tangent is None else canonicalise(A_tangent)
        canonical, (rhs, forward, moved) = self._common(
            A, None if tangents is None else tangents.matrix.dtype, b=b, x=x, b_tangent=b_tangent
        )
        if rhs is None or forward is None:
            raise InvalidOptionError("the tangent of least squares needs b and x")
        matrix = canonical.matrix

        def solve(v: Array) -> Solution:
            return self.lstsq_matrix(matrix, v, asked, timeout=timeout, on_failure=on_failure)

        def normal(v: Array) -> Gradients:
            return self.normal_matrix(matrix, v, asked, timeout=timeout, on_failure=on_failure)

        moving = None if tangents is None else tangents.matrix
        return push(matrix, rhs, forward, moving, moved, solve, normal, damped=bool(asked.damp))

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
        return self._session.least_squares(matrix, rhs, options, timeout, on_failure)

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
        return self._session.adjoint(matrix, cotangent, options, ("b",), None, timeout, on_failure, least_squares=True)

    # -- the other side --------------------------------------------------------------------

    def info(self, *, timeout: Timeout = UNSET) -> ServerInfo:
        """What answers: versions, limits, methods, devices."""
        return self._session.budget(timeout).run(self._session.transport.info)

    def stats(self, *, timeout: Timeout = UNSET) -> Mapping[str, float]:
        """Counters since the data plane started, and this client's `uploads`."""
        counters = dict(self._session.budget(timeout).run(self._session.transport.stats))
        counters["uploads"] = float(self._session.uploads)
        return counters

    @property
    def transport(self) -> Transport:
        """What carries the calls."""
        return self._session.transport

    def close(self) -> None:
        """Free connections, or this client's share of the embedded engine."""
        self._session.transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _common(
        self, A: Any, dtype: "np.dtype[Any] | None" = None, **arrays: Any
    ) -> tuple[Canonical, tuple[Array | None, ...]]:
        """A and the given arrays in their common element type, A in canonical form."""
        given = {name: None if value is None else as_array(value, name) for name, value in arrays.items()}
        a = A if is_sparse(A) or isinstance(A, Parametrised) else as_array(A, "A")
        # Integers count as float64 here already, or float32 with int64 would not.
        own = np.dtype(np.float64) if a.dtype.kind in "biu" else native(np.empty(0, a.dtype), "A").dtype
        types = [own, *(v.dtype for v in given.values() if v is not None), *([dtype] if dtype else [])]
        common = np.result_type(*types)
        cast = tuple(None if v is None else np.asarray(v, dtype=common) for v in given.values())
        return canonicalise(a, common, self._memo), cast


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


def least_squares_options(**options: Unpack[SolveOptions]) -> Options:
    """Checked options of least squares.

    Raises:
        InvalidOptionError: an unknown name, or a value of the wrong type.
    """
    asked = make_options(**options)
    # The server's own name for whichever method of least squares fits.
    return replace(asked, method="lstsq") if asked.method == "auto" else asked


def _check_want(want: tuple[Want, ...], values_on: str, x: Any) -> None:
    if not isinstance(want, tuple | list) or not want or any(name not in ("b", "values") for name in want):
        raise InvalidOptionError("want must name 'b', 'values', or both")
    if values_on not in ("client", "server"):
        raise InvalidOptionError("values_on must be 'client' or 'server'")
    if "values" in want and x is None:
        raise InvalidOptionError("the gradient of the values needs x, the forward answer")
