"""One build for all who wait, owned by none of them."""

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from backsolve.errors import (
    CancelledError,
    DeadlineError,
    MemoryBudgetError,
    NonfiniteInputError,
    NotPositiveDefiniteError,
    QueueFullError,
    SingularMatrixError,
)
from backsolve_service.cache.entries import MatrixEntry
from backsolve_service.cache.store import FactorCache
from backsolve_service.context import PUBLIC_TENANT
from backsolve_service.engine.base import Controls
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.structure import inspect, inspect_pattern
from backsolve_service.scheduling.scheduler import Scheduler
from backsolve_service.scheduling.worker import FactorRef
from support.factors import CG, PATIENCE, SUPERLU, caller, factorize, held_up, operand, reference, solved_by, until
from support.systems import convection

BUDGET = 64 << 20


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    two = Scheduler(2, 64, 1 << 20)
    yield two
    assert two.close(PATIENCE)


@pytest.fixture
def cache(scheduler) -> FactorCache[FactorRef]:
    return FactorCache(BUDGET, scheduler.free)


@pytest.fixture
def op() -> Operand:
    return operand(convection(12))


@pytest.fixture
def entry(cache, op) -> MatrixEntry[FactorRef]:
    return shelved(cache, op)


def shelved(cache: FactorCache[FactorRef], op: Operand) -> MatrixEntry[FactorRef]:
    facts, ref = inspect_pattern(op.pattern), reference(op)
    pattern = cache.add_pattern(PUBLIC_TENANT, ref.pattern, op.pattern, facts)
    return cache.add_matrix(pattern, ref.values, op, inspect(facts, op))


class Works:
    """Orders real factorizations that wait for a signal, and counts them."""

    def __init__(self, scheduler: Scheduler, op: Operand) -> None:
        self.scheduler, self.op = scheduler, op
        self.gate = threading.Event()
        self.ordered = self.begun = 0
        self.error: Exception | None = None

    def job(self):
        self.begun += 1
        assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return factorize(self.op)

    def start(self) -> Future:
        self.ordered += 1
        return self.scheduler.order_build(SUPERLU, self.job)


@pytest.fixture
def works(scheduler, op) -> Works:
    return Works(scheduler, op)


def waiting(cache: FactorCache[FactorRef]) -> int:
    """Callers who missed so far."""
    return sum(count for (_, result), count in cache.lookups().items() if result != "hit")


def test_32_threads_that_miss_the_same_factor_cause_one_factorization(cache, entry, works):
    with ThreadPoolExecutor(32) as pool:
        futures = [pool.submit(cache.get_factor, entry, SUPERLU, works.start, caller()) for _ in range(32)]
        until(lambda: waiting(cache) == 32)
        works.gate.set()
        found = [future.result(PATIENCE) for future in futures]
    assert works.ordered == works.begun == 1
    assert len({f.value for f in found}) == 1
    assert sorted(f.lookup for f in found) == ["coalesced"] * 31 + ["miss"]
    assert len({f.seconds_run for f in found}) == 1  # each is told of the one build
    assert cache.get_factor(entry, SUPERLU, works.start, caller()).lookup == "hit"
    assert works.ordered == 1


def test_the_first_callers_deadline_kills_nothing(cache, entry, works):
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_factor, entry, SUPERLU, works.start, caller(1.0))
        until(lambda: works.begun == 1)
        second = pool.submit(cache.get_factor, entry, SUPERLU, works.start, caller())
        with pytest.raises(DeadlineError):
            first.result(PATIENCE)
        works.gate.set()
        assert second.result(PATIENCE).lookup == "coalesced"
    assert works.begun == 1


def test_a_factorization_that_everybody_left_is_kept(cache, entry, works, scheduler, op):
    context = caller()
    with ThreadPoolExecutor(1) as pool:
        only = pool.submit(cache.get_factor, entry, SUPERLU, works.start, context)
        until(lambda: works.begun == 1)
        context.cancel()
        with pytest.raises(CancelledError):
            only.result(PATIENCE)
    works.gate.set()
    until(lambda: cache.factor(entry, SUPERLU) is not None)
    with cache.pin(entry):
        found = cache.get_factor(entry, SUPERLU, works.start, caller())
        assert found.lookup == "hit"
        x = solved_by(scheduler, found.value, np.ones((op.n, 1)), "N", Controls(), caller()).answer.x
    np.testing.assert_allclose(op.product(0, x, "N"), 1.0, rtol=1e-12)


