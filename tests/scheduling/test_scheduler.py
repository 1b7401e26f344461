"""Admission, waiting, deadlines and the end of service."""

import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from backsolve.errors import (
    CancelledError,
    DeadlineError,
    DrainingError,
    InternalError,
    InvalidShapeError,
    MemoryBudgetError,
    NeedMatrixError,
    QueueFullError,
    SingularMatrixError,
)
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.observer import Silent
from backsolve_service.scheduling.scheduler import Scheduler
from support.factors import PATIENCE, SUPERLU, caller, factorize, held_up, operand, solved_by, until
from support.systems import convection


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    """One worker, so that the order of work is known."""
    one = Scheduler(1, 8, 1 << 20)
    yield one
    assert one.close(PATIENCE)


def in_background(pool: ThreadPoolExecutor, scheduler: Scheduler, job, context=None):
    """A caller on a thread of its own, whose job waits in the queue when this returns."""
    depth = scheduler.stats.depth
    future = pool.submit(scheduler.run, job, context or caller())
    until(lambda: scheduler.stats.depth == depth + 1)
    return future


def test_run_returns_what_the_job_returns_and_raises_what_it_raises(scheduler):
    assert scheduler.run(lambda: threading.current_thread().name, caller()).startswith("backsolve-worker")

    def fail():
        raise SingularMatrixError("a pivot is exactly zero")

    with pytest.raises(SingularMatrixError, match="pivot"):
        scheduler.run(fail, caller())
    assert scheduler.stats.depth == scheduler.stats.inflight == 0


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_job_that_would_end_the_thread_ends_only_itself(scheduler, error):
    def die():
        raise error()

    with pytest.raises(InternalError, match=error.__name__):
        scheduler.run(die, caller())
    assert scheduler.run(lambda: 7, caller()) == 7


def test_a_job_that_never_began_is_dropped_at_its_deadline_and_frees_its_place(scheduler):
    ran = []
    with held_up(scheduler):
        with pytest.raises(DeadlineError):
            scheduler.run(lambda: ran.append(1), caller(0.02))
        assert scheduler.stats.depth == 0
    scheduler.run(lambda: None, caller())
    assert not ran


def test_an_expired_caller_is_refused_before_it_queues(scheduler):
    with pytest.raises(DeadlineError):
        scheduler.run(lambda: pytest.fail("it ran"), caller(-1.0))


def test_a_cancelled_caller_leaves_at_once_and_frees_its_place(scheduler):
    ran, context = [], caller(None)
    with ThreadPoolExecutor() as pool, held_up(scheduler):
        waiting = in_background(pool, scheduler, lambda: ran.append(1), context)
        context.cancel()
        with pytest.raises(CancelledError):
            waiting.result(PATIENCE)
        until(lambda: scheduler.stats.depth == 0)
    scheduler.run(lambda: None, caller())
    assert not ran


def test_a_running_job_finishes_after_its_caller_left(scheduler):
    begun, gate, done, context = threading.Event(), threading.Event(), threading.Event(), caller()

    def job():
        begun.set()
        gate.wait(PATIENCE)
        done.set()

    with ThreadPoolExecutor() as pool:
        left = pool.submit(scheduler.run, job, context)
        assert begun.wait(PATIENCE)
        context.cancel()
        with pytest.raises(CancelledError):
            left.result(PATIENCE)
        assert not done.is_set()
        gate.set()
        assert done.wait(PATIENCE)


def test_the_queue_is_bounded_by_count_and_those_in_it_are_served_in_order(scheduler):
    order: list[int] = []
    with ThreadPoolExecutor(16) as pool:
        with held_up(scheduler):
            waiting = [in_background(pool, scheduler, lambda i=i: order.append(i)) for i in range(8)]
            for _ in range(3):
                with pytest.raises(QueueFullError) as refusal:
                    scheduler.run(lambda: order.append(-1), caller())
                assert refusal.value.retry_after >= 0.05
        for future in waiting:
            future.result(PATIENCE)
    assert order == list(range(8))


