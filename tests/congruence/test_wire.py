"""What travels in a training step, counted by the transport, and how values go with the call that needs them."""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy import sparse

from backsolve import Client
from backsolve._news import News
from backsolve.errors import MatrixChangedError
from backsolve.matrix import Matrix
from backsolve.types import MatrixRef, Options
from support.fresh import new_rng
from support.servers import ServerProcess
from support.systems import convection, laplacian

BESIDE = 2048
"""Bytes of digests, options and certificates beside the numbers of one call."""


def fresh(m: int = 40) -> sparse.csr_array:
    """A matrix that no other test and no other transport has used."""
    a = convection(m, seed=71_881)
    a.data = a.data + new_rng().standard_normal() * 1e-3
    return a


def moved(a: sparse.csr_array, rng: np.random.Generator) -> sparse.csr_array:
    """New values on the same pattern, as after a step of training."""
    return sparse.csr_array((a.data * (1 + 0.01 * rng.random(a.nnz)), a.indices, a.indptr), shape=a.shape)


def step(client: Client, a: sparse.csr_array, b: np.ndarray) -> None:
    """Forward, backward with the gradient of the values, and a look at both."""
    x = client.solve(a, b).x
    gradients = client.vjp(a, x, b)
    np.testing.assert_allclose(a @ x, b, atol=1e-9)
    np.testing.assert_allclose(a.T @ gradients.b, b, atol=1e-9)
    rows = np.repeat(np.arange(a.shape[0]), np.diff(a.indptr))
    np.testing.assert_allclose(gradients.values.data, -gradients.b[rows] * x[a.indices], rtol=1e-10)


@pytest.fixture(params=["http", "grpc"])
def remote(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Client]:
    with Client(server.url(request.param)) as opened:
        yield opened


def moved_bytes(client: Client) -> tuple[int, int]:
    wire = client.transport
    return wire.sent, wire.received  # type: ignore[attr-defined]


@pytest.mark.parametrize("m", [40, 300])  # one message, and bulk: 90 000 numbers are asked about before they are sent
def test_a_step_with_an_unchanged_matrix_moves_four_vectors(remote: Client, m: int) -> None:
    a, b = fresh(m), np.random.default_rng(5_518).standard_normal(m * m)
    step(remote, a, b)
    before = moved_bytes(remote)
    step(remote, a, b)
    sent, received = (after - first for after, first in zip(moved_bytes(remote), before, strict=True))
    vectors = 2 * b.nbytes
    assert vectors <= sent <= vectors + 2 * BESIDE, "b, and the cotangent"
    assert vectors <= received <= vectors + 2 * BESIDE, "x, and the adjoint"


@pytest.mark.parametrize("m", [40, 300])
def test_a_step_with_new_values_moves_them_once_and_no_index(remote: Client, m: int) -> None:
    rng = np.random.default_rng(90_133)
    a, b = fresh(m), rng.standard_normal(m * m)
    for _ in range(2):  # the pattern, and that its values change
        a = moved(a, rng)
        step(remote, a, b)
    counters, before = remote.stats(), moved_bytes(remote)
    a = moved(a, rng)
    step(remote, a, b)
    sent, received = (after - first for after, first in zip(moved_bytes(remote), before, strict=True))
    after = remote.stats()
    stats_reply = 16 << 10
    upward = a.data.nbytes + 2 * b.nbytes
    assert upward <= sent <= upward + 2 * BESIDE
    assert 2 * b.nbytes <= received <= 2 * b.nbytes + 2 * BESIDE + stats_reply
    grown = {name: after[name] - counters[name] for name in after}
    assert grown["uploads"] == grown["factorizations"] == grown["solves"] == grown["adjoint_solves"] == 1
    assert grown["analyses"] == grown["need_values"] == grown["need_matrix"] == 0


