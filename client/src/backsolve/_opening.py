"""What a client was opened with: enough to open it again in another process, but for secrets."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from .config import TOKEN_VARIABLE, Endpoint, default_timeout, resolve_all
from .errors import NotSupportedError, UnauthenticatedError
from .retry import Timeout, Unset


@final
@dataclass(frozen=True, slots=True)
class Opening:
    """How a client was opened.

    Attributes:
        endpoints: of the replicas.
        timeout: seconds for each call, or None.
        ca_file: as it was given, or None.
        secret: whether a token was given, rather than found in the environment.
        custom: whether the caller has brought a transport.
    """

    endpoints: tuple[Endpoint, ...]
    timeout: float | None
    ca_file: str | None
    secret: bool
    custom: bool

    @classmethod
    def of(
        cls, url: str | Sequence[str] | None, token: str | None, timeout: Timeout, ca_file: str | None, *, custom: bool
    ) -> "Opening":
        """What the arguments of a client, and the environment, say.

        Raises:
            InvalidOptionError: they cannot be understood.
        """
        seconds = default_timeout() if isinstance(timeout, Unset) else timeout
        endpoints = (Endpoint("custom"),) if custom else resolve_all(url, token, ca_file)
        return cls(endpoints, seconds, ca_file, token is not None, custom)

    def reduced(self, kind: type) -> tuple[Any, ...]:
        """What `pickle` keeps of a client of this kind.

        Raises:
            NotSupportedError: its transport cannot be opened again.
        """
        if self.custom:
            raise NotSupportedError("a client with a transport= of its own cannot be pickled: pickle its URL instead")
        return _reopened, (kind, [endpoint.url for endpoint in self.endpoints], self.timeout, self.ca_file, self.secret)


def _reopened(kind: type, urls: list[str], timeout: float | None, ca_file: str | None, secret: bool) -> Any:
    """A client that was pickled.

    Raises:
        UnauthenticatedError: it had a token, which is not in the pickle, and there is none here.
    """
    if secret and not os.environ.get(TOKEN_VARIABLE):
        raise UnauthenticatedError(
            f"the client was pickled without its token, which no file should hold: set {TOKEN_VARIABLE} here"
        )
    return kind(urls, timeout=timeout, ca_file=ca_file)
