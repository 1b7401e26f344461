"""A caller that finds a worker asleep solves in its place; nothing else about the worker changes."""

import signal
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from backsolve.errors import DeadlineError, InvalidDtypeError
from backsolve_service.engine.base import Controls, Factor, Outcome
from backsolve_service.scheduling.scheduler import Scheduler
from support.factors import PATIENCE, SUPERLU, caller, factorize, held_up, operand, solved_by, until
from support.systems import convection


@dataclass(frozen=True, eq=False)
class Watched(Factor):
    """A real factor that tells on which thread it solves, and may be held up there."""

    inner: Factor
    seen: list[str]
    gate: threading.Event
    interrupt: bool = False

    direct = True
    anywhere = True
    max_columns = 64

    @property
    def operand(self):
        return self.inner.operand

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    @property
    def condition(self) -> float | None:
        return None

    def solve(self, rhs: Any, trans: Any, controls: Controls) -> Outcome:
        self.seen.append(threading.current_thread().name)
        assert self.gate.wait(PATIENCE)
        if self.interrupt:
            signal.raise_signal(signal.SIGINT)
        return self.inner.solve(rhs, trans, controls)


class Bound(Watched):
    """One that only its worker may solve with."""

    anywhere = False


class Late(Watched):
    """One that fails when its caller's time is over."""

    def solve(self, rhs: Any, trans: Any, controls: Controls) -> Outcome:
        time.sleep(0.3)
        raise ArithmeticError


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    one = Scheduler(1, 64, 1 << 30)
    yield one
    assert one.close(PATIENCE)


@pytest.fixture
def rhs() -> np.ndarray:
    return np.random.default_rng(58_119).standard_normal((144, 1))


def watched(scheduler: Scheduler, *, is_open: bool = True, interrupt: bool = False, kind: type[Watched] = Watched):
    gate, seen = threading.Event(), []
    if is_open:
        gate.set()
    factor = kind(factorize(operand(convection(12))), seen, gate, interrupt)
    ref = scheduler.build(SUPERLU, lambda: factor, caller()).value
    return ref, seen, gate


def asleep(scheduler: Scheduler, ref) -> None:
    """The worker has nothing left to do, and its thread knows."""
    until(lambda: ref.worker.asleep)


def test_a_small_solve_runs_on_its_callers_thread_while_the_worker_sleeps(scheduler, rhs):
    ref, seen, _ = watched(scheduler)
    asleep(scheduler, ref)
    solved = solved_by(scheduler, ref, rhs, "N", Controls(), caller())
    assert set(seen) == {threading.current_thread().name}
    np.testing.assert_allclose(convection(12) @ solved.answer.x, rhs, rtol=1e-9, atol=1e-9)
    assert scheduler.stats.depth == scheduler.stats.inflight == 0


def test_a_factor_that_is_bound_to_its_thread_is_solved_with_there(scheduler, rhs):
    ref, seen, _ = watched(scheduler, kind=Bound)
    asleep(scheduler, ref)
    solved_by(scheduler, ref, rhs, "N", Controls(), caller())
    assert set(seen) == {"backsolve-worker-0-solves"}


def test_a_large_solve_leaves_its_caller_free_to_go(scheduler):
    ref, seen, _ = watched(scheduler)
    columns = 1 + (64 << 20) // ref.nbytes
    asleep(scheduler, ref)
    solved_by(scheduler, ref, np.ones((144, columns)), "N", Controls(), caller())
    assert set(seen) == {"backsolve-worker-0"}


def test_a_busy_worker_lends_nothing(scheduler, rhs):
    ref, seen, _ = watched(scheduler)
    with ThreadPoolExecutor(thread_name_prefix="elsewhere") as pool, held_up(scheduler):
        waiting = pool.submit(solved_by, scheduler, ref, rhs, "N", Controls(), caller())
        until(lambda: scheduler.stats.depth == 1)
        assert not seen
    waiting.result(PATIENCE)
    assert set(seen) == {"backsolve-worker-0-solves"}


