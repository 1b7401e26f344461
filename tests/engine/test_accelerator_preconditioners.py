"""Preconditioners of CUDA devices on torch's CPU: multigrid and polynomials, by what they promise."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array, diags_array

from backsolve.errors import InvalidOptionError, NotPositiveDefiniteError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import TRANS, Options, Status
from backsolve_service.engine import select
from backsolve_service.engine.accelerator import multigrid
from backsolve_service.engine.accelerator.build import build
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.precond.hierarchy import hierarchy
from backsolve_service.engine.registry import precondition
from backsolve_service.engine.structure import inspect, inspect_pattern
from engine.table import array, factor_of, matrix, numbers, op, poisson
from engine.test_accelerator import Waits

MAKERS = ("amg", "amg(kind=sa)", "chebyshev(degree=5)", "block_jacobi(size=9)")


def sparse(m: Matrix):
    return csr_array((m.values, m.pattern.indices, m.pattern.indptr), shape=(m.n, m.n))


def windy(side, dtype="float64"):
    """Convection and diffusion: not symmetric; of a complex type, with complex entries beside the diagonal."""
    a = sparse(poisson(side, shift=0.1, dtype=dtype))
    wind = diags_array([-0.8, 0.8], offsets=[-1, 0], shape=a.shape)
    turn = 1 if np.dtype(dtype).kind != "c" else np.exp(0.3j)
    out = csr_array(a + turn * wind).astype(dtype)
    out.sort_indices()
    return Matrix(Pattern.from_csr(out), out.data)


def hermitian(side, dtype):
    """A definite mesh whose bonds have phases, where the type has them."""
    m = poisson(side, shift=0.1, dtype=dtype)
    if m.values.dtype.kind != "c":
        return m
    rows = np.repeat(np.arange(m.n), np.diff(m.pattern.indptr))
    phases = np.exp(0.2j * (rows - m.pattern.indices))
    return Matrix(m.pattern, m.values * phases)


def whole(spelled, m, trans="N"):
    """`op(M)⁻¹` as a full array."""
    built = build(spelled, Operand(m), 0, "cpu")
    dtype = torch.complex128 if m.values.dtype.kind == "c" else torch.float64
    return built.apply(torch.eye(m.n, dtype=dtype), trans).numpy().T


def cycle(built, depth=0):
    """One V-cycle as a full array, from the formulas: sweeps of Jacobi or of the fourth kind about a coarse solve."""
    if depth == len(built.steps):
        return np.linalg.inv(built.coarsest.toarray())
    step = built.steps[depth]
    a, down, up = (each.toarray() for each in (step.matrix, step.restriction, step.prolongation))
    sums = np.maximum(np.abs(a).sum(axis=0), np.abs(a).sum(axis=1))
    d = np.diag(1 / sums) * (np.abs(np.diag(a)) / np.diag(a))
    eye = np.eye(len(a))
    if built.hermitian:
        # W_2(1 - 2x) / 5 for the residual of two steps, with W_2(y) = 4 y² + 2 y - 1.
        y = eye - 2 * d @ a
        left = (4 * y @ y + 2 * y - eye) / 5
    else:
        left = (eye - d @ a) @ (eye - d @ a)
    coarse = eye - up @ cycle(built, depth + 1) @ down @ a
    return (eye - left @ coarse @ left) @ np.linalg.inv(a)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("make", [hermitian, windy])
def test_multigrid_is_the_v_cycle_that_it_says(make, dtype):
    m = make(14, dtype)
    built = hierarchy(sparse(m), "auto")
    assert len(built.steps) >= 1
    assert built.hermitian == (make is hermitian)
    scaled = built.scaling[:, None] * cycle(built) * built.scaling
    np.testing.assert_allclose(whole("amg", m), scaled, rtol=0, atol=1e-11 * np.abs(scaled).max())


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(
    ("make", "spelled"),
    [*((hermitian, each) for each in MAKERS), *((windy, each) for each in ("amg", "block_jacobi(size=9)"))],
)
def test_transposes_are_exact(make, spelled, dtype):
    m = make(13, dtype)
    plain = whole(spelled, m)
    for trans in TRANS:
        np.testing.assert_allclose(whole(spelled, m, trans), op(plain, trans), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spelled", MAKERS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("largest", [2048, 10])
def test_m_is_definite_where_a_is(spelled, dtype, largest, monkeypatch):
    """With a coarsest level that is too large to be inverted as well."""
    monkeypatch.setattr(multigrid, "LARGEST", largest)
    m = hermitian(14, dtype)
    inverse = whole(spelled, m)
    np.testing.assert_allclose(inverse, inverse.conj().T, rtol=0, atol=1e-12)
    assert np.linalg.eigvalsh(inverse).min() > 0


def test_m_is_definite_where_the_coarsest_matrix_is_hardly():
    """A mesh without a boundary: only rounding keeps the constant from being solved for."""
    side = 24
    lap = sparse(poisson(side)).toarray()
    lap -= np.diag(lap.sum(axis=1) - 1e-11)
    inverse = whole("amg", matrix("csr", lap))
    values = np.linalg.eigvalsh((inverse + inverse.T) / 2)
    assert values.min() > -1e-12 * values.max()


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize(
    ("spelled", "kind"),
    [("chebyshev(degree=6)", "definite"), ("block_jacobi(size=7)", "definite"), ("block_jacobi(size=7)", "general")],
)
def test_m_is_that_of_the_host(spelled, kind, layout, dtype):
    a = array(kind, dtype)
    rows = numbers((3, 40), dtype, 480_117_236)
    built = build(spelled, Operand(matrix(layout, a)), 0, "cpu")
    host = precondition(spelled, a if layout == "dense" else csr_array(a))
    for trans, expected in (("N", host.apply(rows)), ("H", host.apply_adjoint(rows))):
        got = built.apply(torch.from_numpy(rows), trans).numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_iterations_hardly_grow_with_multigrid(dtype):
    taken = {}
    for side in (16, 64):
        m = hermitian(side, dtype)
        for spelled in ("jacobi", "amg"):
            got = answer(
                factor_of("cg", m, spelled, on_device=True), np.ones((side**2, 2), dtype=dtype), "N", Controls()
            )
            assert got.statuses == ((Status.OK,) * 2,)
            taken[spelled, side] = got.iterations[0]
    assert taken["amg", 64] <= 1.5 * taken["amg", 16]
    assert taken["amg", 64] < taken["jacobi", 64] / 2


@pytest.mark.parametrize("trans", TRANS)
def test_unsymmetric_systems_gain(trans):
    m, b = windy(24), numbers((576, 2), "float64", 29_116_408)
    taken = {}
    for spelled in ("jacobi", "amg"):
        got = answer(factor_of("gmres", m, spelled, on_device=True), b, trans, Controls(rtol=1e-9))
        assert got.statuses == ((Status.OK,) * 2,)
        taken[spelled] = got.iterations[0]
    assert taken["amg"] < taken["jacobi"]


@pytest.mark.parametrize("spelled", MAKERS)
def test_an_application_asks_the_device_nothing(spelled):
    m = poisson(20)
    built = build(spelled, Operand(m), 0, "cpu")
    with Waits() as waits:
        for k in (1, 3):
            built.apply(torch.ones(k, m.n, dtype=torch.float64), "N")
    assert not waits.seen


@pytest.mark.parametrize("scale", [1e-180, 1e180])
@pytest.mark.parametrize("spelled", MAKERS)
def test_the_scale_of_a_does_not_matter(spelled, scale):
    m, b = poisson(16, shift=0.1), numbers((256, 1), "float64", 66_740_219)
    plain, scaled = (
        answer(factor_of("cg", Matrix(m.pattern, by * m.values), spelled, on_device=True), b, "N", Controls())
        for by in (1.0, scale)
    )
    assert scaled.statuses == plain.statuses == ((Status.OK,),)
    assert abs(scaled.iterations[0] - plain.iterations[0]) <= 1
    np.testing.assert_allclose(scaled.x * scale, plain.x, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("spelled", "a", "error"),
    [
        ("amg", csr_array(np.diag([2.0, 0.0, 1.0]) + np.eye(3, k=1)), SingularMatrixError),
        ("amg", csr_array(np.ones((3, 3))), SingularMatrixError),
        ("amg(kind=rs)", csr_array((2 + 1j) * np.eye(3)), InvalidOptionError),
        ("chebyshev", csr_array(2 * np.eye(3) + np.eye(3, k=1)), NotPositiveDefiniteError),
    ],
)
def test_what_the_host_refuses_is_refused_in_the_same_words(spelled, a, error):
    a.sort_indices()
    m = Matrix(Pattern.from_csr(a), a.data)
    with pytest.raises(error) as host:
        factor_of("gmres", m, spelled)
    with pytest.raises(error) as device:
        factor_of("gmres", m, spelled, on_device=True)
    assert str(device.value) == str(host.value)


@pytest.mark.parametrize(
    ("spelled", "place"),
    [("amg", "cuda"), ("chebyshev", "cuda"), ("block_jacobi", "cuda"), ("ic", "cpu"), ("ssor", "cpu")],
)
def test_where_a_method_runs_is_decided_by_its_preconditioner(monkeypatch, spelled, place):
    monkeypatch.setattr(select, "check_device", lambda name: None)
    m = poisson(5)
    structure = inspect(inspect_pattern(m.pattern), Operand(m))
    chosen = select.choose(structure, Options(method="cg", preconditioner=spelled), has_x0=False, device="cuda")
    assert chosen.spec.device == place
