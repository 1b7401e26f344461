"""Small calls whose factor lies ready are answered on the event loop; all others on threads, as ever."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from backsolve._transports.base import PutCall, SolveCall, VjpCall
from backsolve._transports.http import HttpTransport
from backsolve.errors import NeedMatrixError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern
from backsolve.types import Options
from backsolve_service.context import CallContext, WouldWaitError
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.observer import Silent
from support.factors import held_up, until
from support.rest import dense_matrix, serving
from support.systems import convection, laplacian

TIMEOUT = 60.0
LOOP = "rest-loop"


class Listener(Silent):
    """Hears on which thread each block was solved."""

    def __init__(self) -> None:
        self.threads: list[str] = []

    def block(self, columns: int) -> None:
        self.threads.append(threading.current_thread().name)


@dataclass
class Bench:
    """A server, one caller of it, and what is heard."""

    plane: DataPlane
    transport: HttpTransport
    heard: Listener = field(repr=False)

    def put(self, matrix: Matrix) -> Matrix:
        self.transport.put(PutCall(matrix.ref, matrix), TIMEOUT)
        return matrix

    def solve(self, matrix: Matrix, columns: int | None = None, **options: object) -> str:
        """Solve, and tell on which thread."""
        before = len(self.heard.threads)
        rhs = np.ones(matrix.n if columns is None else (matrix.n, columns), matrix.dtype)
        reply = self.transport.solve(SolveCall(matrix.ref, Options(**options), rhs), TIMEOUT)  # type: ignore[arg-type]
        assert reply.certificate.backward_error < 1e-12
        assert len(self.heard.threads) == before + 1
        return self.heard.threads[-1]

    def settled(self, matrix: Matrix, **options: object) -> None:
        """Have the factor built, and its worker asleep again."""
        self.solve(matrix, **options)
        until = time.monotonic() + TIMEOUT
        while not all(worker.asleep and worker.idle for worker in self.plane._scheduler._threads):
            assert time.monotonic() < until
            time.sleep(0.001)


@pytest.fixture
def bench() -> Iterator[Bench]:
    heard = Listener()
    plane = DataPlane(PlaneConfig(workers=1), heard)
    with serving(plane) as server:
        transport = HttpTransport(f"http://127.0.0.1:{server.port}")
        yield Bench(plane, transport, heard)
        transport.close()
    plane.close()


def sparse(m: int) -> Matrix:
    a = convection(m)
    return Matrix(Pattern.from_csr(a), a.data)


@pytest.mark.parametrize("matrix", [sparse(14), dense_matrix(24, 66_183_404)], ids=["sparse", "dense"])
def test_a_small_cached_call_is_answered_on_the_event_loop(bench: Bench, matrix: Matrix) -> None:
    bench.put(matrix)
    assert bench.solve(matrix) != LOOP, "there was a factor to build"
    bench.settled(matrix)
    assert bench.solve(matrix) == LOOP
    assert bench.solve(matrix, columns=3) == LOOP
    assert bench.solve(matrix, trans="T") == LOOP, "its factor is there, although nobody asked for this before"
    bench.settled(matrix)
    assert bench.solve(matrix, trans="T") == LOOP


def test_an_adjoint_as_well(bench: Bench) -> None:
    matrix = bench.put(sparse(14))
    call = VjpCall(matrix.ref, Options(), np.ones(matrix.n), ("b",), None)
    for _ in range(2):
        bench.settled(matrix)
        lam = bench.transport.vjp(call, TIMEOUT).b
    assert bench.heard.threads[-1] == LOOP
    np.testing.assert_allclose(convection(14).T @ lam, np.ones(matrix.n), atol=1e-10)


def test_a_gradient_that_takes_long_to_form_is_formed_on_a_thread(bench: Bench) -> None:
    for matrix, among in ((dense_matrix(24, 66_183_404), [LOOP]), (dense_matrix(400, 91_055), [])):
        bench.put(matrix)
        call = VjpCall(matrix.ref, Options(), np.ones(matrix.n), ("b", "values"), np.ones(matrix.n))
        for _ in range(2):
            bench.settled(matrix)
            bench.transport.vjp(call, TIMEOUT)
        assert [name for name in bench.heard.threads[-1:] if name == LOOP] == among


def test_the_answer_and_the_counters_are_the_same_as_on_a_thread(bench: Bench) -> None:
    matrix = bench.put(sparse(14))
    rhs = np.random.default_rng(90_811).standard_normal(matrix.n)
    call = SolveCall(matrix.ref, Options(), rhs)
    bench.settled(matrix)
    deltas, answers = [], []
    for context in (CallContext.within(TIMEOUT, "rest"), replace(CallContext.within(TIMEOUT, "rest"), at_once=True)):
        before = bench.plane.stats()
        answers.append(bench.plane.solve(call, context).x)
        after = bench.plane.stats()
        deltas.append({name: after[name] - before[name] for name in after if not name.startswith("seconds")})
    assert deltas[0] == deltas[1]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize(
    ("matrix", "options"),
    [
        (sparse(60), {}),
        (sparse(14), {"method": "gmres", "rtol": 1e-13}),
        (sparse(14), {"condition": True}),
        (Matrix(DensePattern((3, 3)), np.stack([np.eye(3), 2 * np.eye(3)])), {}),
    ],
    ids=["large among others", "iterative", "condition", "batch"],
)
def test_what_may_take_longer_goes_to_a_thread(
    bench: Bench, matrix: Matrix, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backsolve_service.rest.handlers._MOST_ALONE", 512 << 10)
    bench.put(matrix)
    rhs = np.ones((*matrix.systems_shape, matrix.n))
    for _ in range(3):
        bench.transport.solve(SolveCall(matrix.ref, Options(**options), rhs), TIMEOUT)  # type: ignore[arg-type]
        assert bench.heard.threads[-1] != LOOP


def test_a_busy_worker_is_not_waited_for_on_the_event_loop(bench: Bench) -> None:
    matrix = bench.put(sparse(14))
    bench.settled(matrix)
    with ThreadPoolExecutor() as pool:
        with held_up(bench.plane._scheduler):
            waiting = pool.submit(bench.solve, matrix)
            # Else the worker may be free again before the call comes.
            until(lambda: waiting.done() or bench.plane._scheduler.stats.depth == 1)
            with pytest.raises(NeedMatrixError):  # the loop turns: others are answered
                bench.transport.solve(SolveCall(sparse(5).ref, Options(), np.ones(25)), TIMEOUT)
            assert not waiting.done()
        assert waiting.result(TIMEOUT) != LOOP


def test_a_call_that_would_wait_after_all_says_so_and_is_not_counted(bench: Bench) -> None:
    matrix = bench.put(sparse(14))
    bench.settled(matrix)
    hurried = replace(CallContext.within(TIMEOUT, "rest"), at_once=True)
    other = Options(method="lu" if matrix.pattern.layout == "dense" else "superlu", ordering="colamd")
    before = bench.plane.stats()
    with held_up(bench.plane._scheduler), pytest.raises(WouldWaitError):  # its worker works for others
        bench.plane.solve(SolveCall(matrix.ref, Options(), np.ones(matrix.n)), hurried)
    with pytest.raises(WouldWaitError):  # there is a factor to build
        bench.plane.solve(SolveCall(matrix.ref, other, np.ones(matrix.n)), hurried)
    after = bench.plane.stats()
    assert after["solves"] == before["solves"]
    assert after["factorizations"] == before["factorizations"]
    assert bench.plane.inflight == 0
    assert bench.plane._scheduler.stats.depth == 0


def test_a_small_dense_matrix_that_is_new_is_factorized_on_the_way(bench: Bench) -> None:
    first = bench.put(dense_matrix(24, 66_183_404))
    bench.settled(first)
    before = bench.plane.stats()
    for shift in (1.0, 2.0):
        matrix = Matrix(first.pattern, first.values + shift)
        rhs = np.ones(matrix.n)
        reply = bench.transport.solve(SolveCall(matrix.ref, Options(), rhs, values=matrix.values), TIMEOUT)
        assert bench.heard.threads[-1] == LOOP
        np.testing.assert_allclose(matrix.values @ reply.x, rhs, atol=1e-12)
    after = bench.plane.stats()
    grown = {name: after[name] - before[name] for name in ("uploads", "solves", "factorizations", "analyses", "blocks")}
    assert grown == {"uploads": 2, "solves": 2, "factorizations": 2, "analyses": 0, "blocks": 2}


@pytest.mark.parametrize(
    ("matrix", "options"),
    [
        (dense_matrix(130, 51_022), {}),
        (dense_matrix(24, 51_023), {"method": "gmres"}),
        (dense_matrix(24, 51_023), {"maxiter": 900}),
        (dense_matrix(24, 51_023), {"condition": True}),
        (sparse(14), {}),
        (Matrix(DensePattern((3, 3)), np.stack([np.eye(3), 2 * np.eye(3)])), {}),
    ],
    ids=["large", "iterative", "limited", "condition", "sparse", "batch"],
)
def test_other_matrices_that_are_new_are_built_on_threads(
    bench: Bench, matrix: Matrix, options: dict[str, object]
) -> None:
    bench.put(matrix)
    bench.settled(bench.put(dense_matrix(5, 8)))
    moved = Matrix(matrix.pattern, matrix.values * 1.5)
    rhs = np.ones((*moved.systems_shape, moved.n))
    before, counters = len(bench.heard.threads), bench.plane.stats()
    bench.transport.solve(SolveCall(moved.ref, Options(**options), rhs, values=moved.values), TIMEOUT)  # type: ignore[arg-type]
    assert bench.heard.threads[before:]
    assert LOOP not in bench.heard.threads[before:]
    assert bench.plane.stats()["uploads"] == counters["uploads"] + 1, "nothing was tried in vain"


def test_a_new_matrix_that_is_singular_is_an_error_on_the_event_loop_too(bench: Bench) -> None:
    bench.settled(bench.put(dense_matrix(24, 66_183_404)))
    zero = Matrix(DensePattern((24, 24)), np.zeros((24, 24)))
    for _ in range(2):
        with pytest.raises(SingularMatrixError):
            bench.transport.solve(SolveCall(zero.ref, Options(), np.ones(24), values=zero.values), TIMEOUT)


def test_a_build_that_would_be_waited_for_is_left_to_a_thread(bench: Bench) -> None:
    bench.settled(bench.put(dense_matrix(24, 66_183_404)))
    hurried = replace(CallContext.within(TIMEOUT, "rest"), at_once=True)
    new = dense_matrix(24, 66_183_405)
    call = SolveCall(new.ref, Options(), np.ones(24), values=new.values)
    with held_up(bench.plane._scheduler), pytest.raises(WouldWaitError):
        bench.plane.solve(call, hurried)
    reply = bench.plane.solve(call, CallContext.within(TIMEOUT, "rest"))
    np.testing.assert_allclose(new.values @ reply.x, np.ones(24), atol=1e-12)
    assert bench.plane._scheduler.stats.depth == 0


def test_errors_are_told_as_they_are_on_a_thread(bench: Bench) -> None:
    a = laplacian(14)
    matrix = bench.put(Matrix(Pattern.from_csr(a), a.data))
    bench.settled(matrix)
    assert bench.solve(matrix) == LOOP
    wrong = SolveCall(matrix.ref, Options(), np.full(matrix.n, np.nan))
    with pytest.raises(Exception, match="NaN or infinity"):
        bench.transport.solve(wrong, TIMEOUT)
