"""Each device has a process of its own, which ends when the device fails; "cpu:0" stands for a device here."""

from pathlib import Path

import numpy as np
import pytest

from backsolve.errors import InternalError
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.operand import Operand
from backsolve_service.observer import Silent
from backsolve_service.scheduling.process import ProcessLostError, ProcessWorker
from backsolve_service.scheduling.scheduler import Scheduler
from backsolve_service.scheduling.worker import FactorLostError, ThreadWorker
from support.factors import PATIENCE, caller, solved_by
from support.systems import dense

DEVICE = "cpu:0"

FAILING = """
import pathlib
import backsolve_service.engine.direct.dense_factor as dense_factor

solve = dense_factor.DenseFactor.solve


def failing(factor, *arguments):
    mark = pathlib.Path({mark!r})
    mark.with_suffix(".place").write_text(factor.device)
    if mark.exists():
        raise RuntimeError("CUDA error: " + mark.read_text())
    return solve(factor, *arguments)


dense_factor.DenseFactor.solve = failing
"""
"""Run at the start of a worker's process: its solves fail as a broken device's do while a file is there, and tell on
which device they ran in another."""


class Heard(Silent):
    def __init__(self):
        self.restarts = []

    def restarted(self, reason):
        self.restarts.append(reason)


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "broken"
    (tmp_path / "sitecustomize.py").write_text(FAILING.format(mark=str(path)))
    monkeypatch.syspath_prepend(tmp_path)
    return path


@pytest.fixture
def scheduler(mark):
    one = Scheduler(1, 64, 1 << 30, Heard())
    yield one
    assert one.close(PATIENCE)


def build(scheduler, device, a):
    spec = FactorSpec("lu", None, "float64", device)
    operand = Operand(Matrix(DensePattern(a.shape), a))
    symbolic = scheduler.order_analysis(spec, operand.pattern).result(PATIENCE).value
    return scheduler.order_factor(symbolic, operand, spec).result(PATIENCE).value


def solve(scheduler, ref, b):
    return solved_by(scheduler, ref, b, "N", Controls(), caller()).answer.x


def test_factors_move_and_a_failed_device_ends_its_process_and_nothing_else(scheduler, mark):
    a, b = dense(12), np.ones((12, 1))
    ref, same, here = (build(scheduler, *way) for way in ((DEVICE, a), (DEVICE, 2 * a), ("cpu", a)))
    assert same.worker is ref.worker
    assert isinstance(ref.worker, ProcessWorker)
    assert isinstance(here.worker, ThreadWorker)
    np.testing.assert_allclose(a @ solve(scheduler, ref, b), b, rtol=1e-12)
    first = ref.worker.pid

    for place in ("cpu", DEVICE):
        scheduler.move(ref, place)
        np.testing.assert_allclose(a @ solve(scheduler, ref, b), b, rtol=1e-12)
        assert mark.with_suffix(".place").read_text() == place
    assert (ref.n, ref.m, ref.note) == (here.n, here.m, here.note) == (12, 12, None)
    # L, U and pivots, and on a device the matrix beside them.
    assert (ref.device_nbytes, ref.movable) == (12 * 12 * 8 + 12 * 4 + a.nbytes, True)
    assert (here.device_nbytes, here.nbytes) == (0, ref.device_nbytes - a.nbytes)
    assert ref.nbytes == ref.device_nbytes + a.nbytes  # the process has its own copy of the values

    mark.write_text("invalid argument")  # spoils a call, not the context
    with pytest.raises(RuntimeError, match="invalid argument"):
        solve(scheduler, ref, b)
    assert ref.worker.pid == first

    mark.write_text("an illegal memory access was encountered")
    with pytest.raises(ProcessLostError, match=r"ended because its device failed.*use device 'cpu'") as caught:
        solve(scheduler, ref, b)
    assert isinstance(caught.value, InternalError)
    mark.unlink()
    np.testing.assert_allclose(a @ solve(scheduler, here, b), b, rtol=1e-12)
    with pytest.raises(FactorLostError):
        solve(scheduler, ref, b)
    again = build(scheduler, DEVICE, a)
    np.testing.assert_allclose(a @ solve(scheduler, again, b), b, rtol=1e-12)
    assert again.worker is ref.worker
    assert again.worker.pid not in (None, first)
    assert scheduler._observer.restarts == ["device"]
