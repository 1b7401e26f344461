"""How cuDSS is called: in which order, with what, and what becomes of its failures; on a model of it."""

import gc
import threading

import numpy as np
import pytest
import torch

from backsolve.errors import (
    DeviceOutOfMemoryError,
    InternalError,
    NotSupportedError,
    SingularMatrixError,
)
from backsolve.types import TRANS, Options, Status
from backsolve_service.engine import spare
from backsolve_service.engine.accelerator.faults import DeviceFaultError, is_fault
from backsolve_service.engine.accelerator.place import upload
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.direct.cudss import handles, library
from backsolve_service.engine.direct.cudss.constants import Config, CudssStatus, MatrixType, Phase, SolveMode
from backsolve_service.engine.direct.cudss.solver import Cudss
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import methods
from backsolve_service.engine.select import choose
from backsolve_service.engine.structure import inspect, inspect_pattern
from engine.table import array, factor_of, matrix, numbers, op, poisson
from support.cudss_model import Model

ANALYSIS, FACTORIZATION = Phase.CUDSS_PHASE_ANALYSIS, Phase.CUDSS_PHASE_FACTORIZATION
SOLVE, REORDERING = Phase.CUDSS_PHASE_SOLVE, Phase.CUDSS_PHASE_REORDERING
GENERAL, SYMMETRIC = MatrixType.CUDSS_MTYPE_GENERAL, MatrixType.CUDSS_MTYPE_SYMMETRIC
HERMITIAN, SPD, HPD = MatrixType.CUDSS_MTYPE_HERMITIAN, MatrixType.CUDSS_MTYPE_SPD, MatrixType.CUDSS_MTYPE_HPD
NORMAL, TRANSPOSE, CONJUGATE = SolveMode
SPEC = FactorSpec("cudss", None, "float64", "cpu")


@pytest.fixture
def model(monkeypatch):
    made = Model()
    monkeypatch.setattr(handles, "load", lambda: made.library)
    monkeypatch.setattr(handles, "_own", threading.local())
    spare.give_up("cpu")
    return made


def factor(m):
    return factor_of("cudss", m, on_device=True)


def test_one_analysis_serves_all_values_on_a_pattern(model):
    a = array("general", "float64")
    m, chosen = matrix("csr", a), Cudss()
    symbolic = chosen.analyze(m.pattern, SPEC)
    assert model.phases == [REORDERING]
    factors = [chosen.factorize(symbolic, Operand(matrix("csr", scale * a)), SPEC) for scale in (1.0, 2.0, 3.0)]
    assert model.phases == [REORDERING] + [ANALYSIS, FACTORIZATION, SOLVE] * 3
    # Each was given the order that the analysis has found, and asked for no matching of its own.
    np.testing.assert_array_equal(np.stack(model.perms), np.stack([symbolic.permutation] * 3))
    np.testing.assert_array_equal(symbolic.permutation, np.arange(40)[::-1])
    assert {value for name, value in model.settings_seen if name is Config.CUDSS_CONFIG_MATCHING_ALG} == {0}
    b = numbers((40, 1), "float64", 77_120_398)
    for scale, made in zip((1.0, 2.0, 3.0), factors, strict=True):  # an earlier factor is still what it was
        np.testing.assert_allclose(answer(made, b, "N", Controls()).x, np.linalg.solve(scale * a, b), rtol=1e-9)


def test_without_a_full_diagonal_rows_are_matched_to_columns(model):
    a = array("zero_diagonal", "float64")
    f = factor(matrix("csr", a))
    assert model.phases == [ANALYSIS, FACTORIZATION, SOLVE]
    assert not model.perms
    assert (Config.CUDSS_CONFIG_MATCHING_ALG, 6) in model.settings_seen
    assert f.plan.kind is GENERAL


