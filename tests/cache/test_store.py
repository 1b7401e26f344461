"""What the cache keeps, what it drops and when, and what it says about it."""

import random
import threading
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import pytest

from backsolve.errors import MemoryBudgetError
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern
from backsolve.types import Holding, MatrixRef
from backsolve_service.cache.entries import OVERHEAD_BYTES
from backsolve_service.cache.flight import Made
from backsolve_service.cache.store import FactorCache
from backsolve_service.context import PUBLIC_TENANT
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver
from backsolve_service.engine.structure import inspect, inspect_pattern
from backsolve_service.observer import Silent
from support.factors import CG, SUPERLU, caller, operand, reference
from support.systems import convection, laplacian

MIB = 1 << 20


@dataclass(frozen=True, eq=False)
class Ref:
    """A factor of so many bytes that took so many seconds."""

    nbytes: int
    device_nbytes: int = 0
    movable: bool = False


class Listening(Silent):
    """Writes down evictions and lookups."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.lookups: list[tuple[str, str]] = []

    def evicted(self, reason, count=1):
        self.reasons.extend([reason] * count)

    def lookup(self, level, result):
        self.lookups.append((level, result))


class Shop:
    """A cache and the short words to fill it."""

    def __init__(self, budget: int = 64 * MIB) -> None:
        self.freed: list[Ref] = []
        self.heard = Listening()
        self.cache: FactorCache[Ref] = FactorCache(budget, self.freed.append, self.heard)

    def pattern(self, op: Operand, tenant: str = PUBLIC_TENANT):
        return self.cache.add_pattern(tenant, reference(op).pattern, op.pattern, inspect_pattern(op.pattern))

    def matrix(self, op: Operand, tenant: str = PUBLIC_TENANT):
        facts = inspect_pattern(op.pattern)
        return self.cache.add_matrix(self.pattern(op, tenant), reference(op).values, op, inspect(facts, op))

    def factor(self, entry, nbytes: int, seconds: float = 0.1, spec=SUPERLU, predicted: int = 0):
        return self.cache.get_factor(entry, spec, lambda: done(Ref(nbytes), seconds), caller(), predicted)

    def held(self) -> int:
        return sum(self.cache.bytes().values())


def done(value, seconds: float = 0.1) -> Future:
    future: Future = Future()
    future.set_result(Made(value, 0.0, seconds))
    return future


def failed(error: Exception) -> Future:
    future: Future = Future()
    future.set_exception(error)
    return future


def step(op: Operand, number: int) -> Operand:
    """Values of another training step on the same pattern."""
    return Operand(Matrix(op.pattern, op.values * (1 + number / 64)))


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def op() -> Operand:
    return operand(convection(10))


def test_what_was_added_is_found_and_counted(shop, op):
    ref = reference(op)
    assert shop.cache.pattern(PUBLIC_TENANT, ref.pattern) is None
    assert shop.cache.matrix(PUBLIC_TENANT, ref) is None
    assert shop.cache.holding(PUBLIC_TENANT, ref) is Holding.ABSENT
    pattern = shop.pattern(op)
    assert shop.cache.pattern(PUBLIC_TENANT, ref.pattern) is pattern
    assert shop.cache.holding(PUBLIC_TENANT, ref) is Holding.PATTERN
    entry = shop.matrix(op)
    assert shop.cache.matrix(PUBLIC_TENANT, ref) is entry
    assert shop.cache.holding(PUBLIC_TENANT, ref) is Holding.VALUES
    assert entry.structure.facts == pattern.facts
    assert shop.cache.factor(entry, SUPERLU) is None
    found = shop.factor(entry, 5000, 0.25)
    assert (found.lookup, found.seconds_run) == ("miss", 0.25)
    assert shop.cache.factor(entry, SUPERLU) is found.value
    assert shop.factor(entry, 1).value is found.value
    assert shop.cache.holding(PUBLIC_TENANT, ref) is Holding.FACTOR
    assert shop.cache.bytes() == {
        "pattern": op.pattern.nbytes + OVERHEAD_BYTES,
        "matrix": op.nbytes + OVERHEAD_BYTES,
        "symbolic": 0,
        "factor": 5000 + OVERHEAD_BYTES,
    }
    assert shop.cache.entries() == {"pattern": 1, "matrix": 1, "symbolic": 0, "factor": 1}
    assert shop.cache.lookups() == {
        ("pattern", "miss"): 1,
        ("pattern", "hit"): 1,
        ("matrix", "miss"): 1,
        ("matrix", "hit"): 1,
        ("factor", "miss"): 1,
        ("factor", "hit"): 2,
    }
    assert len(shop.heard.lookups) == 7


def test_adding_again_changes_nothing_and_shares_the_first_arrays(shop, op):
    first = shop.matrix(op)
    again = operand(convection(10))
    assert again.pattern is not op.pattern
    assert shop.matrix(again) is first
    other = step(again, 1)
    assert shop.matrix(other).operand.pattern is op.pattern, "a second copy of the pattern is not kept"
    assert shop.cache.entries()["pattern"] == 1
    assert shop.cache.entries()["matrix"] == 2


def test_one_tenant_does_not_see_another_ones_matrix(shop, op):
    mine, theirs = shop.matrix(op, "mine"), shop.matrix(op, "theirs")
    assert mine is not theirs
    assert shop.cache.matrix("third", reference(op)) is None
    shop.factor(mine, 100)
    assert shop.cache.factor(theirs, SUPERLU) is None
    assert not shop.cache.release("third", reference(op))
    assert theirs.tenant == "theirs"


def test_matrices_that_nearly_agree_are_never_confused(shop, op):
    entries = [shop.matrix(op)]
    flipped, swapped, zeroed = op.values.copy(), op.values.copy(), op.values.copy()
    flipped[7] *= -1
    swapped[[3, 4]] = swapped[[4, 3]]
    zeroed[5] = 0.0
    variants = [flipped, swapped, zeroed, -op.values, op.values.astype("float32"), np.where(zeroed == 0, -0.0, zeroed)]
    entries += [shop.matrix(Operand(Matrix(op.pattern, values))) for values in variants]
    assert len({id(entry) for entry in entries}) == len(variants) + 1
    shop.factor(entries[0], 100)
    assert all(shop.cache.factor(entry, SUPERLU) is None for entry in entries[1:])


def test_factors_of_different_specs_live_side_by_side(shop, op):
    entry = shop.matrix(op)
    lu, cg = shop.factor(entry, 100).value, shop.factor(entry, 10, spec=CG).value
    assert lu is not cg
    assert shop.cache.factor(entry, SUPERLU) is lu
    assert shop.cache.factor(entry, CG) is cg


def test_symbolics_are_real_analyses_kept_with_their_pattern(shop, op):
    entry = shop.pattern(op)
    method, runs = solver("superlu"), []

    def start():
        runs.append(1)
        return done(method.analyze(op.pattern), 0.5)

    first = shop.cache.get_symbolic(entry, "superlu", start, caller())
    again = shop.cache.get_symbolic(entry, "superlu", start, caller())
    assert (first.lookup, again.lookup, len(runs)) == ("miss", "hit", 1)
    assert again.value is first.value
    assert shop.cache.bytes()["symbolic"] == first.value.nbytes > 0
    shop.cache.clear()
    assert shop.held() == 0
    assert shop.cache.entries()["symbolic"] == 0
    assert not entry.symbolics


def test_the_dearest_byte_stays(shop, op):
    shop = Shop(10 * MIB)
    cheap = shop.matrix(operand(laplacian(8)))
    dear = shop.matrix(operand(laplacian(9)))
    shop.factor(dear, 4 * MIB, seconds=8.0)
    shop.factor(cheap, 4 * MIB, seconds=0.1)
    shop.factor(shop.matrix(op), 4 * MIB, seconds=1.0)
    assert shop.cache.factor(dear, SUPERLU) is not None
    assert shop.cache.factor(cheap, SUPERLU) is None
    assert shop.cache.evictions()["budget"] == len(shop.heard.reasons) >= 1


def test_what_is_asked_for_often_stays(op):
    shop = Shop(10 * MIB)
    rare, often = shop.matrix(operand(laplacian(8))), shop.matrix(operand(laplacian(9)))
    shop.factor(often, 4 * MIB)
    shop.factor(rare, 4 * MIB)
    for _ in range(5):
        shop.cache.factor(often, SUPERLU)
    shop.factor(shop.matrix(op), 4 * MIB)
    assert shop.cache.factor(often, SUPERLU) is not None
    assert shop.cache.factor(rare, SUPERLU) is None


def test_what_was_asked_for_often_ages(op):
    shop = Shop(10 * MIB)
    old = shop.matrix(op)
    shop.factor(old, 4 * MIB)
    for _ in range(10):
        shop.cache.factor(old, SUPERLU)
    for m in range(11, 40):  # every one on a pattern of its own
        shop.factor(shop.matrix(operand(laplacian(m))), 4 * MIB)
    assert shop.cache.factor(old, SUPERLU) is None


def test_the_matrix_of_one_training_step_goes_before_one_that_recurs(op):
    shop = Shop(11 * MIB)
    shared = shop.matrix(operand(laplacian(9)))
    shop.factor(shared, 4 * MIB)
    for number in range(12):
        entry = shop.matrix(step(op, number))
        with shop.cache.pin(entry):
            shop.factor(entry, 3 * MIB)
            for _ in range(50):  # the many solves of one step
                shop.cache.factor(entry, SUPERLU)
        for _ in range(3):
            assert shop.cache.factor(shared, SUPERLU) is not None, f"lost in step {number}"
    assert shop.cache.evictions()["superseded"] >= 10


def test_a_matrix_that_recurs_over_steps_is_not_taken_for_superseded(op):
    shop = Shop(11 * MIB)
    recurring = shop.matrix(op)
    shop.factor(recurring, 3 * MIB)
    for number in range(1, 8):
        for _ in range(4):
            assert shop.cache.factor(recurring, SUPERLU) is not None
        shop.factor(shop.matrix(step(op, number)), 3 * MIB)
    assert shop.cache.factor(recurring, SUPERLU) is not None


def test_what_was_released_goes_first_but_only_when_room_is_needed(op):
    shop = Shop(10 * MIB)
    released, kept = shop.matrix(operand(laplacian(8))), shop.matrix(operand(laplacian(9)))
    shop.factor(released, 4 * MIB, seconds=50.0)
    shop.factor(kept, 4 * MIB, seconds=0.01)
    assert shop.cache.release(PUBLIC_TENANT, released.ref)
    assert shop.cache.factor(kept, SUPERLU) is not None
    assert not shop.freed
    shop.factor(shop.matrix(op), 4 * MIB)
    assert shop.cache.factor(kept, SUPERLU) is not None
    assert shop.cache.factor(released, SUPERLU) is None
    assert shop.heard.reasons[0] == "released"


def test_a_use_by_another_client_undoes_a_release(op):
    shop = Shop(10 * MIB)
    shared, other = shop.matrix(operand(laplacian(8))), shop.matrix(operand(laplacian(9)))
    shop.factor(shared, 4 * MIB, seconds=50.0)
    shop.factor(other, 4 * MIB, seconds=0.01)
    shop.cache.release(PUBLIC_TENANT, shared.ref)
    shop.cache.factor(shared, SUPERLU)
    shop.factor(shop.matrix(op), 4 * MIB)
    assert shop.cache.factor(shared, SUPERLU) is not None
    assert shop.cache.factor(other, SUPERLU) is None


def test_what_is_pinned_stays_and_the_newcomer_is_refused_with_both_figures(op):
    shop = Shop(10 * MIB)
    busy = shop.matrix(operand(laplacian(8)))
    with shop.cache.pin(busy):
        kept = shop.factor(busy, 7 * MIB).value
        newcomer = shop.matrix(op)
        with pytest.raises(MemoryBudgetError, match=f"{10 * MIB}") as refusal:
            shop.factor(newcomer, 4 * MIB)
        assert "calls under way hold" in str(refusal.value)
        assert "send fewer at a time" in str(refusal.value), "it would fit: neither another method nor less is needed"
        assert "method" not in str(refusal.value)
        assert int(refusal.value.details["limit"]) == 10 * MIB
        assert int(refusal.value.details["size"]) >= 4 * MIB
        assert shop.cache.factor(busy, SUPERLU) is kept
        assert [ref.nbytes for ref in shop.freed] == [4 * MIB], "what found no room is freed"
    shop.factor(newcomer, 4 * MIB)
    assert shop.cache.factor(busy, SUPERLU) is None
    assert kept in shop.freed


@pytest.mark.parametrize("predicted", [0, 7 * MIB])
def test_a_factor_makes_room_for_another_one_of_the_same_matrix(op, predicted):
    """While nobody else is at work with the matrix, its caller cannot need both."""
    shop = Shop(10 * MIB)
    entry = shop.matrix(op)
    with shop.cache.pin(entry):
        first = shop.factor(entry, 7 * MIB, spec=SUPERLU).value
        with shop.cache.pin(entry), pytest.raises(MemoryBudgetError):
            shop.factor(entry, 7 * MIB, spec=CG, predicted=predicted)
        assert shop.cache.factor(entry, SUPERLU) is first, "another call may be using it"
        second = shop.factor(entry, 7 * MIB, spec=CG, predicted=predicted).value
        assert shop.cache.factor(entry, SUPERLU) is None
        assert shop.cache.factor(entry, CG) is second
    assert first in shop.freed
    assert shop.heard.reasons == ["budget"]
    assert shop.held() < 10 * MIB


def test_what_is_larger_than_the_budget_is_refused_and_nothing_is_lost_for_it(op):
    shop = Shop(10 * MIB)
    entry = shop.matrix(op)
    shop.factor(entry, 2 * MIB)
    for predicted in (0, 11 * MIB):
        with pytest.raises(MemoryBudgetError, match="raise BACKSOLVE_CACHE_BYTES, or use a method that needs no"):
            shop.factor(entry, 11 * MIB, spec=CG, predicted=predicted)
    assert shop.cache.factor(entry, SUPERLU) is not None
    with pytest.raises(MemoryBudgetError), shop.cache.reserve(11 * MIB):
        pytest.fail("it was reserved")
    small = Shop(1000)
    with pytest.raises(MemoryBudgetError, match="raise BACKSOLVE_CACHE_BYTES, or send less") as refusal:
        small.matrix(op)
    assert "method" not in str(refusal.value)
    assert small.held() == 0


def test_a_predicted_factor_is_refused_before_it_is_built(op):
    shop = Shop(10 * MIB)
    entry = shop.matrix(op)
    with pytest.raises(MemoryBudgetError):
        shop.cache.get_factor(entry, SUPERLU, lambda: pytest.fail("it was built"), caller(), 11 * MIB)


def test_a_reservation_makes_room_and_holds_it(op):
    shop = Shop(10 * MIB)
    first = shop.matrix(op)
    shop.factor(first, 6 * MIB)
    with shop.cache.reserve(8 * MIB):
        assert shop.cache.factor(first, SUPERLU) is None, "it was in the way"
        with pytest.raises(MemoryBudgetError):
            shop.factor(first, 4 * MIB)
    shop.factor(first, 9 * MIB)
    assert shop.held() < 10 * MIB


def test_leaves_go_before_what_they_hang_on(op):
    shop = Shop()
    entry = shop.matrix(op)
    shop.factor(entry, 1000)
    with shop.cache.pin(entry):
        shop.cache.clear()
        assert shop.cache.holding(PUBLIC_TENANT, entry.ref) is Holding.FACTOR
    shop.cache.clear()
    assert shop.cache.holding(PUBLIC_TENANT, entry.ref) is Holding.ABSENT
    assert shop.held() == 0
    assert shop.cache.entries() == {"pattern": 0, "matrix": 0, "symbolic": 0, "factor": 0}
    assert len(shop.freed) == 1
    assert shop.cache.evictions() == {"cleared": 3}


def test_what_is_lost_is_forgotten_even_in_use_and_never_freed(shop, op):
    entry, other = shop.matrix(op), shop.matrix(step(op, 1))
    lost = shop.factor(entry, 1000).value
    kept = shop.factor(other, 500).value
    before = shop.held()
    with shop.cache.pin(entry):
        assert shop.cache.forget(lambda ref: ref is lost) == 1
        assert shop.held() == before - 1000 - OVERHEAD_BYTES
        assert shop.cache.factor(entry, SUPERLU) is None
        again = shop.factor(entry, 800).value
    assert shop.cache.factor(other, SUPERLU) is kept
    assert shop.cache.forget(lambda ref: ref is lost) == 0
    shop.cache.clear()
    assert sorted(ref.nbytes for ref in shop.freed) == sorted([again.nbytes, kept.nbytes])
    assert shop.held() == 0
    assert shop.cache.evictions()["lost"] == 1


def test_an_evicted_entry_that_is_pinned_comes_back(op):
    shop = Shop()
    entry = shop.matrix(op)
    shop.cache.clear()
    with shop.cache.pin(entry) as live:
        assert live is entry
        assert shop.cache.matrix(PUBLIC_TENANT, entry.ref) is entry
    shop.cache.clear()
    second = shop.matrix(op)
    with shop.cache.pin(entry) as live:
        assert live is second, "its place was taken meanwhile"
    shop.cache.clear()
    pattern = shop.pattern(op)
    shop.cache.clear()
    with shop.cache.pin(pattern) as live:
        assert live is pattern
        assert shop.cache.pattern(PUBLIC_TENANT, pattern.digest) is pattern
    shop.cache.clear()
    assert shop.held() == 0


def test_a_pinned_pattern_stays(op):
    shop = Shop()
    entry = shop.pattern(op)
    with shop.cache.pin(entry), shop.cache.pin(entry):
        shop.cache.clear()
        assert shop.cache.pattern(PUBLIC_TENANT, entry.digest) is entry
    shop.cache.clear()
    assert shop.cache.pattern(PUBLIC_TENANT, entry.digest) is None


def test_many_tiny_entries_do_not_add_up_unseen():
    shop = Shop(100 * OVERHEAD_BYTES)
    for n in range(300):
        pattern = DensePattern((n, n))
        digest = n.to_bytes(32, "little")
        shop.cache.add_pattern(PUBLIC_TENANT, digest, pattern, inspect_pattern(pattern))
    assert shop.cache.entries()["pattern"] <= 100


def test_the_budget_holds_under_a_random_hammer():
    budget = 2 * MIB
    shop = Shop(budget)
    base = [operand(laplacian(m)) for m in (5, 6, 7)]
    operands = [step(op, number) for op in base for number in range(6)]
    over: list[int] = []
    lost: list[object] = []
    refused = threading.Semaphore(0)

    def hammer(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(250):
            op = rng.choice(operands)
            try:
                with shop.cache.pin(shop.matrix(op)) as entry:
                    found = shop.factor(entry, rng.randrange(200_000), rng.random(), rng.choice([SUPERLU, CG]))
                    if any(ref is found.value for ref in tuple(shop.freed)):
                        lost.append(found.value)
                if rng.random() < 0.1:
                    shop.cache.release(PUBLIC_TENANT, reference(op))
            except MemoryBudgetError:
                refused.release()
            if shop.held() > budget:
                over.append(shop.held())

    threads = [threading.Thread(target=hammer, args=(708_115_923 + i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not over
    assert not lost, "a pinned factor was freed"
    assert len(shop.freed) == len(set(map(id, shop.freed))), "freed twice"
    assert shop.cache.evictions()
    shop.cache.clear()
    assert shop.held() == 0
    assert sum(shop.cache.entries().values()) == 0


def test_digest_and_pattern_names_are_distinct():
    """A dense and a sparse matrix of the same numbers are two matrices."""
    shop = Shop()
    full = np.array([[2.0, 1.0], [1.0, 3.0]])
    sparse = Operand(Matrix(Pattern([0, 2, 4], [0, 1, 0, 1], (2, 2)), full.ravel()))
    dense = Operand(Matrix(DensePattern((2, 2)), full))
    assert shop.matrix(sparse) is not shop.matrix(dense)
    assert reference(sparse) != reference(dense)
    assert isinstance(reference(dense), MatrixRef)
