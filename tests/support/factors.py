"""Real factors, built the way the service builds them, and the means to hold a worker still."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scipy import sparse

from backsolve.fingerprint import matrix_ref
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import MatrixRef
from backsolve_service.context import CallContext
from backsolve_service.engine.base import Factor, FactorSpec
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver
from backsolve_service.scheduling.scheduler import Scheduler

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


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread will bring about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


@contextmanager
def held_up(scheduler: Scheduler, workers: int = 1) -> Iterator[None]:
    """Keep every worker busy while the block runs, so that what is asked for meanwhile waits."""
    gate = threading.Event()
    futures = [scheduler.order(lambda: gate.wait(PATIENCE)) for _ in range(workers)]
    try:
        until(lambda: scheduler.stats.inflight == workers)
        yield
    finally:
        gate.set()
        for future in futures:
            future.result(PATIENCE)
