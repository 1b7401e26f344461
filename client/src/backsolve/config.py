"""Where a client connects: the URL, the environment, and the transport that they name."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from .errors import InvalidOptionError

URL_VARIABLE = "BACKSOLVE_URL"
TOKEN_VARIABLE = "BACKSOLVE_TOKEN"
CA_VARIABLE = "BACKSOLVE_CA_FILE"

HTTP_PORT = 8080
GRPC_PORT = 50051

_DEFAULT_PORTS = {"http": HTTP_PORT, "https": 443, "grpc": GRPC_PORT, "grpcs": GRPC_PORT, "backsolve": HTTP_PORT}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to send calls to.

    Attributes:
        scheme: "embedded", "http", "https", "grpc", "grpcs" or "backsolve".
        host, port: empty and 0 for "embedded".
        token: bearer token, or None.
        ca_file: file with the certificate authorities to trust, or None for the system's.
    """

    scheme: str
    host: str = ""
    port: int = 0
    token: str | None = None
    ca_file: str | None = None

    @property
    def address(self) -> str:
        """`host:port`, with brackets around an IPv6 host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def resolve(
    url: str | None,
    token: str | None = None,
    ca_file: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Endpoint:
    """The endpoint that a URL, or the environment, names; without either, the embedded one.

    Raises:
        InvalidOptionError: the URL cannot be understood.
    """
    environment = os.environ if environment is None else environment
    url = url or environment.get(URL_VARIABLE) or None
    token = token or environment.get(TOKEN_VARIABLE) or None
    ca_file = ca_file or environment.get(CA_VARIABLE) or None
    if url is None or url == "embedded":
        return Endpoint("embedded")
    parts = urlsplit(url)
    schemes = ", ".join(f"{name}://" for name in _DEFAULT_PORTS)
    if parts.scheme not in _DEFAULT_PORTS:
        raise InvalidOptionError(f"the URL must begin with one of {schemes}, e.g. http://localhost:8080")
    try:
        port = parts.port
    except ValueError as err:
        raise InvalidOptionError("the URL's port is not a number below 65536") from err
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        raise InvalidOptionError("the URL must have the form scheme://host:port; a token goes into token=")
    return Endpoint(parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme], token, ca_file)
