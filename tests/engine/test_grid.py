"""Every derivative of every method, through the data plane, against dense algebra."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from backsolve import Client, Status
from backsolve.gradient import tangent_rhs, values_gradient
from backsolve.matrix import Matrix
from backsolve.options import make_options
from backsolve.pattern import Pattern
from backsolve.torch import solve, spsolve
from backsolve.types import TRANS
from backsolve_service.engine.registry import ROWS
from engine.table import DTYPES, TABLE, TOLERANCE, array, matrix, numbers, op
from support.tensors import close, reference, scattered

ROWS_HERE = [row for row in TABLE if not row.on_device and row.layout != "structured"]
"""What a client can ask for on this machine by a matrix's entries; the classes of devices are held to
`test_solvers.py`, and matrices of parameters to `test_structured.py` here, in congruence and in pytorch."""

ONE_EACH = list({(row.method, row.preconditioner, row.layout): row for row in ROWS_HERE}.values())

pytestmark = pytest.mark.usefixtures("kept")

each_row = pytest.mark.parametrize("row", ROWS_HERE, ids=str)
each_kind = pytest.mark.parametrize("row", ONE_EACH, ids=str)
each_system = pytest.mark.parametrize(
    ("row", "dtype"), [pytest.param(row, dtype, id=f"{row}-{dtype}") for row in ROWS_HERE for dtype in DTYPES]
)

N = 32
WIDTHS = (1, 7)
DIRECTION = 508_113_946


def asked(row, trans, dtype) -> dict[str, Any]:
    """The options of a row; an iterative method is asked for as much as a direct one gives by itself."""
    options: dict[str, Any] = {"method": row.method, "trans": trans}
    if row.preconditioner is not None:
        options["preconditioner"] = row.preconditioner
    if not ROWS[row.method].direct and np.finfo(dtype).eps < 1e-10:
        options["rtol"] = 1e-12
    return options


@dataclass(frozen=True)
class Point:
    """A system, a loss Re(gᴴx) + ½ Σ w|x|² of its answer, and directions; all of it stored as the row stores A."""

    m: Matrix
    b: np.ndarray
    g: np.ndarray
    w: np.ndarray

    def direction(self, seed):
        return numbers(self.m.values.shape, self.m.dtype.name, seed), numbers(self.b.shape, self.m.dtype.name, seed + 1)


def point(row, dtype, k):
    b, g = numbers((2, N, k), dtype, 193_305_877 + k)
    w = np.random.default_rng(640_217_391).uniform(0.5, 2, (N, k)).astype(np.empty(0, dtype).real.dtype)
    return Point(matrix(row.layout, array(row.structure, dtype, n=N)), b, g, w)


@dataclass(frozen=True)
class Derivatives:
    """What a client computes at a point: every number of it comes from its solves."""

    x: np.ndarray
    lam: np.ndarray
    values: np.ndarray
    dx: np.ndarray
    hessian_b: np.ndarray
    hessian_values: np.ndarray


def through(client, at, options, direction) -> Derivatives:
    """Differentiate A dx = w - V x and Aᴴ λ = g + w x once more: two solves beyond the gradient."""
    wanted, pattern, trans = make_options(**options), at.m.pattern, options["trans"]
    moved_a, moved_b = direction
    x = client.solve_matrix(at.m, at.b, wanted).x
    lam = client.vjp_matrix(at.m, at.g + at.w * x, wanted).b
    dx = client.jvp_matrix(at.m, tangent_rhs(pattern, moved_a, x, moved_b, trans), wanted).x
    # op(V)ᴴ is Vᴴ, conj(V) or V.
    values_of_it, op_of_it = (np.conj(moved_a), "N") if trans == "T" else (moved_a, "H" if trans == "N" else "N")
    rest = tangent_rhs(pattern, values_of_it, lam, at.w * dx, op_of_it)
    dlam = client.vjp_matrix(at.m, rest, wanted).b
    return Derivatives(
        x=x,
        lam=lam,
        values=values_gradient(pattern, lam, x, trans),
        dx=dx,
        hessian_b=dlam,
        hessian_values=values_gradient(pattern, dlam, x, trans) + values_gradient(pattern, lam, dx, trans),
    )


@cache
def expected_of(structure, layout, dtype, k, trans) -> Derivatives:
    """Of the system of all rows with this matrix, whatever their methods."""
    row = next(row for row in ROWS_HERE if (row.structure, row.layout) == (structure, layout))
    at = point(row, dtype, k)
    return expected(at, trans, at.direction(DIRECTION))


def expected(at, trans, direction) -> Derivatives:
    """The same by PyTorch's autograd through a dense inverse, in double precision."""
    wide = torch.complex128 if at.m.dtype.kind == "c" else torch.float64
    values, b, g, moved_a, moved_b = (torch.tensor(v).to(wide) for v in (at.m.values, at.b, at.g, *direction))
    values.requires_grad_(), b.requires_grad_()

    def answer(values, b):
        return reference(scattered(values, at.m.pattern) if isinstance(at.m.pattern, Pattern) else values, b, trans)

    x = answer(values, b)
    loss = (g.conj() * x).real.sum() + (torch.tensor(at.w).double() * x.abs() ** 2).sum() / 2
    gradients = torch.autograd.grad(loss, (values, b), create_graph=True)
    seconds = torch.autograd.grad(gradients, (values, b), (moved_a, moved_b))
    step = 1e-6  # of central differences: dx is exact to 1e-9 and is proved by the second derivatives besides
    ahead, behind = (answer(values + s * step * moved_a, b + s * step * moved_b) for s in (1, -1))
    found = (x, gradients[1], gradients[0], (ahead - behind) / (2 * step), seconds[1], seconds[0])
    return Derivatives(*(one.detach().resolve_conj().numpy() for one in found))


