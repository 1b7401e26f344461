"""What `auto` does with cuDSS where there is a device: "cpu:0" stands for it, a model for the library there."""

import numpy as np
import pytest

from backsolve import Client
from backsolve.errors import NotSupportedError
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.embedded import EmbeddedTransport
from backsolve_service.engine import candidates, select
from backsolve_service.engine.direct.cudss import library
from backsolve_service.engine.direct.cudss.constants import CudssStatus, Phase
from support.systems import laplacian

DEVICE = "cpu:0"
N = 400
BUDGET = N * N * 8 * 3 // 2
"""Of the model's factors, which are full, one fits, and not two."""

MODEL = """
import pathlib
from backsolve_service.engine.direct.cudss import handles
from support.cudss_model import Model


class Told(Model):
    def cudssExecute(self, handle, phase, *rest):
        with open({phases!r}, "a") as told:
            told.write(str(phase) + " ")
        refuse = pathlib.Path({refuse!r})
        if phase == 4 and refuse.exists():
            return int(refuse.read_text())
        return super().cudssExecute(handle, phase, *rest)


handles.load = lambda model=Told(): model.library
"""
"""Run at the start of a worker's process: the model, whose phases are told in one file; while there is another,
factorizations end with the status in it."""


class Device:
    """A plane with a device, and what the library of its process is asked."""

    def __init__(self, plane, folder):
        self.plane, self.client = plane, Client(transport=EmbeddedTransport(plane))
        self._phases, self.refuse = folder / "phases", folder / "refuse"

    def phases(self):
        """Since the last time they were asked for."""
        seen = [Phase(int(word)) for word in self._phases.read_text().split()] if self._phases.exists() else []
        self._phases.unlink(missing_ok=True)
        return seen

    def solve(self, a, **options):
        solution = self.client.solve(a, np.ones(N), **options)
        np.testing.assert_allclose(a @ solution.x, 1.0, rtol=1e-8)
        return solution.stats


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One plane, since its process takes seconds to start."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "sitecustomize.py").write_text(MODEL.format(phases=str(folder / "phases"), refuse=str(folder / "refuse")))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(select, "check_device", lambda device: None)
        patch.setattr(library, "installed", lambda: True)
        patch.setattr(candidates, "DEVICE_ROWS", N)
        plane = DataPlane(PlaneConfig(device=DEVICE, workers=1, device_cache_bytes=BUDGET))
        yield Device(plane, folder)
        assert plane.close()


@pytest.fixture
def device(shared):
    """With nothing in its cache, and a library that refuses nothing."""
    shared.plane._cache.clear()
    shared.refuse.unlink(missing_ok=True)
    shared.phases()
    return shared


def test_a_large_sparse_matrix_is_factorized_there(device):
    stats = device.solve(laplacian(20))
    assert stats.method == "cudss"
    assert stats.reason == "sparse and large, with a device at hand: LU by cuDSS; on cpu:0"
    assert Phase.CUDSS_PHASE_FACTORIZATION in device.phases()
    assert device.solve(laplacian(20)).factor_hit
    assert device.phases() == [Phase.CUDSS_PHASE_SOLVE]


def test_new_values_take_the_place_of_what_the_budget_drops(device):
    a = laplacian(20)
    device.solve(a)
    device.phases()
    for step in range(2, 5):
        assert device.solve(step * a).symbolic_hit
        phases = device.phases()
        assert Phase.CUDSS_PHASE_REFACTORIZATION in phases
        assert Phase.CUDSS_PHASE_FACTORIZATION not in phases


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (CudssStatus.CUDSS_STATUS_ALLOC_FAILED, "cudss on cpu:0 has no room: sparse: LU"),
        (CudssStatus.CUDSS_STATUS_NOT_SUPPORTED, "cudss on cpu:0 cannot do it: sparse: LU"),
    ],
)
def test_what_cannot_be_had_there_is_factorized_on_the_host(device, status, why):
    device.refuse.write_text(str(int(status)))
    a = 3 * laplacian(20)
    stats = device.solve(a)
    assert stats.method == "superlu"
    assert stats.reason.startswith(why)
    device.phases()
    assert device.solve(a).factor_hit
    assert not device.phases()  # nor is it tried again with every call


def test_a_caller_who_asked_by_name_hears_why(device):
    device.refuse.write_text(str(int(CudssStatus.CUDSS_STATUS_NOT_SUPPORTED)))
    with pytest.raises(NotSupportedError, match="use method 'superlu'"):
        device.solve(5 * laplacian(20), method="cudss")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"method": "minres"}, "asked for by name; on the CPU: minres has no form for a device"),
        ({"method": "cholesky"}, "on the CPU: cholesky of sparse matrices has no form for a device"),
        ({"method": "cg", "preconditioner": "ic"}, "on the CPU: preconditioner ic has no form for a device"),
        ({"method": "cg", "recycle": 4}, "on the CPU: what is recycled is kept in the host's memory"),
        ({"method": "cg", "preconditioner": "amg"}, "asked for by name; on cpu:0"),
        ({"method": "gmres"}, "asked for by name; on cpu:0"),
    ],
)
def test_the_certificate_says_where_it_was_computed(device, options, why):
    solution = device.client.solve(laplacian(20), np.ones(N), **{"rtol": 1e-10, **options})
    assert why in solution.stats.reason
    assert solution.stats.method == options["method"]
