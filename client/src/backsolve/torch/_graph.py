"""What an operation inside a `torch.compile` graph is given, and how it finds its objects again.

A graph holds tensors, numbers and strings, no Python objects: the client and a sparse pattern travel
as integers, the kind and the sizes of a structured matrix as a name and numbers, options as a list of
plain values, and the digests of a matrix as a tensor of bytes from the forward to what differentiates
it, which therefore hashes nothing.
"""

import weakref
from collections.abc import Sequence
from itertools import count
from typing import Any, Final, final

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad

from ..client import Client, default_client
from ..errors import InvalidOptionError, NotSupportedError
from ..matrix import Matrix
from ..options import check_trans, make_options
from ..pattern import AnyPattern, DensePattern, Pattern, StructuredPattern, check_storage
from ..retry import UNSET, Timeout, Unset
from ..types import DIGEST_BYTES, MatrixRef, OnFailure, Options
from ._request import to_array

_ABSENT: Final = 0
_objects: "weakref.WeakValueDictionary[int, Client | Pattern]" = weakref.WeakValueDictionary()
_numbers: "weakref.WeakKeyDictionary[Client | Pattern, int]" = weakref.WeakKeyDictionary()
_count = count(_ABSENT + 1)

_ON_FAILURE: Final[dict[str, OnFailure]] = {"raise": "raise", "warn": "warn", "nan": "nan"}

_NAMES: Final = ("method", "preconditioner", "precision", "ordering", "reuse", "nullspace")
_FIGURES: Final = ("rtol", "atol", "damp", "rcond", "maxiter", "restart", "refine", "recycle", "condition")
_BETWEEN: Final = "|"

Spec = tuple[Any, ...]
"""names joined by `_BETWEEN`, trans, the values of `_FIGURES`, timeout, default timeout, on_failure."""

Place = tuple[int, str, Sequence[int]]
"""A pattern: the number of a sparse one, or 0; the kind and dims of a structured one; `_DENSE` with the storage, and
n, of a dense one that is stored as Hermitian; neither: dense."""

_DENSE: Final = "dense, "


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


def client_of(number: int) -> Client:
    """The client of that number, or the default one."""
    found = _object(number) if number else default_client()
    assert isinstance(found, Client)
    return found


def place_of(pattern: AnyPattern) -> Place:
    """How a graph knows a pattern."""
    if isinstance(pattern, StructuredPattern):
        return _ABSENT, pattern.kind.name, list(pattern.dims)
    if isinstance(pattern, DensePattern) and pattern.storage != "general":
        return _ABSENT, _DENSE + pattern.storage, [pattern.n]
    return number_of(pattern if isinstance(pattern, Pattern) else None), "", []


def pattern_at(place: Place, values: Tensor) -> AnyPattern:
    """The pattern there; of a dense matrix the values know it."""
    number, kind, dims = place
    if kind.startswith(_DENSE):
        return DensePattern((dims[0], dims[0]), check_storage(kind.removeprefix(_DENSE), (dims[0], dims[0])))
    if kind:
        return StructuredPattern(kind, dims)
    if not number:
        return DensePattern((values.shape[-2], values.shape[-1]))
    found = _object(number)
    assert isinstance(found, Pattern)
    return found


def entries_at(place: Place) -> int:
    """Dimensions of one matrix's values."""
    return 2 if not place[0] and place[1] in ("", _DENSE + "hermitian") else 1


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _inside_derivative() -> bool:
    """Whether the code being traced stands inside `torch.func.grad`, `jvp` or what is made of them."""
    levels = retrieve_all_functorch_interpreters()
    return any(level.key() in (TransformType.Grad, TransformType.Jvp) for level in levels)


def refuse_derivatives() -> None:
    """Refuse to be traced inside a derivative of `torch.func`, of which PyTorch would lose a part.

    Raises:
        NotSupportedError: inside one.
    """
    if _inside_derivative():
        raise NotSupportedError(
            "inside torch.compile, torch.func's derivatives of a solve are not available: compile the function and "
            "take the derivative outside, or leave this solve out of the graph"
        )


def refuse_dual_numbers() -> None:
    """Refuse to run on dual numbers: a registered operation has no rule for them.

    Raises:
        NotSupportedError: inside `torch.autograd.forward_ad`.
    """
    if forward_ad._current_level >= 0:
        raise NotSupportedError("a compiled solve has no forward-mode derivative: call it without torch.compile")


def spec_of(options: Options, timeout: Timeout, on_failure: OnFailure) -> Spec:
    """What is asked, as plain values; the inverse of `Asked`."""
    seconds, by_default = (None, True) if isinstance(timeout, Unset) else (timeout, False)
    return (
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
    )


@final
class Asked:
    """Options, timeout and what happens on failure, out of a spec.

    Raises:
        InvalidOptionError: a value of the wrong type.
    """

    def __init__(self, spec: Spec) -> None:
        names, trans, *figures, timeout, by_default, on_failure = spec
        given = dict(zip(_NAMES, names.split(_BETWEEN), strict=True)) | dict(zip(_FIGURES, figures, strict=True))
        self.options = make_options(trans=check_trans(trans), **{k: v for k, v in given.items() if v != ""})
        self.timeout: Timeout = UNSET if by_default else timeout
        self.on_failure: OnFailure = _ON_FAILURE[on_failure]


def matrix_at(pattern: AnyPattern, values: Tensor, digest: Tensor | None) -> Matrix:
    """The canonical matrix, not hashed again where its digests came with it."""
    matrix = Matrix(pattern, to_array(values))
    if digest is not None:
        ref = bytes(digest.numpy(force=True))
        matrix._ref = MatrixRef(ref[:DIGEST_BYTES], ref[DIGEST_BYTES:])
    return matrix


def digests_of(matrix: Matrix) -> Tensor:
    """Both digests in one tensor of bytes."""
    return torch.frombuffer(bytearray(matrix.ref.pattern + matrix.ref.values), dtype=torch.uint8)


def no_digests() -> Tensor:
    """What a fake operation returns in their place."""
    return torch.empty(2 * DIGEST_BYTES, dtype=torch.uint8, device="cpu")


def refuse_second(ctx: Any, *grads: Any) -> Any:
    """The derivative of an operation that exists for first derivatives alone.

    Raises:
        NotSupportedError: always.
    """
    raise NotSupportedError("a compiled solve is differentiated once: for second derivatives leave it out of the graph")
