"""Calls and replies as framed bodies, and back: the one place that names their tensors and keys.

call    tensors                          document
solve   b, x0                            matrix, options
vjp     cotangent, x                     matrix, options, want
jvp     x, b_tangent, values_tangent     matrix, options
put     values, indptr, indices          layout, shape, storage, kind, dims, base, values_only

reply   tensors                          document
solve   x, elements.*                    certificate, matrix (of values that were brought)
vjp     b, values, elements.*            certificate
"""

from collections.abc import Mapping
from typing import Any

from .._transports.base import JvpCall, PutCall, SolveCall, SolveReply, VjpCall, VjpReply
from ..errors import InvalidOptionError, InvalidShapeError, MalformedError
from ..matrix import Matrix, standing_on
from ..pattern import AnyPattern, DensePattern, Pattern, StructuredPattern, check_storage
from ..types import Array, MatrixRef, Options, Storage, Want
from .body import Body, Message, encode
from .documents import (
    certificate_from_json,
    certificate_to_json,
    check_keys,
    elements_to_tensors,
    options_from_json,
    options_to_json,
    ref_from_key,
)

_CALL = ("matrix", "options")


def solve_body(call: SolveCall) -> Body:
    """The body of `/v1/solve`."""
    return encode({"b": call.rhs, "x0": call.x0, "values": call.values}, _document(call.ref, call.options))


def read_solve(message: Message) -> SolveCall:
    """Read the body of `/v1/solve`."""
    ref, options = _read_document(message, _CALL, ("b", "x0", "values"))
    b, tensors = _needed(message.tensors, "b"), message.tensors
    return SolveCall(ref, options, b, tensors.get("x0"), values=tensors.get("values"))


def vjp_body(call: VjpCall) -> Body:
    """The body of `/v1/vjp`."""
    document = {**_document(call.ref, call.options), "want": list(call.want)}
    return encode({"cotangent": call.cotangent, "x": call.x}, document)


def read_vjp(message: Message) -> VjpCall:
    """Read the body of `/v1/vjp`."""
    ref, options = _read_document(message, (*_CALL, "want"), ("cotangent", "x"))
    want = read_want(message.document.get("want"))
    return VjpCall(ref, options, _needed(message.tensors, "cotangent"), want, message.tensors.get("x"))


def jvp_body(call: JvpCall) -> Body:
    """The body of `/v1/jvp`."""
    tensors = {"x": call.x, "b_tangent": call.b_tangent, "values_tangent": call.values_tangent}
    return encode(tensors, _document(call.ref, call.options))


def read_jvp(message: Message) -> JvpCall:
    """Read the body of `/v1/jvp`."""
    names = ("x", "b_tangent", "values_tangent")
    ref, options = _read_document(message, _CALL, names)
    x, b_tangent, values_tangent = (message.tensors.get(name) for name in names)
    return JvpCall(ref, options, x, b_tangent, values_tangent)


def put_body(call: PutCall) -> Body:
    """The body of `PUT /v1/matrices/{ref}`."""
    if call.values_only:
        return encode({"values": call.matrix.values}, {"values_only": True})
    pattern = call.matrix.pattern
    tensors = {"values": call.matrix.values}
    if isinstance(pattern, StructuredPattern):
        document: dict[str, Any] = {"layout": "structured", "kind": pattern.kind.name, "dims": list(pattern.dims)}
        if call.matrix.base is not None:
            document["base"] = call.matrix.base.ref.key
        return encode(tensors, document)
    if isinstance(pattern, Pattern):
        tensors |= {"indptr": pattern.indptr, "indices": pattern.indices}
    document = {"layout": pattern.layout, "shape": list(pattern.shape)}
    if pattern.storage != "general":
        document["storage"] = pattern.storage
    return encode(tensors, document)


def put_base(message: Message) -> MatrixRef | None:
    """The matrix that an upload says it stands on.

    Raises:
        MalformedError: that is no matrix's name.
    """
    named = message.document.get("base")
    return None if named is None else ref_from_key(named)


def read_put(message: Message, base: Matrix | None = None) -> tuple[AnyPattern | None, Array]:
    """Read an uploaded matrix: its pattern (None when only values were sent) and its values.

    Args:
        message: the body.
        base: the matrix that `put_base` names.

    Raises:
        MalformedError: neither a whole matrix nor values alone.
        InvalidPatternError: the pattern is not canonical CSR.
    """
    document, tensors = message.document, message.tensors
    check_keys(document, ("layout", "shape", "storage", "kind", "dims", "base", "values_only"), "the body's document")
    check_keys(tensors, ("values", "indptr", "indices"), "the body")
    values = _needed(tensors, "values")
    if document.get("values_only"):
        check_keys(tensors, ("values",), "a body of values only")
        check_keys(document, ("layout", "shape", "values_only"), "the document of values only")
        return None, values
    layout = document.get("layout")
    if layout == "structured":
        check_keys(tensors, ("values",), "a structured matrix")
        check_keys(document, ("layout", "kind", "dims", "base"), "the document of a structured matrix")
        return read_structured(document, base), values
    check_keys(document, ("layout", "shape", "storage", "values_only"), "the document of a dense or CSR matrix")
    shape = read_shape(document.get("shape"))
    storage = read_storage(document, shape)
    if layout == "dense":
        check_keys(tensors, ("values",), "a dense matrix")
        return DensePattern(shape, storage), values
    if layout != "csr":
        raise MalformedError('the document needs "layout": "csr", "dense" or "structured"')
    return Pattern.received(_needed(tensors, "indptr"), _needed(tensors, "indices"), shape, storage), values