def assert_like(mine, theirs, tolerance, where):
    for name in Derivatives.__dataclass_fields__:
        one, other = getattr(mine, name), getattr(theirs, name)
        least = 1e-7 if name == "dx" else 0.0
        np.testing.assert_allclose(
            one, other, rtol=0, atol=max(tolerance, least) * np.abs(other).max(), err_msg=f"{name}, {where}"
        )


@each_system
def test_every_derivative_is_the_dense_one(embedded: Client, row, dtype):
    for k in WIDTHS:
        at = point(row, dtype, k)
        direction = at.direction(DIRECTION)
        for trans in TRANS:
            mine = through(embedded, at, asked(row, trans, dtype), direction)
            assert mine.x.dtype == mine.hessian_values.dtype == np.dtype(dtype)
            theirs = expected_of(row.structure, row.layout, dtype, k, trans)
            assert_like(mine, theirs, 4 * TOLERANCE[dtype], f"trans={trans}, {k} columns")


@each_system
def test_adjoint_identity_and_symmetry_of_the_hessian(embedded: Client, row, dtype):
    """⟨g, A⁻¹b⟩ = ⟨A⁻ᴴg, b⟩, and uᵀHv = vᵀHu, by the client's calls alone."""
    double = np.finfo(dtype).eps < 1e-10
    at = point(row, dtype, 7)
    u, v = at.direction(731_650_028), at.direction(265_904_417)
    for trans in TRANS:
        options = asked(row, trans, dtype)
        along_u, along_v = (through(embedded, at, options, direction) for direction in (u, v))
        lam = embedded.vjp_matrix(at.m, at.g, make_options(**options)).b
        size = np.linalg.norm(at.g) * np.linalg.norm(at.b)
        identity = abs(np.vdot(at.g, along_u.x) - np.vdot(lam, at.b))
        assert identity <= (1e-11 if double else 1e-4) * size, trans
        first = np.vdot(u[0], along_v.hessian_values).real + np.vdot(u[1], along_v.hessian_b).real
        second = np.vdot(v[0], along_u.hessian_values).real + np.vdot(v[1], along_u.hessian_b).real
        size = sum(
            np.linalg.norm(d) * np.linalg.norm(h)
            for d, h in zip(u, (along_v.hessian_values, along_v.hessian_b), strict=True)
        )
        assert abs(first - second) <= (1e-10 if double else 1e-3) * size, trans


