"""Calls that go out by the digests of last time, while the matrix is hashed: each answer is that of the numbers now."""

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from backsolve import Client
from backsolve._surmise import Surmises
from backsolve._transports.base import SolveCall, SolveReply, carry
from backsolve._transports.http import HttpTransport
from backsolve.errors import (
    DigestMismatchError,
    NeedMatrixError,
    NeedValuesError,
    NonfiniteInputError,
    SingularMatrixError,
)
from backsolve.fingerprint import pattern_digest
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern
from backsolve.types import Holding, MatrixRef, Options
from backsolve_service.context import CallContext
from support.fresh import new_rng
from support.rest import CERTIFICATE, ToldPlane, serving
from support.servers import ServerProcess

N = 60


@pytest.fixture
def remote(server: ServerProcess) -> Iterator[Client]:
    with Client(server.url("http")) as opened:
        yield opened


@pytest.fixture
def rng() -> np.random.Generator:
    return new_rng()


def dense(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((N, N)) + N * np.eye(N)


def surmised(client: Client, a: np.ndarray, kind: str) -> bool:
    """Whether the next call of the kind will go out before the matrix is hashed; learns nothing."""
    return client._exchange._surmises._right.get((pattern_digest(DensePattern(a.shape)), kind), False)


def check(client: Client, a: np.ndarray, rng: np.random.Generator) -> None:
    b, g = rng.standard_normal((2, N))
    x = client.solve(a, b).x
    np.testing.assert_allclose(a @ x, b, atol=1e-10)
    found = client.vjp(a, x, g)
    np.testing.assert_allclose(a.T @ found.b, g, atol=1e-10)
    np.testing.assert_allclose(found.values, -np.outer(found.b, x), rtol=1e-10)
    pushed = client.jvp(a, x, b_tangent=g).x
    np.testing.assert_allclose(a @ pushed, g, atol=1e-10)


def test_an_unchanged_matrix_is_named_before_it_is_hashed_and_costs_no_more_solves(remote, rng):
    a = dense(rng)
    assert not surmised(remote, a, "solve")
    for _ in range(2):
        check(remote, a, rng)
    assert all(surmised(remote, a, kind) for kind in ("solve", "vjp", "jvp"))
    before = remote.stats()
    remote.solve(a, np.ones(N))
    check(remote, a, rng)
    after = remote.stats()
    grown = {name: after[name] - before[name] for name in ("solves", "adjoint_solves", "uploads", "factorizations")}
    assert grown == {"solves": 2, "adjoint_solves": 1, "uploads": 0, "factorizations": 0}


def test_a_matrix_written_to_in_place_gets_the_answer_of_its_new_numbers(remote, rng):
    a = dense(rng)
    for _ in range(2):
        check(remote, a, rng)
    for _ in range(4):  # by the second time it is no longer expected to be the same, by the fourth again
        a[rng.integers(N), rng.integers(N)] += 1.0
        check(remote, a, rng)
        check(remote, a, rng)
    a[:] = dense(rng)
    check(remote, a, rng)


def test_steps_that_change_the_matrix_between_solve_and_vjp_expect_what_holds(remote, rng):
    a = dense(rng)
    for _ in range(3):
        a *= 1.01
        b, g = rng.standard_normal((2, N))
        x = remote.solve(a, b).x
        remote.vjp(a, x, g)
    assert not surmised(remote, a, "solve"), "a solve has never met the numbers of the last one"
    assert surmised(remote, a, "vjp")
    before = remote.stats()
    a *= 1.01
    x = remote.solve(a, b).x
    remote.vjp(a, x, g)
    after = remote.stats()
    assert after["solves"] - before["solves"] == after["adjoint_solves"] - before["adjoint_solves"] == 1


def test_other_numbers_at_the_same_address_are_seen(remote, rng):
    memory = np.empty((N, N))
    several = [dense(rng) for _ in range(3)]
    for number in (0, 0, 0, 1, 1, 2, 0, 0, 1):
        memory[:] = several[number]
        check(remote, memory, rng)


def test_a_failure_of_last_times_matrix_is_not_told_of_this_one(remote, rng):
    a = dense(rng)
    singular = np.ones((N, N))
    a[:] = singular
    for _ in range(3):
        with pytest.raises(SingularMatrixError):
            remote.solve(a, np.ones(N))
    assert surmised(remote, a, "solve")
    a[:] = dense(rng)
    check(remote, a, rng)
    for _ in range(2):
        check(remote, a, rng)
    a[:] = singular
    with pytest.raises(SingularMatrixError):
        remote.solve(a, np.ones(N))


def test_what_the_server_has_forgotten_is_sent_again(remote, rng, server):
    a = dense(rng)
    for _ in range(3):
        check(remote, a, rng)
    server.kill()
    server.start()
    assert surmised(remote, a, "solve")
    check(remote, a, rng)
    a[:] = dense(rng)
    server.kill()
    server.start()
    check(remote, a, rng)


def trained(client: Client, rng: np.random.Generator, steps: int = 3) -> np.ndarray:
    """A matrix whose values were others in each of several steps."""
    for _ in range(steps):
        a = dense(rng)
        check(client, a, rng)
    return a


def test_values_that_are_new_in_each_step_are_sent_without_a_name(remote, rng):
    a = trained(remote, rng)
    before = remote.stats()
    a = dense(rng)
    assert remote._exchange.name(Matrix(DensePattern(a.shape), a), "solve").ref.is_unnamed
    check(remote, a, rng)
    after = remote.stats()
    names = ("solves", "adjoint_solves", "uploads", "factorizations", "need_values", "need_matrix")
    assert {name: after[name] - before[name] for name in names} == dict(zip(names, (1, 1, 1, 1, 0, 0), strict=True))


def test_a_caller_who_comes_back_to_old_values_names_them_again(remote, rng):
    a = trained(remote, rng)
    for _ in range(4):
        check(remote, a, rng)
    before = remote.stats()["uploads"]
    check(remote, a, rng)
    assert remote.stats()["uploads"] == before
    check(remote, dense(rng), rng)


def test_values_that_were_sent_in_vain_end_the_sending(remote, rng):
    a = trained(remote, rng)
    kept = [a]
    for _ in range(3):  # old values at a new address each time
        kept.append(a.copy())
        remote.solve(kept[-1], np.ones(N))
    before = remote.stats()["uploads"]
    kept.append(a.copy())
    remote.solve(kept[-1], np.ones(N))
    assert remote.stats()["uploads"] == before


def test_a_pattern_that_was_forgotten_is_sent_again(remote, rng, server):
    trained(remote, rng)
    server.kill()
    server.start()
    check(remote, dense(rng), rng)
    check(remote, dense(rng), rng)


def test_what_cannot_be_solved_is_told_of_unnamed_values_as_well(remote, rng):
    trained(remote, rng)
    with pytest.raises(SingularMatrixError):
        remote.solve(np.ones((N, N)), np.ones(N))
    with pytest.raises(NonfiniteInputError):
        remote.solve(np.full((N, N), np.nan), np.ones(N))
    check(remote, dense(rng), rng)


def test_numbers_that_are_written_to_while_they_are_solved_with_are_noticed(remote, rng):
    """The digests of both sides differ then: the call is made again by the digests that A has now."""
    trained(remote, rng)
    a, b = dense(rng), np.ones(N)
    matrix = Matrix(DensePattern(a.shape), a)
    name = remote._exchange.name(matrix, "solve")

    def meanwhile() -> None:
        if not matrix.hashed:
            a[0, 0] += 1.0
        name.check()

    call = SolveCall(name.ref, Options(), b, meanwhile=meanwhile)
    reply = remote._session.run(remote._exchange.deliver(matrix, call, None))
    np.testing.assert_allclose(a @ reply.x, b, atol=1e-10)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_the_server_names_what_it_was_brought_without_a_name(server, transport, rng):
    """By hand, over each transport: values on a pattern that is held, and the digest of them in the reply."""
    with Client(server.url(transport)) as client:
        a = dense(rng)
        client.solve(a, np.ones(N))
        other = Matrix(DensePattern(a.shape), dense(rng))
        call = SolveCall(MatrixRef.unnamed(other.ref.pattern), Options(), np.ones(N), values=other.values)
        reply = carry(client.transport, call, 60.0)
        np.testing.assert_allclose(other.values @ reply.x, 1.0, atol=1e-10)
        assert client.transport.find([other.ref], 60.0) == [Holding.FACTOR]
        if transport == "http":
            assert reply.ref == other.ref
        with pytest.raises((NeedValuesError, NeedMatrixError)):
            carry(client.transport, replace(call, values=None), 60.0)
        spoilt = replace(call, ref=MatrixRef(other.ref.pattern, other.ref.pattern))
        with pytest.raises(DigestMismatchError):
            carry(client.transport, spoilt, 60.0)


def test_nothing_is_surmised_where_nothing_is_gained(client, rng):
    """Over gRPC and in this process the hash would come first or last, and a wrong guess cost a solve."""
    if client.transport.overlaps:
        pytest.skip("this transport hashes meanwhile")
    a = dense(rng)
    for _ in range(3):
        client.solve(a, np.ones(N))
    assert client._exchange.name(Matrix(DensePattern(a.shape), a), "solve").meanwhile is None


def test_this_side_works_while_the_other_one_does():
    """The server answers once the client has done what it has to do, or says that it waited in vain."""
    done = threading.Event()

    def answer(call: SolveCall, _: CallContext) -> SolveReply:
        return SolveReply(call.rhs if done.wait(20) else np.zeros(3), CERTIFICATE)

    call = SolveCall(MatrixRef(b"\x12" * 32, b"\x34" * 32), Options(), np.ones(3), meanwhile=done.set)
    with serving(ToldPlane(answer)) as server, closing(HttpTransport(f"http://127.0.0.1:{server.port}")) as transport:
        assert transport.overlaps
        np.testing.assert_array_equal(transport.solve(call, 60.0).x, np.ones(3))


def changing(_: bytes) -> bool:
    return True


def test_small_values_are_hashed_first(rng):
    surmises = Surmises()
    small = rng.standard_normal((8, 8))
    for _ in range(3):
        assert surmises.name(Matrix(DensePattern(small.shape), small), "solve", changing).meanwhile is None


def test_tables_stay_bounded(rng):
    surmises = Surmises()
    for _ in range(3):
        for n in range(46, 46 + 20):
            memory = rng.standard_normal((60, n, n))
            for each in memory:
                surmises.name(Matrix(DensePattern((n, n)), each), "solve", changing).check()
    assert len(surmises._found) <= 1024
    assert len(surmises._right) <= 1024
