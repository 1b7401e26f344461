"""A change of one line: the names, their signatures, and who solves."""

import inspect
import subprocess
import sys
import threading

import numpy as np
import pytest
import scipy.sparse.linalg
from scipy.sparse import csr_array

from backsolve import AsyncClient, Client, scipy_linalg
from backsolve.errors import InvalidOptionError
from support.systems import convection

SERVED = sorted(set(scipy_linalg.__all__) - {"SuperLU", "using"})


def parameters(function: object) -> list[tuple[str, object, object]]:
    """Name, kind and default of each parameter: what a caller sees."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", SERVED)
def test_signatures_are_scipys(name):
    assert parameters(getattr(scipy_linalg, name)) == parameters(getattr(scipy.sparse.linalg, name))
    assert getattr(scipy_linalg, name) is not getattr(scipy.sparse.linalg, name)


def test_what_is_not_served_is_scipys_own_object():
    served = {*SERVED, "SuperLU"}
    public = {name for name in dir(scipy.sparse.linalg) if not name.startswith("_")}
    assert served < public
    for name in public - served:
        assert getattr(scipy_linalg, name) is getattr(scipy.sparse.linalg, name)
    assert public <= set(dir(scipy_linalg))


def test_a_name_of_neither_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_solver"):
        scipy_linalg.no_such_solver  # noqa: B018
    assert not hasattr(scipy_linalg, "__wrapped__")


def test_the_named_client_solves(client):
    a, b = convection(5), np.arange(25.0)
    before = client.stats()["solves"]
    with scipy_linalg.using(client) as named:
        assert named is client
        np.testing.assert_allclose(a @ scipy_linalg.spsolve(a, b), b, atol=1e-12)
    assert client.stats()["solves"] == before + 1


def test_blocks_nest_and_end(server, embedded):
    a, b = csr_array(np.diag([2.0, 4.0])), np.ones(2)
    with Client(server.http_url) as far:
        before = far.stats()["solves"]
        with scipy_linalg.using(far):
            with scipy_linalg.using(embedded):
                scipy_linalg.spsolve(a, b)
            assert far.stats()["solves"] == before
            scipy_linalg.spsolve(a, b)
            kept = scipy_linalg.splu(a)
        after = far.stats()["solves"]
        scipy_linalg.spsolve(a, b)
        assert far.stats()["solves"] == after
        kept.solve(b)  # goes on with the client that made it
        assert far.stats()["solves"] == after + 1


def test_another_thread_has_the_default_client(server):
    a, seen = csr_array(np.diag([2.0, 4.0])), []
    with Client(server.http_url) as far, scipy_linalg.using(far):
        before = far.stats()["solves"]
        thread = threading.Thread(target=lambda: seen.append(scipy_linalg.spsolve(a, np.ones(2))))
        thread.start()
        thread.join()
        assert far.stats()["solves"] == before
    np.testing.assert_allclose(seen[0], [0.5, 0.25])


def test_a_client_that_must_be_awaited_is_refused():
    with pytest.raises(InvalidOptionError, match="awaited"), scipy_linalg.using(AsyncClient("http://127.0.0.1:9")):
        pass


def test_without_a_named_client_the_environment_decides(server):
    code = """
import numpy as np
from scipy.sparse import csr_array
from backsolve import scipy_linalg as spla
from backsolve.client import default_client
print(spla.spsolve(csr_array(np.diag([2.0, 4.0])), np.ones(2)), default_client().info().http_port)
"""
    environment = {"BACKSOLVE_URL": server.http_url, "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["[0.5", "0.25]", str(server.http_port)]
