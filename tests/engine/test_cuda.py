"""Every method that has a CUDA device, on one, held to LAPACK on the CPU in double precision.

NumPy, SciPy, torch and pytest are enough to run this file (with `--noconftest` where no more is installed).
"""

import threading

import numpy as np
import pytest
import torch

from backsolve.errors import CancelledError, NotPositiveDefiniteError, SingularMatrixError
from backsolve.types import TRANS, Status
from backsolve_service.engine.accelerator.place import working
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, Factor, FactorSpec
from backsolve_service.engine.device import memory
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import PRECONDITIONERS, ROWS, methods, solver
from engine.table import DTYPES, TOLERANCE, array, matrix, numbers, op, poisson

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

DEVICE = "cuda"
KINDS = {"definite": "definite", "triangular": "triangular", "hermitian": "indefinite", "symmetric": "indefinite"}
"""A kind of matrix that meets what a method needs; every other one is tried with "general"."""


def ways() -> list[tuple[str, str, str | None]]:
    """(method, layout, preconditioner) of all that is computed on a CUDA device."""
    found: list[tuple[str, str, str | None]] = []
    for name, row in ROWS.items():
        given = [p for p, r in PRECONDITIONERS.items() if r.cuda] if "preconditioner" in row.options else [None]
        found += [(name, layout, p) for layout in sorted(row.cuda) for p in given]
    return found


each_way = pytest.mark.parametrize(("method", "layout", "preconditioner"), ways())
each_dense = pytest.mark.parametrize("method", ["lu", "cholesky"])
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_trans = pytest.mark.parametrize("trans", TRANS)


def kind(method: str, preconditioner: str | None = None) -> str:
    return "definite" if preconditioner == "chebyshev" else KINDS.get(ROWS[method].needs, "general")


def factor(method: str, a: np.ndarray, layout: str = "dense", preconditioner: str | None = None) -> Factor:
    """Factorize a full array, `[n, n]` or `[batch, n, n]`, on the device."""
    if method not in methods():
        pytest.skip(f"the package {ROWS[method].requires!r} is not installed")
    given, chosen = matrix(layout, a), solver(method, DEVICE)
    spec = FactorSpec(method, preconditioner, given.dtype.name, DEVICE)
    return chosen.factorize(chosen.analyze(given.pattern, spec), Operand(given), spec)


def batch(structure: str, dtype: str) -> np.ndarray:
    return np.stack([array(structure, dtype, seed=seed) for seed in (830_174_662, 271_550_983, 604_418_207)])


def close(actual: np.ndarray, a: np.ndarray, b: np.ndarray, trans: str, dtype: str) -> None:
    expected = np.linalg.solve(op(a, trans), b)
    assert actual.dtype == np.dtype(dtype)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


@each_dense
@each_dtype
def test_the_factor_lies_on_the_device(method: str, dtype: str):
    made = factor(method, array(kind(method), dtype))
    held = made.form.lu if method == "lu" else made.form.lower
    assert held.device.type == DEVICE
    assert made.proving.device.type == DEVICE
    assert made.solve(numbers((40, 2), dtype, 7_340_155), "H", Controls()).proof is not None


@each_way
@each_dtype
@each_trans
@pytest.mark.parametrize("k", [1, 7])
def test_agrees_with_lapack(method, layout, preconditioner, dtype, trans, k):
    a, b = array(kind(method, preconditioner), dtype), numbers((40, k), dtype, 118_093_557)
    got = answer(factor(method, a, layout, preconditioner), b, trans, Controls())
    assert got.statuses == ((Status.OK,) * k,)
    close(got.x, a, b, trans, dtype)


@each_way
@each_dtype
@each_trans
def test_the_certificate_is_what_the_answer_shows(method, layout, preconditioner, dtype, trans):
    a, b = array(kind(method, preconditioner), dtype), numbers((40, 2), dtype, 640_071_198)
    got = answer(factor(method, a, layout, preconditioner), b, trans, Controls())
    residual = b - op(a, trans) @ got.x
    expected = np.linalg.norm(residual, axis=0) / np.linalg.norm(b, axis=0)
    np.testing.assert_allclose(got.relative_residual, expected[None], rtol=0.5, atol=1e-15)


