"""What is too much is turned away early, cheaply, and told when to come back."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from backsolve._transports.base import JvpCall, PutCall, SolveCall, VjpCall
from backsolve._transports.grpc import GrpcTransport
from backsolve._transports.http import HttpTransport
from backsolve.errors import QueueFullError
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import Options
from backsolve_service.context import CallContext
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.engine.lazy import lazy
from backsolve_service.grpc.server import GrpcConfig, GrpcServer
from backsolve_service.observer import Silent
from backsolve_service.scheduling.backlog import Backlog
from support.factors import PATIENCE, Hold, held_up, until
from support.rest import serving
from support.systems import convection


def newcomer(*, repeated: bool = False) -> CallContext:
    return CallContext.within(3600.0, "rest", repeated=repeated)


def full(most: int, *, answered: int = 0) -> Backlog:
    """A queue of `most` that is full, after so many calls were answered, each in four seconds."""
    backlog = Backlog(most, 1 << 20, Silent())
    backlog.enter(0, None)
    backlog.started(1, 0.0)
    for _ in range(answered):
        context = newcomer()
        backlog.open_call(context)
        backlog.enter(0, context)
        backlog.withdrawn(0)
        backlog._last_end -= 4.0  # as if it had taken that long
        backlog.close_call(context, answered=True)
    for _ in range(most):
        backlog.enter(0, None)
    return backlog


def refusal(backlog: Backlog, context: CallContext | None = None) -> QueueFullError:
    with pytest.raises(QueueFullError) as refused:
        backlog.enter(0, context)
    return refused.value


def test_each_is_told_a_turn_of_its_own_as_far_apart_as_calls_are_served() -> None:
    backlog = full(4, answered=60)
    hints = [refusal(backlog).retry_after for _ in range(4)]
    assert hints[0] == pytest.approx(4 / 2 * 4.0, rel=0.1)
    assert np.diff(hints) == pytest.approx([4.0] * 3, rel=0.1)


def test_an_hour_in_which_nobody_waited_does_not_count_even_if_somebody_was_served() -> None:
    backlog = Backlog(4, 1 << 20, Silent())
    backlog.enter(0, None)
    backlog.started(1, 0.0)  # and goes on
    for _ in range(3):
        context = newcomer()
        backlog._last_end -= 3600.0
        backlog.open_call(context)
        backlog.enter(0, context)
        backlog.started(1, 0.0)
        backlog.ended(1, 0)
        backlog.close_call(context, answered=True)
    for _ in range(4):
        backlog.enter(0, None)
    assert refusal(backlog, newcomer()).retry_after < 10.0, "it took no time at all, and 30 is the most that is told"


def test_calls_that_failed_say_nothing_of_how_fast_others_are_served() -> None:
    backlog = full(4, answered=60)
    before = backlog._interval
    backlog.withdrawn(0)
    refused, failed, idle = (newcomer() for _ in range(3))
    for context in (refused, failed, idle):
        backlog.open_call(context)
    backlog.enter(0, failed)
    refusal(backlog, refused)
    for context in (refused, failed):
        backlog.close_call(context, answered=False)
    backlog.close_call(idle, answered=True)  # it had nothing to ask of the queue
    assert backlog._interval == before


def test_a_call_is_turned_away_for_those_on_their_way_as_for_those_who_wait() -> None:
    backlog = Backlog(4, 1 << 20, Silent())
    backlog.refuse_when_full(3, newcomer())
    with pytest.raises(QueueFullError, match="at most 4"):
        backlog.refuse_when_full(4, CallContext.within(0.01, "rest"))  # which gets no turn
    backlog.enter(0, None)
    backlog.started(1, 0.0)
    backlog.refuse_when_full(4, newcomer())  # one of them is being served
    for _ in range(4):
        backlog.enter(0, None)
    with pytest.raises(QueueFullError):
        backlog.refuse_when_full(0, newcomer())


def test_newcomers_do_not_take_the_place_of_whoever_was_told_to_come_back() -> None:
    backlog = full(4, answered=60)
    backlog._interval = 10.0  # its turn is long after this test
    refusal(backlog, newcomer())
    for _ in range(2):
        backlog.withdrawn(0)
    with pytest.raises(QueueFullError, match="at most 2, the rest is kept for those who were turned away before"):
        backlog.refuse_when_full(0, newcomer())
    backlog.refuse_when_full(0, newcomer(repeated=True))
    backlog.withdrawn(0)
    backlog.refuse_when_full(0, newcomer())


def test_who_something_was_built_for_is_not_turned_away_afterwards() -> None:
    backlog = full(4)
    context = newcomer()
    backlog.open_call(context)
    refusal(backlog, context)
    backlog.keep_place(context)
    backlog.enter(0, context)
    assert backlog.waiting == 5
    refusal(backlog)
    backlog.close_call(context, answered=True)
    refusal(backlog, context)
    backlog.keep_place(context)  # a call that has ended has no place
    refusal(backlog, context)


@pytest.fixture
def plane() -> Iterator[DataPlane]:
    plane = DataPlane(PlaneConfig(workers=1, queue_depth=2))
    yield plane
    plane.close()


@pytest.fixture(params=["http", "grpc"])
def transport(request: pytest.FixtureRequest, plane: DataPlane) -> Iterator[HttpTransport | GrpcTransport]:
    if request.param == "http":
        with serving(plane) as server:
            http = HttpTransport(f"http://127.0.0.1:{server.port}")
            yield http
            http.close()
        return
    server = GrpcServer(plane, GrpcConfig(port=0, queue_depth=2))
    server.start()
    rpc = GrpcTransport(f"127.0.0.1:{server.port}")
    yield rpc
    rpc.close()
    server.stop(1.0)


def test_a_full_queue_costs_neither_upload_nor_hash(plane: DataPlane, transport: HttpTransport | GrpcTransport) -> None:
    a = convection(12)
    matrix = Matrix(Pattern.from_csr(a), a.data)
    solve = SolveCall(matrix.ref, Options(), np.ones(matrix.n))
    gate = threading.Event()
    with held_up(plane._scheduler):
        for _ in range(2):
            plane._scheduler._enter(plane._scheduler._threads[0], Hold(gate, quick=False), None)
        before = plane.stats()
        with pytest.raises(QueueFullError) as refusal:
            transport.put(PutCall(matrix.ref, matrix), PATIENCE)
        assert refusal.value.retry_after >= 0.05
        with pytest.raises(QueueFullError):
            transport.solve(solve, PATIENCE)
        assert transport.info(PATIENCE).limits == plane.limits, "who only asks is answered"
        after = plane.stats()
        assert after["uploads"] == before["uploads"]
        assert after["need_matrix"] == before["need_matrix"]
        gate.set()
    until(lambda: plane._scheduler.stats.depth == 0)
    transport.put(PutCall(matrix.ref, matrix), PATIENCE)
    np.testing.assert_allclose(a @ transport.solve(solve, PATIENCE).x, np.ones(matrix.n), atol=1e-10)


def test_a_server_hears_which_calls_it_had_no_room_for_before(
    plane: DataPlane, transport: HttpTransport | GrpcTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = Matrix(Pattern.from_csr(convection(12)), convection(12).data)
    transport.put(PutCall(matrix.ref, matrix), PATIENCE)
    heard: list[bool] = []
    refuse = plane._scheduler.refuse_when_full

    def listening(calls: int, context: CallContext) -> None:
        heard.append(context.repeated)
        refuse(calls, context)

    monkeypatch.setattr(plane._scheduler, "refuse_when_full", listening)
    ones = np.ones(matrix.n)
    for repeated in (False, True):
        transport.solve(SolveCall(matrix.ref, Options(), ones, repeated=repeated), PATIENCE)
        transport.vjp(VjpCall(matrix.ref, Options(), ones, repeated=repeated), PATIENCE)
        transport.jvp(JvpCall(matrix.ref, Options(), None, ones, None, repeated=repeated), PATIENCE)
        transport.put(PutCall(matrix.ref, matrix, repeated=repeated), PATIENCE)
    assert heard == [False] * 4 + [True] * 4


def test_over_grpc_a_call_is_refused_before_its_message_is_there(plane: DataPlane) -> None:
    server = GrpcServer(plane, GrpcConfig(port=0, queue_depth=2))
    server.start()
    nothing: queue.Queue[None] = queue.Queue()
    gate = threading.Event()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel, held_up(plane._scheduler):
        for _ in range(2):
            plane._scheduler._enter(plane._scheduler._threads[0], Hold(gate, quick=False), None)
        call = channel.stream_unary("/backsolve.v1.Solver/Solve")
        with pytest.raises(grpc.RpcError) as refused:
            call(iter(nothing.get, None), timeout=PATIENCE)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE, "as every full queue"
        assert "2 jobs wait" in refused.value.details()
        nothing.put(None)
        gate.set()
    server.stop(1.0)


@pytest.mark.parametrize("awaited", ["analyze", "factorize"])
def test_who_waited_for_a_build_is_answered_though_others_have_filled_the_queue(plane: DataPlane, awaited: str) -> None:
    a = convection(12)
    known, matrix = (Matrix(Pattern.from_csr(a), factor * a.data) for factor in (3.0, 1.0))
    context = CallContext.within(PATIENCE, "rest")
    plane.put(PutCall(matrix.ref, matrix), context)
    if awaited == "factorize":  # the pattern is analysed already
        plane.put(PutCall(known.ref, known), newcomer())
        plane.solve(SolveCall(known.ref, Options(), np.ones(matrix.n)), newcomer())
    worker, gate, begun = plane._scheduler._threads[0], threading.Event(), threading.Event()
    build, found = getattr(worker, awaited), []

    def held(*arguments: Any) -> Any:
        begun.set()
        gate.wait(PATIENCE)
        return build(*arguments)

    setattr(worker, awaited, held)
    asks = threading.Thread(
        target=lambda: found.append(plane.solve(SolveCall(matrix.ref, Options(), np.ones(matrix.n)), context))
    )
    asks.start()
    assert begun.wait(PATIENCE)
    others = threading.Event()
    before = [Hold(others, quick=True) for _ in range(4)]  # on the thread that solves
    plane._scheduler._enter(worker, before[0], None)
    until(before[0].begun.is_set)
    for each in before[1:3]:
        plane._scheduler._enter(worker, each, None)
    with pytest.raises(QueueFullError):
        plane._scheduler._enter(worker, before[3], None)
    gate.set()
    until(lambda: not asks.is_alive() or plane._scheduler.stats.depth == 3)
    others.set()
    asks.join(PATIENCE)
    np.testing.assert_allclose(a @ found[0].x, np.ones(matrix.n), atol=1e-10)


def test_who_was_let_in_and_failed_takes_no_place(plane: DataPlane, transport: HttpTransport | GrpcTransport) -> None:
    a = convection(12)
    matrix = Matrix(Pattern.from_csr(a), a.data)
    wrong = SolveCall(matrix.ref, Options(), np.ones(3))
    transport.put(PutCall(matrix.ref, matrix), PATIENCE)
    for _ in range(10):
        with pytest.raises(Exception, match="shape"):
            transport.solve(wrong, PATIENCE)
    transport.solve(SolveCall(matrix.ref, Options(), np.ones(matrix.n)), PATIENCE)


def test_what_is_lazy_is_computed_once_and_for_each_object() -> None:
    computed = []

    class Thing:
        @lazy
        def number(self) -> int:
            """How many."""
            computed.append(self)
            return len(computed)

    one, other = Thing(), Thing()
    assert [one.number, one.number, other.number, one.number] == [1, 1, 2, 1]
    assert computed == [one, other]
    assert Thing.number.__doc__ == "How many."
