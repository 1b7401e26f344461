"""What is counted, under which names, and that two data planes never share a counter."""

import ast
import logging
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import backsolve_service
from backsolve_service.logs import AccessLog
from backsolve_service.metrics import Metrics
from backsolve_service.observer import GAUGE_LABELS, Observer, Silent
from backsolve_service.series import Spread

NAMES = {
    "requests": ("counter", {"op", "transport", "code"}),
    "request_duration_seconds": ("histogram", {"op"}),
    "queue_wait_seconds": ("histogram", set()),
    "phase_duration_seconds": ("histogram", {"phase"}),
    "inflight_requests": ("gauge", set()),
    "queue_depth": ("gauge", set()),
    "request_bytes": ("histogram", set()),
    "response_bytes": ("histogram", set()),
    "batch_rhs": ("histogram", set()),
    "solver_iterations": ("histogram", set()),
    "relative_residual": ("histogram", {"op"}),
    "not_converged": ("counter", set()),
    "cache_lookups": ("counter", {"level", "result"}),
    "cache_bytes": ("gauge", {"level", "tier"}),
    "cache_entries": ("gauge", {"level"}),
    "cache_evictions": ("counter", {"reason"}),
    "factorizations": ("counter", {"method"}),
    "worker_restarts": ("counter", {"reason"}),
    "pivots_reused": ("counter", {"result"}),
    "bytes_not_sent": ("counter", set()),
    "device_memory_bytes": ("gauge", {"kind"}),
    "shared_regions": ("gauge", set()),
    "shared_bytes": ("gauge", set()),
    "build_info": ("gauge", {"version", "python", "torch"}),
}


def fill(observer: Observer) -> None:
    """Every event once."""
    observer.request("solve", "rest", "OK", 0.5, request_bytes=10, response_bytes=20, request_id="r")
    observer.queued(0.25)
    observer.phase("factor", 2.0)
    observer.block(8)
    observer.solved("vjp", 40, 3e-13, True)
    observer.lookup("factor", "coalesced")
    observer.evicted("budget", 3)
    observer.factorized("superlu")
    observer.factorized("klu", "kept")
    observer.restarted("crash")
    observer.bytes_not_sent(4096)
    observer.bind("inflight_requests", lambda: 2)
    observer.bind("queue_depth", lambda: 5.0)
    observer.bind("cache_bytes", lambda: {("factor", "host"): 7.0, ("matrix", "host"): 1.0})
    observer.bind("cache_entries", lambda: {("factor",): 1})
    observer.bind("device_memory_bytes", lambda: {("used",): 9.0})
    observer.bind("shared_regions", lambda: 2.0)
    observer.bind("shared_bytes", lambda: 4096.0)


def families(metrics):
    body, content_type = metrics.text()
    assert content_type.startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


@pytest.mark.parametrize("wrap", [lambda metrics: metrics, AccessLog], ids=["plain", "with access log"])
def test_every_name_with_its_type_and_labels(wrap):
    metrics = Metrics()
    fill(wrap(metrics))
    found = families(metrics)
    for name, (kind, labels) in NAMES.items():
        family = found[f"backsolve_{name}"]
        assert family.type == kind, name
        assert family.samples, name
        assert {label for s in family.samples for label in s.labels} - {"le"} == labels, name
    others = set(found) - {f"backsolve_{name}" for name in NAMES}
    assert all(name.endswith("_created") for name in others)


