"""`lstsq` and `splstsq`: differentiable least squares on tensors of TensorFlow."""

from typing import Any, Literal, Unpack, overload

import tensorflow as tf

from .._adapter.request import Observer
from .._failure import check_choice
from ..client import Client
from ..errors import InvalidPatternError, InvalidShapeError
from ..options import SolveOptions as CallOptions
from ..options import least_squares_options
from ..pattern import Pattern, check_general
from ..retry import UNSET, Timeout
from ..types import Certificate, OnFailure
from . import _inputs
from ._function import Answer, Where, solve, told
from ._options import SolveOptions
from ._request import Asked
from ._rules import Tensor, of_pattern


@overload
def lstsq(A: Any, b: Any, *, return_stats: Literal[False] = ..., **options: Unpack[SolveOptions]) -> Tensor: ...
@overload
def lstsq(
    A: Any, b: Any, *, return_stats: Literal[True], **options: Unpack[SolveOptions]
) -> tuple[Tensor, Certificate]: ...
@tf.autograph.experimental.do_not_convert
def lstsq(
    A: Any,
    b: Any,
    *,
    client: Client | None = None,
    timeout: Timeout = UNSET,
    on_failure: OnFailure = "raise",
    return_stats: bool = False,
    observe: Observer | None = None,
    **options: Unpack[CallOptions],
) -> Tensor | tuple[Tensor, Certificate]:
    """Minimise `||b - A x||² + damp² ||x||²`, differentiably in A and b; of several minimisers, the shortest.

    A gradient takes one more request (two without damping), all answered with the factor of the forward. A derivative
    exists while the rank of A stays what it is; where rounding may have decided the rank, IllConditionedWarning
    says so. In `tf.function`, under tapes, accumulators and XLA as `backsolve.tensorflow.solve`.

    Args:
        A: `[*batch, m, n]` dense, of any rank, or a `tf.SparseTensor` `[m, n]`.
        b: `[*batch, m]`, or `[*batch, m, k]` for k columns; A's element type.
        client, timeout, on_failure, return_stats: as for `backsolve.tensorflow.solve`.
        observe: called as `observe(phase, certificate)` after every request; phase is "solve" where b was given,
            "adjoint" where (AᴴA + damp² I)⁺ was applied.
        options: those of `backsolve.Client.lstsq`: `damp`, `method`, `rcond`, `rtol`, and so on.

    Returns:
        x, `[*batch, n]` or `[*batch, n, k]`; with `return_stats`, x and its certificate.

    Raises:
        InvalidShapeError: shapes do not fit.
        BacksolveError: as for `backsolve.tensorflow.solve`.

    Source: Golub and Pereyra, SIAM J. Numer. Anal. 10 (1973).
    """
    asked = Asked(client, None, least_squares_options(**options), timeout, on_failure, observe, "A", "minimise")
    if isinstance(A, tf.SparseTensor):
        return _minimised(asked, _inputs.sparse(A), _inputs.tensor(A.values, "A"), b, return_stats)
    A = _inputs.tensor(A, "A")
    if A.shape.rank is not None and A.shape.rank < 2:
        raise InvalidShapeError(f"A must be [*batch, m, n], its shape is {tuple(A.shape)}")
    return _minimised(asked, Where(), A, b, return_stats)


@overload
def splstsq(
    values: Any, pattern: Pattern, b: Any, *, return_stats: Literal[False] = ..., **options: Unpack[SolveOptions]
) -> Tensor: ...
@overload
def splstsq(
    values: Any, pattern: Pattern, b: Any, *, return_stats: Literal[True], **options: Unpack[SolveOptions]
) -> tuple[Tensor, Certificate]: ...
@tf.autograph.experimental.do_not_convert
def splstsq(
    values: Any,
    pattern: Pattern,
    b: Any,
    *,
    client: Client | None = None,
    timeout: Timeout = UNSET,
    on_failure: OnFailure = "raise",
    return_stats: bool = False,
    observe: Observer | None = None,
    **options: Unpack[CallOptions],
) -> Tensor | tuple[Tensor, Certificate]:
    """`lstsq` for the sparse A with `values` on `pattern`: the form for values that are computed.

    Args:
        values: `[*batch, nnz]`, in the pattern's order (rows, then columns).
        pattern: where the values are, `[m, n]`; see `backsolve.Pattern.from_csr`.
        b: `[*batch, m]` or `[*batch, m, k]`.
        client, timeout, on_failure, return_stats, observe, options: as for `lstsq`.

    Returns:
        x, `[*batch, n]` or `[*batch, n, k]`; with `return_stats`, x and its certificate.

    Raises:
        InvalidPatternError: `pattern` is not a `backsolve.Pattern`.
        BacksolveError: as for `lstsq`.
    """
    if not isinstance(pattern, Pattern):
        raise InvalidPatternError("pattern must be a backsolve.Pattern, e.g. Pattern.from_csr(A)")
    check_general(pattern, "least squares")
    given = least_squares_options(**options)
    asked = Asked(client, pattern, given, timeout, on_failure, observe, "values", "minimise")
    return _minimised(asked, Where(of_pattern(pattern)), _inputs.tensor(values, "values"), b, return_stats)


def _minimised(
    asked: Asked, where: Where, values: Tensor, b: Any, return_stats: bool
) -> Tensor | tuple[Tensor, Certificate]:
    """Check what can be checked, and minimise."""
    check_choice(asked.on_failure)
    _inputs.refuse_compilation()
    rhs = _inputs.tensor(b, "b")
    _inputs.pair(values, rhs, asked.name)
    entries, m, _ = _inputs.sizes(asked, where, values)
    rhs = _inputs.fitting(values, rhs, None, entries, m, asked.name)
    _inputs.refuse_statistics(return_stats)
    vectors = rhs.shape.rank == values.shape.rank - len(entries) + 1
    found = solve(asked, where, values, rhs[..., None] if vectors else rhs, None, None)
    return told(Answer(found.x[..., 0], found.certificate) if vectors else found, return_stats)