def solve_reply_body(reply: SolveReply) -> Body:
    """The reply to `/v1/solve` and `/v1/jvp`."""
    tensors = {"x": reply.x, **elements_to_tensors(reply.certificate)}
    document: dict[str, Any] = {"certificate": certificate_to_json(reply.certificate, elements=False)}
    if reply.ref is not None:
        document["matrix"] = reply.ref.key
    return encode(tensors, document)


def read_solve_reply(message: Message) -> SolveReply:
    """Read the reply to `/v1/solve` and `/v1/jvp`."""
    certificate = certificate_from_json(message.document.get("certificate"), message.tensors)
    key = message.document.get("matrix")
    return SolveReply(_needed(message.tensors, "x"), certificate, None if key is None else ref_from_key(key))


def vjp_reply_body(reply: VjpReply) -> Body:
    """The reply to `/v1/vjp`."""
    tensors = {"b": reply.b, "values": reply.values, **elements_to_tensors(reply.certificate)}
    return encode(tensors, {"certificate": certificate_to_json(reply.certificate, elements=False)})


def read_vjp_reply(message: Message) -> VjpReply:
    """Read the reply to `/v1/vjp`."""
    certificate = certificate_from_json(message.document.get("certificate"), message.tensors)
    return VjpReply(message.tensors.get("b"), message.tensors.get("values"), certificate)


def read_want(value: Any) -> tuple[Want, ...]:
    """Which gradients a vjp forms; "b" when nothing is said.

    Raises:
        InvalidOptionError: not a list of "b" and "values".
    """
    if value is None:
        return ("b",)
    if not isinstance(value, list) or not value or not all(item in ("b", "values") for item in value):
        raise InvalidOptionError('want must be a list of "b", "values", or both')
    return tuple(value)


def read_shape(value: Any) -> tuple[int, int]:
    """A matrix's shape out of JSON.

    Raises:
        MalformedError: not two non-negative integers.
        InvalidShapeError: larger than any index.
    """
    if not isinstance(value, list) or len(value) != 2 or not all(type(size) is int and size >= 0 for size in value):
        raise MalformedError('"shape" must be a list of two non-negative integers')
    if max(value) >= 1 << 31:
        raise InvalidShapeError("a matrix of more than 2**31 - 1 rows is not accepted")
    return (value[0], value[1])


def read_storage(document: Mapping[str, Any], shape: tuple[int, int]) -> Storage:
    """What the entries of a matrix of this shape say; "general" when nothing is said.

    Raises:
        MalformedError: no name.
        InvalidOptionError: no such storage.
        InvalidShapeError: of Hermitian matrices, and the shape is not square.
    """
    name = document.get("storage", "general")
    if not isinstance(name, str):
        raise MalformedError('"storage" must be a name: "general", "hermitian" or "lower"')
    return check_storage(name, shape)


def read_structured(document: Mapping[str, Any], base: Matrix | None = None) -> StructuredPattern:
    """A structured pattern out of JSON; `base` is the matrix that it stands on.

    Raises:
        MalformedError: no name, or no list of sizes.
        InvalidPatternError: no such kind, or sizes that it does not have.
    """
    kind, dims = document.get("kind"), document.get("dims")
    if not isinstance(kind, str) or not isinstance(dims, list) or not all(type(size) is int for size in dims):
        raise MalformedError('a structured matrix needs "kind", a name, and "dims", a list of integers')
    return StructuredPattern(kind, dims, standing_on(base))


def _document(ref: MatrixRef, options: Options) -> dict[str, Any]:
    return {"matrix": ref.key, "options": options_to_json(options)}


def _read_document(message: Message, keys: tuple[str, ...], tensors: tuple[str, ...]) -> tuple[MatrixRef, Options]:
    check_keys(message.document, keys, "the body's document")
    check_keys(message.tensors, tensors, "the body")
    return ref_from_key(message.document.get("matrix")), options_from_json(message.document.get("options"))


def _needed(tensors: Mapping[str, Array], name: str) -> Array:
    if name not in tensors:
        raise MalformedError(f"the body has no tensor {name!r}")
    return tensors[name]
