"""The OpenAPI document: written out rather than derived, because bodies are not models here."""

from typing import Any

from backsolve import __version__
from backsolve._rest.body import MEDIA_TYPE
from backsolve._shared.spans import ANSWER_HEADER, SHARED_HEADER
from backsolve._transports.base import REPEATED_HEADER
from backsolve.errors import WIRE
from backsolve.types import ErrorCode, Holding

from .media import JSON
from .problems import PROBLEM_TYPE
from .schemas import EXAMPLE_REF, REF_PATTERN, SCHEMAS, Schema, ref
from .uploads import READERS

_BULK = (
    "A safetensors file: tensors {tensors}; the metadata entry `backsolve` is a JSON object with {keys}. "
    "Little-endian, C order; complex128 as F64 [..., 2] and named in the object's list `complex`."
)
_CALL_KEYS = "`matrix` (the ref) and `options`"

_CALL_ERRORS = (
    ErrorCode.MALFORMED,
    ErrorCode.NEED_MATRIX,
    ErrorCode.NEED_VALUES,
    ErrorCode.NOT_ACCEPTABLE,
    ErrorCode.PAYLOAD_TOO_LARGE,
    ErrorCode.UNSUPPORTED_MEDIA,
    ErrorCode.INVALID_SHAPE,
    ErrorCode.INVALID_DTYPE,
    ErrorCode.INVALID_PATTERN,
    ErrorCode.INVALID_OPTION,
    ErrorCode.NONFINITE_INPUT,
    ErrorCode.SINGULAR_MATRIX,
    ErrorCode.NOT_POSITIVE_DEFINITE,
    ErrorCode.NOT_SUPPORTED,
    ErrorCode.QUEUE_FULL,
    ErrorCode.DRAINING,
    ErrorCode.DEADLINE,
    ErrorCode.MEMORY_BUDGET,
    ErrorCode.DEVICE_OUT_OF_MEMORY,
)
_UPLOAD_ERRORS = tuple(
    code
    for code in (*_CALL_ERRORS, ErrorCode.DIGEST_MISMATCH)
    if code not in (ErrorCode.SINGULAR_MATRIX, ErrorCode.NOT_POSITIVE_DEFINITE)
)

_CERTIFICATE = {
    "status": "OK",
    "method": "lu",
    "reason": "small and dense",
    "precision": "float64",
    "iterations": 0,
    "relative_residual": 1.1e-16,
    "backward_error": 4.0e-17,
    "condition_estimate": 3.0,
    "symbolic_hit": False,
    "factor_hit": False,
    "seconds": {"queue": 1e-05, "hash": 1e-05, "analyze": 0.0, "factor": 3e-05, "solve": 1e-05},
    "instance": "replica-1",
    "refinements": 0,
    "elements": [],
}
_SOLVE_REQUESTS = {
    "dense": {"value": {"matrix": {"values": [[4.0, 1.0], [1.0, 3.0]]}, "b": [1.0, 2.0]}},
    "sparse": {
        "value": {
            "matrix": {"shape": [2, 2], "indptr": [0, 1, 2], "indices": [0, 1], "values": [2.0, 4.0]},
            "b": [1.0, 2.0],
            "options": {"method": "auto", "trans": "T"},
        }
    },
    "complex": {
        "value": {"dtype": "complex128", "matrix": {"values": [[[0.0, 1.0]]]}, "b": [[1.0, 0.0]]},
    },
    **{
        kind: {"value": {"matrix": {"kind": kind, "dims": dims, "parameters": parameters}, "b": [1.0, 2.0, 3.0]}}
        for kind, dims, parameters in (
            ("low_rank", [3, 1], {"d": [2.0, 3.0, 4.0], "U": [[1.0], [1.0], [0.5]], "V": [[1.0], [0.0], [2.0]]}),
            ("kronecker", [1, 3], {"A1": [[2.0]], "A2": [[4.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 1.0, 2.0]]}),
            ("circulant", [3], {"c": [4.0, 1.0, -0.5]}),
            ("toeplitz", [3], {"t": [0.5, 1.0, 4.0, -1.0, 2.0]}),
        )
    },
    "update": {
        "value": {
            "matrix": {
                "kind": "update",
                "base": {"ref": EXAMPLE_REF},
                "dims": [3, 1],
                "parameters": {"U": [[1.0], [0.0], [0.0]], "V": [[0.0], [1.0], [0.0]]},
            },
            "b": [1.0, 2.0, 3.0],
        }
    },
    "by reference": {"value": {"matrix": {"ref": EXAMPLE_REF}, "b": [1.0, 2.0]}},
}


def document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "backsolve",
            "version": __version__,
            "description": "Solve A x = b with remembered factors, and pull gradients back through it. "
            "JSON for people, safetensors for bulk; every failure is a problem document.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {**_computing(), **_matrices(), **_about(), **_health()},
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
        "servers": [{"url": "/"}],
    }


