"""`solve` and `spsolve`: differentiable linear solves on tensors."""

from typing import Literal, Unpack, overload

import torch
from torch import Tensor

from .._adapter.request import Observer, Request, System
from .._failure import check_choice
from ..client import Client, default_client
from ..errors import InvalidOptionError, InvalidPatternError, InvalidShapeError, NotSupportedError
from ..options import KINDS, check_names, make_options
from ..options import SolveOptions as CallOptions
from ..pattern import AnyPattern, Pattern, check_square, parameters
from ..retry import UNSET, Timeout
from ..types import Certificate, OnFailure, Options, Storage
from . import _compiled, _inputs, _sparse
from ._function import apply
from ._options import SolveOptions
from .structured import LowRankUpdate, Structured


@overload
def solve(
    A: Tensor | Structured,
    b: Tensor,
    *,
    x0: Tensor | None = ...,
    storage: Storage = ...,
    return_stats: Literal[False] = ...,
    **options: Unpack[SolveOptions],
) -> Tensor: ...
@overload
def solve(
    A: Tensor | Structured,
    b: Tensor,
    *,
    x0: Tensor | None = ...,
    storage: Storage = ...,
    return_stats: Literal[True],
    **options: Unpack[SolveOptions],
) -> tuple[Tensor, Certificate]: ...
def solve(
    A: Tensor | Structured,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    storage: Storage = "general",
    client: Client | None = None,
    timeout: Timeout = UNSET,
    on_failure: OnFailure = "raise",
    return_stats: bool = False,
    observe: Observer | None = None,
    **options: Unpack[CallOptions],
) -> Tensor | tuple[Tensor, Certificate]:
    """Solve `op(A) x = b`, differentiably in A and b to every order.

    The gradient with respect to a sparse A has A's own layout and entries. One factor serves the
    solve, its gradient (one more solve) and a Hessian-vector product (two more).

    PyTorch's sparse constructors and `.values()` can be differentiated once; a second derivative
    through them raises. Its constructor of compressed (CSR, CSC) tensors also forms an n x n
    array in its gradient: for large matrices that are computed, prefer `spsolve`, or COO.

    Args:
        A: `[*batch, n, n]` dense, `[n, n]` sparse COO, CSR or CSC, or a structured matrix of this
            package such as `LowRankPlusDiagonal`, whose parameters receive the gradient. A
            `LowRankUpdate` not inside `torch.compile`.
        b: `[*batch, n]`, or `[*batch, n, k]` for k columns; A's type and device.
        x0: first iterate of an iterative method, shaped like b. The answer does not depend on
            it: it receives no gradient.
        storage: "general"; or of an A that equals its conjugate transpose "hermitian" (all of it is given; its
            gradient is Hermitian) or "lower" (the part above the diagonal is not read, half the bytes are sent,
            and an entry's gradient has both of its places); see `backsolve.storage`.
        client: by default a process-wide one (`BACKSOLVE_URL`, or the engine in this process).
        timeout: seconds for each request; by default the client's.
        on_failure: when an answer misses its tolerance, in the forward or the backward: "raise",
            "warn" or "nan".
        return_stats: return the certificate of the forward solve too. Not inside `torch.compile`.
        observe: called as `observe(phase, certificate)` after every request, those of the backward
            included; phase is "solve", "adjoint" or "tangent". Not inside `torch.compile`.
        options: those of `backsolve.options.SolveOptions`, for forward and backward alike.

    Returns:
        x, shaped like b; with `return_stats`, x and its certificate.

    Raises:
        InvalidShapeError: shapes do not fit, or A is not square.
        InvalidDtypeError: integers, half precision, or types that differ.
        InvalidPatternError: broken index arrays.
        BacksolveError: whatever the solve itself meets, in the forward or the backward (see
            `backsolve.errors`).

    Source: Giles, "An extended collection of matrix derivative results", 2008, section 2.3.1.
    """
    asked = _options(**options)
    pattern: AnyPattern
    if isinstance(A, Structured):
        if storage != "general":
            raise InvalidOptionError(
                "storage is of dense and sparse matrices; this one is given by parameters: leave it out",
                option="storage",
            )
        if isinstance(A, LowRankUpdate) and torch.compiler.is_compiling():
            raise NotSupportedError("torch.compile cannot hold an update: solve with it outside the graph")
        values, pattern, b = _inputs.tensor(A.values(), "A"), A.pattern, _inputs.tensor(b, "b")
        _inputs.pair(values, b, "A")
        return _solve(values, pattern, b, asked, x0, client, timeout, on_failure, return_stats, observe, "A")
    A, b = _inputs.tensor(A, "A"), _inputs.tensor(b, "b")
    _inputs.pair(A, b, "A")
    if A.layout is torch.strided:
        if A.ndim < 2:
            raise InvalidShapeError(f"A must be [*batch, n, n], its shape is {tuple(A.shape)}")
        pattern = _inputs.dense_pattern(A, storage)
        values = _inputs.packed(A) if storage == "lower" else A
    elif torch.compiler.is_compiling():
        raise NotSupportedError("torch.compile cannot hold a sparse tensor: use spsolve(values, pattern, b) there")
    else:
        values, general = _sparse.extract(A)
        pattern = general.stored(storage)
    return _solve(values, pattern, b, asked, x0, client, timeout, on_failure, return_stats, observe, "A")


