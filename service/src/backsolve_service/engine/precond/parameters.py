"""A preconditioner with its parameters as one string: "ssor(omega=1.2)".

One string travels through every transport, enters the cache's key and stands in the certificate;
this module alone reads and writes it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from backsolve.errors import InvalidOptionError

Value = int | float | str


@final
@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter; the type of its default is its own.

    Attributes:
        default: used when it is not given.
        least, most: bounds of a number, both allowed.
        choices: of a string.
    """

    default: Value
    least: float = -math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()


def split(text: str) -> tuple[str, dict[str, str]]:
    """Name and parameters as written.

    Raises:
        InvalidOptionError: not of the form `name` or `name(key=value, ...)`.
    """
    name, opened, rest = text.partition("(")
    if not opened:
        return text.strip(), {}
    inside = rest.rstrip()
    if not inside.endswith(")"):
        raise _malformed()
    given: dict[str, str] = {}
    for part in inside[:-1].split(","):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip() or key.strip() in given:
            raise _malformed()
        given[key.strip()] = value.strip()
    return name.strip(), given


def resolve(name: str, given: Mapping[str, str], parameters: Mapping[str, Parameter]) -> dict[str, Value]:
    """Every parameter with its value, in the table's order.

    Raises:
        InvalidOptionError: one that the preconditioner does not have, or a value out of range.
    """
    for key in given:
        if key not in parameters:
            takes = f"it takes {', '.join(parameters)}" if parameters else "it takes none"
            raise InvalidOptionError(f"preconditioner {name!r} has no such parameter: {takes}", option="preconditioner")
    return {key: _value(name, key, given.get(key), parameter) for key, parameter in parameters.items()}


def spelled(name: str, values: Mapping[str, Value]) -> str:
    """The one spelling of a preconditioner and its parameters."""
    if not values:
        return name
    return f"{name}({','.join(f'{key}={value}' for key, value in values.items())})"


def _value(name: str, key: str, text: str | None, parameter: Parameter) -> Value:
    if text is None:
        return parameter.default
    if isinstance(parameter.default, str):
        if text not in parameter.choices:
            raise _invalid(name, key, f"one of {', '.join(parameter.choices)}")
        return text
    kind = type(parameter.default)
    try:
        value = kind(text)
    except ValueError:
        raise _invalid(name, key, "a whole number" if kind is int else "a number") from None
    if not parameter.least <= value <= parameter.most:
        raise _invalid(name, key, f"from {parameter.least:g} to {parameter.most:g}")
    return value


def _invalid(name: str, key: str, what: str) -> InvalidOptionError:
    return InvalidOptionError(f"parameter {key} of preconditioner {name!r} must be {what}", option="preconditioner")


def _malformed() -> InvalidOptionError:
    return InvalidOptionError(
        "a preconditioner is written 'name' or 'name(key=value, ...)', e.g. 'ssor(omega=1.2)'", option="preconditioner"
    )
