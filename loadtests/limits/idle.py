"""What a server takes of a core while nobody calls it."""

import http.client
import time
from urllib.parse import urlsplit

from loadtests.served.watch import cpu_seconds
from loadtests.target import Target

from .mix import serve_mix
from .part import Asked, Found, server_on

MOST = 1.0
"""Percent of a core."""

POLL_SECONDS = 5.0
"""As `deploy/prometheus/prometheus.yml` has it."""

SETTLE_SECONDS = 1.0


def measure(asked: Asked) -> Found:
    """A server that has served some, left alone, and then asked for its metrics and health at Prometheus's pace."""
    found = Found()
    seconds = asked.span(10.0, 60.0)
    with server_on(None, {}) as server:
        serve_mix({way: getattr(server, way) for way in asked.ways}, rounds=1)
        time.sleep(SETTLE_SECONDS)
        alone = share(server.pid, seconds)
        polled = share(server.pid, seconds, server.http)
    found.targets += [
        Target("idle: % of a core, left alone", 100 * alone, MOST, True),
        Target(f"idle: % of a core, polled every {POLL_SECONDS:g} s", 100 * polled, MOST, True),
    ]
    found.notes.append(f"{seconds:g} s each; a poll is GET /metrics and GET /readyz")
    found.data = {"seconds": seconds, "alone": alone, "polled": polled}
    return found


def share(pid: int, seconds: float, url: str | None = None) -> float:
    """Share of a core that a process and its children take; with a URL it is polled at once and then regularly."""
    began, spent = time.monotonic(), cpu_seconds(pid)
    due = began
    while (left := began + seconds - time.monotonic()) > 0:
        if url is None:
            time.sleep(left)
        elif (wait := due - time.monotonic()) > 0:
            time.sleep(min(wait, left))
        else:
            _poll(url)
            due += POLL_SECONDS
    return (cpu_seconds(pid) - spent) / (time.monotonic() - began)


def _poll(url: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        for path in ("/metrics", "/readyz"):
            connection.request("GET", path)
            reply = connection.getresponse()
            reply.read()
            if reply.status != http.HTTPStatus.OK:
                raise RuntimeError(f"{path} answered {reply.status}")
    finally:
        connection.close()
