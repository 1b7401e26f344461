"""The whole service on a CUDA device."""

import numpy as np
import pytest
import torch

from backsolve import Client
from backsolve.types import Options
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.embedded import EmbeddedTransport
from engine.table import array, numbers, op, poisson

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

DEVICE = "cuda"


def test_a_client_of_an_engine_on_the_device_meets_one_factor_forward_and_backward():
    a, b = array("general", "complex128"), numbers((40,), "complex128", 702_664_119)
    plane = DataPlane(PlaneConfig(device=DEVICE, workers=1))
    try:
        with Client(transport=EmbeddedTransport(plane)) as client:
            assert client.info().device == DEVICE
            solution = client.solve(a, b)
            gradients = client.vjp(a, solution.x, b)
        assert (solution.stats.method, solution.stats.factor_hit, gradients.stats.factor_hit) == ("lu", False, True)
        assert plane.stats()["factorizations"] == 1
        for x, rhs, trans in ((solution.x, b, "N"), (gradients.b, b, "H")):
            np.testing.assert_allclose(x, np.linalg.solve(op(a, trans), rhs), rtol=1e-9, atol=1e-9)
    finally:
        assert plane.close()


def test_a_sparse_system_is_iterated_on_the_device():
    m, b = poisson(20), numbers((400, 2), "float64", 51_330_278)
    plane = DataPlane(PlaneConfig(device=DEVICE, workers=1))
    try:
        with Client(transport=EmbeddedTransport(plane)) as client:
            solution = client.solve_matrix(m, b, Options(method="cg"))
        assert solution.stats.iterations > 0
        assert solution.stats.relative_residual <= 1e-10
    finally:
        assert plane.close()