@pytest.mark.parametrize(
    ("structure", "dtype", "kinds"),
    [
        ("definite", "float64", [SPD]),
        ("definite", "complex64", [HPD]),
        ("indefinite", "float32", [SYMMETRIC]),
        ("indefinite", "complex128", [HERMITIAN]),
        ("general", "complex128", [GENERAL]),
    ],
)
def test_the_library_is_told_what_the_matrix_is(model, structure, dtype, kinds):
    m = matrix("csr", array(structure, dtype))
    f = factor(m)
    assert model.kinds == [GENERAL, *kinds]  # the first is the analysis
    assert f.plan.kind is kinds[-1]


def test_what_is_not_definite_is_factorized_as_what_it_is(model):
    """A positive diagonal, and a negative eigenvalue."""
    a = array("definite", "float64")
    a[0, 5] = a[5, 0] = 1e3
    f = factor(matrix("csr", a))
    assert model.kinds == [GENERAL, SPD, SYMMETRIC]
    np.testing.assert_allclose(answer(f, np.ones((40, 1)), "N", Controls()).x, np.linalg.solve(a, np.ones((40, 1))))


@pytest.mark.parametrize(
    ("structure", "modes"),
    [("general", [NORMAL, TRANSPOSE, CONJUGATE]), ("indefinite", [NORMAL] * 3), ("definite", [NORMAL] * 3)],
)
def test_transposed_solves(model, structure, modes):
    a, b = array(structure, "complex128"), numbers((40, 2), "complex128", 240_017_335)
    f = factor(matrix("csr", a))
    for trans, mode in zip(TRANS, modes, strict=True):
        model.modes.clear()
        got = f.solve(b, trans, Controls())
        assert model.modes == [mode]
        np.testing.assert_allclose(got.x, np.linalg.solve(op(a, trans), b), rtol=1e-9, atol=1e-11)


def test_a_singular_matrix_says_how_many_pivots_were_replaced(model):
    a = 8 * np.eye(6) + np.eye(6, k=1)
    a[2:4] = [0, 0, 1, 1, 0, 0]
    with pytest.raises(SingularMatrixError, match="zero pivot") as caught:
        factor(matrix("csr", a))
    assert caught.value.details["pivots"] == "1"


def test_an_ill_conditioned_matrix_is_not_called_singular(model):
    a = np.diag([1.0, 1e-20, 1.0]) + np.diag([0.5, 0.0], k=1)
    model.factorize = _without_replacement(model)
    got = answer(factor(matrix("csr", a)), np.array([[1.0], [1e-20], [1.0]]), "N", Controls())
    assert got.statuses[0][0] in (Status.OK, Status.ILL_CONDITIONED)


def _without_replacement(model):
    plain = model.factorize

    def factorize(work, described, batch):
        from support import cudss_model

        before = cudss_model.PIVOT
        cudss_model.PIVOT = {4: 0.0, 8: 0.0}
        try:
            plain(work, described, batch)
        finally:
            cudss_model.PIVOT = before

    return factorize


def test_factors_go_to_the_host_where_the_device_has_no_room(model):
    a = array("general", "float64")
    chosen, m = Cudss(), matrix("csr", a)
    symbolic = chosen.analyze(m.pattern, SPEC)
    model.fail[FACTORIZATION] = CudssStatus.CUDSS_STATUS_ALLOC_FAILED
    f = chosen.factorize(symbolic, Operand(m), SPEC)
    assert f.plan.hybrid
    assert (Config.CUDSS_CONFIG_HYBRID_MEMORY_MODE, 1) in model.settings_seen
    np.testing.assert_allclose(answer(f, np.ones((40, 1)), "H", Controls()).x, np.linalg.solve(a.T, np.ones((40, 1))))


