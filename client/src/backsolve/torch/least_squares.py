"""`lstsq` and `splstsq`: differentiable least squares on tensors."""

from typing import Literal, Unpack, overload

import torch
from torch import Tensor

from .._adapter.request import Observer, System
from .._failure import check_choice
from ..client import Client, default_client
from ..errors import InvalidOptionError, InvalidPatternError, InvalidShapeError, NotSupportedError
from ..options import KINDS, check_names, least_squares_options
from ..options import SolveOptions as CallOptions
from ..pattern import AnyPattern, Pattern
from ..retry import UNSET, Timeout
from ..types import Certificate, OnFailure, Options
from . import _compiled_least_squares as _compiled
from . import _inputs, _sparse
from ._least_squares import Problem, minimise
from ._options import SolveOptions


@overload
def lstsq(A: Tensor, b: Tensor, *, return_stats: Literal[False] = ..., **options: Unpack[SolveOptions]) -> Tensor: ...
@overload
def lstsq(
    A: Tensor, b: Tensor, *, return_stats: Literal[True], **options: Unpack[SolveOptions]
) -> tuple[Tensor, Certificate]: ...
def lstsq(
    A: Tensor,
    b: Tensor,
    *,
    client: Client | None = None,
    timeout: Timeout = UNSET,
    on_failure: OnFailure = "raise",
    return_stats: bool = False,
    observe: Observer | None = None,
    **options: Unpack[CallOptions],
) -> Tensor | tuple[Tensor, Certificate]:
    """Minimise `||b - A x||² + damp² ||x||²`, differentiably in A and b; of several minimisers, the shortest.

    A gradient takes one more request (two without damping), a tangent of A up to four, all answered
    with the factor of the forward; `vmap` makes one request of the whole mapped dimension. A
    derivative exists while the rank of A stays what it is; where rounding may have decided the rank,
    IllConditionedWarning says so. Inside `torch.compile` derivatives are of the first order, in reverse.

    Args:
        A: `[*batch, m, n]` dense, of any rank, or `[m, n]` sparse COO, CSR or CSC.
        b: `[*batch, m]`, or `[*batch, m, k]` for k columns; A's type and device.
        client: by default a process-wide one (`BACKSOLVE_URL`, or the engine in this process).
        timeout: seconds for each request; by default the client's.
        on_failure: when an answer misses its tolerance, in the forward or the backward: "raise",
            "warn" or "nan".
        return_stats: return the certificate of the forward solve too. Not inside `torch.compile`.
        observe: called as `observe(phase, certificate)` after every request; phase is "solve" where b
            or a tangent of it was given, "adjoint" where (AᴴA + damp² I)⁺ was applied. Not inside
            `torch.compile`.
        options: those of `backsolve.Client.lstsq`: `damp`, `method`, `rcond`, `rtol`, and so on.

    Returns:
        x, `[*batch, n]` or `[*batch, n, k]`; with `return_stats`, x and its certificate.

    Raises:
        InvalidShapeError: shapes do not fit.
        BacksolveError: whatever the solve itself meets, in the forward or the backward.

    Source: Golub and Pereyra, SIAM J. Numer. Anal. 10 (1973).
    """
    asked = _options(**options)
    A, b = _inputs.tensor(A, "A"), _inputs.tensor(b, "b")
    _inputs.pair(A, b, "A")
    pattern: AnyPattern
    if A.layout is torch.strided:
        if A.ndim < 2:
            raise InvalidShapeError(f"A must be [*batch, m, n], its shape is {tuple(A.shape)}")
        values, pattern = A, _inputs.dense_pattern(A)
    elif torch.compiler.is_compiling():
        raise NotSupportedError("torch.compile cannot hold a sparse tensor: use splstsq(values, pattern, b) there")
    else:
        values, pattern = _sparse.extract(A)
    return _solved(values, pattern, b, asked, client, timeout, on_failure, return_stats, observe, "A")


@overload
def splstsq(
    values: Tensor,
    pattern: Pattern,
    b: Tensor,
    *,
    return_stats: Literal[False] = ...,
    **options: Unpack[SolveOptions],
) -> Tensor: ...
@overload
def splstsq(
    values: Tensor, pattern: Pattern, b: Tensor, *, return_stats: Literal[True], **options: Unpack[SolveOptions]
) -> tuple[Tensor, Certificate]: ...
def splstsq(
    values: Tensor,
    pattern: Pattern,
    b: Tensor,
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
    asked = _options(**options)
    if not isinstance(pattern, Pattern):
        raise InvalidPatternError("pattern must be a backsolve.Pattern, e.g. Pattern.from_csr(A)")
    values, b = _inputs.tensor(values, "values"), _inputs.tensor(b, "b")
    if values.layout is not torch.strided:
        raise InvalidShapeError("values is sparse; pass the stored numbers, or the matrix itself to lstsq(A, b)")
    _inputs.pair(values, b, "values")
    return _solved(values, pattern, b, asked, client, timeout, on_failure, return_stats, observe, "values")


def _options(**given: Unpack[CallOptions]) -> Options:
    """Checked options; inside a graph, where a number may be symbolic, the operation checks them."""
    if not torch.compiler.is_compiling():
        return least_squares_options(**given)
    check_names(given, KINDS, "lstsq")
    if given.get("method", "auto") == "auto":
        given["method"] = "lstsq"
    return Options(**given)


def _solved(
    values: Tensor,
    pattern: AnyPattern,
    b: Tensor,
    options: Options,
    client: Client | None,
    timeout: Timeout,
    on_failure: OnFailure,
    return_stats: bool,
    observe: Observer | None,
    name: str,
) -> Tensor | tuple[Tensor, Certificate]:
    check_choice(on_failure)
    batch = _inputs.batch(values, b, None, pattern.entries, pattern.m, name)
    lead = values.ndim - len(pattern.entries)
    vector = b.ndim == lead + 1
    rhs = batch.rhs.unsqueeze(-1) if vector else batch.rhs
    shape = (*b.shape[:lead], pattern.n, *(() if vector else b.shape[lead + 1 :]))
    if torch.compiler.is_compiling():
        if return_stats or observe is not None:
            raise InvalidOptionError("return_stats and observe do not work inside torch.compile: a graph holds tensors")
        return _compiled.minimise(batch.values, rhs, pattern, client, options, timeout, on_failure).reshape(shape)
    system = System(client or default_client(), pattern, options, timeout, on_failure, observe)
    x = minimise(batch.values, rhs, Problem(system)).reshape(shape)
    if not return_stats:
        return x
    if system.certificate is None:
        raise InvalidOptionError("there is no certificate: nothing was solved")
    return x, system.certificate
