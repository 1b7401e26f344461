"""The same solve as operations that `torch.compile` can put into a graph.

A graph holds tensors, numbers and strings, no Python objects: the client and the pattern travel as
integers, and the digests as a tensor of bytes from the forward to the adjoint, which therefore
hashes nothing. Dynamo refuses an `autograd.Function` with a `jvp`, and a registered operation has
no rule for forward mode, of which PyTorch drops the tangent without a word: hence both forms,
chosen by `torch.compiler.is_compiling()`, and a refusal of what this form cannot do. First order only.
"""

import weakref
from itertools import count
from typing import Any, Final

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad

from ..client import Client, default_client
from ..errors import InvalidOptionError, NotSupportedError
from ..matrix import Matrix
from ..options import check_trans, make_options
from ..pattern import AnyPattern, DensePattern, Pattern
from ..retry import UNSET, Timeout, Unset
from ..types import DIGEST_BYTES, MatrixRef, OnFailure, Options
from ._fold import fold
from ._request import ADJOINT, Operator, Request, System, call, to_array, to_tensor
from ._rules import values_gradient as gradient_on_pattern

_ABSENT: Final = 0
_objects: "weakref.WeakValueDictionary[int, Client | Pattern]" = weakref.WeakValueDictionary()
_numbers: "weakref.WeakKeyDictionary[Client | Pattern, int]" = weakref.WeakKeyDictionary()
_count = count(_ABSENT + 1)

_OPERATOR: Final[dict[str, Operator]] = {name: name for name in ADJOINT}
_ON_FAILURE: Final[dict[str, OnFailure]] = {"raise": "raise", "warn": "warn", "nan": "nan"}

_NAMES: Final = ("method", "preconditioner", "precision", "ordering", "reuse", "nullspace")
_FIGURES: Final = ("rtol", "atol", "damp", "rcond", "maxiter", "restart", "refine", "recycle", "condition")
_BETWEEN: Final = "|"

Spec = tuple[Any, ...]
"""names joined by `_BETWEEN`, trans, the values of `_FIGURES`, timeout, default timeout, on_failure."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def number_of(owner: "Client | Pattern | None") -> int:
    """The integer by which a graph knows an object; runs while the graph is traced."""
    if owner is None:
        return _ABSENT
    known = _numbers.get(owner)
    if known is None:
        known = _numbers[owner] = next(_count)
        _objects[known] = owner
    return known


def _object(number: int) -> "Client | Pattern":
    found = _objects.get(number)
    if found is None:
        raise InvalidOptionError("the client or pattern of a compiled solve no longer exists: keep a reference to it")
    return found


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _inside_derivative() -> bool:
    """Whether the code being traced stands inside `torch.func.grad`, `jvp` or what is made of them."""
    levels = retrieve_all_functorch_interpreters()
    return any(level.key() in (TransformType.Grad, TransformType.Jvp) for level in levels)


def solve(
    values: Tensor,
    b: Tensor,
    x0: Tensor | None,
    pattern: "Pattern | None",
    client: Client | None,
    options: Options,
    timeout: Timeout,
    on_failure: OnFailure,
) -> Tensor:
    """Solve inside a graph; `pattern` None stands for a dense matrix.

    Raises:
        NotSupportedError: inside a derivative of `torch.func`.
    """
    if _inside_derivative():
        raise NotSupportedError(
            "inside torch.compile, torch.func's derivatives of a solve are not available: compile the function and "
            "take the derivative outside, or leave this solve out of the graph"
        )
    seconds, by_default = (None, True) if isinstance(timeout, Unset) else (timeout, False)
    x: Tensor = _solve(
        values,
        b,
        x0,
        None,
        number_of(pattern),
        number_of(client),
        False,
        _BETWEEN.join([getattr(options, name) or "" for name in _NAMES]),
        options.trans,
        options.rtol,
        options.atol,
        options.damp,
        options.rcond,
        options.maxiter,
        options.restart,
        options.refine,
        options.recycle,
        options.condition,
        seconds,
        by_default,
        on_failure,
    )[0]
    return x


@torch.library.custom_op("backsolve::solve", mutates_args=())
def _solve(
    values: Tensor,
    rhs: Tensor,
    x0: Tensor | None,
    digest: Tensor | None,
    pattern: int,
    client: int,
    adjoint: bool,
    names: str,
    trans: str,
    rtol: float | None,
    atol: float | None,
    damp: float | None,
    rcond: float | None,
    maxiter: int | None,
    restart: int | None,
    refine: int | None,
    recycle: int | None,
    condition: bool | None,
    timeout: float | None,
    default_timeout: bool,
    on_failure: str,
) -> tuple[Tensor, Tensor]:
    """x, and the digests of the matrix."""
    if forward_ad._current_level >= 0:
        raise NotSupportedError("a compiled solve has no forward-mode derivative: call it without torch.compile")
    figures = (rtol, atol, damp, rcond, maxiter, restart, refine, recycle, condition)
    spec = (names, trans, *figures, timeout, default_timeout, on_failure)
    request = Request(_system(values, pattern, client, spec), adjoint)
    matrix = _matrix(request.system.pattern, values, digest)
    start = None if x0 is None else to_array(x0)
    x, _, _ = call(request.system.client, matrix, to_array(rhs), start, request)
    ref = matrix.ref.pattern + matrix.ref.values
    return to_tensor(x, rhs), torch.frombuffer(bytearray(ref), dtype=torch.uint8)


@_solve.register_fake
def _(values: Tensor, rhs: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return rhs.new_empty(rhs.shape), torch.empty(2 * DIGEST_BYTES, dtype=torch.uint8, device="cpu")


@torch.library.custom_op("backsolve::values_gradient", mutates_args=())
def _values_gradient(lam: Tensor, x: Tensor, pattern: int, operator: str, vectors: bool) -> Tensor:
    """Gradient on a sparse pattern's entries."""
    found = _object(pattern)
    assert isinstance(found, Pattern)
    return gradient_on_pattern(found, _OPERATOR[operator], lam, x, vectors).contiguous()