def _computing() -> dict[str, Any]:
    solve = _operation("solve", "Solve op(A) x = b.", _call_parameters())
    solve["requestBody"] = _body(
        {
            JSON: {"schema": ref("SolveRequest"), "examples": _SOLVE_REQUESTS},
            MEDIA_TYPE: _binary("`b`, `x0`", _CALL_KEYS),
        }
    )
    example: dict[str, Any] = {"x": [0.09, 0.64], "dtype": "float64", "certificate": _CERTIFICATE, "ref": EXAMPLE_REF}
    solve["responses"] = _answers("SolveReply", "`x`", example)
    vjp = _operation("vjp", "Pull a cotangent of x back to b and A's values.", _call_parameters())
    vjp["requestBody"] = _body(
        {
            JSON: {
                "schema": ref("VjpRequest"),
                "example": {"matrix": {"ref": EXAMPLE_REF}, "cotangent": [1.0, 0.0], "want": ["b"]},
            },
            MEDIA_TYPE: _binary("`cotangent`, `x`", f"{_CALL_KEYS}, and `want`"),
        }
    )
    example = {"b": [0.27, -0.09], "values": None, "certificate": _CERTIFICATE, "ref": EXAMPLE_REF}
    vjp["responses"] = _answers("VjpReply", "`b`, `values`", example)
    jvp = _operation("jvp", "Push tangents of A's values and of b forward to x.", _call_parameters())
    jvp["requestBody"] = _body(
        {
            JSON: {
                "schema": ref("JvpRequest"),
                "example": {"matrix": {"ref": EXAMPLE_REF}, "b_tangent": [1.0, 0.0]},
            },
            MEDIA_TYPE: _binary("`x`, `b_tangent`, `values_tangent`", _CALL_KEYS),
        }
    )
    example = {"x": [0.27, -0.09], "dtype": "float64", "certificate": _CERTIFICATE, "ref": EXAMPLE_REF}
    jvp["responses"] = _answers("SolveReply", "`x`", example)
    return {"/v1/solve": {"post": solve}, "/v1/vjp": {"post": vjp}, "/v1/jvp": {"post": jvp}}


def _matrices() -> dict[str, Any]:
    upload = _operation("uploadMatrix", "Upload a matrix in any format; it is brought into canonical form here.")
    content: dict[str, Any] = {name: {} for name in READERS}
    content[JSON] = {
        "schema": {"oneOf": [ref("Matrix"), ref("StructuredMatrix")]},
        "example": {"values": [[4.0, 1.0], [1.0, 3.0]]},
    }
    content[MEDIA_TYPE] = _binary(
        "`values`, and `indptr`, `indices` of a CSR matrix", "`shape` and `storage`, optional"
    )
    upload["parameters"] += [_repeated(), _shared()]
    upload["requestBody"] = _body(content)
    upload["responses"] = _stored(_UPLOAD_ERRORS)
    put = _operation(
        "putMatrix", "Upload a matrix in canonical form under its digests; idempotent.", [_repeated(), _shared()]
    )
    put["requestBody"] = _body(
        {
            MEDIA_TYPE: _binary(
                "`values`, `indptr`, `indices`",
                "`layout`, and `shape` (and `storage`) or `kind` and `dims`, and `base` of an update, a matrix held; "
                "or `values_only` beside a pattern held",
            )
        }
    )
    put["responses"] = _stored(_UPLOAD_ERRORS)
    holding = {
        "backsolve-holding": {
            "description": "how much of the matrix is held",
            "schema": {"enum": [holding.name.lower() for holding in Holding]},
        }
    }
    head = _operation("findMatrix", "How much of a matrix is held.")
    head["responses"] = {
        "200": {"description": "the matrix is held", "headers": holding},
        "404": {"description": "it has to be uploaded, or its values alone", "headers": holding},
        **_problems((ErrorCode.MALFORMED, ErrorCode.UNAUTHENTICATED)),
    }
    delete = _operation("releaseMatrix", "Hint that this caller needs the matrix no longer; harms nobody else.")
    delete["responses"] = {
        "204": {"description": "noted"},
        **_problems((ErrorCode.MALFORMED, ErrorCode.UNAUTHENTICATED)),
    }
    name = {
        "name": "ref",
        "in": "path",
        "required": True,
        "description": "{pattern-hex}-{values-hex}",
        "schema": {"type": "string", "pattern": REF_PATTERN},
    }
    return {
        "/v1/matrices": {"post": upload},
        "/v1/matrices/{ref}": {"parameters": [name], "put": put, "head": head, "delete": delete},
    }


