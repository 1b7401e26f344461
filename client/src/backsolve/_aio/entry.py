"""From an endpoint to what awaits it: sockets on the event loop for HTTP, threads for the rest."""

from .._entry import connect
from ..config import Endpoint
from .base import AsyncTransport
from .http import AsyncHttpTransport
from .threads import ThreadedTransport


def connect_async(endpoint: Endpoint) -> AsyncTransport:
    """Open the transport of an endpoint; no bytes are sent yet.

    Raises:
        NotSupportedError: the embedded engine was asked for and is not installed.
    """
    if endpoint.scheme in ("http", "https", "unix"):
        return AsyncHttpTransport(endpoint)
    return ThreadedTransport(connect(endpoint))
