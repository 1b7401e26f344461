"""SciPy's names over every way to the engine."""

from collections.abc import Iterator
from types import ModuleType

import pytest

from backsolve import Client, scipy_linalg


@pytest.fixture
def spla(client: Client) -> Iterator[ModuleType]:
    """The module, solved by the embedded engine, then over HTTP, then over gRPC."""
    with scipy_linalg.using(client):
        yield scipy_linalg


@pytest.fixture
def local(embedded: Client) -> Iterator[ModuleType]:
    """The module, solved by the embedded engine alone."""
    with scipy_linalg.using(embedded):
        yield scipy_linalg