def test_a_factorization_that_never_began_is_taken_back_when_the_last_caller_left(cache, entry, works, scheduler):
    with held_up(scheduler, workers=2):
        with pytest.raises(DeadlineError):
            cache.get_factor(entry, SUPERLU, works.start, caller(0.05), predicted_bytes=BUDGET // 2)
        assert scheduler.stats.depth == 0
    works.gate.set()
    scheduler.run(lambda: None, caller())
    assert works.begun == 0
    assert cache.get_factor(entry, SUPERLU, works.start, caller(), predicted_bytes=BUDGET // 2).lookup == "miss"
    cache.clear()
    assert sum(cache.bytes().values()) == 0, "a pin or a reservation was left behind"
    with cache.reserve(BUDGET):
        pass


def test_a_caller_who_comes_after_the_last_one_left_is_served(cache, entry, works, scheduler):
    works.gate.set()
    for _ in range(20):
        with ThreadPoolExecutor(2) as pool, held_up(scheduler, workers=2):
            brief = pool.submit(cache.get_factor, entry, SUPERLU, works.start, caller(0.005))
            steady = pool.submit(cache.get_factor, entry, SUPERLU, works.start, caller())
            with pytest.raises(DeadlineError):
                brief.result(PATIENCE)
        assert steady.result(PATIENCE).value is not None
        cache.clear()
        assert cache.holding(PUBLIC_TENANT, entry.ref).name == "ABSENT"


@pytest.mark.parametrize("error", [SingularMatrixError, NotPositiveDefiniteError, NonfiniteInputError])
def test_a_failure_of_the_values_reaches_all_and_is_remembered(cache, entry, works, error):
    works.error = error("column 3", column=3)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(cache.get_factor, entry, SUPERLU, works.start, caller()) for _ in range(8)]
        until(lambda: waiting(cache) == 8)
        works.gate.set()
        failures = [future.exception(PATIENCE) for future in futures]
    assert {type(failure) for failure in failures} == {error}
    assert len({id(failure) for failure in failures}) == 8, "each caller raises its own"
    with pytest.raises(error, match="column 3") as again:
        cache.get_factor(entry, SUPERLU, works.start, caller())
    assert again.value.details == {"column": "3"}
    assert works.ordered == 1
    works.error = None
    assert cache.get_factor(entry, CG, works.start, caller()).lookup == "miss", "only this spec has failed"


@pytest.mark.parametrize("error", [MemoryBudgetError("no room"), RuntimeError("no luck"), DeadlineError("too late")])
def test_a_failure_of_the_moment_is_not_remembered(cache, entry, works, error):
    works.gate.set()
    works.error = error
    with pytest.raises(type(error)):
        cache.get_factor(entry, SUPERLU, works.start, caller())
    works.error = None
    assert cache.get_factor(entry, SUPERLU, works.start, caller()).lookup == "miss"
    assert works.ordered == 2


def test_a_build_that_cannot_be_ordered_fails_its_callers_and_leaves_nothing_behind(cache, entry):
    def start():
        raise QueueFullError("full", retry_after=0.5)

    with pytest.raises(QueueFullError) as refusal:
        cache.get_factor(entry, SUPERLU, start, caller(), predicted_bytes=BUDGET // 2)
    assert refusal.value.retry_after == 0.5
    cache.clear()
    with cache.reserve(BUDGET):
        pass


def test_a_structurally_singular_pattern_is_analysed_once(cache, entry, scheduler):
    runs: list[int] = []

    def analyze():
        runs.append(1)
        raise SingularMatrixError("row 2 is empty")

    for _ in range(3):
        with pytest.raises(SingularMatrixError, match="row 2"):
            cache.get_symbolic(entry.pattern, "superlu", lambda: scheduler.order(analyze), caller())
    assert len(runs) == 1


def test_what_is_evicted_is_freed_on_its_worker_and_its_memory_returns(scheduler, op):
    dead: list[str] = []
    sizes: list[int] = []

    def job(number):
        factor = factorize(Operand(type(op.matrix)(op.pattern, op.values * (1 + number / 16))))
        sizes.append(factor.nbytes)
        weakref.finalize(factor, lambda: dead.append(threading.current_thread().name))
        return factor

    job(0)
    dead.clear()
    cache: FactorCache[FactorRef] = FactorCache(6 * sizes[0], scheduler.free)
    for number in range(20):
        changed = Operand(type(op.matrix)(op.pattern, op.values * (1 + number / 16)))
        with cache.pin(shelved(cache, changed)) as held:
            cache.get_factor(
                held, SUPERLU, lambda n=number: scheduler.order_build(SUPERLU, lambda: job(n)), caller(), sizes[0]
            )
        assert sum(cache.bytes().values()) <= cache.budget_bytes
    until(lambda: len(dead) == 20 - cache.entries()["factor"])
    cache.clear()
    until(lambda: len(dead) == 20)
    assert all(name.startswith("backsolve-worker") for name in dead)


def test_everything_at_once(scheduler, op):
    """Threads that miss, hit, leave and evict: every answer is right, nothing is left behind."""
    cache: FactorCache[FactorRef] = FactorCache(400_000, scheduler.free)
    operands = [Operand(type(op.matrix)(op.pattern, op.values * (1 + i / 8))) for i in range(6)]

    def client(seed: int) -> int:
        rng = np.random.default_rng(seed)
        left = 0
        for _ in range(40):
            matrix = operands[rng.integers(len(operands))]
            context = caller(0.002 if rng.random() < 0.2 else PATIENCE)
            b = rng.standard_normal((op.n, 1))
            try:
                with cache.pin(shelved(cache, matrix)) as held:
                    found = cache.get_factor(
                        held,
                        SUPERLU,
                        lambda m=matrix: scheduler.order_build(SUPERLU, lambda: factorize(m)),
                        context,
                    )
                    x = solved_by(scheduler, found.value, b, "N", Controls(), context).answer.x
                np.testing.assert_allclose(matrix.product(0, x, "N"), b, rtol=1e-9, atol=1e-12)
            except (DeadlineError, MemoryBudgetError):
                left += 1
        return left

    with ThreadPoolExecutor(8) as pool:
        left = sum(pool.map(client, range(551_209, 551_217)))
    assert left < 8 * 40
    until(lambda: scheduler.stats.depth == scheduler.stats.inflight == 0)
    cache.clear()
    until(lambda: sum(cache.bytes().values()) == 0)
