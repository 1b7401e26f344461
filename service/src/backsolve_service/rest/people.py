"""Calls in JSON, for people with curl: lists of numbers, complex ones as `[re, im]` pairs.

Meant for n up to about 1e4: parsing holds the interpreter, so bodies are bounded far below the bulk limit.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backsolve._rest.body import parse_json
from backsolve._rest.documents import certificate_to_json, check_keys, options_from_json, ref_from_key
from backsolve._rest.messages import read_shape, read_storage, read_structured, read_want
from backsolve._transports.base import JvpCall, PutCall, SolveCall, SolveReply, VjpCall, VjpReply
from backsolve.errors import InvalidDtypeError, InvalidShapeError, MalformedError, NeedMatrixError, NotAcceptableError
from backsolve.kinds.base import NUMPY, join
from backsolve.matrix import Matrix
from backsolve.types import DTYPES, Array, MatrixRef

from .assemble import compressed, dense, shape_of

MAX_BYTES = 8 << 20
"""Largest JSON body: parsing it holds the interpreter for about 0.1 s."""

MAX_NUMBERS = 1 << 18
"""Most numbers that a JSON reply lists, for the same reason."""

_DTYPE_NAMES = tuple(dtype.name for dtype in DTYPES)
_ENTRIES_KEYS = ("values", "shape", "indptr", "indices", "storage", "dtype")
_STRUCTURED_KEYS = ("kind", "dims", "base", "parameters", "dtype")
MATRIX_KEYS = (*_ENTRIES_KEYS, *_STRUCTURED_KEYS[:-1])
"""Of a matrix written out: by its entries, or by its parameters."""

BaseOf = Callable[[MatrixRef], Matrix]
"""The matrix of a name, for an update to stand on."""


def nothing_held(ref: MatrixRef) -> Matrix:
    """Of a reader that has no matrices at hand.

    Raises:
        NeedMatrixError: always.
    """
    raise NeedMatrixError("S, on which the update stands, is not held here: send it first", base=ref.key)


def parse_object(body: NDArray[np.uint8], keys: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object with only these keys.

    Raises:
        MalformedError: not a JSON object.
        InvalidOptionError: another key; the nearest is named.
    """
    document = parse_json(body.tobytes(), "the body")
    if not isinstance(document, dict):
        raise MalformedError("the body must be a JSON object")
    check_keys(document, keys, "the body")
    return document


def read_dtype(document: Mapping[str, Any], default: str = "float64") -> "np.dtype[Any]":
    """The element type that "dtype" names.

    Raises:
        InvalidDtypeError: no such type.
    """
    name = document.get("dtype", default)
    if name not in _DTYPE_NAMES:
        raise InvalidDtypeError(f'"dtype" must be one of {", ".join(_DTYPE_NAMES)}')
    return np.dtype(str(name))


def numbers(value: Any, dtype: "np.dtype[Any]", what: str) -> Array:
    """Nested lists of numbers as an array.

    Raises:
        MalformedError: absent.
        InvalidShapeError: rows of unequal length.
        InvalidDtypeError: something in them is not a number.
    """
    if not isinstance(value, list):
        raise MalformedError(f'"{what}" must be a list of numbers')
    try:
        array = np.array(value)
    except ValueError:
        raise InvalidShapeError(f'"{what}" has rows of unequal length') from None
    if array.size == 0:
        array = array.astype(np.float64)
    if array.dtype.kind not in "iuf":
        cure = " (complex numbers are [re, im] pairs)" if dtype.kind == "c" else ""
        raise InvalidDtypeError(f'"{what}" holds something that is not a number{cure}')
    if dtype.kind != "c":
        return array.astype(dtype)
    if array.ndim == 0 or array.shape[-1] != 2:
        raise InvalidShapeError(f'"{what}" is complex: each number must be a pair [re, im]')
    pairs = np.ascontiguousarray(array, dtype=np.float64)
    return pairs.view(np.complex128)[..., 0].astype(dtype)


def read_matrix(document: Any, base_of: BaseOf, default_dtype: str = "float64") -> Matrix:
    """A matrix written out: `{"values": [[…]]}`, `{"shape", "indptr", "indices", "values"}`, or by parameters.

    `docs/json.md` has every form with an example.

    Raises:
        NeedMatrixError, NeedValuesError: what an update stands on is not held.
        MalformedError, InvalidShapeError, InvalidDtypeError, InvalidPatternError, InvalidOptionError: as each fault is.
    """
    if not isinstance(document, dict):
        raise MalformedError('"matrix" must be an object with "values", with "kind", or with "ref"')
    check_keys(document, MATRIX_KEYS, '"matrix"')
    if "kind" in document:
        return _structured(document, _base(document, base_of), read_dtype(document, default_dtype))
    check_keys(document, _ENTRIES_KEYS, 'a matrix without "kind"')
    values = numbers(document.get("values"), read_dtype(document, default_dtype), "values")
    if "indptr" not in document and "indices" not in document:
        if "shape" in document and read_shape(document["shape"]) != values.shape[-2:]:
            raise InvalidShapeError('"shape" is not that of "values"; a sparse matrix needs "indptr" and "indices" too')
        return dense(values, read_storage(document, shape_of(values)))
    indptr, indices = (_integers(document.get(name), name) for name in ("indptr", "indices"))
    shape = read_shape(document.get("shape"))
    return compressed(values, indices, indptr, shape, read_storage(document, shape))