def test_without_room_for_anything_the_error_says_so(model):
    m = matrix("csr", array("general", "float64"))
    model.fail[REORDERING] = CudssStatus.CUDSS_STATUS_ALLOC_FAILED
    with pytest.raises(DeviceOutOfMemoryError, match="no room for the reordering"):
        factor(m)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (CudssStatus.CUDSS_STATUS_EXECUTION_FAILED, DeviceFaultError),
        (CudssStatus.CUDSS_STATUS_NOT_SUPPORTED, NotSupportedError),
        (CudssStatus.CUDSS_STATUS_INVALID_VALUE, InternalError),
        (CudssStatus.CUDSS_STATUS_INTERNAL_ERROR, InternalError),
        (99, InternalError),
    ],
)
def test_a_failed_solve_has_its_own_error(model, status, error):
    f = factor(matrix("csr", array("general", "float64")))
    model.fail[SOLVE] = status
    with pytest.raises(error) as caught:
        f.solve(np.ones((40, 1)), "N", Controls())
    assert is_fault(caught.value) == (error is DeviceFaultError)


def test_a_batch_is_one_factorization(model):
    a = np.stack([array("general", "complex64"), 3 * array("general", "complex64")])
    b = numbers((2, 40, 3), "complex64", 918_332_006)
    f = factor(matrix("csr", a))
    assert (Config.CUDSS_CONFIG_UBATCH_SIZE, 2) in model.settings_seen
    assert model.phases.count(FACTORIZATION) == 1
    got = answer(f, b, "T", Controls())
    assert model.phases[-1] is SOLVE
    assert got.statuses == ((Status.OK,) * 3,) * 2
    np.testing.assert_allclose(got.x, np.linalg.solve(op(a, "T"), b), rtol=0, atol=1e-4)


def test_a_handle_serves_one_thread_and_one_element_type(model):
    f = factor(matrix("csr", array("general", "float64")))
    again = factor(matrix("csr", array("general", "float64")))
    single = factor(matrix("csr", array("general", "float32")))
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(factor(matrix("csr", array("general", "float64")))))
    thread.start()
    thread.join()
    assert f.work.handle is again.work.handle
    assert len({id(each.work.handle) for each in (f, single, *elsewhere)}) == 3


def test_what_was_made_is_destroyed_once(model):
    f = factor(matrix("csr", array("general", "float64")))
    answer(f, np.ones((40, 2)), "T", Controls())
    del f
    assert spare.give_up("cpu")
    handles._own.__dict__.clear()
    gc.collect()
    assert model.objects == {}


def test_nothing_is_solved_before_it_is_factorized(model):
    """The model would refuse it, as the library does: it can fail."""
    m = matrix("csr", array("general", "float64"))
    at = handles.handle("cpu", torch.float64)
    sparse = handles.Sparse(at, *(upload(a, "cpu") for a in (m.pattern.indptr, m.pattern.indices, m.values)), GENERAL)
    x = handles.Dense(at, torch.zeros(1, 40, dtype=torch.float64))
    with at.used(), pytest.raises(InternalError, match="solve failed"):
        handles.Work(at, {}).execute(SOLVE, sparse, x, x)


def test_without_a_cuda_device_the_method_is_not_offered_and_says_so():
    m = poisson(4)
    structure = inspect(inspect_pattern(m.pattern), Operand(m))
    assert "cudss" not in methods("cpu")
    with pytest.raises(NotSupportedError, match=r"pip install|CUDA device only"):
        choose(structure, Options(method="cudss"), has_x0=False, device="cpu")


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(library, "find", lambda: None)
    library.load.cache_clear()
    with pytest.raises(NotSupportedError, match=r"backsolve-service\[cuda\]"):
        library.load()
    assert not library.installed()
    library.load.cache_clear()


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("CUDA error: invalid argument"), False),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), False),
        (ValueError("an illegal memory access"), False),
        (DeviceFaultError("x"), True),
    ],
)
def test_what_poisons_a_context_is_told_from_what_does_not(error, fault):
    assert is_fault(error) == fault
    outer = InternalError("something failed")
    outer.__cause__ = error
    assert is_fault(outer) == fault
