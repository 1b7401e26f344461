"""New values on a pattern take the place of a factor that was dropped, and never of one that is held; on a model."""

import gc
import threading

import numpy as np
import pytest
import torch

from backsolve.errors import DeviceOutOfMemoryError, SingularMatrixError
from backsolve.types import TRANS, Status
from backsolve_service.engine import spare
from backsolve_service.engine.accelerator.faults import DeviceFaultError
from backsolve_service.engine.accelerator.place import working
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.direct.cudss import handles
from backsolve_service.engine.direct.cudss.constants import CudssStatus, MatrixType, Phase
from backsolve_service.engine.direct.cudss.solver import Cudss
from backsolve_service.engine.operand import Operand
from engine.table import TOLERANCE, array, matrix, numbers, op
from support.cudss_model import Model

ANALYSIS, FACTORIZATION = Phase.CUDSS_PHASE_ANALYSIS, Phase.CUDSS_PHASE_FACTORIZATION
AGAIN, SOLVE = Phase.CUDSS_PHASE_REFACTORIZATION, Phase.CUDSS_PHASE_SOLVE


@pytest.fixture
def model(monkeypatch):
    made = Model()
    monkeypatch.setattr(handles, "load", lambda: made.library)
    monkeypatch.setattr(handles, "_own", threading.local())
    spare.give_up("cpu")
    yield made
    spare.give_up("cpu")


class Sequence:
    """Values that follow each other on the pattern of `a`; the phases of each are looked at alone."""

    def __init__(self, model, a):
        self.model, self.solver = model, Cudss()
        self.spec = FactorSpec("cudss", None, a.dtype.name, "cpu")
        self.symbolic = self.solver.analyze(matrix("csr", a).pattern, self.spec)

    def factor(self, a):
        self.model.phases.clear()
        return self.solver.factorize(self.symbolic, Operand(matrix("csr", a)), self.spec)


def others(a, by=0.3, seed=508_113_276):
    """Other values where `a` has some; Hermitian where it is."""
    with np.errstate(all="ignore"):
        moved = np.where(a != 0, 1 + by * numbers(a.shape, "float64", seed), 0)
    return (a * (moved + moved.swapaxes(-1, -2)) / 2).astype(a.dtype)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("structure", ["general", "indefinite", "definite"])
def test_a_dropped_factor_leaves_its_analysis_to_the_next(model, structure, dtype):
    a = array(structure, dtype)
    steps, b = Sequence(model, a), numbers((40, 2), dtype, 730_115_902)
    f = steps.factor(a)
    assert (model.phases, f.pivoting) == ([ANALYSIS, FACTORIZATION, SOLVE], "new")
    objects = len(model.objects)
    for step in range(3):
        del f
        now = others(a, by=0.02, seed=step + 61_205)
        f = steps.factor(now)
        assert (model.phases, f.pivoting) == ([AGAIN, SOLVE], "kept")
        for trans in TRANS:
            got = answer(f, b, trans, Controls())
            assert got.statuses == ((Status.OK,) * 2,)
            expected = np.linalg.solve(op(now, trans), b)
            np.testing.assert_allclose(got.x, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())
    gc.collect()
    assert len(model.objects) == objects


def test_a_batch_is_refactorized_as_one(model):
    a = np.stack([array("general", "float64"), 3 * array("general", "float64")])
    steps, b = Sequence(model, a), numbers((2, 40, 1), "float64", 3_118_405)
    f = steps.factor(a)
    del f
    now = others(a, by=0.02)
    f = steps.factor(now)
    assert model.phases == [AGAIN, SOLVE]
    np.testing.assert_allclose(answer(f, b, "H", Controls()).x, np.linalg.solve(op(now, "H"), b), rtol=1e-9)


def test_what_is_held_is_not_overwritten(model):
    a, b = array("general", "float64"), numbers((40, 1), "float64", 92_337_105)
    steps = Sequence(model, a)
    first = steps.factor(a)
    second = steps.factor(2 * a)
    assert model.phases == [ANALYSIS, FACTORIZATION, SOLVE]
    del second
    third = steps.factor(3 * a)
    assert model.phases == [AGAIN, SOLVE]
    for f, scale in ((first, 1.0), (third, 3.0)):
        np.testing.assert_allclose(answer(f, b, "N", Controls()).x, np.linalg.solve(scale * a, b), rtol=1e-9)


