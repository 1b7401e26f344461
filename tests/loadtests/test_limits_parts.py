"""What the parts of the limits conclude from what they see; that they see what a server does."""

import http.server
import os
import threading
import time

import numpy as np
import pytest

from backsolve import Client
from loadtests.limits import health, idle, soak
from loadtests.limits.lean import Generator
from loadtests.limits.mix import serve_mix
from loadtests.micro.ways import laplacian
from loadtests.training.callers import wrong
from scripts.local_server import LocalServer


def soaked(slope, noise, spells=60, checked=5, bad=0):
    requests = 100.0 * np.arange(1, spells + 1)
    ripple = noise * np.random.default_rng(640_918_257).standard_normal(spells)
    return soak.Soaked(list(requests), list(3e8 + slope * requests + ripple), bad, checked)


@pytest.mark.parametrize(("slope", "met"), [(0.0, True), (-300.0, True), (300.0, False)])
def test_growth_is_told_from_noise(slope, met):
    found = soak.judge({"http": soaked(0.0, 5e4), "grpc": soaked(slope, 5e4)}, 6000)
    assert found.faults == []
    rest, grpc = found.targets
    assert rest.met
    assert grpc.met is met
    told = found.data["grpc"]
    assert told["low"] <= told["slope"] <= told["high"]
    assert told["slope"] == pytest.approx(slope, abs=100)
    assert (told["low"] > 0) is not met


def test_a_soak_of_too_little_or_with_wrong_answers_is_a_fault():
    assert len(soak.judge({"http": soaked(0.0, 1e4, bad=1)}, 6000).faults) == 1
    assert len(soak.judge({"http": soaked(0.0, 1e4, checked=0)}, 6000).faults) == 1
    short = soak.judge({"http": soaked(0.0, 1e4, spells=8)}, 6000)
    assert short.targets == []
    assert "700 requests in 8 looks" in short.faults[0]
    assert "700 of 6000" in short.notes[0]


def test_a_soak_asks_as_often_as_it_says_through_a_cache_that_is_full(monkeypatch):
    monkeypatch.setattr(soak, "SPELLS", 4)
    monkeypatch.setattr(soak, "WARM", 70)
    with LocalServer({"BACKSOLVE_LOG_LEVEL": "error", **soak.SETTINGS}) as server, Generator(None) as generator:
        seen = soak.soak(server, generator, ("http", "grpc"), 2000, 60.0)
        with Client(server.http) as client:
            counted = client.stats()
    every = [*seen["http"].requests, *seen["grpc"].requests]
    assert every == sorted(every)
    assert every[-1] <= counted["solves"] + counted["adjoint_solves"]
    assert counted["evictions"] > 0
    for one in seen.values():
        assert one.wrong == 0 < one.checked
        assert len(one.sizes) == len(one.requests) > 0
        assert min(one.sizes) > 1e7


def test_a_soak_ends_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(soak, "WARM", 1)
    with LocalServer({"BACKSOLVE_LOG_LEVEL": "error"}) as server, Generator(None) as generator:
        began = time.monotonic()
        soak.soak(server, generator, ("http",), 10**9, 0.5)
        assert time.monotonic() - began < 60


def test_health_is_probed_while_the_work_lasts_and_failures_are_counted():
    release = threading.Event()
    asked = {"good": 0, "bad": 0}

    def good():
        asked["good"] += 1
        if asked["good"] == 20:
            release.set()

    def bad():
        asked["bad"] += 1
        raise OSError("no answer")

    took, seen = health.watch(lambda: release.wait(60) and 12.5, {"good": good, "bad": bad})
    assert took == 12.5
    assert len(seen["good"].seconds) == asked["good"] >= 20
    assert seen["bad"].failed == asked["bad"] > 0
    assert seen["bad"].seconds == []


def test_a_probe_that_hangs_makes_those_behind_it_late():
    calls = []
    release = threading.Event()

    def probe():
        calls.append(None)
        if len(calls) == 1:
            time.sleep(10 * health.EVERY_SECONDS)
        if len(calls) == 12:
            release.set()

    _, seen = health.watch(lambda: release.wait(60), {"one": probe})
    # The second was due 20 ms after the first, which took 200 ms.
    assert seen["one"].seconds[1] >= 9 * health.EVERY_SECONDS
    assert seen["one"].percentile(100) == pytest.approx(1e3 * max(seen["one"].seconds))


def test_work_that_fails_is_heard():
    def fail():
        raise ValueError("it did not work")

    with pytest.raises(ValueError, match="did not work"):
        health.watch(fail, {})


def test_health_of_a_server_is_seen_during_both_kinds_of_solves(monkeypatch):
    from loadtests.limits.part import Asked

    monkeypatch.setattr(health, "MOST_ROWS", 1500)  # the other process has its own
    found = health.measure(Asked(seconds=0.5))
    assert found.faults == []
    assert len(found.targets) == 4
    assert {target.bound for target in found.targets} == {10.0}
    for name in health.SOLVES:
        for way in ("http", "grpc"):
            seen = found.data[name][way]
            assert 0 < seen["p50"] <= seen["p99"] <= seen["max"]
        assert found.data[name]["seconds"] > 0


def test_a_caller_that_fails_says_why():
    with pytest.raises(RuntimeError, match="failed"), health.Caller("http://127.0.0.1:9", health.factorization, 0.001):
        pass


def test_idling_is_a_share_of_the_time_and_polls_are_asked_for():
    paths = []

    class Page(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            paths.append(self.path)
            self.send_response(200 if self.path != "/bad" else 500)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        idle.share(os.getpid(), 0.2, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert paths == ["/metrics", "/readyz"]

    stop = threading.Event()
    burner = threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)])
    burner.start()
    busy = idle.share(os.getpid(), 0.5)
    stop.set()
    burner.join()
    assert 0.02 < busy < 3


def test_the_mix_uses_what_a_server_has():
    with LocalServer({"BACKSOLVE_LOG_LEVEL": "error"}) as server:
        calls = serve_mix({"http": server.http, "grpc": server.grpc}, rounds=1)
        with Client(server.http) as client:
            counted = client.stats()
    assert counted["solves"] + counted["adjoint_solves"] == calls == 24
    assert counted["cache_bytes"] > 2**20


def test_the_crowds_answers_are_checked_by_their_residuals():
    A = laplacian(6)
    sides = np.random.default_rng(507_219_884).standard_normal((2, 2, A.shape[0]))
    dense = A.toarray()
    right = [(which, np.linalg.solve(dense, b), np.linalg.solve(dense.T, g)) for which, (b, g) in enumerate(sides)]
    assert wrong(A, sides, right) == 0
    (_, x, adjoint), other = right
    assert wrong(A, sides, [(0, x + 1e-6, adjoint), (0, x, adjoint + 1e-6), other]) == 2
    assert wrong(A, sides, [(1, x, adjoint)]) == 1