def _base(document: Mapping[str, Any], base_of: BaseOf) -> Matrix | None:
    """What an update stands on."""
    given = document.get("base")
    if given is None:
        return None
    if not isinstance(given, dict) or "ref" not in given:
        raise MalformedError('"base" must be an object with the "ref" of S: send S to /v1/matrices first')
    check_keys(given, ("ref",), '"base"')
    return base_of(ref_from_key(given["ref"]))


def _structured(document: Mapping[str, Any], base: Matrix | None, dtype: "np.dtype[Any]") -> Matrix:
    """A matrix given by its parameters, each by name; a batch where each has one more axis in front."""
    check_keys(document, _STRUCTURED_KEYS, "a structured matrix")
    pattern = read_structured(document, base)
    given = document.get("parameters")
    if not isinstance(given, dict):
        raise MalformedError('a structured matrix needs "parameters", an object with each of them by name')
    check_keys(given, (name for name, _ in pattern.parts), '"parameters"')
    parts = {name: numbers(given.get(name), dtype, name) for name, _ in pattern.parts}
    leads = set()
    for name, shape in pattern.parts:
        found = parts[name].shape
        lead = found[: max(len(found) - len(shape), 0)]
        if (*lead, *shape) != found or len(lead) > 1:
            raise InvalidShapeError(
                f'"{name}" has shape {found}; with these "dims" it is {shape}, or has a batch before'
            )
        leads.add(lead)
    if len(leads) > 1:
        raise InvalidShapeError("either every parameter has the same batch axis, or none has one")
    return Matrix(pattern, np.asarray(join(NUMPY, pattern.parts, parts)), base)


def _integers(value: Any, what: str) -> Array:
    if not isinstance(value, list) or not all(type(item) is int and abs(item) < 1 << 62 for item in value):
        raise MalformedError(f'"{what}" must be a list of integers')
    return np.array(value, dtype=np.int64)


def _matrix_or_ref(document: Mapping[str, Any], base_of: BaseOf) -> Matrix | MatrixRef:
    given = document.get("matrix")
    if isinstance(given, dict) and "ref" in given:
        check_keys(given, ("ref",), '"matrix" by reference')
        return ref_from_key(given["ref"])
    return read_matrix(given, base_of, document.get("dtype", "float64"))


def _optional(document: Mapping[str, Any], name: str, dtype: "np.dtype[Any]") -> Array | None:
    return None if document.get(name) is None else numbers(document[name], dtype, name)


def _start(
    body: NDArray[np.uint8], keys: tuple[str, ...], base_of: BaseOf
) -> tuple[dict[str, Any], "np.dtype[Any]", PutCall | None]:
    document = parse_object(body, ("matrix", "dtype", "options", *keys))
    dtype = read_dtype(document)
    target = _matrix_or_ref(document, base_of)
    put = PutCall(target.ref, target) if isinstance(target, Matrix) else None
    document["ref"] = target.ref if isinstance(target, Matrix) else target
    return document, dtype, put


def read_solve(body: NDArray[np.uint8], base_of: BaseOf) -> tuple[SolveCall, PutCall | None]:
    """A solve in JSON, and the upload that goes before it when the matrix is written out."""
    document, dtype, put = _start(body, ("b", "x0"), base_of)
    options = options_from_json(document.get("options"))
    b = numbers(document.get("b"), dtype, "b")
    return SolveCall(document["ref"], options, b, _optional(document, "x0", dtype)), put


def read_vjp(body: NDArray[np.uint8], base_of: BaseOf) -> tuple[VjpCall, PutCall | None]:
    """A vjp in JSON."""
    document, dtype, put = _start(body, ("cotangent", "want", "x"), base_of)
    options = options_from_json(document.get("options"))
    cotangent, want = numbers(document.get("cotangent"), dtype, "cotangent"), read_want(document.get("want"))
    return VjpCall(document["ref"], options, cotangent, want, _optional(document, "x", dtype)), put


def read_jvp(body: NDArray[np.uint8], base_of: BaseOf) -> tuple[JvpCall, PutCall | None]:
    """A jvp in JSON."""
    names = ("x", "b_tangent", "values_tangent")
    document, dtype, put = _start(body, names, base_of)
    options = options_from_json(document.get("options"))
    x, b_tangent, values_tangent = (_optional(document, name, dtype) for name in names)
    return JvpCall(document["ref"], options, x, b_tangent, values_tangent), put


def write_solve(reply: SolveReply, ref: MatrixRef) -> bytes:
    """The reply to a solve or a jvp."""
    certificate = certificate_to_json(reply.certificate)
    return _dump({"x": lists(reply.x), "dtype": reply.x.dtype.name, "certificate": certificate, "ref": ref.key})


def write_vjp(reply: VjpReply, ref: MatrixRef) -> bytes:
    """The reply to a vjp; what was not wanted is null."""
    b, values = (None if array is None else lists(array) for array in (reply.b, reply.values))
    return _dump({"b": b, "values": values, "certificate": certificate_to_json(reply.certificate), "ref": ref.key})


def lists(array: Array) -> Any:
    """An array as nested lists; NaN and infinity, which JSON does not have, as null.

    Raises:
        NotAcceptableError: too many numbers.
    """
    if array.size > MAX_NUMBERS:
        raise NotAcceptableError(
            f"the answer has more than {MAX_NUMBERS} numbers, too many for JSON: send Accept: application/x-safetensors"
        )
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    finite = np.isfinite(array)
    if not finite.all():
        array = array.astype(object)
        array[~finite] = None
    return array.tolist()


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False).encode()