def test_kept_pivots_that_are_bad_now_are_chosen_anew(model):
    """On the diagonal everything is small now, where it was large before."""
    a = array("general", "float64")
    now = a.copy()
    now[np.diag_indices(40)] = 1e-13
    now[np.arange(40), np.arange(40)[::-1]] += 9.0
    a[now != 0] += 1e-300  # one pattern
    steps, b = Sequence(model, a), numbers((40, 1), "float64", 41_980_233)
    f = steps.factor(a)
    del f
    f = steps.factor(now)
    assert model.phases[:4] == [AGAIN, SOLVE, ANALYSIS, FACTORIZATION]
    assert f.pivoting == "refused"
    np.testing.assert_allclose(answer(f, b, "T", Controls()).x, np.linalg.solve(now.T, b), rtol=1e-8, atol=1e-10)


def test_a_singular_matrix_is_still_an_error(model):
    a = array("general", "float64")
    steps = Sequence(model, a)
    f = steps.factor(a)
    del f
    now = a.copy()
    now[7] = 0 * a[7]
    values = matrix("csr", a)
    values.values[:] = now[a != 0]
    with pytest.raises(SingularMatrixError):
        steps.solver.factorize(steps.symbolic, Operand(values), steps.spec)


def test_what_is_no_longer_definite_is_told_so(model):
    """The kept factor is of a definite kind: its `INFO` refuses, and the next plan factorizes."""
    a = array("definite", "float64")
    steps, b = Sequence(model, a), numbers((40, 1), "float64", 5_506_127)
    f = steps.factor(a)
    del f
    now = a.copy()
    now[0, 1:] *= 1e4
    now[1:, 0] *= 1e4
    f = steps.factor(now)
    assert model.phases[0] is AGAIN
    assert (f.plan.kind, f.pivoting) == (MatrixType.CUDSS_MTYPE_SYMMETRIC, "refused")
    np.testing.assert_allclose(answer(f, b, "N", Controls()).x, np.linalg.solve(now, b), rtol=1e-8)


@pytest.mark.parametrize("what", ["pattern", "dtype", "batch", "kind"])
def test_only_what_is_prepared_alike_is_taken(model, what):
    a = array("definite", "float64")
    steps = Sequence(model, a)
    f = steps.factor(a)
    del f
    if what == "pattern":
        steps = Sequence(model, array("general", "float64"))
        now = array("general", "float64")
    else:
        skew = a + np.triu(a, 1)
        now = {"dtype": a.astype(np.float32), "batch": np.stack([a, a]), "kind": skew}[what]
    f = steps.factor(now)
    assert AGAIN not in model.phases
    assert f.pivoting == "new"


def test_a_refactorization_that_cannot_be_had_is_a_factorization(model):
    a, b = array("general", "float64"), np.ones((40, 1))
    for status in (CudssStatus.CUDSS_STATUS_NOT_SUPPORTED, CudssStatus.CUDSS_STATUS_INVALID_VALUE):
        steps = Sequence(model, a)
        f = steps.factor(a)
        del f
        model.fail[AGAIN] = status
        f = steps.factor(2 * a)
        assert model.phases == [AGAIN, ANALYSIS, FACTORIZATION, SOLVE]
        np.testing.assert_allclose(answer(f, b, "N", Controls()).x, np.linalg.solve(2 * a, b), rtol=1e-9)
        del f


def test_a_fault_of_the_device_is_one(model):
    a = array("general", "float64")
    steps = Sequence(model, a)
    f = steps.factor(a)
    del f
    model.fail[AGAIN] = CudssStatus.CUDSS_STATUS_EXECUTION_FAILED
    with pytest.raises(DeviceFaultError):
        steps.factor(2 * a)


def test_what_is_kept_goes_before_factors_go_to_the_host(model):
    a, general = array("definite", "float64"), array("general", "float64")
    f = Sequence(model, a).factor(a)
    del f
    steps = Sequence(model, general)
    model.fail[FACTORIZATION] = CudssStatus.CUDSS_STATUS_ALLOC_FAILED
    f = steps.factor(general)
    assert model.phases == [ANALYSIS, FACTORIZATION, ANALYSIS, FACTORIZATION, SOLVE]
    assert not f.plan.hybrid
    assert not spare.give_up("cpu")


def test_a_hybrid_factor_leaves_its_place_as_well(model):
    a = array("general", "float64")
    steps = Sequence(model, a)
    model.fail[FACTORIZATION] = CudssStatus.CUDSS_STATUS_ALLOC_FAILED
    f = steps.factor(a)
    assert f.plan.hybrid
    del f
    f = steps.factor(2 * a)
    assert (model.phases, f.plan.hybrid) == ([AGAIN, SOLVE], True)


def test_an_allocation_of_torch_that_fails_lets_go_of_what_is_kept(model):
    a = array("general", "float64")
    f = Sequence(model, a).factor(a)
    del f
    with pytest.raises(DeviceOutOfMemoryError), working("cpu"):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    assert not spare.give_up("cpu")
    handles._own.__dict__.clear()
    gc.collect()
    assert model.objects == {}
