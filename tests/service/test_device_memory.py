"""A device's memory as callers meet it: nobody is refused while there is a host. "cpu:0" stands for a device."""

import numpy as np
import pytest

from backsolve import Client
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.embedded import EmbeddedTransport
from backsolve_service.engine import select
from support.systems import dense, laplacian

DEVICE = "cpu:0"
N = 40
FACTOR = 2 * N * N * 8 + N * 4
"""Bytes of L, U and the pivots, and of the matrix beside them."""


@pytest.fixture(scope="module")
def shared():
    """One plane, since its process takes seconds to start; it has room for one factor, and a half."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "check_device", lambda device: None)
        made = DataPlane(PlaneConfig(device=DEVICE, workers=1, device_cache_bytes=FACTOR * 3 // 2))
        yield made
        assert made.close()


@pytest.fixture
def plane(shared):
    """With nothing in its cache."""
    shared._cache.clear()
    return shared


def test_factors_take_turns_on_the_device(plane):
    before = plane.stats()["factorizations"]
    first, second, b = dense(N), 2 * dense(N) + np.eye(N), np.ones(N)
    with Client(transport=EmbeddedTransport(plane)) as client:
        for a in (first, second, first, first, second):
            solution = client.solve(a, b, trans="T")
            np.testing.assert_allclose(a.T @ solution.x, b, rtol=1e-10)
            assert solution.stats.method == "lu"
            assert plane.stats()["cache_bytes_device"] == FACTOR
    # Each was computed once; what left the device lies on the host meanwhile.
    assert plane.stats()["factorizations"] == before + 2
    assert plane.stats()["cache_bytes_factor"] > FACTOR


def test_what_the_device_cannot_hold_is_computed_on_the_host(plane):
    a, b = dense(2 * N), np.ones(2 * N)
    with Client(transport=EmbeddedTransport(plane)) as client:
        solution = client.solve(a, b)
    np.testing.assert_allclose(a @ solution.x, b, rtol=1e-10)
    assert "on the CPU, since cpu:0 has no room" in solution.stats.reason
    assert plane.stats()["cache_bytes_device"] == 0


def test_a_sparse_matrix_makes_room_by_dropping_what_cannot_be_moved(plane):
    b = np.ones(N)
    with Client(transport=EmbeddedTransport(plane)) as client:
        sparse = laplacian(14)
        solution = client.solve(sparse, np.ones(196), method="cg")
        np.testing.assert_allclose(sparse @ solution.x, 1.0, rtol=1e-6)
        assert FACTOR / 2 < plane.stats()["cache_bytes_device"] <= FACTOR * 3 // 2
        client.solve(dense(N), b)
    assert plane.stats()["cache_bytes_device"] == FACTOR
    assert plane.stats()["cache_entries_factor"] == 1
