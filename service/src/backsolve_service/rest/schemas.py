"""JSON schemas of everything that the REST interface reads and writes in JSON."""

from typing import Any

from backsolve.kinds import UPDATE, names
from backsolve.types import DTYPES, STORAGES, TRANS, Status

from .problems import REASONS

_HEX = "[0-9a-f]{64}"
REF_PATTERN = f"^{_HEX}-{_HEX}$"
EXAMPLE_REF = f"{'1f' * 32}-{'a0' * 32}"

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """A reference to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(
    properties: dict[str, Schema], required: tuple[str, ...] = (), closed: bool = True, text: str = ""
) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    if closed:
        schema["additionalProperties"] = False
    if text:
        schema["description"] = text
    return schema


def _described(schema: Schema, text: str) -> Schema:
    return {**schema, "description": text}


_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_FIGURE: Schema = {
    "oneOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}],
    "description": "a number; JSON has none that are not finite, so those are strings",
}
_NUMBERS: Schema = {
    "type": "array",
    "items": {},
    "description": "nested lists of numbers; complex ones are pairs [re, im]",
}
_DTYPE: Schema = {"enum": [dtype.name for dtype in DTYPES], "default": "float64"}
_SHAPE: Schema = {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2}
_INTEGERS: Schema = {"type": "array", "items": _COUNT}
_KEY: Schema = {"type": "string", "pattern": REF_PATTERN, "examples": [EXAMPLE_REF]}
_CALL = {"matrix": ref("MatrixOrRef"), "dtype": _described(_DTYPE, "of b, and of a matrix written out")}

_OPTIONS = _object(
    {
        "method": _described(_TEXT, 'a name of /v1/info, or "auto"'),
        "preconditioner": _described(_TEXT, "of an iterative method"),
        "trans": {"enum": list(TRANS), "default": "N", "description": "solve with A, its transpose, or its adjoint"},
        "rtol": _described(_NUMBER, "wanted ‖b − op(A) x‖ / ‖b‖"),
        "atol": _described(_NUMBER, "absolute floor of that test, in the units of b"),
        "maxiter": _described(_COUNT, "limit on iterations"),
        "refine": _described(_COUNT, "limit on refinement steps of a direct method"),
        "restart": _described(_COUNT, "length of the basis after which GMRES starts anew"),
        "precision": {"enum": ["full", "mixed"], "description": "mixed: factorize in single, refine to double"},
        "ordering": {"enum": ["auto", "mmd", "nd", "colamd"], "description": "of a sparse direct method"},
        "reuse": {"enum": ["precondition"], "description": "solve with the factor of older values as preconditioner"},
        "recycle": _described(_COUNT, "approximate eigenvectors to keep for the next solve on the pattern"),
        "nullspace": {"enum": ["constant"], "description": "constants on each component, as of a graph Laplacian"},
        "damp": _described(_NUMBER, "least squares: minimise ‖b − A x‖² + damp² ‖x‖²"),
        "rcond": _described(_NUMBER, "least squares: smaller singular values, relative to the largest, count as 0"),
        "condition": _described(_FLAG, "estimate the condition number even where it costs solves"),
    },
    text="an option that is not known, or that the method does not use, is an error",
)

_CERTIFICATE = _object(
    {
        "status": {"enum": [status.name for status in Status]},
        "method": _TEXT,
        "reason": _TEXT,
        "precision": _TEXT,
        "iterations": _COUNT,
        "refinements": _COUNT,
        "relative_residual": _FIGURE,
        "backward_error": _FIGURE,
        "condition_estimate": {"oneOf": [_FIGURE, {"type": "null"}]},
        "symbolic_hit": _FLAG,
        "factor_hit": _FLAG,
        "seconds": _object({name: _NUMBER for name in ("queue", "hash", "analyze", "factor", "solve")}, closed=False),
        "instance": _TEXT,
        "elements": {"type": "array", "items": {"type": "object"}, "description": "one a system of a batch"},
        "preconditioner": {"oneOf": [_TEXT, {"type": "null"}]},
        "inverse_norm": {"oneOf": [_FIGURE, {"type": "null"}]},
    },
    ("status", "method", "relative_residual", "backward_error"),
    closed=False,
    text="what the reply proves about itself; a status other than OK comes with the best x there is",
)

SCHEMAS: dict[str, Schema] = {
    "Options": _OPTIONS,
    "Certificate": _CERTIFICATE,
    "Matrix": _object(
        {
            "values": _described(_NUMBERS, "rows of a dense matrix, or the stored entries of a sparse one"),
            "shape": _SHAPE,
            "indptr": _described(_INTEGERS, "CSR row offsets"),
            "indices": _described(_INTEGERS, "CSR columns, in any order"),
            "storage": {
                "enum": list(STORAGES),
                "default": "general",
                "description": "of A = Aᴴ: hermitian, all entries are there; lower, those on and below the diagonal "
                "count (rows of a dense matrix are given in full). Gradients are of what is stored; those of a dense "
                "lower triangle, like its tangents, are its rows one after the other, each as far as the diagonal",
            },
            "dtype": _DTYPE,
        },
        ("values",),
    ),
    "StructuredMatrix": _object(
        {
            "kind": {"enum": [*names(), UPDATE.name]},
            "dims": _described(
                _INTEGERS, "low_rank: n, r; kronecker: n1, n2, ...; circulant and toeplitz: n; update: n, k"
            ),
            "base": _described(
                _object({"ref": _KEY}, ("ref",)), "of an update, and of no other kind: S, which was uploaded before"
            ),
            "parameters": _described(
                {"type": "object", "additionalProperties": _NUMBERS},
                "low_rank, diag(d) + U Vᴴ: d [n], U [n, r], V [n, r]; kronecker: A1 [n1, n1], A2, ...; circulant: "
                "c [n], the first column; toeplitz: t [2n - 1], from the upper right corner to the lower left: "
                "t[n - 1 + i - j] in row i and column j; update, S + U Vᴴ: U [n, k], V [n, k]; of a batch each with "
                "one more axis in front, but of an update, which is always one matrix",
            ),
            "dtype": _DTYPE,
        },
        ("kind", "dims", "parameters"),
        text="its gradient and its tangent (`values`, `values_tangent`) are all parameters in one row, in this order; "
        "of an update behind the stored entries of S. docs/json.md has an example of every kind",
    ),
    "MatrixOrRef": {"oneOf": [ref("Matrix"), ref("StructuredMatrix"), _object({"ref": _KEY}, ("ref",))]},
    "SolveRequest": _object(
        {**_CALL, "b": _NUMBERS, "x0": _described(_NUMBERS, "first iterate"), "options": ref("Options")},
        ("matrix", "b"),
    ),
    "SolveReply": _object(
        {
            "x": _described(
                _NUMBERS, "shaped like b, with as many rows as A has columns; a number that is not finite is null"
            ),
            "dtype": _DTYPE,
            "certificate": ref("Certificate"),
            "ref": _KEY,
        },
        ("x", "certificate", "ref"),
        closed=False,
    ),
    "VjpRequest": _object(
        {
            **_CALL,
            "cotangent": _NUMBERS,
            "want": {"type": "array", "items": {"enum": ["b", "values"]}, "default": ["b"]},
            "x": _described(_NUMBERS, 'the forward answer, needed for "values"'),
            "options": ref("Options"),
        },
        ("matrix", "cotangent"),
    ),
    "VjpReply": _object(
        {
            "b": {"oneOf": [_NUMBERS, {"type": "null"}]},
            "values": {"oneOf": [_NUMBERS, {"type": "null"}]},
            "certificate": ref("Certificate"),
            "ref": _KEY,
        },
        ("certificate", "ref"),
        closed=False,
    ),
    "JvpRequest": _object(
        {
            **_CALL,
            "x": _described(_NUMBERS, "the forward answer, needed with values_tangent"),
            "b_tangent": _NUMBERS,
            "values_tangent": _NUMBERS,
            "options": ref("Options"),
        },
        ("matrix",),
    ),
    "MatrixReply": _object(
        {
            "pattern": _TEXT,
            "values": _TEXT,
            "ref": _KEY,
            "layout": {"enum": ["csr", "dense", "structured"]},
            "shape": _SHAPE,
            "storage": {"enum": list(STORAGES)},
            "nnz": _COUNT,
            "dtype": _DTYPE,
            "batch": {"oneOf": [_COUNT, {"type": "null"}]},
        },
        ("pattern", "values", "ref"),
        closed=False,
    ),
    "ServerInfo": _object(
        {
            "version": _TEXT,
            "api_versions": {"type": "array", "items": _TEXT},
            "digest_version": _COUNT,
            "instance": _TEXT,
            "device": _TEXT,
            "dtypes": {"type": "array", "items": _TEXT},
            "methods": {"type": "array", "items": _TEXT},
            "preconditioners": {"type": "array", "items": _TEXT},
            "limits": _object({"max_message_bytes": _COUNT, "max_payload_bytes": _COUNT}, closed=False),
            **{name: {"oneOf": [_TEXT, {"type": "null"}]} for name in ("unix_http", "unix_grpc", "unix_shared")},
        },
        ("version", "api_versions", "methods", "limits"),
        closed=False,
    ),
    "Stats": {"type": "object", "additionalProperties": _NUMBER},
    "Live": _object({"live": _FLAG}, ("live",)),
    "Ready": _object({"ready": _FLAG}, ("ready",)),
    "Problem": _object(
        {
            "type": {"type": "string", "format": "uri"},
            "title": _TEXT,
            "status": {"type": "integer"},
            "detail": _described(_TEXT, "what happened and what to try; never the caller's numbers"),
            "reason": {"enum": [*REASONS, *(s.name for s in Status if s.name not in (*REASONS, "OK"))]},
            "retryable": _FLAG,
            "request_id": _TEXT,
            "details": {"type": "object", "additionalProperties": _TEXT},
            "certificate": ref("Certificate"),
        },
        ("type", "title", "status", "detail", "reason", "retryable", "request_id", "details"),
        closed=False,
        text="RFC 9457; certificate comes only with ?on_failure=raise",
    ),
}
