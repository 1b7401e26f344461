"""Nothing that is asked for is dropped: each option is checked before anything is computed."""

import math
from collections.abc import Iterable
from difflib import get_close_matches

from backsolve.errors import InvalidOptionError
from backsolve.types import TRANS, Options

from .registry import ROWS, methods, preconditioners

AUTO = "auto"


def validate(options: Options) -> None:
    """Check each option by itself; whether the method uses it is `check_used`.

    Raises:
        InvalidOptionError: an unknown name, or a value out of range.
    """
    _known("method", options.method, (AUTO, *methods()))
    if options.preconditioner is not None:
        _known("preconditioner", options.preconditioner, preconditioners())
    _known("trans", options.trans, TRANS)
    for name in ("rtol", "atol"):
        value = getattr(options, name)
        if value is not None and not (_is_number(value) and math.isfinite(value) and value >= 0):
            raise InvalidOptionError(f"{name} must be a finite number, 0 or more", option=name)
    for name, least in (("maxiter", 1), ("refine", 0)):
        value = getattr(options, name)
        if value is not None and not (_is_integer(value) and value >= least):
            raise InvalidOptionError(f"{name} must be an integer, {least} or more", option=name)


def given(options: Options, *, has_x0: bool) -> tuple[str, ...]:
    """Names of the options that the caller set, `method` and `trans` apart."""
    names = ("preconditioner", "rtol", "atol", "maxiter", "refine")
    return (*(name for name in names if getattr(options, name) is not None), *(("x0",) if has_x0 else ()))


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


def _known(option: str, name: object, names: Iterable[str]) -> None:
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
