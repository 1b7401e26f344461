"""What a caller asks, as dataclasses and as messages of `backsolve.v1`, one to one both ways.

Encoding gives a message whose tensors have no data yet, and the arrays they describe, by field
name. Decoding takes the same pair. `framing` carries the arrays, `replies` is the way back.
Nothing here knows gRPC.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import get_args

from .._transports.base import JvpCall, PutCall, SolveCall, VjpCall
from ..errors import InvalidOptionError, MalformedError
from ..matrix import Matrix, standing_on
from ..options import KINDS
from ..pattern import AnyPattern, DensePattern, Pattern, StructuredPattern
from ..types import DIGEST_BYTES, TRANS, Array, MatrixRef, Options, Storage, Trans, Want
from ..v1 import solver_pb2 as solver
from ..v1 import types_pb2 as types
from .framing import describe

Arrays = dict[str, Array]
Given = Mapping[str, Array]

_TRANS: Mapping[int, Trans] = {types.TRANS_UNSPECIFIED: "N"} | {types.Trans.Value(f"TRANS_{t}"): t for t in TRANS}
STORAGE_TO_WIRE: Mapping[Storage, "solver.Storage"] = {
    "general": solver.STORAGE_UNSPECIFIED,
    "hermitian": solver.STORAGE_HERMITIAN,
    "lower": solver.STORAGE_LOWER,
}
_OPTIONAL = tuple(name for name in KINDS if name not in ("method", "trans"))
_WANT: Mapping["solver.Want", Want] = {solver.Want.Value(f"WANT_{want.upper()}"): want for want in get_args(Want)}
_WANT_NUMBER = {want: number for number, want in _WANT.items()}


def encode_ref(ref: MatrixRef) -> types.MatrixRef:
    """The message of a matrix's identity."""
    return types.MatrixRef(pattern=ref.pattern, values=ref.values)


def decode_ref(message: types.MatrixRef) -> MatrixRef:
    """The identity of a matrix.

    Raises:
        MalformedError: a digest of another length.
    """
    if len(message.pattern) != DIGEST_BYTES or len(message.values) != DIGEST_BYTES:
        raise MalformedError(f"a matrix is named by two digests of {DIGEST_BYTES} bytes each")
    return MatrixRef(message.pattern, message.values)


def decode_refs(messages: Sequence[types.MatrixRef]) -> list[MatrixRef]:
    """The identities of several matrices."""
    return [decode_ref(message) for message in messages]


def encode_options(options: Options) -> types.Options:
    """The message of what a solve asks for.

    Raises:
        InvalidOptionError: a value of a type or size that no server could take.
    """
    given = {name: value for name in _OPTIONAL if (value := getattr(options, name)) is not None}
    try:
        trans = types.Trans.Value(f"TRANS_{options.trans}")
        return types.Options(method=options.method, trans=trans, **given)
    except (TypeError, ValueError) as error:
        raise InvalidOptionError("an option has an impossible type or value: see backsolve.options") from error


def decode_options(message: types.Options) -> Options:
    """What a solve asks for.

    Raises:
        InvalidOptionError: a `trans` that this version does not know.
    """
    data = message.SerializeToString()
    return (_remembered_options if len(data) <= _USUAL_OPTION_BYTES else _read_options)(data)


def _read_options(data: bytes) -> Options:
    message = types.Options.FromString(data)
    trans = _TRANS.get(message.trans)
    if trans is None:
        raise InvalidOptionError("trans must be N, T or H")
    given = {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}
    return Options(method=message.method or "auto", trans=trans, **given)


_USUAL_OPTION_BYTES = 128
_remembered_options = lru_cache(maxsize=256)(_read_options)
"""A job asks for the same with every call, and reading it takes as long as reading all else."""


def encode_solve(call: SolveCall) -> tuple[solver.SolveRequest, Arrays]:
    """The request of a solve, and its arrays."""
    arrays = present(rhs=call.rhs, x0=call.x0, values=call.values)
    message = solver.SolveRequest(
        matrix=encode_ref(call.ref), options=encode_options(call.options), **described(arrays)
    )
    return message, arrays


def decode_solve(message: solver.SolveRequest, arrays: Given) -> SolveCall:
    """A solve.

    Raises:
        MalformedError: the right-hand side is missing.
    """
    rhs, x0, values = required(arrays, "rhs"), arrays.get("x0"), arrays.get("values")
    return SolveCall(decode_ref(message.matrix), decode_options(message.options), rhs, x0, values=values)


def encode_vjp(call: VjpCall) -> tuple[solver.VjpRequest, Arrays]:
    """The request of an adjoint solve, and its arrays.

    Raises:
        InvalidOptionError: a `want` that does not exist.
    """
    unknown = set(call.want) - set(_WANT_NUMBER)
    if unknown or not call.want:
        raise InvalidOptionError(f"want must name some of {', '.join(_WANT_NUMBER)}")
    arrays = present(cotangent=call.cotangent, x=call.x)
    message = solver.VjpRequest(
        matrix=encode_ref(call.ref),
        options=encode_options(call.options),
        want=[_WANT_NUMBER[want] for want in call.want],
        **described(arrays),
    )
    return message, arrays