def test_the_queue_is_bounded_by_bytes_but_lets_one_large_job_through_alone(scheduler):
    assert scheduler.run(lambda: "large", caller(), nbytes=1 << 30) == "large"
    with ThreadPoolExecutor() as pool:
        with held_up(scheduler):
            waiting = pool.submit(scheduler.run, lambda: "first", caller(), nbytes=900_000)
            until(lambda: scheduler.stats.depth == 1)
            with pytest.raises(QueueFullError, match="bytes are held"):
                scheduler.run(lambda: None, caller(), nbytes=900_000)
        assert waiting.result(PATIENCE) == "first"
    assert scheduler.run(lambda: "second", caller(), nbytes=900_000) == "second"


def test_draining_refuses_new_calls_and_serves_those_admitted():
    scheduler = Scheduler(1, 8, 1 << 20)
    admitted = caller()
    with scheduler.call(admitted):
        scheduler.drain()
        assert scheduler.draining
        assert scheduler.run(lambda: 5, admitted) == 5
        assert scheduler.order(lambda: 6).result(PATIENCE).value == 6
        with pytest.raises(DrainingError), scheduler.call(caller()):
            pytest.fail("it was admitted")
        with pytest.raises(DrainingError):
            scheduler.run(lambda: None, caller())
    with pytest.raises(DrainingError):
        scheduler.run(lambda: None, admitted)
    with pytest.raises(DrainingError):
        scheduler.order(lambda: None)
    assert scheduler.close(PATIENCE)
    assert scheduler.close(PATIENCE), "closing twice is harmless"


def test_close_finishes_what_waits():
    scheduler = Scheduler(1, 8, 1 << 20)
    gate = threading.Event()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(scheduler.run, lambda: gate.wait(PATIENCE), caller())
        until(lambda: scheduler.stats.inflight == 1)
        waiting = in_background(pool, scheduler, lambda: 9)
        closing = pool.submit(scheduler.close, PATIENCE)
        until(lambda: scheduler.draining)
        gate.set()
        assert closing.result(PATIENCE)
        assert running.result(PATIENCE)
        assert waiting.result(PATIENCE) == 9


def test_close_gives_up_on_time_and_tells_those_who_wait():
    scheduler = Scheduler(1, 8, 1 << 20)
    gate = threading.Event()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(scheduler.run, lambda: gate.wait(PATIENCE), caller())
        until(lambda: scheduler.stats.inflight == 1)
        waiting = in_background(pool, scheduler, lambda: 9)
        assert not scheduler.close(0.05)
        with pytest.raises(DrainingError):
            waiting.result(PATIENCE)
        gate.set()
        assert running.result(PATIENCE)
    assert scheduler.close(PATIENCE)


def test_work_goes_to_the_worker_that_is_free():
    scheduler = Scheduler(3, 8, 1 << 20)
    with held_up(scheduler, workers=2):
        names = {scheduler.run(lambda: threading.current_thread().name, caller()) for _ in range(5)}
        assert len(names) == 1
    assert scheduler.close(PATIENCE)


def test_a_cancelled_order_leaves_the_queue(scheduler):
    with held_up(scheduler):
        future = scheduler.order(lambda: pytest.fail("it ran"))
        assert scheduler.stats.depth == 1
        assert future.cancel()
        assert scheduler.stats.depth == 0


