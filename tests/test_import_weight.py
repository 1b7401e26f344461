"""What importing and opening a client loads: a light process must stay light."""

import json
import subprocess
import sys
from functools import cache

import pytest

HEAVY = ("torch", "scipy", "jax", "tensorflow", "pydantic", "fastapi", "backsolve_service")


@cache
def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after `code`, which is run once for all who ask."""
    report = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_the_measure_sees_what_is_loaded():
    assert {"scipy", "numpy"} <= loaded_by("import scipy.sparse")


@pytest.mark.parametrize("package", [*HEAVY, "grpc"])
def test_importing_the_package_loads_nothing_heavy(package):
    assert package not in loaded_by("import backsolve")


@pytest.mark.parametrize("module", ["backsolve.errors", "backsolve.types"])
def test_the_shared_vocabulary_needs_numpy_alone(module):
    more = loaded_by(f"import {module}") - loaded_by("import numpy")
    assert more - sys.stdlib_module_names == {"backsolve"}


@pytest.mark.parametrize("package", [*HEAVY, "grpc"])
def test_a_client_over_http_loads_nothing_heavy(package):
    assert package not in loaded_by("import backsolve; backsolve.Client('http://127.0.0.1:9')")


@pytest.mark.parametrize("package", [*HEAVY, "grpc"])
def test_an_awaited_client_over_http_loads_nothing_heavy(package):
    assert package not in loaded_by("import backsolve; backsolve.AsyncClient('http://127.0.0.1:9')")


@pytest.mark.parametrize("package", sorted({*HEAVY, "grpc"} - {"scipy"}))
def test_scipys_names_load_scipy_alone(package):
    assert package not in loaded_by("from backsolve import scipy_linalg")


def test_only_an_awaited_client_loads_an_event_loop(server):
    solve = f"import backsolve; backsolve.Client({server.http_url!r}).solve([[2.0]], [1.0])"
    assert "asyncio" not in loaded_by(solve)
    assert "asyncio" in loaded_by("import backsolve; backsolve.AsyncClient('http://127.0.0.1:9')")


@pytest.mark.parametrize("package", HEAVY)
def test_a_client_over_grpc_loads_no_framework(package):
    assert package not in loaded_by("import backsolve; backsolve.Client('grpc://127.0.0.1:9')")


def test_solving_a_dense_system_over_http_loads_nothing_heavy(server):
    code = f"""
import backsolve, numpy
with backsolve.Client({server.http_url!r}) as client:
    x = client.solve(numpy.array([[2.0, 1.0], [0.0, 4.0]]), numpy.array([4.0, 8.0])).x
numpy.testing.assert_allclose(x, [1.0, 2.0], rtol=1e-14)
"""
    assert not loaded_by(code) & {*HEAVY, "grpc"}


def test_the_engine_solves_without_a_wire_or_a_hash():
    code = """
import numpy as np
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve_service.engine import registry, select, structure
assert Matrix(Pattern([0, 1], [0], (1, 1)), np.ones(1)).n == 1
"""
    assert not loaded_by(code) & {"blake3", "grpc", "google", "pydantic", "fastapi", "prometheus_client"}
