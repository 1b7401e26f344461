"""The records of `backsolve.types` as JSON: what accompanies the tensors of a bulk body, and what curl sees.

Requests are read strictly (an unknown key is an error that names the nearest known one), replies
loosely (a newer server may add keys), so any v1 client works with any v1 server. Figures that
are not finite are the strings "NaN", "Infinity" and "-Infinity", since JSON has no such numbers.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np

from ..errors import InvalidOptionError, MalformedError
from ..options import KINDS, check_kind
from ..types import (
    DIGEST_BYTES,
    TRANS,
    Array,
    Certificate,
    Element,
    Limits,
    MatrixRef,
    Options,
    ServerInfo,
    Status,
    Timings,
)

_DEFAULTS = Options()

_OPTIONS = tuple(field.name for field in fields(Options))
_CERTIFICATE = tuple(field.name for field in fields(Certificate))
_TIMINGS = tuple(field.name for field in fields(Timings))
_certificate_fields, _timings_fields = attrgetter(*_CERTIFICATE), attrgetter(*_TIMINGS)
_FIGURES = ("relative_residual", "backward_error")
_OPTIONAL_FIGURES = ("condition_estimate", "inverse_norm")


def check_keys(document: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Refuse keys that mean nothing here.

    Raises:
        InvalidOptionError: there is one; the nearest known name is told.
    """
    names = list(known)
    for key in document:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1, 0.0)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InvalidOptionError(f"{what} has a key that is not known; {hint}known are {', '.join(names)}")


def options_to_json(options: Options) -> dict[str, Any]:
    """What differs from the defaults."""
    if options == _DEFAULTS:
        return {}
    return {name: value for name in _OPTIONS if (value := getattr(options, name)) != getattr(_DEFAULTS, name)}


def options_from_json(document: Any) -> Options:
    """Read a call's options.

    Raises:
        MalformedError: not an object.
        InvalidOptionError: an unknown key, or a value of the wrong type.
    """
    if document is None:
        return _DEFAULTS
    if not isinstance(document, dict):
        raise MalformedError("options must be a JSON object")
    if not document:
        return _DEFAULTS
    check_keys(document, KINDS, "options")
    given = {name: value for name, value in document.items() if value is not None}
    for name, value in given.items():
        check_kind(name, value)
    if given.get("trans", "N") not in TRANS:
        raise InvalidOptionError('option "trans" must be "N", "T" or "H"', option="trans")
    return Options(**given)


def ref_from_key(key: Any) -> MatrixRef:
    """The digests in a matrix's name, `{pattern-hex}-{values-hex}`.

    Raises:
        MalformedError: it is no such name.
    """
    ref = _ref_of(key) if isinstance(key, str) and len(key) == 4 * DIGEST_BYTES + 1 else None
    if ref is None:
        raise MalformedError(f"a matrix is named by two digests of {2 * DIGEST_BYTES} hex digits with a '-' between")
    return ref


@lru_cache(maxsize=1024)
def _ref_of(key: str) -> MatrixRef | None:
    """Remembered, since a job names the same few matrices again and again, in a header and in a body each time."""
    pattern, _, values = key.partition("-")
    try:
        ref = MatrixRef(bytes.fromhex(pattern), bytes.fromhex(values))
    except ValueError:
        return None
    return ref if {len(ref.pattern), len(ref.values)} == {DIGEST_BYTES} else None


def certificate_to_json(certificate: Certificate, *, elements: bool = True) -> dict[str, Any]:
    """A certificate as JSON.

    Args:
        certificate: of the reply.
        elements: whether the systems of a batch are listed; bulk replies carry them as
            tensors (`elements_to_tensors`), since a header is bounded and a batch is not.
    """
    document: dict[str, Any] = dict(zip(_CERTIFICATE, _certificate_fields(certificate), strict=True))
    document["status"] = certificate.status.name
    document["seconds"] = dict(zip(_TIMINGS, _timings_fields(certificate.seconds), strict=True))
    for name in _FIGURES:
        document[name] = _to_figure(document[name])
    for name in _OPTIONAL_FIGURES:
        if document[name] is not None:
            document[name] = _to_figure(document[name])
    if elements:
        document["elements"] = [
            {
                "status": element.status.name,
                "iterations": element.iterations,
                **{name: _to_figure(getattr(element, name)) for name in _FIGURES},
            }
            for element in certificate.elements
        ]
    else:
        del document["elements"]
    return document


def certificate_from_json(document: Any, tensors: Mapping[str, Array] | None = None) -> Certificate:
    """Read a certificate; `tensors` hold the elements of a bulk reply's batch.

    Raises:
        MalformedError: something is missing or of the wrong kind.
    """
    try:
        known = {name: document[name] for name in _CERTIFICATE if name in document}
        known["status"] = Status[known["status"]]
        seconds = known["seconds"]
        known["seconds"] = Timings(**{name: float(seconds.get(name, 0.0)) for name in _TIMINGS})
        for name in _FIGURES:
            known[name] = float(known[name])
        for name in _OPTIONAL_FIGURES:
            if known.get(name) is not None:
                known[name] = float(known[name])
        listed = known.pop("elements", [])
        known["elements"] = (
            _elements_from_tensors(tensors)
            if tensors is not None and "elements.status" in tensors
            else tuple(
                Element(Status[e["status"]], int(e["iterations"]), *(float(e[name]) for name in _FIGURES))
                for e in listed
            )
        )
        return Certificate(**known)
    except (TypeError, KeyError, ValueError, AttributeError):
        raise MalformedError("the reply's certificate cannot be read: is this a v1 server?") from None


def elements_to_tensors(certificate: Certificate) -> dict[str, Array]:
    """The elements of a batch as four vectors; nothing for a single system."""
    elements = certificate.elements
    if not elements:
        return {}
    return {
        "elements.status": np.array([e.status.value for e in elements], dtype=np.int32),
        "elements.iterations": np.array([e.iterations for e in elements], dtype=np.int64),
        "elements.relative_residual": np.array([e.relative_residual for e in elements], dtype=np.float64),
        "elements.backward_error": np.array([e.backward_error for e in elements], dtype=np.float64),
    }


def _elements_from_tensors(tensors: Mapping[str, Array]) -> tuple[Element, ...]:
    columns = (tensors[f"elements.{name}"].tolist() for name in ("status", "iterations", *_FIGURES))
    return tuple(
        Element(Status(status), iterations, residual, error)
        for status, iterations, residual, error in zip(*columns, strict=True)
    )


def _to_figure(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def info_to_json(info: ServerInfo) -> dict[str, Any]:
    """What a server is, as JSON."""
    return {**asdict(info), "versions": dict(info.versions)}


def info_from_json(document: Any) -> ServerInfo:
    """Read what a server is; keys that a newer one adds are passed over.

    Raises:
        MalformedError: something is missing or of the wrong kind.
    """
    try:
        known = {field.name: document[field.name] for field in fields(ServerInfo) if field.name in document}
        known["limits"] = Limits(**{field.name: int(known["limits"][field.name]) for field in fields(Limits)})
        for name in ("api_versions", "dtypes", "methods", "preconditioners", "extensions"):
            if name in known:
                known[name] = tuple(map(str, known[name]))
        return ServerInfo(**known)
    except (TypeError, KeyError, ValueError):
        raise MalformedError("the server's description cannot be read: is this a v1 server?") from None