def decode_vjp(message: solver.VjpRequest, arrays: Given) -> VjpCall:
    """An adjoint solve.

    Raises:
        MalformedError: the cotangent is missing.
        InvalidOptionError: a `want` that this version does not know.
    """
    if any(number not in _WANT for number in message.want):
        raise InvalidOptionError(f"want must name some of {', '.join(_WANT_NUMBER)}")
    want = tuple(_WANT[number] for number in message.want) or ("b",)
    ref, options = decode_ref(message.matrix), decode_options(message.options)
    return VjpCall(ref, options, required(arrays, "cotangent"), want, arrays.get("x"))


def encode_jvp(call: JvpCall) -> tuple[solver.JvpRequest, Arrays]:
    """The request of a tangent solve, and its arrays."""
    arrays = present(x=call.x, b_tangent=call.b_tangent, values_tangent=call.values_tangent)
    message = solver.JvpRequest(matrix=encode_ref(call.ref), options=encode_options(call.options), **described(arrays))
    return message, arrays


def decode_jvp(message: solver.JvpRequest, arrays: Given) -> JvpCall:
    """A tangent solve."""
    ref, options = decode_ref(message.matrix), decode_options(message.options)
    return JvpCall(ref, options, arrays.get("x"), arrays.get("b_tangent"), arrays.get("values_tangent"))


def encode_put(call: PutCall) -> tuple[solver.PutRequest, Arrays]:
    """The announcement of an upload, and its arrays."""
    matrix, pattern = call.matrix, call.matrix.pattern
    message = solver.PutRequest(matrix=encode_ref(call.ref), values_only=call.values_only)
    arrays: Arrays = {}
    if not call.values_only:
        message.n = matrix.m
        if matrix.m != matrix.n:
            message.columns = matrix.n
        message.layout = solver.LAYOUT_DENSE
        message.storage = STORAGE_TO_WIRE[pattern.storage]
        if isinstance(pattern, Pattern):
            message.layout = solver.LAYOUT_CSR
            arrays = {"indptr": pattern.indptr, "indices": pattern.indices}
        elif isinstance(pattern, StructuredPattern):
            message.layout = solver.LAYOUT_STRUCTURED
            message.kind = pattern.kind.name
            message.dims.extend(pattern.dims)
            if matrix.base is not None:
                message.base.CopyFrom(encode_ref(matrix.base.ref))
    arrays["values"] = matrix.values
    for name, tensor in described(arrays).items():
        getattr(message, name).CopyFrom(tensor)
    return message, arrays


def put_base(message: solver.PutRequest) -> MatrixRef | None:
    """The matrix that an upload says it stands on.

    Raises:
        MalformedError: a digest of another length.
    """
    return decode_ref(message.base) if message.HasField("base") else None


def decode_put(
    message: solver.PutRequest, arrays: Given, held: AnyPattern | None, base: Matrix | None = None
) -> PutCall:
    """An upload.

    Args:
        message: the announcement.
        arrays: what it announced.
        held: the pattern under `message.matrix.pattern`, for an upload of values alone.
        base: the matrix under `message.base`, or the one that `held` stands on.

    Raises:
        MalformedError: an array is missing or there is one too many.
        InvalidPatternError: the pattern is not in canonical form.
        InvalidShapeError, InvalidDtypeError: the values do not fit the pattern.
    """
    values = required(arrays, "values")
    shape = (message.n, message.columns if message.HasField("columns") else message.n)
    indexed = {"indptr", "indices"} & set(arrays)
    if message.values_only:
        told = (message.layout, message.n, message.kind, message.dims, message.storage)
        if held is None or indexed or any(told) or message.HasField("columns") or message.HasField("base"):
            raise MalformedError(
                "an upload of values alone takes its pattern by digest: leave out the pattern's fields"
            )
        pattern = held
    elif message.layout == solver.LAYOUT_STRUCTURED:
        if message.storage:
            raise MalformedError("storage is of dense and CSR matrices alone")
        pattern = StructuredPattern(message.kind, message.dims, standing_on(base))
        if indexed or message.n != pattern.n:
            raise MalformedError("a structured matrix has no indptr and no indices, and as many rows as dims say")
    elif message.kind or message.dims or message.HasField("base"):
        raise MalformedError("kind, dims and base are of structured matrices alone")
    elif message.layout == solver.LAYOUT_DENSE:
        if indexed:
            raise MalformedError("a dense matrix has no indptr and no indices")
        pattern = DensePattern(shape, _storage(message))
    elif message.layout == solver.LAYOUT_CSR:
        pattern = Pattern.received(required(arrays, "indptr"), required(arrays, "indices"), shape, _storage(message))
    else:
        raise MalformedError("layout must be CSR, DENSE or STRUCTURED")
    return PutCall(decode_ref(message.matrix), Matrix(pattern, values, base), message.values_only)


def _storage(message: solver.PutRequest) -> Storage:
    for name, number in STORAGE_TO_WIRE.items():
        if message.storage == number:
            return name
    raise MalformedError("storage must be HERMITIAN or LOWER, or unset of a general matrix")


def present(**arrays: Array | None) -> Arrays:
    """Those arrays that there are."""
    return {name: array for name, array in arrays.items() if array is not None}


def described(arrays: Given) -> dict[str, types.Tensor]:
    """The tensors of several arrays, without data."""
    return {name: describe(array) for name, array in arrays.items()}


def required(arrays: Given, name: str) -> Array:
    """The array of this name.

    Raises:
        MalformedError: there is none.
    """
    if name not in arrays:
        raise MalformedError(f"tensor {name} is missing")
    return arrays[name]
