"""Where a client connects: the URL, the environment, and the transport that they name."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from .errors import InvalidOptionError

URL_VARIABLE = "BACKSOLVE_URL"
TOKEN_VARIABLE = "BACKSOLVE_TOKEN"
CA_VARIABLE = "BACKSOLVE_CA_FILE"
TIMEOUT_VARIABLE = "BACKSOLVE_TIMEOUT"

DEFAULT_TIMEOUT = 60.0
"""Seconds that a call may take over all its attempts, unless it is told otherwise."""

HTTP_PORT = 8080
GRPC_PORT = 50051

_DEFAULT_PORTS = {"http": HTTP_PORT, "https": 443, "grpc": GRPC_PORT, "grpcs": GRPC_PORT, "backsolve": HTTP_PORT}
_NAMED_SCHEMES = ("dns+http", "dns+grpc")
_UNIX_SCHEMES = ("unix", "grpc+unix", "backsolve+unix")

MOST_PATH_BYTES = 107
"""The longest path of a Unix socket that Linux takes."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to send calls to.

    Attributes:
        scheme: "embedded", "http", "https", "grpc", "grpcs", "backsolve", or, for a Unix socket, "unix" (HTTP),
            "grpc+unix" or "backsolve+unix"; "dns+http" and "dns+grpc" stand for every address of the host's name.
        host, port: empty and 0 for "embedded" and Unix sockets.
        token: bearer token, or None.
        ca_file: file with the certificate authorities to trust, or None for the system's.
        path: of a Unix socket, else empty.
    """

    scheme: str
    host: str = ""
    port: int = 0
    token: str | None = None
    ca_file: str | None = None
    path: str = ""

    @property
    def address(self) -> str:
        """`host:port`, with brackets around an IPv6 host; of a Unix socket its path."""
        if self.path:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """What names it, without the token."""
        if self.path:
            return f"{self.scheme}:{self.path}"
        return f"{self.scheme}://{self.address}" if self.host else self.scheme

    @property
    def named(self) -> bool:
        """Whether it stands for every address of a name."""
        return self.scheme in _NAMED_SCHEMES

    def addressed(self, host: str) -> "Endpoint":
        """One of the addresses that it stands for."""
        return replace(self, scheme=self.scheme.removeprefix("dns+"), host=host)


def resolve_all(
    urls: str | Sequence[str] | None,
    token: str | None = None,
    ca_file: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Endpoint, ...]:
    """The endpoints that URLs name, one or several of them: replicas of one service. See `resolve`.

    Args:
        urls: a URL, several in a list, or several in one text with commas between them; None: BACKSOLVE_URL.
        token, ca_file, environment: as for `resolve`.

    Raises:
        InvalidOptionError: a URL cannot be understood, two are the same, or they do not go together.
    """
    environment = os.environ if environment is None else environment
    if urls is None or urls == "":
        urls = environment.get(URL_VARIABLE) or None
    elif not urls:
        raise InvalidOptionError("the list of URLs is empty: leave it out for BACKSOLVE_URL, or this process")
    if urls is None:
        return (resolve(None, token, ca_file, environment),)
    # A comma may be part of a socket's path: only one that a scheme follows divides.
    texts = re.split(r",\s*(?=[a-z+]+:/)", urls.strip()) if isinstance(urls, str) else [*urls]
    if not all(isinstance(text, str) and text for text in texts):
        raise InvalidOptionError("url must be a URL, or a list of URLs, none of them empty")
    found = tuple(resolve(text, token, ca_file, environment) for text in texts)
    if len(found) > 1:
        if any(endpoint.scheme == "embedded" or endpoint.named for endpoint in found):
            raise InvalidOptionError("'embedded', and a dns+ URL, stand alone: give one of them, or a list of others")
        if len({endpoint.address for endpoint in found}) < len(found):
            raise InvalidOptionError("two of the URLs name the same address: give each replica once")
    return found


def resolve(
    url: str | None,
    token: str | None = None,
    ca_file: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Endpoint:
    """The endpoint that a URL, or the environment, names; without either, the embedded one.

    Variables of the environment that the way in has no use for are left alone: one environment
    serves many programs. Arguments are not.

    Raises:
        InvalidOptionError: the URL cannot be understood, or does not go with an argument.
    """
    environment = os.environ if environment is None else environment
    url = url or environment.get(URL_VARIABLE) or None
    if url is None or url == "embedded":
        if token is not None or ca_file is not None:
            raise InvalidOptionError("token= and ca_file= are for servers: name one by url= or BACKSOLVE_URL")
        return Endpoint("embedded")
    if ca_file is not None and not url.startswith(("https://", "grpcs://")):
        raise InvalidOptionError("ca_file= is for https:// and grpcs:// only")
    token = token or environment.get(TOKEN_VARIABLE) or None
    ca_file = ca_file or environment.get(CA_VARIABLE) or None
    scheme, colon, path = url.partition(":")
    if colon and scheme in _UNIX_SCHEMES:
        return Endpoint(scheme, token=token, path=_socket_path(scheme, path))
    parts = urlsplit(url)
    schemes = ", ".join(
        [f"{name}://" for name in (*_DEFAULT_PORTS, *_NAMED_SCHEMES)] + [f"{name}:" for name in _UNIX_SCHEMES]
    )
    if parts.scheme in ("dns+https", "dns+grpcs"):
        raise InvalidOptionError("certificates bear names, not addresses: give the replicas' own URLs in a list")
    if parts.scheme not in (*_DEFAULT_PORTS, *_NAMED_SCHEMES):
        raise InvalidOptionError(f"the URL must begin with one of {schemes}, e.g. http://localhost:8080")
    try:
        port = parts.port
    except ValueError as err:
        raise InvalidOptionError("the URL's port is not a number below 65536") from err
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        raise InvalidOptionError("the URL must have the form scheme://host:port; a token goes into token=")
    if "," in parts.hostname:
        raise InvalidOptionError("a URL of several must begin with its own scheme: http://a:8080,http://b:8080")
    return Endpoint(
        parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme.removeprefix("dns+")], token, ca_file
    )


def _socket_path(scheme: str, path: str) -> str:
    """The path of a Unix socket: all that follows `scheme:` or `scheme://`, taken as it is, without escapes.

    Raises:
        InvalidOptionError: it is not absolute, or longer than the system takes.
    """
    path = path.removeprefix("//")
    if not path.startswith("/") or "\0" in path:
        raise InvalidOptionError(f"the URL of a Unix socket has the form {scheme}:/path/of/the/socket")
    if len(os.fsencode(path)) > MOST_PATH_BYTES:
        raise InvalidOptionError(
            f"the URL's path is longer than the {MOST_PATH_BYTES} bytes that a Unix socket's may be"
        )
    return path


def default_timeout(environment: Mapping[str, str] | None = None) -> float:
    """Seconds for a call of which nobody says more: BACKSOLVE_TIMEOUT, or 60.

    Raises:
        InvalidOptionError: the variable is not a number above 0.
    """
    environment = os.environ if environment is None else environment
    text = environment.get(TIMEOUT_VARIABLE)
    if not text:
        return DEFAULT_TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidOptionError(f"{TIMEOUT_VARIABLE} must be a number of seconds above 0")
    return seconds
