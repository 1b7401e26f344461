"""Nothing accepted is dropped: each option is used, or refused by name; and what is used changes what it should."""

from typing import Any

import numpy as np
import pytest

from backsolve import Client
from backsolve.errors import BacksolveError, InvalidOptionError
from backsolve.options import KINDS, make_options
from backsolve.types import Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls
from backsolve_service.engine.registry import ROWS, methods
from engine.table import TABLE, Row, array, factor_of, matrix, numbers

ASKED: dict[str, Any] = {
    "rtol": 1e-3,
    "atol": 1e-3,
    "maxiter": 7,
    "preconditioner": "none",
    "restart": 5,
    "refine": 1,
    "precision": "mixed",
    "ordering": "mmd",
    "reuse": "precondition",
    "recycle": 2,
    "nullspace": "constant",
    "damp": 0.5,
    "rcond": 1e-9,
    "condition": True,
    "x0": None,  # as b
}
NEUTRAL = {"precision": "full", "ordering": "auto", "condition": False}
"""What every method does anyway."""

# The sparse layout where there are two: it has every option.
KIND = {row.method: row for row in sorted(TABLE, key=lambda row: (row.layout == "csr", not row.on_device))}
PLAIN = (None, "none", "jacobi")
"""With a stronger preconditioner two iterations may be all there are."""

ITERATIVE = [
    row
    for row in TABLE
    if not ROWS[row.method].direct and not row.on_device and row.structure != "diagonal" and row.preconditioner in PLAIN
]
pytestmark = pytest.mark.usefixtures("kept")

each_method = pytest.mark.parametrize("method", methods())
each_iterative = pytest.mark.parametrize("row", ITERATIVE, ids=str)


def of_table(method):
    """A row of the table; least squares is not in it, and a square matrix will do here."""
    layout = "csr" if "csr" in ROWS[method].layouts else "dense"
    return KIND.get(method, Row(method, None, layout, "general"))


def path_laplacian(n=40):
    """The path on n nodes: its rows sum to zero."""
    a = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    a[0, 0] = a[-1, -1] = 1
    return a


def system(method):
    row = of_table(method)
    m = matrix(row.layout, array(row.structure, "float64"), method)
    return m, numbers((40, 1), "float64", 771_430_206)


def refused(client, method, name, value):
    """The option that a call with this one is refused for; None if it is not."""
    m, b = system(method)
    if name == "nullspace" and name in ROWS[method].options:
        # Of a matrix that has it.
        m = matrix(of_table(method).layout, path_laplacian())
        b = b - b.mean()
    extra = {"x0": b} if name == "x0" else {}
    options = make_options(method=method, **({} if name == "x0" else {name: value}))
    try:
        client.solve_matrix(m, b, options, on_failure="nan", **extra)
    except InvalidOptionError as error:
        return error.details["option"]
    except BacksolveError:
        pass  # it was used, and that went as it went
    return None


def test_every_option_is_asked_for():
    assert {*ASKED, "method", "trans"} == {*KINDS, "x0"}


@each_method
@pytest.mark.parametrize("name", ASKED)
@pytest.mark.filterwarnings("ignore::backsolve.errors.IllConditionedWarning")
def test_an_option_is_used_or_refused_by_name(embedded: Client, method, name):
    used = name in ROWS[method].options
    assert refused(embedded, method, name, ASKED[name]) == (None if used else name)


@each_method
@pytest.mark.parametrize("name", NEUTRAL)
def test_what_every_method_does_anyway_may_be_said(embedded: Client, method, name):
    assert refused(embedded, method, name, NEUTRAL[name]) is None


def run(row, controls):
    b = numbers((40, 1), "float64", 771_430_207)
    f = factor_of(row.method, matrix(row.layout, array(row.structure, "float64")), row.preconditioner)
    return answer(f, b, "N", controls), b


@each_iterative
def test_rtol_and_atol_decide_when_to_stop(row):
    plain, b = run(row, Controls())
    loose, _ = run(row, Controls(rtol=1e-2))
    absolute, _ = run(row, Controls(rtol=0.0, atol=float(1e-2 * np.linalg.norm(b))))
    assert plain.statuses == loose.statuses == absolute.statuses == ((Status.OK,),)
    assert 1 <= loose.iterations[0] < plain.iterations[0]
    assert plain.relative_residual.max() <= 1e-10 < loose.relative_residual.max() <= 1e-2
    assert absolute.iterations == loose.iterations


@each_iterative
def test_maxiter_is_the_limit_and_is_told(row):
    got, _ = run(row, Controls(maxiter=2))
    assert got.iterations[0] <= 2
    assert got.statuses == ((Status.MAX_ITER,),)
    assert got.relative_residual.max() > 1e-10


@each_iterative
def test_a_first_iterate_is_where_it_begins(row):
    plain, _ = run(row, Controls())
    again, _ = run(row, Controls(x0=plain.x))
    assert again.iterations[0] <= 1 < plain.iterations[0]
    assert again.statuses == ((Status.OK,),)
    far, _ = run(row, Controls(x0=1e3 * np.ones_like(plain.x)))
    assert far.statuses == ((Status.OK,),)
    assert far.iterations != again.iterations


@pytest.mark.parametrize("row", [row for row in ITERATIVE if "restart" in ROWS[row.method].options], ids=str)
def test_a_shorter_basis_takes_more_steps(row):
    long, _ = run(row, Controls(restart=40))
    short, _ = run(row, Controls(restart=2))
    assert short.iterations[0] > long.iterations[0]
    assert short.relative_residual.max() <= 1e-10