@each_way
@each_dtype
@each_trans
def test_a_batch_agrees_with_lapack(method, layout, preconditioner, dtype, trans):
    a, b = batch(kind(method, preconditioner), dtype), numbers((3, 40, 2), dtype, 945_210_386)
    if layout == "csr":  # one pattern, of the first
        a = np.where(a[:1] != 0, np.stack([a[0] * scale for scale in (1, 2, 3)]), 0).astype(dtype)
    got = answer(factor(method, a, layout, preconditioner), b, trans, Controls())
    assert got.statuses == ((Status.OK,) * 2,) * 3
    close(got.x, a, b, trans, dtype)


@each_way
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_answers_scale_with_the_right_hand_side(method, layout, preconditioner, scale):
    a, b = array(kind(method, preconditioner), "float64"), numbers((40, 2), "float64", 27_610_553)
    f = factor(method, a, layout, preconditioner)
    got = answer(f, scale * b, "N", Controls())
    assert got.statuses == ((Status.OK,) * 2,)
    np.testing.assert_allclose(got.x / scale, np.linalg.solve(a, b), rtol=1e-7, atol=1e-9)


@each_way
def test_threads_share_a_factor(method, layout, preconditioner):
    a, b = array(kind(method, preconditioner), "float64"), numbers((4, 40, 3), "float64", 12_880_934)
    f, answers = factor(method, a, layout, preconditioner), {}

    def solve(index: int) -> None:
        for _ in range(20):
            answers[index] = answer(f, b[index], "N", Controls()).x

    threads = [threading.Thread(target=solve, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        np.testing.assert_allclose(answers[index], np.linalg.solve(a, b[index]), rtol=1e-7, atol=1e-9)


def test_each_thread_has_a_stream_of_its_own():
    seen = []

    def work() -> None:
        with working(DEVICE):
            seen.append(torch.cuda.current_stream().cuda_stream)
        with working(DEVICE):
            seen.append(torch.cuda.current_stream().cuda_stream)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    assert len({*seen, torch.cuda.default_stream().cuda_stream}) == 3


def test_an_iteration_can_be_cancelled():
    m = poisson(30)
    chosen = solver("cg", DEVICE)
    f = chosen.factorize(chosen.analyze(m.pattern), Operand(m), FactorSpec("cg", "none", "float64", DEVICE))
    with pytest.raises(CancelledError):
        f.solve(np.ones((900, 1)), "N", Controls(cancelled=lambda: True))


@pytest.mark.parametrize("preconditioner", ["jacobi", "amg", "amg(kind=sa)", "chebyshev(degree=3)"])
@pytest.mark.parametrize("method", ["cg", "gmres"])
def test_the_device_takes_the_steps_of_the_cpu(method, preconditioner):
    """The same code on torch's CPU, with levels enough for multigrid."""
    m, b = poisson(60, shift=0.01), numbers((3600, 3), "float64", 83_355_014)
    chosen, iterations = solver(method, DEVICE), []
    for device in ("cpu", DEVICE):
        spec = FactorSpec(method, preconditioner, "float64", device)
        got = answer(chosen.factorize(chosen.analyze(m.pattern, spec), Operand(m), spec), b, "N", Controls())
        assert got.statuses == ((Status.OK,) * 3,)
        iterations.append(got.iterations[0])
    assert iterations[0] == pytest.approx(iterations[1], abs=2)


@each_dtype
def test_new_values_are_refactorized_where_a_factor_was_dropped(dtype):
    """cuDSS's own refactorization, in the place of the factor before; the probe has to believe it."""
    if "cudss" not in methods():
        pytest.skip(f"the package {ROWS['cudss'].requires!r} is not installed")
    for structure in ("general", "indefinite", "definite"):
        a, b = array(structure, dtype), numbers((40, 3), dtype, 55_093_148)
        given, chosen, spec = matrix("csr", a), solver("cudss", DEVICE), FactorSpec("cudss", None, dtype, DEVICE)
        symbolic = chosen.analyze(given.pattern, spec)
        f = chosen.factorize(symbolic, Operand(given), spec)
        del f
        now = (1.5 * a + np.diag(np.diag(a))).astype(dtype)
        f = chosen.factorize(symbolic, Operand(matrix("csr", now)), spec)
        assert f.pivoting == "kept"
        for trans in TRANS:
            close(answer(f, b, trans, Controls()).x, now, b, trans, dtype)


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


def test_the_memory_of_the_device_is_read():
    held = torch.empty(1 << 20, dtype=torch.float64, device=DEVICE)
    figures = memory(DEVICE)
    assert held.nbytes <= figures["used"] <= figures["total"]