def test_what_comes_during_a_lent_turn_waits_for_it_and_then_runs_as_one_block(scheduler, rhs):
    ref, seen, gate = watched(scheduler, is_open=False)
    asleep(scheduler, ref)
    with ThreadPoolExecutor(4, thread_name_prefix="elsewhere") as pool:
        first = pool.submit(solved_by, scheduler, ref, rhs, "N", Controls(), caller())
        until(lambda: len(seen) == 1)
        later = [pool.submit(solved_by, scheduler, ref, rhs, "N", Controls(), caller()) for _ in range(3)]
        until(lambda: scheduler.stats.depth == 3)
        assert scheduler.stats.inflight == 1
        gate.set()
        answers = [each.result(PATIENCE) for each in (first, *later)]
    assert seen[0].startswith("elsewhere")
    assert seen[-1] == "backsolve-worker-0-solves"
    assert [each.block_columns for each in answers] == [1, 3, 3, 3]


def test_a_factor_freed_during_a_lent_turn_dies_on_its_worker(scheduler, rhs):
    dead: list[str] = []
    gate, seen = threading.Event(), []
    op = operand(convection(12))

    def build() -> Factor:
        factor = Watched(factorize(op), seen, gate)
        weakref.finalize(factor, lambda: dead.append(threading.current_thread().name))
        return factor

    ref = scheduler.build(SUPERLU, build, caller()).value
    asleep(scheduler, ref)
    with ThreadPoolExecutor(thread_name_prefix="elsewhere") as pool:
        waiting = pool.submit(solved_by, scheduler, ref, rhs, "N", Controls(), caller())
        until(lambda: len(seen) == 1)
        scheduler.free(ref)
        gate.set()
        waiting.result(PATIENCE)
    until(lambda: bool(dead))
    assert dead == ["backsolve-worker-0"]


def test_an_interrupt_on_the_callers_thread_reaches_the_caller_and_the_worker_works_on(scheduler, rhs):
    ref, seen, _ = watched(scheduler, interrupt=True)
    asleep(scheduler, ref)
    # A shell's job in the background is born deaf to it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            solved_by(scheduler, ref, rhs, "N", Controls(), caller())
    finally:
        signal.signal(signal.SIGINT, before)
    assert set(seen) == {threading.current_thread().name}
    assert scheduler.run(lambda: threading.current_thread().name, caller()) == "backsolve-worker-0"
    assert scheduler.stats.depth == scheduler.stats.inflight == 0


def test_closing_waits_for_a_lent_turn(rhs):
    scheduler = Scheduler(1, 64, 1 << 30)
    ref, seen, gate = watched(scheduler, is_open=False)
    asleep(scheduler, ref)
    with ThreadPoolExecutor(2, thread_name_prefix="elsewhere") as pool:
        solving = pool.submit(solved_by, scheduler, ref, rhs, "N", Controls(), caller())
        until(lambda: len(seen) == 1)
        closing = pool.submit(scheduler.close, PATIENCE)
        until(lambda: scheduler.draining)
        gate.set()
        assert closing.result(PATIENCE)
        assert solving.result(PATIENCE).answer.x.shape == rhs.shape


def test_a_solve_that_fails_in_a_lent_turn_leaves_nothing_behind(scheduler, rhs):
    ref, _, gate = watched(scheduler)
    gate.set()
    asleep(scheduler, ref)
    bad = rhs.astype(np.float32)
    for _ in range(3):
        with pytest.raises(InvalidDtypeError) as caught:
            solved_by(scheduler, ref, bad, "N", Controls(), caller())
        trace, frames = caught.value.__traceback__, []
        while trace is not None:
            frames.append(trace.tb_frame)
            trace = trace.tb_next
        assert not any(isinstance(local, Factor) for frame in frames for local in frame.f_locals.values())
        assert (scheduler.stats.depth, scheduler.stats.inflight, scheduler.stats.nbytes) == (0, 0, 0)
        assert ref.worker.asleep
    assert solved_by(scheduler, ref, rhs, "N", Controls(), caller()).block_columns == rhs.shape[-1]


def test_a_deadline_that_passes_during_a_lent_turn_that_fails_is_what_the_caller_hears(scheduler, rhs):
    ref, _, _ = watched(scheduler, kind=Late)
    asleep(scheduler, ref)
    with pytest.raises(DeadlineError):
        solved_by(scheduler, ref, rhs, "N", Controls(), caller(0.2))
    assert ref.worker.asleep