def _about() -> dict[str, Any]:
    errors = _problems((ErrorCode.UNAUTHENTICATED, ErrorCode.NOT_ACCEPTABLE))
    table = {
        "/v1/info": ("serverInfo", "Versions, limits, methods.", JSON, ref("ServerInfo")),
        "/v1/stats": ("stats", "Counters since the start.", JSON, ref("Stats")),
        "/metrics": ("metrics", "The same for Prometheus, and more.", "text/plain", {"type": "string"}),
        "/openapi.json": ("openapi", "This document.", JSON, {"type": "object"}),
    }
    paths: dict[str, Any] = {}
    for path, (name, text, media_type, schema) in table.items():
        operation = _operation(name, text)
        operation["responses"] = {"200": {"description": text, "content": {media_type: {"schema": schema}}}, **errors}
        paths[path] = {"get": operation}
    return paths


def _health() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for path in ("/livez", "/v2/health/live", "/readyz", "/v2/health/ready"):
        live = path.endswith(("livez", "live"))
        schema = {JSON: {"schema": ref("Live" if live else "Ready")}}
        operation = _operation(path.strip("/").replace("/", "_"), "Never waits for a solve; needs no token.")
        operation["security"] = [{}]
        operation["responses"] = {"200": {"description": "yes", "content": schema}}
        if not live:
            operation["responses"]["503"] = {"description": "not now", "content": schema}
        paths[path] = {"get": operation}
    return paths


def _operation(name: str, text: str, parameters: list[Schema] | None = None) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": text,
        "parameters": [
            *(parameters or []),
            _header("x-request-id", "echoed, and written to the log; made up when absent", {"type": "string"}),
            _header("backsolve-timeout", "seconds after which the answer is of no use", {"type": "number"}),
        ],
    }


def _call_parameters() -> list[Schema]:
    return [
        {
            "name": "on_failure",
            "in": "query",
            "description": "raise: a status other than OK becomes a problem with HTTP status 422",
            "schema": {"enum": ["return", "raise"], "default": "return"},
        },
        _header(
            "backsolve-matrix", "the ref again, so that bulk for an unknown matrix is refused early", {"type": "string"}
        ),
        _repeated(),
        _header("backsolve-route-key", "first 16 hex digits of the pattern's digest, for proxies", {"type": "string"}),
        _header(
            ANSWER_HEADER,
            "room for the tensors of a framed reply in shared memory; if they fit, the reply names the part in "
            f"{SHARED_HEADER} and its body holds the header alone",
            {"type": "string"},
        ),
        _shared(),
    ]


def _repeated() -> Schema:
    return _header(
        REPEATED_HEADER,
        "any value: the server had no room for this call before, and it comes back when it was told to (Retry-After)",
        {"type": "string"},
    )


def _shared() -> Schema:
    return _header(
        SHARED_HEADER,
        "where the tensors of a framed body lie, if not behind its header: handle:offset:length, … of regions that "
        "were registered on the server's control socket",
        {"type": "string"},
    )


def _header(name: str, text: str, schema: Schema) -> Schema:
    return {"name": name, "in": "header", "description": text, "schema": schema}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {
        "required": True,
        "description": "Content-Length is required; compressed bodies are not read.",
        "content": content,
    }


def _binary(tensors: str, keys: str) -> dict[str, Any]:
    return {"schema": {"type": "string", "format": "binary", "description": _BULK.format(tensors=tensors, keys=keys)}}


def _answers(schema: str, tensors: str, example: dict[str, Any]) -> dict[str, Any]:
    content = {JSON: {"schema": ref(schema), "example": example}, MEDIA_TYPE: _binary(tensors, "`certificate`")}
    return {
        "200": {"description": "It ran; the certificate says how well.", "content": content},
        **_problems((*_CALL_ERRORS, ErrorCode.UNAUTHENTICATED, ErrorCode.INTERNAL)),
    }


def _stored(errors: tuple[ErrorCode, ...]) -> dict[str, Any]:
    content = {JSON: {"schema": ref("MatrixReply")}}
    return {
        "200": {"description": "It was held already.", "content": content},
        "201": {"description": "It is held now.", "content": content},
        **_problems((*errors, ErrorCode.UNAUTHENTICATED, ErrorCode.INTERNAL)),
    }


def _problems(codes: tuple[ErrorCode, ...]) -> dict[str, Any]:
    """The problem responses of some reasons, by HTTP status."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(WIRE[code].http, []).append(code.name)
    return {
        str(status): {"description": ", ".join(names), "content": {PROBLEM_TYPE: _problem(status, names[0])}}
        for status, names in sorted(by_status.items())
    }


def _problem(status: int, reason: str) -> dict[str, Any]:
    example = {
        "type": f"urn:backsolve:problem:{reason.lower()}",
        "title": reason.replace("_", " ").capitalize(),
        "status": status,
        "detail": "what happened, and what to try",
        "reason": reason,
        "retryable": WIRE[ErrorCode[reason]].retry in ("backoff", "payload", "once"),
        "request_id": "b6d0a3c2",
        "details": {},
    }
    return {"schema": ref("Problem"), "example": example}
