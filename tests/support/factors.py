"""Real factors, built the way the service builds them, and the means to hold a worker still."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from scipy import sparse

from backsolve.fingerprint import matrix_ref
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import Array, MatrixRef, Trans
from backsolve_service.context import CallContext
from backsolve_service.engine.base import Controls, Factor, FactorSpec
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver
from backsolve_service.scheduling.jobs import Solved
from backsolve_service.scheduling.lane import Job
from backsolve_service.scheduling.scheduler import Scheduler
from backsolve_service.scheduling.steps import finish
from backsolve_service.scheduling.worker import FactorRef

SUPERLU = FactorSpec("superlu", None, "float64", "cpu")
CG = FactorSpec("cg", "jacobi", "float64", "cpu")

PATIENCE = 60.0
"""Seconds after which a test has failed rather than is slow."""


def caller(timeout: float | None = PATIENCE) -> CallContext:
    """A caller that waits this long."""
    return CallContext.within(timeout, "embedded")


def operand(a: sparse.csr_array) -> Operand:
    """A SciPy matrix as the engine takes it."""
    return Operand(Matrix(Pattern.from_csr(a), a.data))


def reference(op: Operand) -> MatrixRef:
    """Both digests."""
    return matrix_ref(op.pattern, op.values)


def factorize(op: Operand, spec: FactorSpec = SUPERLU) -> Factor:
    """Analyse and factorize on this thread."""
    method = solver(spec.method)
    return method.factorize(method.analyze(op.pattern), op, spec)


def solved_by(
    scheduler: Scheduler,
    ref: FactorRef,
    rhs: Array,
    trans: Trans,
    controls: Controls,
    context: CallContext,
    *,
    instead: Operand | None = None,
) -> Solved:
    """Solve, and wait on this thread."""
    return finish(scheduler.solving(ref, rhs, trans, controls, context, instead=instead), context)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread will bring about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


class Hold(Job):
    """Does nothing until it is let go."""

    key = None
    columns = max_columns = nbytes = 0

    def __init__(self, gate: threading.Event, quick: bool) -> None:
        self.gate, self.quick, self.born = gate, quick, time.perf_counter()
        self.begun = threading.Event()

    def run(self, mates: Sequence[Job]) -> None:
        self.begun.set()
        assert self.gate.wait(PATIENCE)

    def fail(self, error: BaseException) -> None:
        self.gate.set()


@contextmanager
def held_up(scheduler: Scheduler, workers: int = 1) -> Iterator[None]:
    """Keep both threads of some workers busy while the block runs, so that what is asked for meanwhile waits."""
    gate = threading.Event()
    # Not by `_place` for each: while one still ends its last job, the other would be taken twice.
    for worker in sorted(scheduler._threads, key=lambda thread: thread.load[0])[:workers]:
        for quick in (False, True):
            scheduler._enter(worker, Hold(gate, quick), None)
    try:
        until(lambda: scheduler.stats.inflight == 2 * workers)
        yield
    finally:
        gate.set()
        until(lambda: scheduler.stats.inflight == 0 or scheduler.stats.depth > 0)
