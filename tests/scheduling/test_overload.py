"""What is too much is turned away early, cheaply, and told when to come back."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from backsolve._transports.base import PutCall, SolveCall
from backsolve._transports.grpc import GrpcTransport
from backsolve._transports.http import HttpTransport
from backsolve.errors import QueueFullError
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import Options
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.engine.lazy import lazy
from backsolve_service.grpc.server import GrpcConfig, GrpcServer
from backsolve_service.observer import Silent
from backsolve_service.scheduling.backlog import Backlog
from support.factors import PATIENCE, Hold, held_up, until
from support.rest import serving
from support.systems import convection


def hint(refusals: int) -> float:
    """What one more is told after so many others were turned away during ten jobs of a tenth of a second."""
    backlog = Backlog(4, 1 << 20, Silent())
    for _ in range(4):
        backlog.enter(0, None)
    for _ in range(10):
        backlog.started(1, 0.0)
        backlog._last_end -= 0.1  # as if it had taken that long
        backlog.ended(1, 0)
        backlog.enter(0, None)
    for _ in range(refusals):
        with pytest.raises(QueueFullError):
            backlog.enter(0, None)
    with pytest.raises(QueueFullError) as refusal:
        backlog.enter(0, None)
    return refusal.value.retry_after


def test_the_hint_grows_with_those_who_will_all_come_back() -> None:
    few, some, many = hint(0), hint(40), hint(400)
    assert few >= 0.05
    assert few < some < many
    assert many / some == pytest.approx(10, rel=0.2)


def test_a_call_is_turned_away_for_those_on_their_way_as_for_those_who_wait() -> None:
    backlog = Backlog(4, 1 << 20, Silent())
    backlog.refuse_when_full(3)
    with pytest.raises(QueueFullError, match="at most 4"):
        backlog.refuse_when_full(4)
    backlog.enter(0, None)
    backlog.started(1, 0.0)
    backlog.refuse_when_full(4)  # one of them is being served
    for _ in range(4):
        backlog.enter(0, None)
    with pytest.raises(QueueFullError):
        backlog.refuse_when_full(0)


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
    grpc = GrpcTransport(f"127.0.0.1:{server.port}")
    yield grpc
    grpc.close()
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
