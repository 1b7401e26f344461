"""An error that the server raises arrives in each framework as an exception with the reason, eager and compiled."""

import re
from typing import Any

import numpy as np
import pytest

from backsolve import Client
from backsolve.errors import (
    BacksolveError,
    InvalidDtypeError,
    InvalidShapeError,
    NotConvergedError,
    SingularMatrixError,
    UnreachableError,
)
from frameworks.adapters import Adapter, Function
from frameworks.cases import SINGLE, Case
from frameworks.judging import GRADIENTS, error
from support.servers import ServerProcess

ways = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
each_kind = pytest.mark.parametrize("case", SINGLE, ids=str)


def prepared(framework: Adapter, f: Function, compiled: bool) -> Function:
    return framework.compiled(f) if compiled else f


def singular(case: Case) -> np.ndarray:
    """The values with a row of zeros."""
    rows = case.pattern.rows if case.sparse else np.arange(case.pattern.n)[:, None]
    return np.where(rows == 3, 0.0, case.values)


@ways
@each_kind
def test_a_singular_matrix(framework: Adapter, case: Case, compiled: bool, client: Client) -> None:
    f = prepared(framework, framework.solve(case, client, on_failure="raise"), compiled)
    kind: Any = Exception if compiled else SingularMatrixError
    with pytest.raises(kind, match="exactly singular"):
        np.asarray(f(framework.array(singular(case)), framework.array(case.b)))
    # What is wrong with one matrix is not held against the next.
    assert np.isfinite(np.asarray(f(framework.array(case.values), framework.array(case.b)))).all()


@ways
@each_kind
def test_an_answer_that_does_not_converge(framework: Adapter, case: Case, compiled: bool, client: Client) -> None:
    options: dict[str, Any] = {"method": "gmres", "maxiter": 1, "rtol": 1e-14, "on_failure": "raise"}
    f = prepared(framework, framework.solve(case, client, **options), compiled)
    kind: Any = Exception if compiled else NotConvergedError
    with pytest.raises(kind, match="the iteration limit came before the tolerance"):
        np.asarray(f(framework.array(case.values), framework.array(case.b)))


@ways
def test_a_method_that_the_matrix_is_not_fit_for(framework: Adapter, compiled: bool, client: Client) -> None:
    case = Case(True)
    f = prepared(framework, framework.solve(case, client, method="diagonal", on_failure="raise"), compiled)
    kind: Any = Exception if compiled else BacksolveError
    with pytest.raises(kind, match="diagonal"):
        np.asarray(f(framework.array(case.values), framework.array(case.b)))


@each_kind
def test_a_complex_first_iterate_of_a_real_solve(framework: Adapter, case: Case, embedded: Client) -> None:
    start = framework.array(case.b + 1j)
    f = framework.solve(case, embedded, method="gmres", x0=start)
    with pytest.raises(InvalidDtypeError, match=r"x0 is .*complex128.*begin at a real one"):
        f(framework.array(case.values), framework.array(case.b))


@each_kind
@pytest.mark.parametrize("shape", [(), (8,), (7, 2, 2), (2, 7)], ids=str)
def test_a_right_hand_side_that_does_not_fit(
    framework: Adapter, case: Case, shape: tuple[int, ...], embedded: Client
) -> None:
    f = framework.solve(case, embedded)
    with pytest.raises(InvalidShapeError, match=r"\(7,\) for vectors or \(7, 'k'\) for k columns"):
        f(framework.array(case.values), framework.array(np.zeros(shape)))


def test_a_server_that_dies_and_is_started_again(framework: Adapter) -> None:
    """Meanwhile an error that names it; afterwards it is sent again what it has lost."""
    case = Case(True)
    with ServerProcess() as server, Client(server.http_url) as client:
        f, hurried = framework.solve(case, client), framework.solve(case, client, timeout=2.0)
        before = framework.grad(f, case)
        server.kill()
        with pytest.raises(UnreachableError, match=re.escape("127.0.0.1")):
            framework.grad(hurried, case)
        server.start()
        for one, other in zip(framework.grad(f, case), before, strict=True):
            assert error(one, other) <= GRADIENTS


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_server_that_is_not_there(framework: Adapter, compiled: bool) -> None:
    with Client("http://127.0.0.1:1", timeout=2.0) as nowhere:
        f = prepared(framework, framework.solve(Case(False), nowhere), compiled)
        with pytest.raises(Exception, match=re.escape("127.0.0.1")):
            np.asarray(f(framework.array(Case(False).values), framework.array(Case(False).b)))
