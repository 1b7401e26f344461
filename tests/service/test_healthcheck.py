"""The container's health check: quick, alone, and right about what it asks."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from support.servers import free_port


@contextmanager
def answering(status):
    """An HTTP server that answers /readyz with `status`, and anything else with 418."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/readyz" else 418)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield str(server.server_port)
        server.shutdown()
        thread.join()


def check(**variables):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BACKSOLVE_")}
    command = [sys.executable, "-c", "from backsolve_service.healthcheck import main; main()"]
    return subprocess.run(
        command, env=inherited | variables, capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )


@pytest.mark.parametrize("host", [None, "127.0.0.1", "0.0.0.0", ""])
def test_ready(host):
    with answering(200) as port:
        more = {} if host is None else {"BACKSOLVE_HOST": host}
        # A proxy for other traffic must not be asked.
        done = check(BACKSOLVE_HTTP_PORT=port, http_proxy="http://127.0.0.1:9", **more)
    assert (done.returncode, done.stderr) == (0, "")


def test_not_ready():
    with answering(503) as port:
        done = check(BACKSOLVE_HTTP_PORT=port)
    assert done.returncode == 1
    assert done.stderr == "backsolve-healthcheck: /readyz answered 503\n"


@pytest.mark.parametrize("port", [str(free_port()), "eighty"])
def test_nobody_there(port):
    done = check(BACKSOLVE_HTTP_PORT=port)
    assert done.returncode == 1
    assert done.stderr.startswith("backsolve-healthcheck: no answer: ")
    assert "Traceback" not in done.stderr


def test_it_loads_nothing_but_the_standard_library():
    code = """
import sys
import backsolve_service.healthcheck
heavy = {"pydantic", "numpy", "scipy", "torch", "grpc", "fastapi", "prometheus_client", "blake3"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
