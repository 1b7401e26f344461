"""`solve` and `spsolve`: differentiable linear solves on arrays."""

from typing import Any, Literal, Unpack, overload

from jax import Array
from jax.experimental.sparse import BCOO, BCSR

from .._adapter.request import Observer
from .._failure import check_choice
from ..client import Client
from ..errors import InvalidOptionError, InvalidPatternError, InvalidShapeError
from ..options import SolveOptions as CallOptions
from ..options import make_options
from ..pattern import AnyPattern, DensePattern, Pattern, check_square, parameters
from ..retry import UNSET, Timeout
from ..types import OnFailure, Storage
from . import _inputs, _sparse
from ._asked import Asked, key_of
from ._options import SolveOptions
from ._primitive import bind
from .statistics import Stats
from .structured import Structured


@overload
def solve(
    A: Any,
    b: Any,
    *,
    x0: Any = ...,
    storage: Storage = ...,
    return_stats: Literal[False] = ...,
    **options: Unpack[SolveOptions],
) -> Array: ...
@overload
def solve(
    A: Any,
    b: Any,
    *,
    x0: Any = ...,
    storage: Storage = ...,
    return_stats: Literal[True],
    **options: Unpack[SolveOptions],
) -> tuple[Array, Stats]: ...
def solve(
    A: Any,
    b: Any,
    *,
    x0: Any = None,
    storage: Storage = "general",
    client: Client | None = None,
    timeout: Timeout = UNSET,
    on_failure: OnFailure | None = None,
    return_stats: bool = False,
    observe: Observer | None = None,
    **options: Unpack[CallOptions],
) -> Array | tuple[Array, Stats]:
    """Solve `op(A) x = b`, differentiably in A and b to every order, forward and reverse.

    One factor serves the solve, its gradient (one more solve) and a Hessian-vector product (two more). Under
    `vmap` there is one request: of mapped right-hand sides a block of columns, of mapped matrices a batch.

    Inside of `jit` (and of what compiles its body: `lax.scan`, `lax.map`, `pmap`) there are no exceptions: an answer
    that is none is NaN, with its status in `Stats`; numbers that are not finite make NaN of their own system alone (of
    one matrix: of their own column). What no status can say, such as a server that is not there or an option that the
    method does not use, stops the program there too, as JAX's own error with the reason in its text.

    Args:
        A: `[*batch, n, n]` dense, a BCOO or BCSR of one matrix or of a batch on one pattern, or a structured matrix of
            this package such as `LowRankPlusDiagonal`, whose parameters receive the gradient. The indices of a sparse A
            must be known when the function is traced: see `spsolve`.
        b: `[*batch, n]`, or `[*batch, n, k]` for k columns; of A's type.
        x0: first iterate of an iterative method, shaped like b. The answer does not depend on
            it: it receives no gradient.
        storage: "general"; or of an A that equals its conjugate transpose "hermitian" (all of it is given; its
            gradient is Hermitian) or "lower" (the part above the diagonal is not read, half the bytes are sent,
            and an entry's gradient has both of its places); see `backsolve.storage`.
        client: by default a process-wide one (`BACKSOLVE_URL`, or the engine in this process).
        timeout: seconds for each request; by default the client's.
        on_failure: when an answer misses its tolerance, in the forward or the backward: "raise", "warn" or
            "nan". By default "raise" outside of compiled code, "nan" inside.
        return_stats: return `Stats` of the forward solve too.
        observe: called as `observe(phase, certificate)` after every request, those of a backward included;
            phase is "solve", "adjoint" or "tangent".
        options: those of `backsolve.options.SolveOptions`, for forward and backward alike.

    Returns:
        x, shaped like b and where b is; with `return_stats`, x and its `Stats`.

    Raises:
        InvalidShapeError: shapes do not fit, or A is not square.
        InvalidDtypeError: integers, half precision, or types that differ.
        InvalidPatternError: broken index arrays.
        NotSupportedError: the indices of A are traced.
        BacksolveError: outside of `jit`, whatever the solve itself meets, forward or backward (see
            `backsolve.errors`); inside with `on_failure="raise"` as JAX's own error.

    Source: Giles, "An extended collection of matrix derivative results", 2008, section 2.3.1.
    """
    pattern: AnyPattern
    if isinstance(A, Structured):
        if storage != "general":
            raise InvalidOptionError(
                "storage is of dense and sparse matrices; this one is given by parameters: leave it out",
                option="storage",
            )
        values, pattern = _inputs.array(A.values(), "A"), A.pattern
    elif isinstance(A, BCOO | BCSR):
        values, general = _sparse.extract(A)
        pattern = general.stored(storage)
    else:
        values = _inputs.array(A, "A")
        if values.ndim < 2:
            raise InvalidShapeError(f"A must be [*batch, n, n], its shape is {tuple(values.shape)}")
        pattern = DensePattern((values.shape[-2], values.shape[-1]), storage)
        values = _inputs.packed(values) if storage == "lower" else values
    asked = Asked(key_of(pattern), pattern, make_options(**options), client, timeout, on_failure, observe)
    return _solve(values, b, x0, asked, return_stats, "A")


