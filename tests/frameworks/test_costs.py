"""What a gradient costs is the same in each framework: requests, factorizations, and bytes on the wire."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from backsolve import Client
from backsolve._transports.grpc import GrpcTransport
from frameworks.adapters import Adapter
from frameworks.cases import SINGLE, Case
from support.servers import ServerProcess

COUNTED = ("factorizations", "solves", "adjoint_solves", "tangent_solves", "columns", "uploads")

each_kind = pytest.mark.parametrize("case", [*SINGLE, Case(True, (2,), (3,), "H", "complex128")], ids=str)


@pytest.fixture(params=["http", "grpc"])
def remote(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Client]:
    """A client that has met nothing yet."""
    with Client(server.url(request.param)) as opened:
        yield opened


def grown(client: Client, action: Callable[[], Any]) -> dict[str, int]:
    """By how much an action moves the counters of the engine."""
    before = client.stats()
    action()
    after = client.stats()
    return {name: int(after[name] - before[name]) for name in COUNTED}


@each_kind
def test_a_gradient_is_one_factorization_and_two_requests(framework: Adapter, case: Case, client: Client) -> None:
    f = framework.solve(case, client)
    framework.grad(f, case, case.fresh())  # the pattern is known from here on
    counts = grown(client, lambda: framework.grad(f, case, case.fresh()))
    assert (counts["solves"], counts["adjoint_solves"], counts["tangent_solves"]) == (1, 1, 0)
    assert counts["columns"] == 2 * max((1, *case.columns))
    assert (counts["factorizations"], counts["uploads"]) == (1, 1), "a batch on one pattern is one"


@each_kind
def test_a_hessian_vector_product_is_two_more_solves(framework: Adapter, case: Case, client: Client) -> None:
    f = framework.solve(case, client)
    framework.hvp(f, case, case.fresh())
    counts = grown(client, lambda: framework.hvp(f, case, case.fresh()))
    assert counts["factorizations"] == 1
    assert counts["solves"] + counts["adjoint_solves"] + counts["tangent_solves"] == 4
    assert counts["uploads"] == 1


def test_mapped_right_hand_sides_are_one_request(framework: Adapter, client: Client) -> None:
    case, many = Case(True), Case(True, (64,))
    f, values = framework.solve(case, client), case.fresh()
    counts = grown(client, lambda: framework.vmap(f, values, many.b, (False, True)))
    if framework.maps:
        assert (counts["factorizations"], counts["solves"]) == (1, 1)
    assert (counts["factorizations"], counts["columns"]) == (1, 64)


@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_a_gradient_moves_as_many_bytes_as_numpys(framework: Adapter, case: Case, remote: Client) -> None:
    """The client's own calls, without any framework, are the measure: so all frameworks move the same."""

    def by_hand(values: np.ndarray) -> None:
        matrix = _matrix(case, values)
        remote.vjp(matrix, remote.solve(matrix, case.b).x, case.b)

    f = framework.solve(case, remote)
    for action in (by_hand, lambda values: framework.grad(f, case, values)):
        for _ in range(2):  # the pattern, and that its values change
            action(case.fresh())
    ours = _moved(remote, lambda: framework.grad(f, case, case.fresh()))
    theirs = _moved(remote, lambda: by_hand(case.fresh()))
    assert ours == theirs
    assert ours["received_arrays"] == 2 * case.b.nbytes, "x and λ"


@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_a_hessian_vector_product_moves_the_values_and_four_vectors_each_way(
    framework: Adapter, case: Case, remote: Client
) -> None:
    f = framework.solve(case, remote)
    for _ in range(2):
        framework.hvp(f, case, case.fresh())
    moved = _moved(remote, lambda: framework.hvp(f, case, case.fresh()))
    numbers = case.values.nbytes + 4 * case.b.nbytes
    assert moved["received_arrays"] == 4 * case.b.nbytes
    assert 0 <= moved["sent"] - numbers <= 4 * BESIDE
    if isinstance(remote.transport, GrpcTransport):
        assert moved["sent"] == numbers, "which counts the arrays alone"


BESIDE = 1024
"""Bytes of names, options and digests in one request over REST."""


def _moved(client: Client, action: Callable[[], Any]) -> dict[str, int]:
    """Bytes; of those received the arrays', as the seconds in certificates have more digits or fewer."""
    wire: Any = client.transport
    counters = "sent", "received_arrays"
    before = [getattr(wire, name) for name in counters]
    action()
    return {name: getattr(wire, name) - first for name, first in zip(counters, before, strict=True)}


def _matrix(case: Case, values: np.ndarray) -> Any:
    if not case.sparse:
        return values
    return sparse.csr_array((values, case.pattern.indices, case.pattern.indptr), shape=case.pattern.shape)
