"""Alert rules and the dashboard: every metric and label they name is one that the service exports."""

import json
import os
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backsolve.types import ErrorCode
from backsolve_service.metrics import Metrics
from backsolve_service.observer import GAUGE_LABELS

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus/rules.yml"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/backsolve.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in PANELS}

# Prometheus itself adds these to whatever it scrapes.
TARGET_LABELS = frozenset({"job", "instance"})


@pytest.fixture(scope="module")
def exported() -> dict[str, frozenset[str]]:
    """Sample name → its labels, after every event has happened once."""
    metrics = Metrics()
    metrics.request("solve", "rest", "OK", 0.1, request_bytes=1, response_bytes=1)
    metrics.queued(0.1)
    metrics.phase("solve", 0.1)
    metrics.block(1)
    metrics.solved("solve", 3, 1e-12, converged=False)
    metrics.lookup("factor", "hit")
    metrics.evicted("budget")
    metrics.factorized("superlu")
    metrics.bytes_not_sent(1)
    for name, labels in GAUGE_LABELS.items():
        metrics.bind(name, lambda labels=labels: {tuple(labels): 1.0})
    families = text_string_to_metric_families(metrics.text()[0].decode())
    samples = [sample for family in families for sample in family.samples]
    return {sample.name: frozenset(sample.labels) for sample in samples if not sample.name.endswith("_created")}


def check_names(text: str, exported: dict[str, frozenset[str]]) -> set[str]:
    """Fail unless metrics, their selectors and their groupings exist; returns the metrics."""
    uses = re.findall(r"(?<![\w:])(backsolve_\w+)(?:\{([^}]*)\})?", text)
    for name, selector in uses:
        assert name in exported, f"the service exports no {name}"
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert labels <= exported[name] | TARGET_LABELS, f"{name} has no {labels}"
    for grouping, name in re.findall(r"by \(([^)]*)\) \((?:rate\()?(backsolve_\w+)", text):
        labels = {label.strip() for label in grouping.split(",")}
        assert labels <= exported[name] | TARGET_LABELS, f"{name} has no {labels}"
    return {name for name, _ in uses}


def base_name(sample: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", sample)


def without_comments(text: str) -> str:
    return re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)


def promtool(*arguments: str | Path) -> None:
    """Run promtool; it is a Debian package, so only the container job insists on it."""
    command = shutil.which("promtool")
    if command is None and "CONTAINER_TESTS" not in os.environ:
        pytest.skip("promtool is not installed")
    assert command is not None
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_name_what_the_service_exports(exported: dict[str, frozenset[str]]) -> None:
    text = without_comments(RULES.read_text())
    assert len(check_names(text, exported)) == 5
    recorded = set(re.findall(r"record: (\S+)", text))
    read = set(re.findall(r"(?<!record: )\bbacksolve:[\w:]+", text))
    assert read == recorded
    codes = {code for group in re.findall(r'code=~?"([^"]*)"', text) for code in group.split("|")}
    assert codes <= {code.name for code in ErrorCode} | {"OK"}


def test_every_alert_has_a_unit_test() -> None:
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))
    tests = (DEPLOY / "prometheus/rules_test.yml").read_text()
    fired = set(re.findall(r"alertname: (\w+)\n\s+eval_time: \w+\n\s+exp_alerts:\n", tests))
    assert fired == alerts
    assert len(alerts) == 5


def test_promtool_accepts_configuration_and_rules() -> None:
    promtool("check", "config", DEPLOY / "prometheus/prometheus.yml")
    promtool("test", "rules", DEPLOY / "prometheus/rules_test.yml")


@pytest.mark.parametrize("title", EXPRESSIONS)
def test_a_panel_names_what_the_service_exports(title: str, exported: dict[str, frozenset[str]]) -> None:
    for expression in EXPRESSIONS[title]:
        used = check_names(expression, exported)
        assert used
        # Every metric is restricted to the replicas that were picked above the dashboard.
        assert expression.count('instance=~"$instance"') == len(re.findall(r"\bbacksolve_\w+", expression))


def test_every_metric_is_shown(exported: dict[str, frozenset[str]]) -> None:
    text = "\n".join(text for texts in EXPRESSIONS.values() for text in texts)
    shown = {base_name(name) for name in check_names(text, exported)}
    assert shown == {base_name(name) for name in exported}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_has_a_unit_a_description_and_distinct_legends(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert len(set(legends)) == len(legends)
    for target in panel["targets"]:
        grouped = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert grouped <= {word for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for word in by.split(", ")}


def test_panels_tile_the_page() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_promtool_parses_every_panel(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, text in enumerate(text for texts in EXPRESSIONS.values() for text in texts)
    ]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    promtool("check", "rules", path)


def test_grafana_finds_its_files_where_compose_mounts_them() -> None:
    compose = (DEPLOY / "compose.yaml").read_text()
    provider = (DEPLOY / "grafana/provisioning/dashboards/backsolve.yml").read_text()
    source = (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    (folder,) = re.findall(r"path: (\S+)", provider)
    assert f"./grafana/dashboards:{folder}:ro" in compose
    assert f"DEFAULT_HOME_DASHBOARD_PATH: {folder}/backsolve.json" in compose
    assert "./grafana/provisioning:/etc/grafana/provisioning:ro" in compose
    assert "url: http://prometheus:9090" in source
    # Panels ask the data source that is picked above the dashboard, never one by a name of its own.
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}
