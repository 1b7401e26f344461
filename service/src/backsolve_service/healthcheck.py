"""`backsolve-healthcheck`: exit code 0 if the service on this machine is ready, else 1.

For containers: it reads the service's own variables and loads nothing but the standard library.
"""

import http.client
import os
import ssl
import sys

TIMEOUT_SECONDS = 3.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # what can be listened on but not called


def _connection() -> http.client.HTTPConnection:
    host = os.environ.get("BACKSOLVE_HOST") or "127.0.0.1"
    host = _WILDCARDS.get(host, host)
    port = int(os.environ.get("BACKSOLVE_HTTP_PORT") or 8080)
    certificate = os.environ.get("BACKSOLVE_TLS_CERT")
    if not certificate:
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    # The certificate names the public host, not this one, and nothing secret is sent.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if os.environ.get("BACKSOLVE_TLS_CLIENT_CA"):
        context.load_cert_chain(certificate, os.environ.get("BACKSOLVE_TLS_KEY"))
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=context)


def probe() -> str:
    """Ask the service whether it is ready.

    Returns:
        An empty text if it is, else why not.
    """
    try:
        connection = _connection()
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as err:
        return f"no answer: {err}"
    return "" if status == 200 else f"/readyz answered {status}"


def main() -> None:
    """Console script."""
    reason = probe()
    if reason:
        print(f"backsolve-healthcheck: {reason}", file=sys.stderr)
    sys.exit(1 if reason else 0)
