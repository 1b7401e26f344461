"""Time is shared out among tenants, and what is quick does not wait for what is long."""

import threading
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backsolve_service.context import CallContext
from backsolve_service.engine.base import Controls
from backsolve_service.scheduling.fair import FairQueue
from backsolve_service.scheduling.scheduler import Scheduler
from support.factors import CG, PATIENCE, SUPERLU, caller, factorize, held_up, operand, solved_by, until
from support.systems import convection, laplacian


@dataclass(eq=False)
class Item:
    tenant: str
    name: str
    key: Hashable | None = None


def served(queue: FairQueue[Item], cost: dict[str, float], turns: int) -> list[str]:
    order = []
    for _ in range(turns):
        item = queue.pop()
        if item is None:
            break
        order.append(item.name)
        queue.charge(item.tenant, cost[item.tenant])
    return order


def test_one_tenant_is_served_in_order() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(5):
        queue.push(Item("a", str(number)))
    assert served(queue, {"a": 3.0}, 9) == list("01234")
    assert queue.pop() is None


def test_tenants_get_equal_time_whatever_their_jobs_take() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(100):
        queue.push(Item("huge", "H"))
        queue.push(Item("small", "s"))
    order = served(queue, {"huge": 10.0, "small": 1.0}, 88)
    assert order.count("H") == 8
    assert order.count("s") == 80
    assert max(len(run) for run in "".join(order).split("H")) <= 11


def test_one_caller_after_another_of_a_huge_tenant_does_not_jump_the_queue() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(60):
        queue.push(Item("small", str(number)))
    order = []
    queue.push(Item("huge", "H"))
    for _ in range(55):
        item = queue.pop()
        assert item is not None
        order.append(item.name)
        queue.charge(item.tenant, 10.0 if item.tenant == "huge" else 1.0)
        if item.tenant == "huge":
            queue.push(Item("huge", "H"))  # its one caller asks again at once
    assert 5 <= order.count("H") <= 6


def test_who_comes_back_is_owed_nothing_for_the_time_away() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(40):
        queue.push(Item("busy", f"b{number}"))
    served(queue, {"busy": 1.0}, 20)
    for number in range(10):
        queue.push(Item("late", f"l{number}"))
    order = served(queue, {"busy": 1.0, "late": 1.0}, 10)
    assert sum(name[0] == "l" for name in order) == 5


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz-"), st.booleans()), max_size=60))
def test_nothing_is_lost_and_nothing_is_served_twice(script: list[tuple[str, str, bool]]) -> None:
    queue: FairQueue[Item] = FairQueue()
    waiting: list[Item] = []
    for number, (tenant, key, takes) in enumerate(script):
        item = Item(tenant, str(number), None if key == "-" else (tenant, key))
        queue.push(item)
        waiting.append(item)
        assert item in queue
        if takes:
            first = queue.pop()
            assert first is not None
            waiting.remove(first)
            for mate in queue.mates(first):
                assert mate.key == first.key
                queue.remove(mate)
                waiting.remove(mate)
            queue.charge(first.tenant, number % 3)
        assert len(queue) == len(waiting) == len(list(queue))
    rest = [queue.pop() for _ in waiting]
    assert {id(item) for item in rest} == {id(item) for item in waiting}
    assert not queue._jobs
    assert not queue._mates


def test_what_is_remembered_of_tenants_is_bounded() -> None:
    for always in (False, True):
        queue: FairQueue[Item] = FairQueue()
        for number in range(5000):
            if always and number % 2 == 0:
                queue.push(Item("always", "x"))
            queue.push(Item(f"t{number}", "x"))
            first = queue.pop()
            assert first is not None
            queue.charge(first.tenant, 0.001)
        assert len(queue._used) <= len(queue._jobs) + 513


# -- on workers -------------------------------------------------------------------------------


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    one = Scheduler(1, 64, 1 << 30)
    yield one
    assert one.close(PATIENCE)


def of(tenant: str) -> CallContext:
    return replace(caller(), tenant=tenant)


def test_a_tenant_with_one_job_does_not_wait_for_anothers_many(scheduler: Scheduler) -> None:
    order: list[str] = []
    with ThreadPoolExecutor(8) as pool, held_up(scheduler):
        for number in range(6):
            pool.submit(scheduler.run, lambda n=number: order.append(f"many {n}"), of("many"))
            until(lambda number=number: scheduler.stats.depth == number + 1)
        pool.submit(scheduler.run, lambda: order.append("one"), of("one"))
        until(lambda: scheduler.stats.depth == 7)
    until(lambda: len(order) == 7)
    assert order.index("one") <= 1


def test_a_quick_solve_does_not_wait_for_what_is_built(scheduler: Scheduler) -> None:
    op = operand(convection(12))
    ref = scheduler.build(SUPERLU, lambda: factorize(op), caller()).value
    gate = threading.Event()
    building = scheduler.order(lambda: gate.wait(PATIENCE))
    until(lambda: scheduler.stats.inflight == 1)
    rhs = np.ones((op.n, 1))
    x = solved_by(scheduler, ref, rhs, "N", Controls(), caller()).answer.x
    np.testing.assert_allclose(op.product(0, x, "N"), rhs, atol=1e-11)
    assert not building.done()
    gate.set()
    building.result(PATIENCE)


def test_a_long_solve_waits_with_what_is_long(scheduler: Scheduler) -> None:
    definite, other = operand(laplacian(12)), operand(convection(12))
    iterative = scheduler.build(CG, lambda: factorize(definite, CG), caller()).value
    direct = scheduler.build(SUPERLU, lambda: factorize(other), caller()).value
    wide = np.ones((other.n, 1 + (64 << 20) // direct.nbytes))
    gate = threading.Event()
    building = scheduler.order(lambda: gate.wait(PATIENCE))
    until(lambda: scheduler.stats.inflight == 1)
    with ThreadPoolExecutor(2) as pool:
        slow = [
            pool.submit(solved_by, scheduler, iterative, np.ones((definite.n, 1)), "N", Controls(), caller()),
            pool.submit(solved_by, scheduler, direct, wide, "N", Controls(), caller()),
        ]
        until(lambda: scheduler.stats.depth == 2)
        gate.set()
        for each in slow:
            assert each.result(PATIENCE).answer.x.shape[0] == 144
    building.result(PATIENCE)


def test_a_factor_that_is_freed_while_others_are_built_goes_when_its_thread_is_free(scheduler: Scheduler) -> None:
    op = operand(convection(12))
    ref = scheduler.build(SUPERLU, lambda: factorize(op), caller()).value
    gate = threading.Event()
    building = scheduler.order(lambda: gate.wait(PATIENCE))
    until(lambda: scheduler.stats.inflight == 1)
    held = ref.worker.load[1]
    assert held == ref.nbytes
    scheduler.free(ref)
    until(lambda: ref.id not in ref.worker._factors)
    assert ref.worker.load[1] == held, "its memory belongs to a thread that is at work"
    gate.set()
    building.result(PATIENCE)
    until(lambda: ref.worker.load[1] == 0)
