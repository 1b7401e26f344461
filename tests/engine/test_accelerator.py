"""Methods of CUDA devices on torch's CPU: the same answers as NumPy's, and few questions to the device."""

import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from backsolve.errors import CancelledError
from backsolve.types import TRANS, Options, Status
from backsolve_service.engine import select
from backsolve_service.engine.accelerator.operator import DeviceOperator
from backsolve_service.engine.accelerator.pattern import analyze
from backsolve_service.engine.accelerator.problem import LOOK
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.certify import measure, reference
from backsolve_service.engine.direct.cudss import handles
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import PRECONDITIONERS, ROWS, solver
from backsolve_service.engine.structure import inspect, inspect_pattern
from engine.table import DTYPES, array, factor_of, matrix, numbers, op, poisson
from support.cudss_model import Model

WAITS = {"aten._local_scalar_dense", "aten._to_copy", "aten.equal", "aten.nonzero", "aten.is_nonzero"}
"""Operations that make the host wait for a CUDA device; a copy to the host is seen as `_to_copy` or `numpy()`."""


class Waits(TorchDispatchMode):
    """Counts operations that would make the host wait, and copies to the host, where a device is a CUDA device."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).rpartition(".")[0]
        if name in WAITS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fetches(monkeypatch):
    """How often numbers went to the host."""
    from backsolve_service.engine.accelerator import cg, krylov, place

    seen = []

    def counted(tensor):
        seen.append(tuple(tensor.shape))
        return place.fetch(tensor)

    for module in (cg, krylov):
        monkeypatch.setattr(module, "fetch", counted)
    return seen


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("k", [1, 7])
def test_products(layout, dtype, trans, k):
    a = array("general", dtype)
    m = matrix(layout, a)
    rows = numbers((k, 40), "complex128" if np.dtype(dtype).kind == "c" else "float64", 771_230_955)
    operator = DeviceOperator(Operand(m), 0, analyze(m.pattern, hermitian=False), "cpu")
    got = operator.product(torch.from_numpy(rows), trans).numpy()
    np.testing.assert_allclose(got, (op(a, trans) @ rows.T).T, rtol=1e-12, atol=1e-12)


def test_an_operator_owns_its_numbers():
    m = matrix("csr", array("general", "float64"))
    operator = DeviceOperator(Operand(m), 0, analyze(m.pattern, hermitian=False), "cpu")
    rows = torch.ones(1, 40, dtype=torch.float64)
    before = operator.product(rows, "T")
    m.values[:] = 0
    torch.testing.assert_close(operator.product(rows, "T"), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32"])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("first", [False, True])
def test_cg_takes_the_steps_that_numpy_takes(dtype, k, first):
    m = poisson(17, shift=0.01, dtype=dtype)
    b = numbers((17 * 17, k), dtype, 208_114_733)
    x0 = numbers(b.shape, dtype, 61_200_419) if first else None
    host, device = (
        answer(factor_of("cg", m, "jacobi", on_device=place), b, "N", Controls(x0=x0)) for place in (False, True)
    )
    assert device.statuses == host.statuses == ((Status.OK,) * k,)
    assert abs(device.iterations[0] - host.iterations[0]) <= 1
    assert host.iterations[0] > 2 * LOOK
    scale = np.abs(host.x).max()
    np.testing.assert_allclose(device.x, host.x, rtol=0, atol=(1e-5 if dtype == "float32" else 1e-8) * scale)


@pytest.mark.parametrize("limit", [1, LOOK - 1, LOOK, LOOK + 3])
def test_cg_stops_at_the_limit(limit):
    m = poisson(17)
    b = numbers((17 * 17, 2), "float64", 5_519_330)
    host, device = (
        answer(factor_of("cg", m, "jacobi", on_device=place), b, "N", Controls(maxiter=limit))
        for place in (False, True)
    )
    assert device.statuses == host.statuses == ((Status.MAX_ITER,) * 2,)
    assert device.iterations == host.iterations == (limit,)
    np.testing.assert_allclose(device.x, host.x, rtol=1e-9, atol=1e-11)


def test_cg_says_stagnation_where_numpy_does():
    m = poisson(17)
    b = numbers((17 * 17, 2), "float64", 14_227_806)
    host, device = (
        factor_of("cg", m, "jacobi", on_device=place).solve(b, "N", Controls(rtol=1e-17)) for place in (False, True)
    )
    assert device.statuses == host.statuses == (Status.STAGNATION,)
    # Both begin anew from the true residual, and as often.
    assert device.iterations[0] == pytest.approx(host.iterations[0], rel=0.15)


def test_a_column_that_is_done_does_not_move_while_others_go_on():
    m = poisson(12)
    b = numbers((144, 3), "float64", 90_833_127)
    alone = answer(factor_of("cg", m, "jacobi", on_device=True), b[:, :1].copy(), "N", Controls())
    # The other columns need more steps: one is the smoothest that there is, one is scaled.
    together = answer(factor_of("cg", m, "jacobi", on_device=True), b, "N", Controls())
    np.testing.assert_allclose(together.x[:, :1], alone.x, rtol=1e-11, atol=1e-13)


def test_the_host_waits_once_in_some_iterations(fetches):
    m = poisson(30)
    b = numbers((900, 4), "float64", 44_170_986)
    f = factor_of("cg", m, "jacobi", on_device=True)
    with Waits() as waits:
        got = f.solve(b, "N", Controls())
    iterations = got.iterations[0]
    assert iterations > 5 * LOOK
    # One look in so many iterations, one judgement for each column at most, then the figures and x.
    looks = 1 + -(-iterations // LOOK)
    assert len(fetches) <= looks + 4 + 2
    assert fetches[-1] == (900, 4)
    assert sum(1 for shape in fetches if shape == (900, 4)) == 1
    assert waits.seen["aten._local_scalar_dense"] == waits.seen["aten.nonzero"] == waits.seen["aten.equal"] == 0


def test_what_counts_waits_sees_them():
    with Waits() as waits:
        bool(torch.ones(3).sum() > 1)
    assert waits.seen["aten._local_scalar_dense"] == 1


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trans", TRANS)
def test_the_proof_of_the_device_is_that_of_the_host(layout, dtype, trans):
    a = array("definite", dtype)
    m, b = matrix(layout, a), numbers((40, 3), dtype, 309_556_187)
    b[:, 2] = 0
    outcome = factor_of("cg", m, "jacobi", on_device=True).solve(b, trans, Controls())
    operand = Operand(m)
    expected = measure(operand, reference(operand, b[None], trans), outcome.x[None], trans)
    for name in ("relative", "backward", "condition"):
        got = getattr(outcome.proof, name)
        # Residuals are rounding noise where x is exact to the last digit: only their size is reproducible.
        np.testing.assert_allclose(got, getattr(expected, name), rtol=0.2, atol=1e-15)


def test_a_wrong_answer_is_proved_wrong(monkeypatch):
    """The proof is of x as it is returned: what spoils x on its way cannot come out as good."""
    from backsolve_service.engine.accelerator import krylov

    m, b = poisson(8), numbers((64, 1), "float64", 70_011_243)
    shifted = krylov._shifted
    monkeypatch.setattr(krylov, "_shifted", lambda rows, powers: shifted(rows, powers) * 1.001)
    got = answer(factor_of("cg", m, "jacobi", on_device=True), b, "N", Controls())
    assert got.statuses == ((Status.STAGNATION,),)


def test_a_cancelled_solve_stops_at_the_next_look():
    asked = []

    def cancelled():
        asked.append(None)
        return len(asked) > 2

    m = poisson(30)
    with pytest.raises(CancelledError):
        factor_of("cg", m, "none", on_device=True).solve(np.ones((900, 1)), "N", Controls(cancelled=cancelled))
    assert len(asked) == 3


@pytest.mark.parametrize(("preconditioner", "device"), [("none", "cuda"), ("jacobi", "cuda"), (None, "cuda")])
def test_a_cuda_device_is_chosen_where_method_and_preconditioner_have_one(monkeypatch, preconditioner, device):
    monkeypatch.setattr(select, "check_device", lambda name: None)
    m = poisson(5)
    operand = Operand(m)
    structure = inspect(inspect_pattern(m.pattern), operand)
    options = Options(method="cg", preconditioner=preconditioner)
    assert select.choose(structure, options, has_x0=False, device="cuda").spec.device == device
    monkeypatch.setitem(PRECONDITIONERS, "jacobi", replace(PRECONDITIONERS["jacobi"], cuda=False))
    chosen = select.choose(structure, options, has_x0=False, device="cuda").spec
    assert chosen.device == ("cuda" if preconditioner == "none" else "cpu")
    assert solver("cg", chosen.device) is solver("cg", "cuda" if preconditioner == "none" else "cpu")


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.cuda and row.home == "thread"])
def test_every_factor_on_a_device_says_so_and_moves_if_it_says_it_can(name, monkeypatch):
    """ "cpu:0" stands for a device."""
    row = ROWS[name]
    if name == "cudss":
        model = Model()
        monkeypatch.setattr(handles, "load", lambda: model.library)
        monkeypatch.setattr(handles, "_own", threading.local())
    a = array({"definite": "definite", "triangular": "triangular"}.get(row.needs, "general"), "float64")
    for layout in row.cuda:
        m, b = matrix(layout, a), numbers((40, 2), "float64", 420_988_317)
        chosen = solver(name, "cpu:0")
        spec = FactorSpec(name, "jacobi" if "preconditioner" in row.options else None, "float64", "cpu:0")
        f = chosen.factorize(chosen.analyze(m.pattern, spec), Operand(m), spec)
        assert f.device_nbytes == f.nbytes > 0
        here = f.moved("cpu")
        if not f.movable:
            assert here is f
            continue
        # On the device the matrix lies beside the factor, for residuals; on the host it is there anyway.
        assert (here.device_nbytes, here.nbytes) == (0, f.nbytes - m.values.nbytes)
        assert here.moved("cpu:0").nbytes == f.nbytes
        np.testing.assert_array_equal(here.solve(b, "T", Controls()).x, f.solve(b, "T", Controls()).x)
