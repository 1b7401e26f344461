"""GMRES of CUDA devices on torch's CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backsolve.errors import CancelledError
from backsolve.matrix import Matrix
from backsolve.types import TRANS, Status
from backsolve_service.engine.accelerator.gmres import gmres
from backsolve_service.engine.accelerator.operator import DeviceOperator
from backsolve_service.engine.accelerator.pattern import analyze
from backsolve_service.engine.accelerator.problem import LOOK, Problem
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls
from backsolve_service.engine.operand import Operand
from engine.table import array, factor_of, matrix, numbers, op, poisson


@pytest.fixture
def fetches(monkeypatch):
    """How often numbers went to the host."""
    from backsolve_service.engine.accelerator import gmres as module
    from backsolve_service.engine.accelerator import place

    seen = []

    def counted(tensor):
        seen.append(tuple(tensor.shape))
        return place.fetch(tensor)

    monkeypatch.setattr(module, "fetch", counted)
    return seen


def problem(m: Matrix, b: np.ndarray, trans="N", x0=None, rtol=1e-10, limit=400, cancelled=lambda: False, scale=None):
    """The columns of `b` as a problem on torch's CPU, preconditioned by a diagonal or not at all."""
    operator = DeviceOperator(Operand(m), 0, analyze(m.pattern, hermitian=False), "cpu")
    rows = np.ascontiguousarray(b.T)
    sizes = np.linalg.norm(rows, axis=1)
    return Problem(
        multiply=lambda v: operator.product(v, trans),
        adjoint=lambda v: operator.product(v, {"N": "H", "H": "N", "T": "N"}[trans]),  # of "T", for real A
        precondition=(lambda v: v) if scale is None else (lambda v: v * torch.from_numpy(scale)),
        b=torch.from_numpy(rows),
        x0=None if x0 is None else torch.from_numpy(np.ascontiguousarray(x0.T)),
        sizes=sizes,
        targets=rtol * sizes,
        limit=limit,
        norm=float(np.abs(m.values).max()) * m.n,
        cancelled=cancelled,
    )


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("restart", [7, 40])
def test_gmres_solves_what_is_not_symmetric(dtype, trans, k, restart):
    a = array("general", dtype)
    b = numbers((40, k), dtype, 22_901_765)
    ended = gmres(problem(matrix("csr", a), b, trans), restart)
    assert ended.statuses == (Status.OK,) * k
    residual = b - op(a, trans) @ ended.x.numpy().T
    assert (np.linalg.norm(residual, axis=0) <= 1e-10 * np.linalg.norm(b, axis=0)).all()


@pytest.mark.parametrize("restart", [5, 13, 60])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_gmres_takes_the_steps_of_an_iteration_that_looks_every_time(restart, preconditioned):
    """Against SciPy's GMRES on `A M⁻¹`, which stops at the step at which the recurrence is content."""
    from scipy.sparse.linalg import LinearOperator
    from scipy.sparse.linalg import gmres as reference

    a = array("general", "float64") - 5 * np.eye(40)
    scale = np.linspace(0.5, 2.0, 40) if preconditioned else None
    b = numbers((40, 1), "float64", 601_773_248)
    ended = gmres(problem(matrix("csr", a), b, rtol=1e-9, limit=5000, scale=scale), restart)
    steps = []
    right = a if scale is None else a * scale[None, :]
    reference(
        LinearOperator((40, 40), lambda v: right @ v, dtype=np.float64),
        b[:, 0],
        rtol=1e-9,
        restart=restart,
        maxiter=1000,
        callback=steps.append,
        callback_type="pr_norm",
    )
    assert ended.statuses == (Status.OK,)
    assert ended.iterations == pytest.approx(len(steps), abs=1)


def test_gmres_stops_at_the_limit_with_the_best_so_far():
    b = numbers((40, 2), "float64", 8_366_014)
    a = array("general", "float64") - 5 * np.eye(40)
    ended = gmres(problem(matrix("csr", a), b, limit=6), 4)
    assert ended.statuses == (Status.MAX_ITER,) * 2
    assert ended.iterations == 6
    residual = b - a @ ended.x.numpy().T
    assert (np.linalg.norm(residual, axis=0) < np.linalg.norm(b, axis=0)).all()


def test_gmres_finds_the_answer_in_a_small_space_and_goes_no_further():
    """A has three eigenvalues, so the space is exhausted after three steps, with the answer in it."""
    a = np.diag(np.repeat([1.0, 2.0, 5.0], 10))
    ended = gmres(problem(matrix("csr", a), numbers((30, 2), "float64", 115_093), rtol=1e-15, limit=100), 30)
    assert ended.iterations == 3
    np.testing.assert_allclose(ended.x.numpy().T, np.linalg.solve(a, numbers((30, 2), "float64", 115_093)), rtol=1e-13)


