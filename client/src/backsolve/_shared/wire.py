"""What the control socket carries: one JSON object a packet, a question and an answer in turn.

question                                   answer
{"hello": 1, "token": "…"}                 {"instance": "…", "bytes": 1073741824, "regions": 16}
{"register": true} and a descriptor        {"handle": "5b0c…e1"}
{"release": "5b0c…e1"}                     {"released": true}

An error is {"reason": "…", "detail": "…", "details": {…}}, as in a problem document. The first question
must be a hello. When the socket closes, the regions that came over it are released.
"""

import json
from typing import Any

from ..errors import BacksolveError, MalformedError, from_wire
from ..types import ErrorCode

VERSION = 1
MOST_BYTES = 4096
"""The longest packet."""


def write_packet(document: dict[str, Any]) -> bytes:
    """A packet."""
    return json.dumps(document, separators=(",", ":")).encode()


def write_error(error: BacksolveError) -> bytes:
    """A packet that says why not."""
    return write_packet({"reason": error.code.name, "detail": str(error), "details": error.details})


def read_packet(data: bytes) -> dict[str, Any]:
    """A packet that is not an error.

    Raises:
        MalformedError: it is not a JSON object.
        BacksolveError: it is an error, which is raised.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise MalformedError("a packet on the control socket is one JSON object")
    if "reason" in document:
        try:
            code = ErrorCode[document["reason"]]
            details = {str(name): str(value) for name, value in document.get("details", {}).items()}
        except (KeyError, AttributeError, TypeError):
            raise MalformedError("the control socket's error cannot be read: is this a v1 server?") from None
        raise from_wire(code, str(document.get("detail", "")), details)
    return document