def test_values_that_change_are_right_on_every_way_in(client: Client) -> None:
    rng = np.random.default_rng(33_907)
    a, b = fresh(12), rng.standard_normal(144)
    for _ in range(5):
        a = moved(a, rng)
        step(client, a, b)
        step(client, a, b)
    dense = rng.standard_normal((9, 9)) + 9 * np.eye(9)
    batch = np.stack([dense, 2 * dense])
    for shift in range(4):
        np.testing.assert_allclose((dense + shift) @ client.solve(dense + shift, b[:9]).x, b[:9], atol=1e-10)
        x = client.solve(batch + shift, b[:18].reshape(2, 9)).x
        np.testing.assert_allclose(np.einsum("kij,kj->ki", batch + shift, x).ravel(), b[:18], atol=1e-10)


@pytest.mark.parametrize("scheme", ["embedded", "http", "grpc"])
def test_values_another_has_sent_are_found_by_digest_again(scheme: str, server: ServerProcess) -> None:
    rng = np.random.default_rng(12_441)
    url = "embedded" if scheme == "embedded" else server.url(scheme)
    a, b = fresh(12), rng.standard_normal(144)
    with Client(url) as first, Client(url) as second:
        for _ in range(3):
            a = moved(a, rng)
            first.solve(a, b)
            second.solve(a, b)
        assert first.stats()["uploads"] == 3
        assert second.stats()["uploads"] == 0
        # The second runs ahead once, learns to send, and unlearns it when the first is ahead again.
        for leader, follower in ((second, first), (second, first), (first, second), (first, second)):
            a = moved(a, rng)
            leader.solve(a, b)
            assert follower.solve(a, b).stats.factor_hit
        assert first.stats()["uploads"] + second.stats()["uploads"] <= 3 + 4 + 2


def test_a_server_that_forgot_the_pattern_is_sent_everything_again() -> None:
    rng = np.random.default_rng(55_208)
    a, b = fresh(20), rng.standard_normal(400)
    with ServerProcess() as server:
        clients = [Client(server.http_url), Client(server.grpc_url)]
        for _ in range(3):
            a = moved(a, rng)
            for client in clients:
                step(client, a, b)
        server.kill()
        server.start()
        for client in clients:
            for _ in range(2):
                a = moved(a, rng)
                step(client, a, b)
            client.close()


def test_what_is_too_much_for_one_call_goes_in_two() -> None:
    rng = np.random.default_rng(70_115)
    a, b = laplacian(60), rng.standard_normal((3600, 5))
    limit = a.data.nbytes + b.nbytes - 1
    with ServerProcess(BACKSOLVE_MAX_PAYLOAD_BYTES=str(limit)) as server:
        for url in (server.http_url, server.grpc_url):
            with Client(url) as client:
                for _ in range(4):
                    a = moved(a, rng)
                    np.testing.assert_allclose(a @ client.solve(a, b).x, b, atol=1e-8)


def test_values_written_to_during_the_call_are_told_from_spoilt_ones(client: Client) -> None:
    rng = np.random.default_rng(61_030)
    a = fresh(12)
    for _ in range(3):
        a = moved(a, rng)
        client.solve(a, np.ones(144))
    from backsolve.canonical import canonicalise

    held: Matrix = canonicalise(moved(a, rng)).matrix
    assert held.ref  # hashed; then the caller writes
    held.values[0] += 1.0
    with pytest.raises(MatrixChangedError):
        client.solve_matrix(held, np.ones(144), Options())


def test_what_is_known_of_a_server_is_bounded_and_told_by_digests() -> None:
    news = News()
    old, new = MatrixRef(b"p", b"old"), MatrixRef(b"p", b"new")
    assert not news.expected(new)
    news.missed(old)
    news.answered(old)
    assert news.expected(new)
    assert not news.expected(old)
    assert not news.expected(MatrixRef(b"q", b"new"))
    news.unfounded(new)
    assert not news.expected(new)
    for number in range(5000):
        news.answered(MatrixRef(b"p", b"%d" % number))
        news.missed(MatrixRef(b"%d" % number, b""))
    assert len(news._known) == len(news._changing) == 1024
