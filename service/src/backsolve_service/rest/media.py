"""Which media types a route reads and writes, and what the caller's headers choose among them."""

from functools import lru_cache

from backsolve.errors import InvalidOptionError, NotAcceptableError, UnsupportedMediaError

from .exchange import Exchange

JSON = "application/json"

_USUAL_CHARACTERS = 200


def request_type(exchange: Exchange, readable: tuple[str, ...]) -> str:
    """The media type of the body.

    Raises:
        UnsupportedMediaError: it is not read here.
    """
    given = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given in readable:
        return given
    supported = ", ".join(readable)
    raise UnsupportedMediaError(f"set Content-Type to what the body is; read here are {supported}", supported=supported)


def reply_type(exchange: Exchange, writable: tuple[str, ...]) -> str:
    """The writable media type that the caller likes best; earlier ones win ties.

    Raises:
        NotAcceptableError: it accepts none of them.
    """
    accept = exchange.headers.get("accept", "").strip()
    if not accept:
        return writable[0]
    # The same programs send the same header with every request; what is unusually long is none of theirs.
    best = (_liked_best if len(accept) <= _USUAL_CHARACTERS else _liked_best.__wrapped__)(accept, writable)
    if best is not None:
        return best
    supported = ", ".join(writable)
    raise NotAcceptableError(f"nothing that Accept names is written here; there are {supported}", supported=supported)


@lru_cache(64)
def _liked_best(accept: str, writable: tuple[str, ...]) -> str | None:
    weights = _parse(accept)
    best, quality = None, 0.0
    for name in writable:
        weight = _weight(name, weights)
        if weight > quality:
            best, quality = name, weight
    return best


def timeout_seconds(exchange: Exchange) -> float | None:
    """The caller's deadline: header `backsolve-timeout`, in seconds from now.

    Raises:
        InvalidOptionError: not a number of seconds.
    """
    text = exchange.headers.get("backsolve-timeout")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InvalidOptionError("the header backsolve-timeout must be a number of seconds, e.g. 60")
    return seconds


def _parse(accept: str) -> dict[str, float]:
    """Quality by media range; what cannot be read counts as not acceptable."""
    weights: dict[str, float] = {}
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        weights[name] = quality if 0 <= quality <= 1 else 0.0
    return weights


def _weight(name: str, weights: dict[str, float]) -> float:
    """The most specific range decides, not the largest quality."""
    for media_range in (name, f"{name.partition('/')[0]}/*", "*/*"):
        if media_range in weights:
            return weights[media_range]
    return 0.0