@_values_gradient.register_fake
def _(lam: Tensor, x: Tensor, pattern: int, operator: str, vectors: bool) -> Tensor:
    found = _object(pattern)
    assert isinstance(found, Pattern)
    return x.new_empty((*x.shape[: -1 if vectors else -2], found.nnz))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, rhs, _, _, pattern, client, adjoint, *spec = inputs
    x, digest = output
    ctx.save_for_backward(values, x, digest)
    ctx.pattern, ctx.client, ctx.adjoint, ctx.spec = pattern, client, adjoint, spec
    ctx.vectors = rhs.ndim == values.ndim - (1 if pattern else 2) + 1


def _backward(ctx: Any, grad: Tensor, _digest: Any) -> tuple[Any, ...]:
    values, x, digest = ctx.saved_tensors
    lam, _ = _solve(values, grad.contiguous(), None, digest, ctx.pattern, ctx.client, not ctx.adjoint, *ctx.spec)
    trans = check_trans(ctx.spec[1])
    operator = ADJOINT[trans] if ctx.adjoint else trans
    grad_values = None
    if ctx.needs_input_grad[0]:
        if ctx.pattern:
            grad_values = _values_gradient(lam, x, ctx.pattern, operator, ctx.vectors)
        else:
            dense = DensePattern((values.shape[-2], values.shape[-1]))
            grad_values = gradient_on_pattern(dense, operator, lam, x, ctx.vectors)
    nothing = (None,) * (len(ctx.spec) + 5)
    return (grad_values, lam if ctx.needs_input_grad[1] else None, *nothing)


_solve.register_autograd(_backward, setup_context=_setup_context)


@_solve.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], values: Tensor, rhs: Tensor, x0: Tensor | None, *rest: Any) -> Any:
    digests = []

    def unmapped(flat: Tensor, b: Tensor, start: Tensor | None) -> Tensor:
        # The forward's digest names the unmapped values; a mapped batch is another matrix.
        kept = rest[0] if in_dims[0] is None else None
        x, digest = _solve(flat.contiguous(), b.contiguous(), start, kept, *rest[1:])
        digests.append(digest)
        return torch.as_tensor(x)

    x = fold(info.batch_size, in_dims[:3], 1 if rest[1] else 2, values, rhs, x0, unmapped)
    return (x, digests[0]), (0, None)


def _system(values: Tensor, pattern: int, client: int, spec: Spec) -> System:
    names, trans, *figures, timeout, by_default, on_failure = spec
    known = _object(pattern) if pattern else DensePattern((values.shape[-2], values.shape[-1]))
    solver = _object(client) if client else default_client()
    assert isinstance(solver, Client)
    assert not isinstance(known, Client)
    given = dict(zip(_NAMES, names.split(_BETWEEN), strict=True)) | dict(zip(_FIGURES, figures, strict=True))
    options = make_options(trans=check_trans(trans), **{k: v for k, v in given.items() if v != ""})
    return System(solver, known, options, UNSET if by_default else timeout, _ON_FAILURE[on_failure])


def _matrix(pattern: AnyPattern, values: Tensor, digest: Tensor | None) -> Matrix:
    matrix = Matrix(pattern, to_array(values))
    if digest is not None:
        ref = bytes(digest.numpy(force=True))
        matrix._ref = MatrixRef(ref[:DIGEST_BYTES], ref[DIGEST_BYTES:])
    return matrix