@pytest.mark.parametrize(
    ("sample", "labels", "value"),
    [
        ("requests_total", {"op": "solve", "transport": "rest", "code": "OK"}, 1),
        ("request_duration_seconds_sum", {"op": "solve"}, 0.5),
        ("request_bytes_sum", {}, 10),
        ("response_bytes_sum", {}, 20),
        ("queue_wait_seconds_sum", {}, 0.25),
        ("phase_duration_seconds_sum", {"phase": "factor"}, 2.0),
        ("phase_duration_seconds_sum", {"phase": "solve"}, 0.0),
        ("batch_rhs_sum", {}, 8),
        ("solver_iterations_sum", {}, 40),
        ("relative_residual_bucket", {"op": "vjp", "le": "1e-12"}, 1),
        ("relative_residual_bucket", {"op": "vjp", "le": "1e-13"}, 0),
        ("not_converged_total", {}, 0),
        ("cache_lookups_total", {"level": "factor", "result": "coalesced"}, 1),
        ("cache_lookups_total", {"level": "factor", "result": "hit"}, 0),
        ("cache_evictions_total", {"reason": "budget"}, 3),
        ("factorizations_total", {"method": "superlu"}, 1),
        ("factorizations_total", {"method": "klu"}, 1),
        ("pivots_reused_total", {"result": "kept"}, 1),
        ("pivots_reused_total", {"result": "refused"}, 0),
        ("worker_restarts_total", {"reason": "crash"}, 1),
        ("worker_restarts_total", {"reason": "stuck"}, 0),
        ("bytes_not_sent_total", {}, 4096),
        ("inflight_requests", {}, 2),
        ("queue_depth", {}, 5),
        ("cache_bytes", {"level": "factor", "tier": "host"}, 7),
        ("cache_entries", {"level": "factor"}, 1),
        ("device_memory_bytes", {"kind": "used"}, 9),
    ],
)
def test_an_event_moves_its_own_sample(sample, labels, value):
    metrics = Metrics()
    fill(metrics)
    assert metrics.registry.get_sample_value(f"backsolve_{sample}", labels) == value


def test_transports_are_counted_apart():
    metrics = Metrics()
    for transport, times in (("rest", 3), ("grpc", 2), ("embedded", 1)):
        for _ in range(times):
            metrics.request("jvp", transport, "OK", 0.0, request_bytes=0, response_bytes=0)
    for transport, times in (("rest", 3), ("grpc", 2), ("embedded", 1)):
        labels = {"op": "jvp", "transport": transport, "code": "OK"}
        assert metrics.registry.get_sample_value("backsolve_requests_total", labels) == times


def test_two_data_planes_share_nothing():
    one, other = Metrics(), Metrics()
    one.bytes_not_sent(5)
    assert other.registry.get_sample_value("backsolve_bytes_not_sent_total") == 0


@pytest.mark.parametrize("residual", [float("nan"), float("inf")])
def test_a_residual_that_is_not_finite_does_not_spoil_the_sum(residual):
    metrics = Metrics()
    metrics.solved("solve", 3, residual, False)
    metrics.solved("solve", 3, 0.5, False)
    assert metrics.registry.get_sample_value("backsolve_relative_residual_sum", {"op": "solve"}) == 0.5
    assert metrics.registry.get_sample_value("backsolve_not_converged_total") == 2


def test_a_gauge_that_fails_leaves_the_others(caplog):
    metrics = Metrics()
    metrics.bind("device_memory_bytes", lambda: 1 / 0)
    metrics.bind("queue_depth", lambda: 4)
    with caplog.at_level(logging.ERROR):
        found = families(metrics)
    assert found["backsolve_queue_depth"].samples[0].value == 4
    assert not found["backsolve_device_memory_bytes"].samples
    assert "device_memory_bytes" in caplog.text


def test_the_latest_binding_counts():
    metrics = Metrics()
    metrics.bind("queue_depth", lambda: 4)
    metrics.bind("queue_depth", lambda: 6)
    assert metrics.registry.get_sample_value("backsolve_queue_depth") == 6


def test_no_event_is_lost_between_threads():
    metrics = Metrics()
    threads = [threading.Thread(target=lambda: [metrics.factorized("lu") for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.registry.get_sample_value("backsolve_factorizations_total", {"method": "lu"}) == 2000


def test_silence_hears_everything():
    assert Silent.__abstractmethods__ == frozenset()
    fill(Silent())


def test_every_gauge_is_exported():
    assert {f"backsolve_{name}" for name in GAUGE_LABELS} <= set(families(Metrics()))


def test_metrics_do_not_import_torch():
    source = Path(backsolve_service.__file__).with_name("metrics.py").read_text()
    modules = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    modules |= {a.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for a in node.names}
    assert not any((name or "").startswith("torch") for name in modules)


def test_buckets_hold_all_that_is_at_most_their_bound():
    spread = Spread("x", "Something.", (1.0, 2.5), ("op",))
    for value in (0.5, 1.0, 2.0, 2.5, 7.0):
        spread.observe(value, ("solve",))
    (family,) = spread.collect()
    found = {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples}
    assert found == {
        ("x_bucket", "1.0"): 2,
        ("x_bucket", "2.5"): 4,
        ("x_bucket", "+Inf"): 5,
        ("x_count", None): 5,
        ("x_sum", None): 13,
    }
