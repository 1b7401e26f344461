"""Who may call: bearer tokens, and the tenants that they stand for."""

import hmac
import re
from collections.abc import Mapping
from pathlib import Path
from typing import final

from backsolve.errors import UnauthenticatedError

from .context import PUBLIC_TENANT

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@final
class Callers:
    """The tokens that let in, each for one tenant.

    A tenant has matrices and factors of its own, which no other tenant's digests find, and its own share of
    the workers' time.

    Args:
        token: of the public tenant, or None.
        tenants: further tokens, and whose they are. With neither, everybody is let in as the public tenant.
    """

    def __init__(self, token: str | None = None, tenants: Mapping[str, str] | None = None) -> None:
        known = {**({} if token is None else {token: PUBLIC_TENANT}), **(tenants or {})}
        self._known = tuple((each.encode(), tenant) for each, tenant in known.items())

    @property
    def asked(self) -> bool:
        """Whether a token is asked for at all."""
        return bool(self._known)

    def tenant(self, token: str | None, cure: str) -> str:
        """Whose call it is.

        Args:
            token: as it came, or None.
            cure: how a token is sent, for the error's text.

        Raises:
            UnauthenticatedError: a token is asked for, and this is none of them.
        """
        if not self._known:
            return PUBLIC_TENANT
        given, found = (token or "").encode(), None
        # All of them, in constant time: how long a wrong token takes to be refused tells nothing about the right ones.
        for each, tenant in self._known:
            if hmac.compare_digest(given, each):
                found = tenant
        if found is None:
            raise UnauthenticatedError(f"the bearer token is missing or wrong: {cure}")
        return found


def read_tenants(path: Path) -> dict[str, str]:
    """Tokens and their tenants, out of a file of lines "name token"; empty lines and those with # are passed over.

    Raises:
        ValueError: a line that cannot be read, or one token for two tenants; the text holds no token.
        OSError: no such file.
    """
    tenants: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not _NAME.fullmatch(words[0]):
            raise ValueError(
                f'line {number} is not "name token": at most 64 letters, digits and . _ - for the name, one blank, '
                "and the token without blanks"
            )
        name, token = words
        if not (token.isascii() and token.isprintable()):
            raise ValueError(f"the token of line {number} travels in a header: use printable ASCII")
        if tenants.setdefault(token, name) != name:
            raise ValueError(f"the token of line {number} is another tenant's: a token stands for one tenant")
    return tenants
