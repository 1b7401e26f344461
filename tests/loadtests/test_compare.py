"""Two runs are compared figure by figure, beside their noise."""

import copy
import json
import subprocess
import sys

import pytest

from loadtests.compare import compare, markdown


def document():
    noise = dict.fromkeys(("p50", "p90", "p99", "p99.9", "throughput"), 0.1)
    row = {
        "scenario": "fixed",
        "part": "closed",
        "transport": "http",
        "answered": 2000,
        "throughput": 100.0,
        "latency": {"p50": 0.010, "p90": 0.020, "p99": 0.080, "p99.9": 0.1, "max": 0.2},
        "noise": noise,
        "wire_up": 1000.0,
        "wire_down": 1000.0,
        "factorizations": 5,
        "passed": True,
    }
    return {"environment": {"cores": 2, "load_before": 0.1}, "rows": [row, copy.deepcopy(row) | {"transport": "grpc"}]}


def changed(**figures):
    other = copy.deepcopy(document())
    other["environment"]["load_before"] = 3.0
    row = other["rows"][0]
    row["latency"] |= {name: value for name, value in figures.items() if name in row["latency"]}
    row |= {name: value for name, value in figures.items() if name not in row["latency"]}
    return other


def verdicts(before, after):
    return {(c.row[2], c.figure): (pytest.approx(c.ratio), c.verdict) for c in compare(before, after)}


def test_ratios_and_verdicts():
    found = verdicts(document(), changed(p50=0.011, p90=0.030, p99=0.060, throughput=150.0))
    assert found["http", "p50"] == (1.1, "within the noise")
    assert found["http", "p90"] == (1.5, "worse")
    assert found["http", "p99"] == (0.75, "better")
    assert found["http", "throughput"] == (1.5, "better")
    assert verdicts(document(), changed(throughput=70.0))["http", "throughput"] == (0.7, "worse")
    for figure in ("p50", "p90", "p99", "throughput"):
        assert found["grpc", figure] == (1.0, "within the noise")


def test_a_percentile_of_few_answers_is_left_out():
    found = verdicts(document(), changed())
    assert ("http", "p99") in found
    assert ("http", "p99.9") not in found
    assert ("http", "p99") not in verdicts(document(), changed(answered=499))


def test_noise_of_both_runs_counts_and_may_be_unknown():
    loud = changed(p50=0.0125)
    assert verdicts(document(), loud)["http", "p50"][1] == "worse"
    loud["rows"][0]["noise"]["p50"] = 0.3
    (change,) = [c for c in compare(document(), loud) if c.figure == "p50" and c.row[2] == "http"]
    assert change.verdict == "within the noise"
    assert change.noise == pytest.approx((0.1**2 + 0.3**2) ** 0.5)
    loud["rows"][0]["noise"]["p50"] = None
    assert verdicts(document(), loud)["http", "p50"][1] == "of unknown noise"


def test_bytes_on_the_wire_are_exact():
    assert ("http", "wire_up") not in verdicts(document(), changed(wire_up=1010.0))
    assert verdicts(document(), changed(wire_up=2000.0))["http", "wire_up"] == (2.0, "differs")


def test_what_cannot_be_compared_is_said():
    other = changed(passed=False)
    other["environment"]["cores"] = 64
    other["rows"][1]["scenario"] = "steps"
    text = markdown(document(), other)
    assert "fixed: closed (grpc) is in the run before only." in text
    assert "steps: closed (grpc) is in the run after only." in text
    assert "fixed: closed (http) did not pass in the run after" in text
    assert "other machines" in text
    assert "other machines" not in markdown(document(), changed())


def test_the_command(tmp_path):
    for name, content in (("a", document()), ("b", changed(p90=0.030))):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    command = [sys.executable, "-m", "loadtests.compare", str(tmp_path / "a.json")]
    done = subprocess.run([*command, str(tmp_path / "b.json")], capture_output=True, text=True, check=True)
    assert "| fixed: closed | http | p90 | 20.00 ms | 30.00 ms | 1.50 | ± 14 % | **worse** |" in done.stdout
    (tmp_path / "b.json").write_text("{}")
    failed = subprocess.run([*command, str(tmp_path / "b.json")], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "not two load.json" in failed.stderr
