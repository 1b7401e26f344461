"""Nothing that is asked for is dropped: each option is checked before anything is computed."""

import math
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches

from backsolve.errors import InvalidOptionError
from backsolve.types import LARGEST_INTEGER, TRANS, Options

from .precond import parameters
from .registry import PRECONDITIONERS, ROWS, check_installed

AUTO = "auto"

LEAST_SQUARES = "lstsq"
"""The method that stands for whichever of least squares fits, as "auto" does for those that solve."""


_CHOICES = {
    "precision": ("full", "mixed"),
    "ordering": ("auto", "mmd", "nd", "colamd"),
    "reuse": ("precondition",),
    "nullspace": ("constant",),
}
_LEAST = {"maxiter": 1, "restart": 1, "refine": 0, "recycle": 1}
_NUMBERS = ("rtol", "atol", "damp", "rcond")


def validate(options: Options) -> None:
    """Check each option by itself; whether the method uses it is `check_used`.

    Raises:
        InvalidOptionError: an unknown name, or a value out of range.
        NotSupportedError: a method or preconditioner whose library is not installed.
    """
    known("method", options.method, (AUTO, *ROWS, LEAST_SQUARES))
    if options.method in ROWS:
        check_installed("method", options.method, ROWS[options.method])
    if options.preconditioner is not None:
        preconditioner_spec(options.preconditioner)
    known("trans", options.trans, TRANS)
    for name, choices in _CHOICES.items():
        if getattr(options, name) is not None:
            known(name, getattr(options, name), choices)
    for name in _NUMBERS:
        value = getattr(options, name)
        if value is not None and not (_is_number(value) and math.isfinite(value) and value >= 0):
            raise InvalidOptionError(f"{name} must be a finite number, 0 or more", option=name)
    for name, least in _LEAST.items():
        value = getattr(options, name)
        if value is not None and not (_is_integer(value) and value >= least):
            raise InvalidOptionError(f"{name} must be an integer, {least} or more", option=name)
        if value is not None and value > LARGEST_INTEGER:
            raise InvalidOptionError(f"{name} must fit into 64 bits", option=name)
    if options.condition is not None and not isinstance(options.condition, bool):
        raise InvalidOptionError("condition must be true or false", option="condition")


def preconditioner_spec(text: str) -> str:
    """The one spelling of a preconditioner with all its parameters.

    Raises:
        InvalidOptionError: an unknown name or parameter, or a value out of range.
        NotSupportedError: its library is not installed.
    """
    if not isinstance(text, str):
        known("preconditioner", text, PRECONDITIONERS)
    name, given_parameters = parameters.split(text)
    known("preconditioner", name, PRECONDITIONERS)
    row = PRECONDITIONERS[name]
    check_installed("preconditioner", name, row)
    return parameters.spelled(name, parameters.resolve(name, given_parameters, row.parameters))


_NOT_COUNTED = ("method", "trans")


def given(options: Options, *, has_x0: bool) -> tuple[str, ...]:
    """Names of the options that the caller set, `method` and `trans` apart.

    "full" and "auto" ask for what every method does anyway, as does `condition=False`.
    """
    names = [f.name for f in fields(Options) if f.name not in _NOT_COUNTED and _asks(getattr(options, f.name))]
    return (*names, *(("x0",) if has_x0 else ()))


def _asks(value: object) -> bool:
    if isinstance(value, str):
        return value not in ("full", AUTO)
    return value is not None and value is not False  # by identity: 0.0 asks for something


def check_used(method: str, names: Iterable[str]) -> None:
    """Refuse options that a method does not use.

    Raises:
        InvalidOptionError: naming the option, the method, and the methods that use it.
    """
    for name in names:
        if name not in ROWS[method].options:
            raise InvalidOptionError(
                f"method {method!r} does not use {name}: leave it out, or use method {users(name)}",
                option=name,
                method=method,
            )


def users(name: str) -> str:
    """The methods that use an option, for messages."""
    return " or ".join(repr(method) for method, row in ROWS.items() if name in row.options)


def known(option: str, name: object, names: Iterable[str]) -> None:
    """Refuse a name that is not among `names`, with the nearest one.

    Raises:
        InvalidOptionError: it is not.
    """
    names = tuple(names)
    if isinstance(name, str) and name in names:
        return
    near = get_close_matches(name.lower(), names, n=1, cutoff=0.4) if isinstance(name, str) else []
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InvalidOptionError(f"this {option} is not known: {hint}there are {', '.join(names)}", option=option)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