def test_gmres_says_that_a_singular_system_has_no_answer():
    a = np.diag([1.0, 2.0, 3.0, 0.0])
    a[0, 3] = 0.0
    m = matrix("dense", a)
    ended = gmres(problem(m, np.array([[1.0], [1.0], [1.0], [1.0]]), limit=100), 4)
    assert ended.statuses == (Status.INCONSISTENT,)
    np.testing.assert_allclose(ended.x.numpy()[0, :3], [1, 1 / 2, 1 / 3], rtol=1e-10)


def test_gmres_says_that_numbers_broke_down():
    a = array("general", "float64")
    a[3, 3] = np.nan
    ended = gmres(problem(matrix("dense", a), np.ones((40, 1)), limit=100), 10)
    assert ended.statuses == (Status.BREAKDOWN,)


def test_gmres_stagnates_where_restarts_forget_everything():
    """A cyclic shift: no residual falls before step n, and a restart begins anew."""
    a = np.roll(np.eye(20), 1, axis=0)
    b = np.zeros((20, 1))
    b[0] = 1
    assert gmres(problem(matrix("csr", a), b, limit=1000), 5).statuses == (Status.STAGNATION,)
    assert gmres(problem(matrix("csr", a), b, limit=1000), 20).statuses == (Status.OK,)


def test_gmres_goes_on_from_a_first_iterate():
    a = array("general", "float64")
    b = numbers((40, 2), "float64", 33_190_776)
    b[:, 1] = 0
    exact = np.linalg.solve(a, b)
    ended = gmres(problem(matrix("csr", a), b, x0=exact + 1e-4 * numbers((40, 2), "float64", 5_117)), 20)
    fresh = gmres(problem(matrix("csr", a), b), 20)
    assert ended.statuses == fresh.statuses == (Status.OK,) * 2
    assert 0 < ended.iterations < fresh.iterations
    assert not ended.x[1].any()


def test_gmres_asks_the_device_once_in_some_steps(fetches):
    b = numbers((900, 3), "float64", 9_114_003)
    ended = gmres(problem(poisson(30), b, rtol=1e-8, limit=2000), 50)
    cycles = -(-ended.iterations // 50)
    assert ended.iterations > 50
    assert len(fetches) <= ended.iterations // LOOK + 3 * cycles + 1


def test_gmres_can_be_cancelled():
    with pytest.raises(CancelledError):
        gmres(problem(poisson(30), np.ones((900, 1)), cancelled=lambda: True), 50)


@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32"])
@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("restart", [7, None])
def test_gmres_takes_the_steps_that_numpy_takes(dtype, trans, restart):
    m, b = matrix("csr", array("general", dtype)), numbers((40, 3), dtype, 40_227_716)
    host, device = (
        answer(factor_of("gmres", m, "jacobi", on_device=place), b, trans, Controls(restart=restart))
        for place in (False, True)
    )
    assert device.statuses == host.statuses == ((Status.OK,) * 3,)
    assert device.iterations[0] == pytest.approx(host.iterations[0], abs=1)
    scale = np.abs(host.x).max()
    np.testing.assert_allclose(device.x, host.x, rtol=0, atol=(1e-4 if dtype == "float32" else 1e-8) * scale)


@pytest.mark.parametrize("end", [Status.INCONSISTENT, Status.STAGNATION])
def test_gmres_gives_up_as_numpy_does(end):
    """A singular diagonal, and a cyclic shift that a restart forgets."""
    n = 5 if end is Status.INCONSISTENT else 12
    a = np.diag(np.arange(5.0)) if end is Status.INCONSISTENT else np.roll(np.eye(n), 1, axis=0)
    b = np.ones((n, 1)) if end is Status.INCONSISTENT else np.eye(n)[:, :1].copy()
    host, device = (
        factor_of("gmres", matrix("dense", a), "none", on_device=place).solve(b, "N", Controls(restart=5, maxiter=500))
        for place in (False, True)
    )
    assert device.statuses == host.statuses == (end,)


def test_a_transposed_complex_system_without_an_answer_is_called_inconsistent():
    """What is left of b is orthogonal to the range of Aᵀ, which conj(A) alone can show."""
    a = np.array([[1, 1j], [0, 0]])
    host, device = (
        factor_of("gmres", matrix("dense", a), "none", on_device=place).solve(
            np.array([[1.0 + 0j], [0.0]]), "T", Controls(maxiter=50)
        )
        for place in (False, True)
    )
    assert device.statuses == host.statuses == (Status.INCONSISTENT,)


def test_a_cycle_that_makes_it_worse_is_not_taken_over():
    """The preconditioner lies whenever a correction is made after the first cycle."""
    m, b = poisson(8), numbers((64, 1), "float64", 15_503_281)
    given = problem(m, b, limit=100)
    calls = []

    def precondition(rows):
        calls.append(None)
        return -5 * rows if len(calls) > 4 and len(calls) % 4 == 0 else rows

    once = gmres(replace(given, limit=3), 3)
    ended = gmres(replace(given, precondition=precondition), 3)
    assert ended.statuses == (Status.STAGNATION,)
    torch.testing.assert_close(ended.x, once.x, rtol=0, atol=0)