@overload
def spsolve(
    values: Any,
    pattern: Pattern,
    b: Any,
    *,
    x0: Any = ...,
    storage: Storage | None = ...,
    return_stats: Literal[False] = ...,
    **options: Unpack[SolveOptions],
) -> Array: ...
@overload
def spsolve(
    values: Any,
    pattern: Pattern,
    b: Any,
    *,
    x0: Any = ...,
    storage: Storage | None = ...,
    return_stats: Literal[True],
    **options: Unpack[SolveOptions],
) -> tuple[Array, Stats]: ...
def spsolve(
    values: Any,
    pattern: Pattern,
    b: Any,
    *,
    x0: Any = None,
    storage: Storage | None = None,
    client: Client | None = None,
    timeout: Timeout = UNSET,
    on_failure: OnFailure | None = None,
    return_stats: bool = False,
    observe: Observer | None = None,
    **options: Unpack[CallOptions],
) -> Array | tuple[Array, Stats]:
    """Solve `op(A) x = b` for the sparse A with `values` on `pattern`.

    The form for values that are computed, and for `jit`: the pattern is a constant of the program, checked and
    hashed once. Keep the object: another one with the same indices is traced and compiled anew.

    Args:
        values: `[*batch, nnz]`, in the pattern's order (rows, then columns).
        pattern: where the values are; see `backsolve.Pattern.from_csr`.
        b: vectors if `b.ndim == values.ndim`, `[*batch, n]`; columns `[*batch, n, k]` if one more.
        storage: None: that of the pattern, e.g. `Pattern.from_csr(tril(A), storage="lower")`.
        x0, client, timeout, on_failure, return_stats, observe, options: as for `solve`.

    Returns:
        x, shaped like b; with `return_stats`, x and its `Stats`.

    Raises:
        InvalidPatternError: `pattern` is not a `backsolve.Pattern`.
        BacksolveError: as for `solve`.
    """
    if not isinstance(pattern, Pattern):
        raise InvalidPatternError("pattern must be a backsolve.Pattern, e.g. Pattern.from_csr(A)")
    pattern = pattern if storage is None else pattern.stored(storage)
    if isinstance(values, BCOO | BCSR):
        raise InvalidShapeError("values is sparse; pass the stored numbers, or the matrix itself to solve(A, b)")
    asked = Asked(key_of(pattern), pattern, make_options(**options), client, timeout, on_failure, observe)
    return _solve(_inputs.array(values, "values"), b, x0, asked, return_stats, "values")


def _solve(values: Array, b: Any, x0: Any, asked: Asked, return_stats: bool, name: str) -> Array | tuple[Array, Stats]:
    if asked.on_failure is not None:
        check_choice(asked.on_failure)
    pattern = asked.pattern
    check_square(pattern)
    if isinstance(b, BCOO | BCSR):
        raise InvalidShapeError("b is sparse; pass a dense right-hand side, e.g. b.todense()")
    rhs = _inputs.array(b, "b")
    _inputs.pair(values, rhs, name)
    start = None if x0 is None else _inputs.first_iterate(x0, rhs, "x0")
    batch = _inputs.batch(values, rhs, start, parameters(pattern), pattern.n, name)
    x, method, *rest = bind(batch.values, batch.rhs, batch.x0, None, asked)
    x = x.reshape(batch.shape)
    if not return_stats:
        return x
    return x, Stats.of(batch.lead, method, rest)
