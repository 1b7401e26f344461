"""Options as a caller writes them: right names and types, or a clear refusal."""

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Literal, TypedDict, Unpack

from .errors import InvalidOptionError
from .types import LARGEST_INTEGER, TRANS, Options, Trans

Kind = Literal["name", "number", "integer", "flag"]


class SolveOptions(TypedDict, total=False):
    """What a solve may be asked for; whatever is left out has the method's default.

    Attributes:
        method: "auto", or one of `client.info().methods`.
        trans: "N", "T" or "H": solve with A, its transpose, or its conjugate transpose.
        rtol, atol: wanted ||b - op(A)x|| <= max(rtol ||b||, atol), in the 2-norm.
        maxiter: limit on the iterations of an iterative method, for each column of b; an iteration is one product
            with the matrix (BiCGStab takes two at a time).
        preconditioner: of an iterative method: a name of `client.info().preconditioners`, with
            parameters in parentheses if it takes any, e.g. "ssor(omega=1.2)".
        restart: of GMRES: length of the basis after which it starts anew.
        refine: limit on the refinement steps of a direct method.
        precision: "mixed" factorizes in single precision and refines to double; "full" (the
            default) factorizes in the matrix's own.
        ordering: of a sparse direct method: "auto", "mmd" (minimum degree), "nd" (nested
            dissection) or "colamd".
        reuse: "precondition" solves new values with the factor of older values on the same
            pattern as the preconditioner, as long as that is cheaper than to factorize.
        recycle: number of approximate eigenvectors to keep for the next solve on the pattern.
        nullspace: "constant" for matrices whose null space is the constants on each connected
            component, such as graph Laplacians: x is then the one of minimum norm, b must sum to zero
            over each component, and gradients are right within the family.
        damp: of least squares: minimise ||b - A x||² + damp² ||x||².
        rcond: of least squares: singular values below `rcond` times the largest count as zero. An iterative method
            stops once it has met one; if its tolerance is not met by then, that is ILL_CONDITIONED.
        condition: estimate the condition number for the certificate even where it costs solves.
    """

    method: str
    trans: Trans
    rtol: float | None
    atol: float | None
    maxiter: int | None
    preconditioner: str | None
    restart: int | None
    refine: int | None
    precision: str | None
    ordering: str | None
    reuse: str | None
    recycle: int | None
    nullspace: str | None
    damp: float | None
    rcond: float | None
    condition: bool | None


KINDS: Mapping[str, Kind] = {
    "method": "name",
    "trans": "name",
    "rtol": "number",
    "atol": "number",
    "maxiter": "integer",
    "preconditioner": "name",
    "restart": "integer",
    "refine": "integer",
    "precision": "name",
    "ordering": "name",
    "reuse": "name",
    "recycle": "integer",
    "nullspace": "name",
    "damp": "number",
    "rcond": "number",
    "condition": "flag",
}
"""The kind of each option's value: what every transport checks."""

_ARTICLES: Mapping[Kind, str] = {
    "name": "a string",
    "number": "a number",
    "integer": "a whole number",
    "flag": "true or false",
}


def make_options(**given: Unpack[SolveOptions]) -> Options:
    """Options whose names and types are right; whether the method uses them is the server's to say.

    Raises:
        InvalidOptionError: an unknown name, or a value of the wrong type.
    """
    check_names(given, KINDS, "a solve")
    values = {name: _read(name, value) for name, value in given.items() if value is not None}
    return Options(**values)


def least_squares_options(**given: Unpack[SolveOptions]) -> Options:
    """Options of least squares, checked likewise.

    Raises:
        InvalidOptionError: an unknown name, a value of the wrong type, or a storage.
    """
    if "storage" in given:
        raise InvalidOptionError("least squares takes no storage: pass all entries of A", option="storage")
    asked = make_options(**given)
    # The server's own name for whichever method of least squares fits.
    return replace(asked, method="lstsq") if asked.method == "auto" else asked


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse options that mean nothing here.

    Raises:
        InvalidOptionError: there is one; the nearest known name is told.
    """
    names = list(known)
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, 1, 0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InvalidOptionError(f"unknown option {name!r}: {hint}{what} takes {', '.join(names)}", option=name)


def check_kind(name: str, value: object) -> None:
    """Refuse a decoded value (of JSON, for one) that is not of its option's kind.

    Raises:
        InvalidOptionError: it is not.
    """
    kind = KINDS[name]
    if kind == "flag":
        good = isinstance(value, bool)
    elif kind == "name":
        good = isinstance(value, str)
    else:
        good = isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
    if not good:
        raise InvalidOptionError(f"option {name!r} must be {_ARTICLES[kind]}", option=name)


def _read(name: str, value: Any) -> Any:
    """A caller's value as the plain Python type of its kind; NumPy's scalars are welcome."""
    if name == "trans":
        return check_trans(value)
    kind = KINDS[name]
    try:
        if kind == "name":
            return str(value)
        if kind == "integer":
            return _integer(name, value)
        if kind == "flag":
            return _flag(value)
        number = float(value)
    except (TypeError, ValueError, OverflowError) as err:
        raise InvalidOptionError(f"{name} must be {_ARTICLES[kind]}", option=name) from err
    if not math.isfinite(number):
        raise InvalidOptionError(f"{name} must be a finite number, 0 or more", option=name)
    return number


def _integer(name: str, value: Any) -> int:
    number = operator.index(value)
    if abs(number) > LARGEST_INTEGER:
        raise InvalidOptionError(f"{name} must fit into 64 bits", option=name)
    return number


def _flag(value: Any) -> bool:
    if operator.index(value) not in (0, 1):
        raise ValueError
    return bool(value)


def check_trans(trans: str) -> Trans:
    """The letter, if it is one of "N", "T" and "H"."""
    for name in TRANS:
        if trans == name:
            return name
    raise InvalidOptionError("trans must be 'N', 'T' or 'H'", option="trans")
