"""`lstsq` and `splstsq`: differentiable least squares on arrays."""

from typing import Any, Literal, Unpack, overload

from jax import Array
from jax.experimental.sparse import BCOO, BCSR

from .._adapter.request import Observer
from .._failure import check_choice
from ..client import Client
from ..errors import InvalidPatternError, InvalidShapeError
from ..options import SolveOptions as CallOptions
from ..options import least_squares_options
from ..pattern import AnyPattern, DensePattern, Pattern, check_general
from ..retry import UNSET, Timeout
from ..types import OnFailure
from . import _inputs, _sparse
from ._asked import Asked, key_of
from ._least_squares import minimise
from ._options import SolveOptions
from .statistics import Stats


@overload
def lstsq(A: Any, b: Any, *, return_stats: Literal[False] = ..., **options: Unpack[SolveOptions]) -> Array: ...
@overload
def lstsq(A: Any, b: Any, *, return_stats: Literal[True], **options: Unpack[SolveOptions]) -> tuple[Array, Stats]: ...
def lstsq(
    A: Any,
    b: Any,
    *,
    client: Client | None = None,
    timeout: Timeout = UNSET,
    on_failure: OnFailure | None = None,
    return_stats: bool = False,
    observe: Observer | None = None,
    **options: Unpack[CallOptions],
) -> Array | tuple[Array, Stats]:
    """Minimise `||b - A x||² + damp² ||x||²`, differentiably in A and b; of several minimisers, the shortest.

    A gradient takes one more request, or two without damping, all answered with the factor of the forward; `vmap` makes
    one request of the whole mapped dimension. A derivative exists while the rank of A stays what it is; where
    rounding may have decided the rank, IllConditionedWarning says so.

    Args:
        A: `[*batch, m, n]` dense, of any rank, or a BCOO or BCSR of one matrix or of a batch on one pattern, with
            indices that are known when the function is traced.
        b: `[*batch, m]`, or `[*batch, m, k]` for k columns; of A's type.
        client, timeout, on_failure, return_stats: as for `backsolve.jax.solve`.
        observe: called as `observe(phase, certificate)` after every request; phase is "solve" where b
            or a tangent of it was given, "adjoint" where (AᴴA + damp² I)⁺ was applied.
        options: those of `backsolve.Client.lstsq`: `damp`, `method`, `rcond`, `rtol`, and so on.

    Returns:
        x, `[*batch, n]` or `[*batch, n, k]`; with `return_stats`, x and its `Stats`.

    Raises:
        InvalidShapeError: shapes do not fit.
        BacksolveError: as for `backsolve.jax.solve`.

    Source: Golub and Pereyra, SIAM J. Numer. Anal. 10 (1973).
    """
    pattern: AnyPattern
    # Checked first: what is wrong with an option is not a matter of A.
    given = least_squares_options(**options)
    if isinstance(A, BCOO | BCSR):
        values, pattern = _sparse.extract(A)
    else:
        values = _inputs.array(A, "A")
        if values.ndim < 2:
            raise InvalidShapeError(f"A must be [*batch, m, n], its shape is {tuple(values.shape)}")
        pattern = DensePattern((values.shape[-2], values.shape[-1]))
    asked = Asked(key_of(pattern), pattern, given, client, timeout, on_failure, observe)
    return _solved(values, b, asked, return_stats, "A")


@overload
def splstsq(
    values: Any, pattern: Pattern, b: Any, *, return_stats: Literal[False] = ..., **options: Unpack[SolveOptions]
) -> Array: ...
@overload
def splstsq(
    values: Any, pattern: Pattern, b: Any, *, return_stats: Literal[True], **options: Unpack[SolveOptions]
) -> tuple[Array, Stats]: ...
def splstsq(
    values: Any,
    pattern: Pattern,
    b: Any,
    *,
    client: Client | None = None,
    timeout: Timeout = UNSET,
    on_failure: OnFailure | None = None,
    return_stats: bool = False,
    observe: Observer | None = None,
    **options: Unpack[CallOptions],
) -> Array | tuple[Array, Stats]:
    """`lstsq` for the sparse A with `values` on `pattern`: the form for values that are computed, and for `jit`.

    Args:
        values: `[*batch, nnz]`, in the pattern's order (rows, then columns).
        pattern: where the values are, `[m, n]`; see `backsolve.Pattern.from_csr`. Keep the object.
        b: `[*batch, m]` or `[*batch, m, k]`.
        client, timeout, on_failure, return_stats, observe, options: as for `lstsq`.

    Returns:
        x, `[*batch, n]` or `[*batch, n, k]`; with `return_stats`, x and its `Stats`.

    Raises:
        InvalidPatternError: `pattern` is not a `backsolve.Pattern`.
        BacksolveError: as for `lstsq`.
    """
    if not isinstance(pattern, Pattern):
        raise InvalidPatternError("pattern must be a backsolve.Pattern, e.g. Pattern.from_csr(A)")
    if isinstance(values, BCOO | BCSR):
        raise InvalidShapeError("values is sparse; pass the stored numbers, or the matrix itself to lstsq(A, b)")
    given = least_squares_options(**options)
    asked = Asked(key_of(pattern), pattern, given, client, timeout, on_failure, observe)
    return _solved(_inputs.array(values, "values"), b, asked, return_stats, "values")


def _solved(values: Array, b: Any, asked: Asked, return_stats: bool, name: str) -> Array | tuple[Array, Stats]:
    if asked.on_failure is not None:
        check_choice(asked.on_failure)
    pattern = asked.pattern
    check_general(pattern, "least squares")
    if isinstance(b, BCOO | BCSR):
        raise InvalidShapeError("b is sparse; pass a dense right-hand side, e.g. b.todense()")
    given = _inputs.array(b, "b")
    _inputs.pair(values, given, name)
    batch = _inputs.batch(values, given, None, pattern.entries, pattern.m, name)
    vector = given.ndim == len(batch.lead) + 1
    x, method, *rest = minimise(batch.values, batch.rhs[..., None] if vector else batch.rhs, None, asked)
    x = x.reshape((*batch.lead, pattern.n, *(() if vector else given.shape[-1:])))
    return (x, Stats.of(batch.lead, method, rest)) if return_stats else x