@each_system
def test_a_batch_is_its_systems(embedded: Client, row, dtype):
    a = np.stack([array(row.structure, dtype, n=N, seed=seed) for seed in (300_718_261, 300_718_262, 300_718_263)])
    m = matrix(row.layout, a)
    b, g = numbers((2, 3, N, 2), dtype, 97_731_504)
    moved_a = numbers(m.values.shape, dtype, 482_003_915)
    for trans in TRANS:
        options = make_options(**asked(row, trans, dtype))
        solution = embedded.solve_matrix(m, b, options)
        assert [element.status for element in solution.stats.elements] == [Status.OK] * 3
        lam = embedded.vjp_matrix(m, g, options).b
        dx = embedded.jvp_matrix(m, tangent_rhs(m.pattern, moved_a, solution.x, None, trans), options).x
        mine = values_gradient(m.pattern, lam, solution.x, trans, batched=True)
        for s in range(3):
            full = op(a[s], trans)
            x = np.linalg.solve(full, b[s])
            adjoint = np.linalg.solve(full.conj().T, g[s])
            tangent = np.linalg.solve(full, tangent_rhs(m.pattern, moved_a[s].astype(full.dtype), x, None, trans))
            gradient = values_gradient(m.pattern, adjoint, x, trans)
            for name, got, right in (
                ("x", solution.x[s], x),
                ("lam", lam[s], adjoint),
                ("dx", dx[s], tangent),
                ("gradient", mine[s], gradient),
            ):
                np.testing.assert_allclose(
                    got, right, rtol=0, atol=4 * TOLERANCE[dtype] * np.abs(right).max(), err_msg=f"{name} {trans} {s}"
                )


DEFINITE = [row for row in ONE_EACH if row.structure == "definite" and ROWS[row.method].definite]


@pytest.mark.parametrize("row", DEFINITE, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_what_is_not_definite_leaves_the_rest_of_its_batch_alone(embedded: Client, row, dtype):
    good = [array("definite", dtype, n=N, seed=seed) for seed in (300_718_271, 300_718_272)]
    nonsymmetric, negative = good[0].copy(), good[0].copy()
    nonsymmetric[0, 1] += 1
    negative[4, 4] = -1
    a = np.stack([good[0], -good[0], nonsymmetric, good[1], negative])
    b = numbers((5, N, 2), dtype, 97_731_505)
    got = embedded.solve_matrix(matrix(row.layout, a), b, make_options(**asked(row, "N", dtype)), on_failure="nan")
    not_definite = Status.NOT_POSITIVE_DEFINITE
    found = [element.status for element in got.stats.elements]
    assert found == [Status.OK, not_definite, not_definite, Status.OK, not_definite]
    for s in (0, 3):
        np.testing.assert_allclose(got.x[s], np.linalg.solve(a[s], b[s]), rtol=0, atol=4 * TOLERANCE[dtype])
    assert np.isnan(got.x[[1, 2, 4]]).all()


@each_row
def test_solves_are_counted_and_factorizations_are_one(embedded: Client, row):
    """Forward 1, gradient 1, Hessian-vector product 2 more; and one factor for the four of them."""
    at = point(row, "complex128", 1)
    fresh = Point(Matrix(at.m.pattern, at.m.values * 1.0625), at.b, at.g, at.w)
    before = embedded.stats()
    through(embedded, fresh, asked(row, "N", "complex128"), fresh.direction(81_730_265))
    after = embedded.stats()
    names = ("factorizations", "solves", "adjoint_solves", "tangent_solves")
    assert [after[name] - before[name] for name in names] == [1, 1, 2, 1]


@each_kind
@pytest.mark.parametrize("trans", TRANS)
def test_autograd_differentiates_every_method_twice(embedded: Client, row, trans):
    at = point(row, "complex128", 1)
    moved_a, moved_b = (torch.tensor(v) for v in at.direction(119_580_663))
    extra = {name: value for name, value in asked(row, trans, "complex128").items() if name != "trans"}

    def product(forward):
        values, b = torch.tensor(at.m.values).requires_grad_(), torch.tensor(at.b).requires_grad_()
        x = forward(values, b)
        grads = torch.autograd.grad((x.abs() ** 3).sum(), (values, b), create_graph=True)
        return (*grads, *torch.autograd.grad(grads, (values, b), (moved_a, moved_b)))

    def ours(values, b):
        if row.layout == "dense":
            return solve(values, b, trans=trans, client=embedded, **extra)
        return spsolve(values, at.m.pattern, b, trans=trans, client=embedded, **extra)

    def theirs(values, b):
        full = values if row.layout == "dense" else scattered(values, at.m.pattern)
        return reference(full, b, trans)

    for mine, right in zip(product(ours), product(theirs), strict=True):
        close(mine, right, rtol=0, atol=4e-9 * float(right.detach().abs().max()))
