"""Matrices that people have really solved with: finite elements, convection, acoustics, power grids."""

import warnings
from typing import Any

import numpy as np
import pytest
from pyamg.gallery import load_example
from pyamg.gallery.example import example_names
from scipy.sparse import csr_array, eye_array

from backsolve import Client
from backsolve.errors import (
    IllConditionedWarning,
    InvalidOptionError,
    NotConvergedError,
    NotPositiveDefiniteError,
    SingularMatrixError,
)
from backsolve.types import TRANS, Solution, Status
from backsolve_service.engine.registry import ROWS, methods
from engine.table import numbers, op
from loadtests.fails_safely.judge import backward_error
from support.power_grids import CASES, made

EXAMPLES = (
    "airfoil",
    "bar",
    "helmholtz_2D",
    "knot",
    "local_disc_galerkin_diffusion",
    "recirc_flow",
    "unit_cube",
    "unit_square",
)
SMALL = 400
"""Rows up to which dense methods and dense gradients are tried as well."""

ASKED = {"rtol": 1e-12, "maxiter": 300}
"""Of iterative methods, which may stop earlier if they say so."""

each_name = pytest.mark.parametrize("name", [*EXAMPLES, *CASES])


def test_these_are_all_examples_that_pyamg_brings():
    assert sorted(EXAMPLES) == sorted(example_names)


@pytest.fixture(scope="module")
def grids(tmp_path_factory):
    return made(tmp_path_factory.mktemp("grids"))


@pytest.fixture
def a(name, request):
    found = csr_array(load_example(name)["A"]) if name in EXAMPLES else request.getfixturevalue("grids")[name]
    found = csr_array(found.astype(np.complex128 if found.dtype.kind == "c" else np.float64))
    found.sum_duplicates()
    return found


def tried(a):
    """Every method with a layout of this size; those that need another matrix refuse it."""
    yield "auto", a, {}
    for method in methods():
        row = ROWS[method]
        if row.least_squares:
            continue  # of a singular matrix it answers another question
        options: dict[str, Any] = {} if row.direct else {k: v for k, v in ASKED.items() if k in row.options}
        if "csr" in row.layouts:
            yield method, a, options
        if "dense" in row.layouts and a.shape[0] <= SMALL:
            yield method, a.toarray(), options


def solved(client, matrix, b, *, singular=False, **options) -> Solution | None:
    """The answer with its status; None where the method says that it is not for this matrix, or that it is singular."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)  # the status says it
        try:
            return client.solve(matrix, b, **options)
        except NotConvergedError as error:
            return error.solution
        except (InvalidOptionError, NotPositiveDefiniteError):
            return None
        except SingularMatrixError:
            if not singular:
                raise
            return None  # whether it is seen, or met as a condition of 1e16, is for rounding to decide


@each_name
def test_every_method_solves_or_says_why(embedded: Client, name, a):
    n = a.shape[0]
    full = a.toarray() if n <= SMALL else a
    b = numbers((n, 2), a.dtype.name, 408_116_923)
    singular = name == "unit_square"  # a pure Neumann problem: its answers are flagged, or refused
    served = set()
    for method, matrix, options in tried(a):
        for trans in TRANS:
            got = solved(embedded, matrix, b, singular=singular, method=method, trans=trans, **options)
            if got is None:
                assert method != "auto" or singular
                continue
            where = f"{method}, trans={trans}, {got.status.name}"
            if method == "auto" or (ROWS[method].direct and ROWS[method].needs == "square"):
                assert got.status in (Status.OK, Status.ILL_CONDITIONED), where
            if got.status is not Status.OK:
                continue
            served.add(method)
            if method == "auto" or ROWS[method].direct:
                assert error_of(full, b, got.x, trans) <= 1e-12, where
            else:
                assert residual_of(a, b, got.x, trans) <= ASKED["rtol"], where
    assert {"auto", "superlu"} <= served or singular


def operator(a, trans):
    return {"N": a, "T": a.T, "H": a.conj().T}[trans]


def residual_of(a, b, x, trans):
    return (np.linalg.norm(b - operator(a, trans) @ x, axis=0) / np.linalg.norm(b, axis=0)).max()


def error_of(a, b, x, trans):
    """Backward error; in extended precision where that is affordable."""
    if isinstance(a, np.ndarray):
        return backward_error(a, b, x, trans)
    applied = operator(a, trans)
    norm = np.abs(applied).sum(axis=1).max()
    size = norm * np.abs(x).max(axis=0) + np.abs(b).max(axis=0)
    return (np.abs(b - applied @ x).max(axis=0) / size).max()


@each_name
def test_gradients_are_the_dense_ones(embedded: Client, name, a):
    """Where n allows; a conjugate too many or too few would show on the complex ones."""
    n = a.shape[0]
    if n > SMALL:
        a = csr_array(a[:SMALL, :SMALL])
        n = SMALL
    if name == "unit_square":
        a = csr_array(a + 0.01 * eye_array(n))  # it is singular
    b, g = numbers((2, n), a.dtype.name, 517_720_336)
    rows = np.repeat(np.arange(n), np.diff(a.indptr))
    for trans in TRANS:
        full = op(a.toarray(), trans)
        tolerance = 1e3 * np.finfo(np.float64).eps * np.linalg.cond(full)
        assert tolerance < 1e-3
        x, lam = np.linalg.solve(full, b), np.linalg.solve(full.conj().T, g)
        left, right = (lam, x) if trans == "N" else (x, lam)
        expected = -left[rows] * right[a.indices].conj()
        expected = expected.conj() if trans == "T" else expected
        got = embedded.vjp(a, embedded.solve(a, b, trans=trans).x, g, trans=trans)
        np.testing.assert_allclose(got.b, lam, rtol=0, atol=tolerance * np.abs(lam).max(), err_msg=trans)
        np.testing.assert_allclose(
            got.values.data, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=trans
        )


def test_complex_symmetric_is_solved_with_t_and_not_with_h(embedded: Client):
    a = csr_array(load_example("helmholtz_2D")["A"])
    b = numbers(a.shape[0], "complex128", 93_381_746)
    plain, transposed, adjoint = (embedded.solve(a, b, trans=trans).x for trans in TRANS)
    np.testing.assert_allclose(transposed, plain, rtol=0, atol=1e-9 * np.abs(plain).max())
    assert np.abs(adjoint - plain).max() > 1e-2 * np.abs(plain).max()
