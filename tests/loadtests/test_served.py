"""Short scenarios against a real server: the figures fit each other, the answers are right, the files are written."""

import json

import pytest

from backsolve import Client
from loadtests.compare import markdown as compared
from loadtests.served.dawdlers import Dawdlers
from loadtests.served.picture import draw
from loadtests.served.report import environment, write
from loadtests.served.scenarios import SCENARIOS, Bench
from scripts.local_server import LocalServer

SECONDS = 1.5


@pytest.fixture(scope="module")
def own():
    with LocalServer({"BACKSOLVE_LOG_LEVEL": "error"}) as server:
        yield server


def bench(own, transport, salt=0):
    return Bench(transport, own.http, getattr(own, transport), own, SECONDS, salt=salt)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_the_figures_of_a_real_run_fit_each_other(own, transport, tmp_path):
    closed, opened = SCENARIOS["fixed"].rows(bench(own, transport))
    for row in (closed, opened):
        assert row.passed
        assert row.checked > 0
        assert row.errors == {}
        assert row.steps == row.answered == row.server_codes["OK"]
        assert row.throughput == pytest.approx(row.answered / row.lasted)
        assert row.factorizations == 0
        assert row.uploads == 0
        assert row.hit_ratio == 1
        # b goes up and x comes down, 8 bytes an unknown; the matrix itself never travels.
        assert 8 * 2500 <= row.wire_up < 8 * 2500 + 4096
        assert 8 * 2500 <= row.wire_down < 8 * 2500 + 4096
        assert 0 < row.latency["p50"] <= row.latency["p99"] <= row.latency["max"]
        assert row.rss_start > 0
        assert row.server_cpu > 0
        assert row.generator_cpu > 0
        assert row.health["p99"] > 0
    assert (closed.loop, opened.loop) == ("closed", "open")
    assert opened.rate == pytest.approx(closed.throughput / 2)
    rows = [closed, opened]
    write(rows, environment(), tmp_path)
    text = (tmp_path / "load.md").read_text()
    assert f"| fixed: closed | {transport} | closed | {closed.steps} |" in text
    document = json.loads((tmp_path / "load.json").read_text())
    assert [row["answered"] for row in document["rows"]] == [closed.answered, opened.answered]
    assert "1.00" in compared(document, document)
    assert all(path.stat().st_size > 10_000 for path in draw(rows, tmp_path))


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_ranks_share_one_factorization_a_step(own, transport):
    (row,) = SCENARIOS["ranks"].rows(bench(own, transport, salt={"http": 31, "grpc": 32}[transport]))
    assert row.passed
    assert row.steps >= 8
    # The ranks of a step bring one matrix; the run may end in the middle of a step.
    assert row.factorizations <= row.steps / 8 + 1
    assert row.factorizations >= row.steps // 8 - 1


def test_a_server_that_is_killed_is_met_again():
    with LocalServer({"BACKSOLVE_LOG_LEVEL": "error"}) as own:
        first = own.pid
        (row,) = SCENARIOS["restart"].rows(bench(own, "http"))
        assert own.pid != first
    assert row.passed
    assert row.errors == {}
    assert row.uploads > 0
    assert row.unhealthy > 0
    assert any("no server for" in note for note in row.notes)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_dawdlers_never_end_an_upload(own, transport):
    with Client(own.http) as client:
        before = client.stats()
        dawdlers = Dawdlers(getattr(own, transport), 6, SECONDS)
        dawdlers.run()
        after = client.stats()
    assert dawdlers.begun >= 6
    for level in ("pattern", "matrix"):
        assert after[f"cache_entries_{level}"] == before[f"cache_entries_{level}"]