def test_a_factor_lives_on_its_worker_and_dies_there(scheduler):
    op = operand(convection(12))
    born: list[str] = []
    dead: list[str] = []

    def job():
        factor = factorize(op)
        born.append(threading.current_thread().name)
        weakref.finalize(factor, lambda: dead.append(threading.current_thread().name))
        return factor

    build = scheduler.build(SUPERLU, job, caller())
    assert build.value.nbytes > 0
    assert build.value.direct
    assert build.value.n == op.n
    solved_by(scheduler, build.value, np.ones((op.n, 1)), "N", Controls(), caller())
    assert not dead
    scheduler.free(build.value)
    until(lambda: bool(dead))  # without another job: an idle worker frees too
    assert dead == born
    scheduler.free(build.value)
    with pytest.raises(NeedMatrixError):
        solved_by(scheduler, build.value, np.ones((op.n, 1)), "N", Controls(), caller())


@pytest.mark.parametrize("keep", [True, False])
def test_a_factor_whose_caller_left_is_kept_for_the_cache_or_freed(scheduler, keep):
    op = operand(convection(8))
    begun, gate, context = threading.Event(), threading.Event(), caller()
    kept, dead = [], []

    def job():
        begun.set()
        gate.wait(PATIENCE)
        factor = factorize(op)
        weakref.finalize(factor, dead.append, True)
        return factor

    with ThreadPoolExecutor() as pool:
        left = pool.submit(scheduler.build, SUPERLU, job, context, keep=kept.append if keep else None)
        assert begun.wait(PATIENCE)
        context.cancel()
        with pytest.raises(CancelledError):
            left.result(PATIENCE)
        gate.set()
    if keep:
        until(lambda: bool(kept))
        answer = solved_by(scheduler, kept[0], np.ones((op.n, 1)), "N", Controls(), caller()).answer
        np.testing.assert_allclose(op.product(0, answer.x, "N"), 1.0, rtol=1e-12)
        scheduler.free(kept[0])
    until(lambda: bool(dead))


def test_a_failed_build_lets_go_of_what_it_had_begun(scheduler):
    op = operand(convection(8))
    dead: list[str] = []

    def job():
        factor = factorize(op)
        weakref.finalize(factor, lambda: dead.append(threading.current_thread().name))
        raise SingularMatrixError("a pivot is exactly zero")

    with pytest.raises(SingularMatrixError) as caught:
        scheduler.build(SUPERLU, job, caller())
    assert dead, "the traceback that the caller got keeps the factor"
    assert dead[0].startswith("backsolve-worker")
    assert caught.value.__traceback__ is not None


def test_an_idle_worker_remembers_neither_answers_nor_right_hand_sides(scheduler):
    op = operand(convection(8))
    ref = scheduler.build(SUPERLU, lambda: factorize(op), caller()).value
    watched: list[weakref.ref] = []
    context = caller()

    def call():
        rhs = np.ones((op.n, 2))
        watched.append(weakref.ref(rhs))
        x = solved_by(scheduler, ref, rhs, "N", Controls(), context).answer.x
        watched.append(weakref.ref(x))

    def fail():
        big = np.ones(10)
        watched.append(weakref.ref(big))
        raise SingularMatrixError("a pivot is exactly zero")

    gc.disable()
    try:
        call()
        with pytest.raises(SingularMatrixError):
            scheduler.run(fail, context)
        scheduler.run(lambda: None, caller())
        assert [w() is None for w in watched] == [True] * len(watched)
    finally:
        gc.enable()


def test_a_right_hand_side_of_another_shape_is_refused(scheduler):
    op = operand(convection(4))
    ref = scheduler.build(SUPERLU, lambda: factorize(op), caller()).value
    for shape in ((op.n,), (op.n + 1, 1), (2, op.n, 1)):
        with pytest.raises(InvalidShapeError):
            solved_by(scheduler, ref, np.ones(shape), "N", Controls(), caller())


def test_an_idle_scheduler_uses_no_cpu(scheduler):
    scheduler.run(lambda: None, caller())
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_many_callers_each_get_their_own_answer():
    scheduler = Scheduler(3, 64, 1 << 20)
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(scheduler.run, lambda i=i: i * i, caller()) for i in range(500)]
        assert [f.result(PATIENCE) for f in futures] == [i * i for i in range(500)]
    assert scheduler.stats.depth == scheduler.stats.inflight == 0
    assert scheduler.close(PATIENCE)


