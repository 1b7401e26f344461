"""`solve` and `spsolve`: differentiable linear solves on tensors of TensorFlow."""

from typing import Any, Literal, Unpack, overload

import tensorflow as tf

from .._adapter.request import Observer
from .._failure import check_choice
from ..canonical import Parametrised
from ..client import Client
from ..errors import InvalidOptionError, InvalidPatternError, InvalidShapeError, NotSupportedError
from ..options import SolveOptions as CallOptions
from ..options import make_options
from ..pattern import Pattern, check_square, check_storage
from ..retry import UNSET, Timeout
from ..types import Certificate, OnFailure, Storage
from . import _inputs
from ._function import Where, told
from ._function import solve as solved
from ._options import SolveOptions
from ._request import Asked
from ._rules import Tensor, of_pattern
from .structured import LowRankUpdate, Structured


@overload
def solve(
    A: Any,
    b: Any,
    *,
    x0: Any = ...,
    storage: Storage = ...,
    return_stats: Literal[False] = ...,
    **options: Unpack[SolveOptions],
) -> Tensor: ...
@overload
def solve(
    A: Any,
    b: Any,
    *,
    x0: Any = ...,
    storage: Storage = ...,
    return_stats: Literal[True],
    **options: Unpack[SolveOptions],
) -> tuple[Tensor, Certificate]: ...
@tf.autograph.experimental.do_not_convert
def solve(
    A: Any,
    b: Any,
    *,
    x0: Any = None,
    storage: Storage = "general",
    client: Client | None = None,
    timeout: Timeout = UNSET,
    on_failure: OnFailure = "raise",
    return_stats: bool = False,
    observe: Observer | None = None,
    **options: Unpack[CallOptions],
) -> Tensor | tuple[Tensor, Certificate]:
    """Solve `op(A) x = b`, differentiably in A and b to every order.

    Works eagerly and inside `tf.function`, shapes known or not, under `GradientTape`s and
    `ForwardAccumulator`s in any nesting. The gradient with respect to a sparse A is that of its
    `values`, in their order; of an index that is listed more than once each value receives it in
    full. Complex gradients are conjugated as TensorFlow's are. One factor serves the solve, its
    gradient (one more solve) and a Hessian-vector product (two more). Inside a `tf.function` an
    accumulator around a branch or a loop in which there is a solve is an error of TensorFlow's, as it
    is of any `tf.custom_gradient` that uses its own answer: put the accumulator around the function.

    Eagerly, errors are those of `backsolve.errors`. A `tf.function` that solves raises
    TensorFlow's errors, with the name and the text of ours in theirs. XLA compiles no solve, and a
    SavedModel holds none: it is loaded without the function that solves. `tf.vectorized_map` solves
    one system at a time, and loses gradients that are taken outside of it, which is an error then:
    use `tf.map_fn`, or better the whole batch in one solve.

    Args:
        A: `[*batch, n, n]` dense, a `tf.SparseTensor` `[n, n]`, its indices in any order, or a structured
            matrix of this package such as `LowRankPlusDiagonal`, whose parameters receive the gradient.
        b: `[*batch, n]`, or `[*batch, n, k]` for k columns; A's element type.
        x0: first iterate of an iterative method, shaped like b. The answer does not depend on
            it: it receives no gradient.
        storage: "general"; or of an A that equals its conjugate transpose "hermitian" (all of it is given; its
            gradient is Hermitian) or "lower" (the part above the diagonal is not read, half the bytes are sent,
            and an entry's gradient has both of its places); see `backsolve.storage`.
        client: by default a process-wide one (`BACKSOLVE_URL`, or the engine in this process).
        timeout: seconds for each request; by default the client's.
        on_failure: when an answer misses its tolerance, in the forward or the backward: "raise",
            "warn" or "nan".
        return_stats: return the certificate of the forward solve too. Not inside `tf.function`.
        observe: called as `observe(phase, certificate)` after every request, those of gradients
            included; phase is "solve" or "adjoint". Inside `tf.function` it is called from
            TensorFlow's threads, whenever the graph solves. Of a cotangent of zeros nothing is requested.
        options: those of `backsolve.options.SolveOptions`, for forward and backward alike.

    Returns:
        x, shaped like b; with `return_stats`, x and its certificate.

    Raises:
        InvalidShapeError: shapes do not fit, or A is not square.
        InvalidDtypeError: integers, half precision, or types that differ.
        InvalidPatternError: indices outside of A.
        NotSupportedError: a structured matrix of NumPy arrays, or a function that XLA is to compile.
        BacksolveError: whatever the solve itself meets, in the forward or the backward (see
            `backsolve.errors`).

    Source: Giles, "An extended collection of matrix derivative results", 2008, section 2.3.1.
    """
    given = make_options(**options)
    if isinstance(A, Parametrised):
        raise NotSupportedError(
            "a structured matrix of NumPy arrays is solved with by backsolve.Client.solve: make it of tensors, e.g. "
            "backsolve.tensorflow.LowRankPlusDiagonal"
        )
    if isinstance(A, Structured):
        check_general(storage)
        asked = Asked(client, A.pattern, given, timeout, on_failure, observe, "A")
        base = A.below if isinstance(A, LowRankUpdate) else None
        where = Where(of_pattern(base)) if isinstance(base, Pattern) else Where()
        return _solve(asked, where, A.values(), b, x0, return_stats)
    # What it is a storage of is known when the numbers are.
    check_storage(storage, (0, 0))
    asked = Asked(client, None, given, timeout, on_failure, observe, "A", storage=storage)
    if not isinstance(A, tf.SparseTensor):
        A = _inputs.tensor(A, "A")
        if A.shape.rank is not None and A.shape.rank < 2:
            raise InvalidShapeError(f"A must be [*batch, n, n], its shape is {tuple(A.shape)}")
        return _solve(asked, Where(), A, b, x0, return_stats)
    where = _inputs.sparse(A)
    return _solve(asked, where, _inputs.tensor(A.values, "A"), b, x0, return_stats)


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
) -> Tensor: ...
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
) -> tuple[Tensor, Certificate]: ...
@tf.autograph.experimental.do_not_convert
def spsolve(
    values: Any,
    pattern: Pattern,
    b: Any,
    *,
    x0: Any = None,
    storage: Storage | None = None,
    client: Client | None = None,
    timeout: Timeout = UNSET,
    on_failure: OnFailure = "raise",
    return_stats: bool = False,
    observe: Observer | None = None,
    **options: Unpack[CallOptions],
) -> Tensor | tuple[Tensor, Certificate]:
    """Solve `op(A) x = b` for the sparse A with `values` on `pattern`.

    The form for values that are computed, and for batches on one pattern, which is checked and
    hashed once.

    Args:
        values: `[*batch, nnz]`, in the pattern's order (rows, then columns).
        pattern: where the values are; see `backsolve.Pattern.from_csr`.
        b: vectors if it has as many dimensions as values, `[*batch, n]`; columns `[*batch, n, k]`
            if one more.
        storage: None: that of the pattern, e.g. `Pattern.from_csr(tril(A), storage="lower")`.
        x0, client, timeout, on_failure, return_stats, observe, options: as for `solve`.

    Returns:
        x, shaped like b; with `return_stats`, x and its certificate.

    Raises:
        InvalidPatternError: `pattern` is not a `backsolve.Pattern`.
        BacksolveError: as for `solve`.
    """
    if not isinstance(pattern, Pattern):
        raise InvalidPatternError("pattern must be a backsolve.Pattern, e.g. Pattern.from_csr(A)")
    pattern = pattern if storage is None else pattern.stored(storage)
    check_square(pattern)
    asked = Asked(client, pattern, make_options(**options), timeout, on_failure, observe, "values")
    given = _inputs.tensor(values, "values")
    return _solve(asked, Where(of_pattern(pattern)), given, b, x0, return_stats)


def check_general(storage: Storage) -> None:
    """Refuse a storage of a matrix that is not given by its entries.

    Raises:
        InvalidOptionError: there is one.
    """
    if storage != "general":
        raise InvalidOptionError(
            "storage is of dense and sparse matrices; this one is given by parameters: leave it out", option="storage"
        )


def _solve(
    asked: Asked,
    where: Where,
    values: Tensor,
    b: Any,
    x0: Any,
    return_stats: bool,
) -> Tensor | tuple[Tensor, Certificate]:
    """Check what can be checked, and solve."""
    check_choice(asked.on_failure)
    _inputs.refuse_compilation()
    rhs = _inputs.tensor(b, "b")
    _inputs.pair(values, rhs, asked.name)
    entries, m, n = _inputs.sizes(asked, where, values)
    if m is not None and n is not None and m != n:
        raise InvalidShapeError(f"A must be square, its shape is {(m, n)}; use lstsq for other shapes")
    start = None if x0 is None else _inputs.first_iterate(x0, rhs)
    rhs = _inputs.fitting(values, rhs, start, entries, m if n is None else n, asked.name)
    _inputs.refuse_statistics(return_stats)
    return told(solved(asked, where, values, rhs, start, None), return_stats)
