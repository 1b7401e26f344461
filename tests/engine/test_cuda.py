"""The dense methods on a CUDA device, held to LAPACK on the CPU in double precision."""

import numpy as np
import pytest
import torch

from backsolve import Client
from backsolve.errors import NotPositiveDefiniteError, SingularMatrixError
from backsolve.types import TRANS, Status
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.embedded import EmbeddedTransport
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, Factor, FactorSpec
from backsolve_service.engine.device import memory
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver
from engine.table import DTYPES, TOLERANCE, array, matrix, numbers, op

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

DEVICE = "cuda"
KINDS = {"lu": "general", "cholesky": "definite"}

each_method = pytest.mark.parametrize("method", KINDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_trans = pytest.mark.parametrize("trans", TRANS)


def factor(method: str, a: np.ndarray) -> Factor:
    """Factorize a full array, `[n, n]` or `[batch, n, n]`, on the device."""
    given, chosen = matrix("dense", a), solver(method)
    return chosen.factorize(
        chosen.analyze(given.pattern), Operand(given), FactorSpec(method, None, given.dtype.name, DEVICE)
    )


def batch(kind: str, dtype: str) -> np.ndarray:
    return np.stack([array(kind, dtype, seed=seed) for seed in (830_174_662, 271_550_983, 604_418_207)])


def close(actual: np.ndarray, a: np.ndarray, b: np.ndarray, trans: str, dtype: str) -> None:
    expected = np.linalg.solve(op(a, trans), b)
    assert actual.dtype == np.dtype(dtype)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


@each_method
@each_dtype
def test_the_factor_lies_on_the_device(method: str, dtype: str):
    made = factor(method, array(KINDS[method], dtype))
    held = made.lu if method == "lu" else made.lower
    assert held.device.type == DEVICE


@each_method
@each_dtype
@each_trans
@pytest.mark.parametrize("k", [1, 3])
def test_agrees_with_lapack(method: str, dtype: str, trans: str, k: int):
    a, b = array(KINDS[method], dtype), numbers((40, k), dtype, 118_093_557)
    got = answer(factor(method, a), b, trans, Controls())
    assert got.statuses == ((Status.OK,) * k,)
    close(got.x, a, b, trans, dtype)


@each_method
@each_dtype
@each_trans
def test_a_batch_agrees_with_lapack(method: str, dtype: str, trans: str):
    a, b = batch(KINDS[method], dtype), numbers((3, 40, 2), dtype, 945_210_386)
    got = answer(factor(method, a), b, trans, Controls())
    assert got.statuses == ((Status.OK,) * 2,) * 3
    close(got.x, a, b, trans, dtype)


def test_a_singular_matrix_is_an_error():
    a = array("general", "float64")
    a[:, 7] = 0
    with pytest.raises(SingularMatrixError) as caught:
        factor("lu", a)
    assert caught.value.details["column"] == "7"


def test_an_indefinite_matrix_is_an_error():
    with pytest.raises(NotPositiveDefiniteError) as caught:
        factor("cholesky", np.diag([4.0, 1.0, -1.0, 2.0]))
    assert caught.value.details["column"] == "2"


def test_of_a_batch_the_singular_system_alone_has_no_answer():
    a, b = batch("general", "float64"), numbers((3, 40, 1), "float64", 330_871_946)
    a[1, :, 7] = 0
    got = answer(factor("lu", a), b, "N", Controls())
    assert [of_system[0] for of_system in got.statuses] == [Status.OK, Status.SINGULAR_NUMERIC, Status.OK]
    assert np.isnan(got.x[1]).all()
    for index in (0, 2):
        close(got.x[index], a[index], b[index], "N", "float64")


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
        close(solution.x, a, b, "N", "complex128")
        close(gradients.b, a, b, "H", "complex128")
    finally:
        assert plane.close()


def test_the_memory_of_the_device_is_read():
    held = torch.empty(1 << 20, dtype=torch.float64, device=DEVICE)
    figures = memory(DEVICE)
    assert held.nbytes <= figures["used"] <= figures["total"]