@overload
def spsolve(
    values: Tensor,
    pattern: Pattern,
    b: Tensor,
    *,
    x0: Tensor | None = ...,
    storage: Storage | None = ...,
    return_stats: Literal[False] = ...,
    **options: Unpack[SolveOptions],
) -> Tensor: ...
@overload
def spsolve(
    values: Tensor,
    pattern: Pattern,
    b: Tensor,
    *,
    x0: Tensor | None = ...,
    storage: Storage | None = ...,
    return_stats: Literal[True],
    **options: Unpack[SolveOptions],
) -> tuple[Tensor, Certificate]: ...
def spsolve(
    values: Tensor,
    pattern: Pattern,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    storage: Storage | None = None,
    client: Client | None = None,
    timeout: Timeout = UNSET,
    on_failure: OnFailure = "raise",
    return_stats: bool = False,
    observe: Observer | None = None,
    **options: Unpack[CallOptions],
) -> Tensor | tuple[Tensor, Certificate]:
    """Solve `op(A) x = b` for the sparse A with `values` on `pattern`.

    The form for values that are computed: ordinary tensors, so that every transform and every
    order of derivative works, and a pattern that is checked and hashed once.

    Args:
        values: `[*batch, nnz]`, in the pattern's order (rows, then columns).
        pattern: where the values are; see `backsolve.Pattern.from_csr`.
        b: vectors if `b.ndim == values.ndim`, `[*batch, n]`; columns `[*batch, n, k]` if one more.
        storage: None: that of the pattern, e.g. `Pattern.from_csr(tril(A), storage="lower")`.
        x0, client, timeout, on_failure, return_stats, observe, options: as for `solve`.

    Returns:
        x, shaped like b; with `return_stats`, x and its certificate.

    Raises:
        InvalidPatternError: `pattern` is not a `backsolve.Pattern`.
        BacksolveError: as for `solve`.
    """
    asked = _options(**options)
    if not isinstance(pattern, Pattern):
        raise InvalidPatternError("pattern must be a backsolve.Pattern, e.g. Pattern.from_csr(A)")
    pattern = pattern if storage is None else pattern.stored(storage)
    values, b = _inputs.tensor(values, "values"), _inputs.tensor(b, "b")
    if values.layout is not torch.strided:
        raise InvalidShapeError("values is sparse; pass the stored numbers, or the matrix itself to solve(A, b)")
    _inputs.pair(values, b, "values")
    return _solve(values, pattern, b, asked, x0, client, timeout, on_failure, return_stats, observe, "values")


def _options(**given: Unpack[CallOptions]) -> Options:
    """Checked options; inside a graph, where a number may be symbolic, the operation checks them."""
    if torch.compiler.is_compiling():
        check_names(given, KINDS, "solve")
        return Options(**given)
    return make_options(**given)


def _solve(
    values: Tensor,
    pattern: AnyPattern,
    b: Tensor,
    options: Options,
    x0: Tensor | None,
    client: Client | None,
    timeout: Timeout,
    on_failure: OnFailure,
    return_stats: bool,
    observe: Observer | None,
    name: str,
) -> Tensor | tuple[Tensor, Certificate]:
    check_choice(on_failure)
    check_square(pattern)
    start = None if x0 is None else _inputs.first_iterate(x0, b)
    batch = _inputs.batch(values, b, start, parameters(pattern), pattern.n, name)
    if torch.compiler.is_compiling():
        if return_stats or observe is not None:
            raise InvalidOptionError("return_stats and observe do not work inside torch.compile: a graph holds tensors")
        x = _compiled.solve(batch.values, batch.rhs, batch.x0, pattern, client, options, timeout, on_failure)
        return batch.restore(x)
    system = System(client or default_client(), pattern, options, timeout, on_failure, observe)
    x = batch.restore(apply(batch.values, batch.rhs, batch.x0, Request(system)))
    if not return_stats:
        return x
    if system.certificate is None:
        raise InvalidOptionError("there is no certificate: nothing was solved")
    return x, system.certificate
