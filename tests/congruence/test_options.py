"""Options that mean nothing, in every way in the same words."""

from typing import Any

import numpy as np
import pytest

from backsolve import Client
from backsolve.errors import InvalidDtypeError, InvalidInputError, InvalidOptionError
from backsolve.matrix import Matrix
from backsolve.options import make_options
from backsolve.pattern import DensePattern
from backsolve.types import Status
from backsolve_service.engine.registry import ROWS, methods
from support.servers import ServerProcess
from support.systems import convection, dense, laplacian

B = np.ones(9)

BAD: dict[str, dict[str, Any]] = {
    "unknown name": {"tolerance": 1e-3},
    "unknown method": {"method": "superlou"},
    "unknown preconditioner": {"method": "cg", "preconditioner": "jakobi"},
    "unknown parameter": {"method": "cg", "preconditioner": "jacobi(omega=1)"},
    "malformed parameters": {"method": "cg", "preconditioner": "jacobi(omega"},
    "unknown precision": {"precision": "half"},
    "unknown ordering": {"ordering": "amd"},
    "unknown reuse": {"reuse": "always"},
    "unknown null space": {"nullspace": "ones"},
    "a name that is a number": {"method": 7},
    "a number that is a name": {"rtol": "tight"},
    "a number that is complex": {"rtol": 1j},
    "a whole number that is not": {"maxiter": 2.5},
    "a whole number that is a name": {"maxiter": "three"},
    "a flag that is not": {"condition": "yes"},
    "a flag that is a number": {"condition": 2},
    "no iterations": {"method": "cg", "maxiter": 0},
    "negative iterations": {"method": "cg", "maxiter": -3},
    "no basis": {"method": "gmres", "restart": 0},
    "negative refinement": {"refine": -1},
    "negative tolerance": {"atol": -1.0},
    "infinite tolerance": {"atol": float("inf")},
    "negative damping": {"damp": -0.5},
    "recycling that is negative": {"recycle": -1},
    "more iterations than 64 bits can count": {"method": "cg", "maxiter": 2**63},
    "fewer than that": {"maxiter": -(2**70)},
}


@pytest.fixture
def three(server: ServerProcess):
    with Client("embedded") as a, Client(server.http_url) as b, Client(server.grpc_url) as c:
        yield a, b, c


def said(client: Client, a: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    with pytest.raises(InvalidInputError) as caught:
        client.solve(a, B, **options)
    return type(caught.value), str(caught.value), caught.value.details


@pytest.mark.parametrize("fault", BAD, ids=lambda name: name.replace(" ", "-"))
def test_a_bad_option_has_one_error(three: tuple[Client, ...], fault: str) -> None:
    embedded, http, grpc = (said(client, laplacian(3), BAD[fault]) for client in three)
    assert embedded == http == grpc
    assert embedded[0] is InvalidOptionError
    assert embedded[2]["option"]


@pytest.mark.parametrize("maxiter", [2**31, 2**63 - 1])
def test_large_limits_are_taken_everywhere(three: tuple[Client, ...], maxiter: int) -> None:
    for client in three:
        assert client.solve(laplacian(3), B, method="cg", maxiter=maxiter).status is Status.OK


VALUES: dict[str, Any] = {
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
}


@pytest.mark.parametrize("method", [m for m in methods() if ROWS[m].needs == "square"])
def test_an_option_that_is_not_used_has_one_error(three: tuple[Client, ...], method: str) -> None:
    a = convection(3) if "csr" in ROWS[method].layouts else dense(9)
    for name in sorted(VALUES.keys() - ROWS[method].options):
        embedded, http, grpc = (said(client, a, {"method": method, name: VALUES[name]}) for client in three)
        assert embedded == http == grpc
        assert embedded[2] == {"option": name, "method": method}


def test_a_first_iterate_that_is_not_used_has_one_error(three: tuple[Client, ...]) -> None:
    m = Matrix(DensePattern((9, 9)), dense(9))
    told = []
    for client in three:
        with pytest.raises(InvalidOptionError) as caught:
            client.solve_matrix(m, B, make_options(method="lu"), x0=B)
        told.append((str(caught.value), caught.value.details))
    assert told[0] == told[1] == told[2]
    assert told[0][1] == {"option": "x0", "method": "lu"}


def test_a_complex_first_iterate_of_a_real_system_has_one_error(three: tuple[Client, ...]) -> None:
    m = Matrix(DensePattern((9, 9)), dense(9))
    for client in three:
        with pytest.raises(InvalidDtypeError, match="x0 is complex128, b is float64"):
            client.solve_matrix(m, B, make_options(method="gmres"), x0=B + 1j)
