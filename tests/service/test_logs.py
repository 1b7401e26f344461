"""Log lines are JSON, know their request, and configuring them is left to the service's main."""

import io
import json
import logging
import subprocess
import sys
import warnings

import pytest

from backsolve_service import logs
from backsolve_service.metrics import Metrics


@pytest.fixture
def stream():
    """Everything logged while a test runs; the former set-up comes back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    logs.configure("info", "replica-3", out)
    yield out
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(out):
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_has_time_level_logger_message_instance_and_extras(stream):
    logging.getLogger("backsolve_service.some").warning("a %s\nb", 3, extra={"request_id": "r-1", "path": object})
    (line,) = lines(stream)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "backsolve_service.some",
        "message": "a 3\nb",
        "instance": "replica-3",
        "request_id": "r-1",
        "path": "<class 'object'>",
    }


def test_a_trace_stays_in_its_line(stream):
    try:
        raise RuntimeError("no luck")
    except RuntimeError:
        logging.getLogger("x").exception("failed")
    (line,) = lines(stream)
    assert "RuntimeError: no luck" in line["trace"]


def test_the_level_is_kept_and_warnings_are_lines(stream):
    logging.getLogger("x").debug("quiet")
    logging.getLogger("uvicorn.error").info("quiet")
    assert stream.getvalue() == ""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        logging.captureWarnings(True)
        warnings.warn("careful", stacklevel=1)
    (line,) = lines(stream)
    assert "careful" in line["message"]


def test_every_call_is_one_access_line_and_is_counted_once(stream):
    metrics = Metrics()
    observer = logs.AccessLog(metrics)
    observer.request("vjp", "grpc", "QUEUE_FULL", 0.25, request_bytes=800, response_bytes=0, request_id="r-77")
    (line,) = lines(stream)
    expected = {"op": "vjp", "transport": "grpc", "code": "QUEUE_FULL", "seconds": 0.25, "request_id": "r-77"}
    assert {key: line[key] for key in expected} == expected
    assert (line["request_bytes"], line["response_bytes"]) == (800, 0)
    labels = {"op": "vjp", "transport": "grpc", "code": "QUEUE_FULL"}
    assert metrics.registry.get_sample_value("backsolve_requests_total", labels) == 1


def test_importing_leaves_logging_alone():
    code = """
import logging
import backsolve_service.logs, backsolve_service.metrics, backsolve_service.observer
root = logging.getLogger()
assert not root.handlers and root.level == logging.WARNING
ours = [logger for name, logger in root.manager.loggerDict.items() if "backsolve" in name]
assert not any(getattr(logger, "handlers", ()) for logger in ours)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