def test_a_fault_of_the_observer_reaches_the_caller_and_the_worker_lives_on():
    class Broken(Silent):
        broken = True

        def queued(self, seconds):
            if self.broken:
                raise RuntimeError("the observer failed")

    observer = Broken()
    scheduler = Scheduler(1, 8, 1 << 20, observer)
    with pytest.raises(RuntimeError, match="observer failed"):
        scheduler.run(lambda: None, caller())
    assert scheduler.stats.inflight == 0
    observer.broken = False
    assert scheduler.run(lambda: 3, caller()) == 3
    assert scheduler.close(PATIENCE)


def test_fork_and_exit_with_live_factors_are_silent():
    """SciPy leaves an exception behind when a thread's list of SuperLU memory goes: not here."""
    code = """
        import os, sys, threading
        from support.factors import SUPERLU, caller, factorize, operand
        from support.systems import convection
        from backsolve_service.scheduling.scheduler import Scheduler
        scheduler = Scheduler(2, 8, 1 << 20)
        op = operand(convection(12))
        refs = [scheduler.build(SUPERLU, lambda: factorize(op), caller()).value for _ in range(4)]
        child = os.fork()
        if child == 0:
            fresh = Scheduler(1, 8, 1 << 20)
            fresh.build(SUPERLU, lambda: factorize(op), caller())
            print(threading.active_count(), flush=True)
            sys.exit(0)
        print(os.waitpid(child, 0)[1])
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={"PYTHONPATH": "tests", "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n0\n", ""), "the main thread, and two of the worker"


GMRES = FactorSpec("gmres", "none", "float64", "cpu")


def test_the_vectors_of_an_iteration_are_counted_while_it_waits(scheduler):
    op = operand(convection(20))
    ref = scheduler.build(GMRES, lambda: factorize(op, GMRES), caller()).value
    b = np.ones((op.n, 1))
    with ThreadPoolExecutor() as pool, held_up(scheduler):
        before = scheduler.stats.nbytes
        waiting = pool.submit(solved_by, scheduler, ref, b, "N", Controls(restart=40), caller())
        until(lambda: scheduler.stats.nbytes > before)
        assert scheduler.stats.nbytes - before > 8 * op.n * 40
    assert waiting.result(PATIENCE).answer.iterations[0] > 0
    assert scheduler.stats.nbytes == 0
    scheduler.free(ref)


def test_a_basis_that_never_fits_is_refused_before_the_solve_with_one_that_does(scheduler):
    op = operand(convection(40))
    ref = scheduler.build(GMRES, lambda: factorize(op, GMRES), caller()).value
    b = np.ones((op.n, 1))
    with pytest.raises(MemoryBudgetError, match=r"ask for restart=\d+") as refusal:
        solved_by(scheduler, ref, b, "N", Controls(restart=1000), caller())
    assert int(refusal.value.details["limit"]) == 1 << 20
    assert int(refusal.value.details["size"]) > 1 << 20
    fits = int(str(refusal.value).partition("restart=")[2].partition(",")[0])
    assert 1 < fits < 1000
    assert solved_by(scheduler, ref, b, "N", Controls(restart=fits), caller()).answer.iterations[0] > 0
    scheduler.free(ref)


def test_vectors_that_no_basis_is_short_enough_for_are_refused_with_another_cure(scheduler):
    op = operand(convection(200))
    ref = scheduler.build(GMRES, lambda: factorize(op, GMRES), caller()).value
    with pytest.raises(MemoryBudgetError, match="use a direct method, or raise BACKSOLVE_QUEUE_BYTES") as refusal:
        solved_by(scheduler, ref, np.ones((op.n, 1)), "N", Controls(), caller())
    assert "restart" not in str(refusal.value)
    scheduler.free(ref)
