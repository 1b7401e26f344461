"""What calls under way hold can be seen from outside, and is given back however they end."""

import gc
import threading
import weakref

import numpy as np
import pytest
from scipy.sparse import csr_array

from backsolve.errors import DeadlineError, SingularMatrixError
from backsolve_service.cache.entries import MatrixEntry
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from support.factors import held_up, until
from support.systems import convection

IN_USE = ("calls_inflight", "queue_depth", "queue_running", "queue_bytes", "cache_bytes_reserved", "cache_pinned")


@pytest.fixture
def plane():
    made = DataPlane(PlaneConfig(workers=1))
    yield made
    made.close()


def held(plane):
    return {name: plane.stats()[name] for name in IN_USE}


def client_of(plane):
    from backsolve import Client
    from backsolve_service.embedded import EmbeddedTransport

    return Client(transport=EmbeddedTransport(plane))


def test_a_call_that_waits_is_seen_and_one_that_ended_is_not(plane):
    a, b = convection(8), np.ones(64)
    client = client_of(plane)
    client.solve(a, b)
    assert set(held(plane).values()) == {0}
    answers = []
    with held_up(plane._scheduler):
        waiting = threading.Thread(target=lambda: answers.append(client.solve(a, b).x))
        waiting.start()
        until(lambda: held(plane)["queue_depth"] == 1)
        seen = held(plane)
        assert seen["calls_inflight"] == 1
        assert seen["queue_running"] == 2, "what holds up both threads of the worker"
        assert seen["queue_bytes"] == b.nbytes
        assert seen["cache_pinned"] == 1
    waiting.join()
    np.testing.assert_allclose(a @ answers[0], b, rtol=1e-10)
    until(lambda: set(held(plane).values()) == {0})


def test_a_factorization_that_waits_has_reserved_its_memory(plane):
    a = convection(8)
    client = client_of(plane)
    with held_up(plane._scheduler):
        waiting = threading.Thread(target=lambda: client.solve(a, np.ones(64), method="superlu"))
        waiting.start()
        until(lambda: held(plane)["queue_depth"] == 1)
        assert held(plane)["cache_pinned"] >= 1
    waiting.join()
    until(lambda: set(held(plane).values()) == {0})


def test_callers_who_fail_or_leave_hold_nothing(plane):
    client = client_of(plane)
    with pytest.raises(SingularMatrixError):
        client.solve(np.zeros((3, 3)), np.ones(3), method="lu")
    a = convection(9)
    with held_up(plane._scheduler), pytest.raises(DeadlineError):
        client.solve(a, np.ones(81), timeout=0.1)
    until(lambda: set(held(plane).values()) == {0})


@pytest.mark.parametrize("method", ["lu", "rslab"])
def test_what_leaves_the_cache_leaves_memory_without_the_garbage_collector(monkeypatch, method):
    """Until the collector came, tens of matrices that the budget no longer counted would stay."""
    seen = []
    made = MatrixEntry.__init__

    def watched(self, *arguments, **named):
        made(self, *arguments, **named)
        seen.append(weakref.ref(self))

    monkeypatch.setattr(MatrixEntry, "__init__", watched)
    n = 130  # too large to be factorized on the caller's thread
    rng = np.random.default_rng(20)
    plane = DataPlane(PlaneConfig(workers=1, cache_bytes=3 << 20))
    client = client_of(plane)
    gc.collect()
    gc.disable()
    try:
        for _ in range(30):
            a = rng.standard_normal((n, n)) + n * np.eye(n)
            client.solve(a if method == "lu" else csr_array(a), np.ones(n), method=method)
        with pytest.raises(SingularMatrixError):
            client.solve(np.zeros((n, n)), np.ones(n), method="lu")
        held = plane.stats()["cache_entries_matrix"]
        assert 0 < held < 20
        until(lambda: sum(entry() is not None for entry in seen) <= held)
    finally:
        gc.enable()
        plane.close()
