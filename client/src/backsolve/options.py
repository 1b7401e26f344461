"""Options as a caller writes them: right types, or a clear refusal."""

import math
import operator

from .errors import InvalidOptionError
from .types import TRANS, Options, Trans


def make_options(
    method: str = "auto",
    trans: Trans = "N",
    rtol: float | None = None,
    atol: float | None = None,
    maxiter: int | None = None,
    preconditioner: str | None = None,
    refine: int | None = None,
) -> Options:
    """Options whose types are right; whether the method uses them is the server's to say.

    Raises:
        InvalidOptionError: a value of the wrong type.
    """
    try:
        return Options(
            method=str(method),
            preconditioner=None if preconditioner is None else str(preconditioner),
            trans=check_trans(trans),
            rtol=_finite("rtol", rtol),
            atol=_finite("atol", atol),
            maxiter=None if maxiter is None else operator.index(maxiter),
            refine=None if refine is None else operator.index(refine),
        )
    except (TypeError, ValueError, OverflowError) as err:
        if isinstance(err, InvalidOptionError):
            raise
        raise InvalidOptionError(
            "rtol and atol are numbers, maxiter and refine whole numbers, method and preconditioner names"
        ) from err


def _finite(name: str, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise InvalidOptionError(f"{name} must be a finite number, 0 or more")
    return None if value is None else float(value)


def check_trans(trans: str) -> Trans:
    """The letter, if it is one of "N", "T" and "H"."""
    for name in TRANS:
        if trans == name:
            return name
    raise InvalidOptionError("trans must be 'N', 'T' or 'H'")
