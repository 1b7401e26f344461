"""The cache's hierarchy with updates in it: what they stand on goes after them, and stays while they are used."""

import random

import numpy as np
import pytest

from backsolve.errors import MemoryBudgetError, NeedMatrixError
from backsolve.fingerprint import matrix_ref
from backsolve.matrix import Matrix, standing_on
from backsolve.pattern import StructuredPattern
from backsolve.types import Holding
from backsolve_service.cache.entries import OVERHEAD_BYTES
from backsolve_service.context import PUBLIC_TENANT
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.structure import inspect, inspect_pattern
from backsolve_service.engine.structured.update import update_spec
from cache.test_store import MIB, Ref, Shop, done
from support.factors import CG, SUPERLU, caller, operand
from support.systems import convection

UPDATED = update_spec(SUPERLU)


class Annex(Shop):
    """A shop that sells updates too."""

    def update(self, under, seed: int = 0, k: int = 2):
        """The entry of `S + U Vᴴ` on the entry of S."""
        rng = np.random.default_rng(551_203 + seed)
        below = under.operand.matrix
        pattern = StructuredPattern("update", (below.n, k), standing_on(below))
        values = rng.standard_normal(pattern.entries)
        ref = matrix_ref(pattern, values, under.ref)
        kept = self.cache.add_pattern(PUBLIC_TENANT, ref.pattern, pattern, inspect_pattern(pattern), 0.0, under)
        op = Operand(Matrix(kept.pattern, values, below), under.operand)
        return self.cache.add_matrix(kept, ref.values, op, inspect(kept.facts, op))

    def updated(self, entry, nbytes: int, spec=SUPERLU, seconds: float = 0.1):
        """The factor of an update on the factor of S by `spec`."""
        under = entry.pattern.base
        return self.cache.get_factor(
            entry, update_spec(spec), lambda: done(Ref(nbytes), seconds), caller(), 0, (under, spec)
        )


@pytest.fixture
def shop() -> Annex:
    return Annex()


@pytest.fixture
def under(shop):
    return shop.matrix(operand(convection(10)))


def test_an_update_shares_the_numbers_of_what_it_stands_on(shop, under):
    before = shop.held()
    entry = shop.update(under)
    assert entry.operand.base is under.operand
    assert shop.held() - before == entry.operand.values.nbytes + 2 * OVERHEAD_BYTES
    assert shop.cache.holding(PUBLIC_TENANT, entry.ref) is Holding.VALUES
    assert entry.pattern.base is under
    assert under.updates == {entry.pattern.digest: entry.pattern}


def test_factors_of_updates_go_before_the_one_they_stand_on(shop, under):
    below = shop.factor(under, 1000, seconds=1e-9).value
    entries = [shop.update(under, seed) for seed in range(3)]
    above = [shop.updated(entry, 10, seconds=50.0).value for entry in entries]
    assert not under.factors[SUPERLU].evictable
    shop.cache.clear()
    assert set(shop.freed[:3]) == set(above)
    assert shop.freed[3:] == [below]
    assert shop.held() == 0
    assert set(shop.cache.entries().values()) == {0}
    assert not under.live
    assert not under.updates
    assert not (any(entry.live for entry in entries))


def test_a_matrix_stays_while_updates_stand_on_it(shop, under):
    entry = shop.update(under)
    assert not under.evictable
    assert entry.evictable
    shop.cache.release(PUBLIC_TENANT, under.ref)
    shop.cache.clear()
    assert not entry.live
    assert not under.live


def test_a_use_of_an_update_keeps_what_it_stands_on(shop, under):
    below = shop.factor(under, 1000).value
    entry = shop.update(under)
    above = shop.updated(entry, 10).value
    with shop.cache.pin(entry) as live:
        assert live is entry
        assert under.pins == 1
        shop.cache.clear()
        assert shop.freed == []
        assert under.factors[SUPERLU].ref is below
    assert under.pins == entry.pins == entry.pattern.pins == 0
    shop.cache.clear()
    assert shop.freed == [above, below]


def test_bytes_in_use_count_once():
    """A build that needs all but what an update and its base use is admitted, one byte more is not."""
    shop = Annex(4 * MIB)
    under = shop.matrix(operand(convection(10)))
    shop.factor(under, 1000)
    entry = shop.update(under)
    shop.updated(entry, 10)
    other = shop.matrix(operand(convection(11)))
    with shop.cache.pin(entry), shop.cache.pin(entry):
        shop.cache.clear()
        room = 4 * MIB - shop.held()
        with shop.cache.reserve(room):
            pass
        with pytest.raises(MemoryBudgetError), shop.cache.reserve(room + 1):
            pass
    assert not other.live


def test_another_factor_of_the_same_matrix_may_go(shop, under):
    """Only the factor that an update solves with waits for it."""
    shop.factor(under, 1000)
    shop.factor(under, 2000, spec=CG)
    shop.updated(shop.update(under), 10)
    assert under.factors[CG].evictable
    assert not under.factors[SUPERLU].evictable


def test_a_pattern_of_updates_that_was_evicted_brings_its_base_back(shop, under):
    entry = shop.update(under)
    shop.cache.clear()
    assert not under.live
    assert not entry.live
    with shop.cache.pin(entry) as live:
        assert live.live
        assert live.pattern.base.live
        assert live.pattern.base.pins == 1
        assert shop.cache.holding(PUBLIC_TENANT, under.ref) is Holding.VALUES


def test_a_pattern_that_returns_finds_the_base_that_is_there(shop, under):
    entry = shop.update(under)
    shop.cache.clear()
    again = shop.matrix(operand(convection(10)))
    assert again is not under
    with shop.cache.pin(entry) as live:
        assert live.pattern.base is again
        assert again.pins == 1
    assert again.pins == 0


def test_lost_factors_leave_nothing_behind(shop, under):
    shop.factor(under, 1000)
    entry = shop.update(under)
    shop.updated(entry, 10)
    assert shop.cache.forget(lambda ref: ref.nbytes == 10) == 1
    assert under.factors[SUPERLU].evictable
    shop.updated(entry, 20)
    assert shop.cache.forget(lambda ref: True) == 2
    assert not under.factors
    assert not entry.factors
    assert shop.cache.bytes()["factor"] == 0


def test_an_update_built_on_a_factor_that_is_lost_is_not_kept(shop, under):
    entry = shop.update(under)
    with pytest.raises(NeedMatrixError, match="stands on is lost"):
        shop.updated(entry, 10)
    assert [ref.nbytes for ref in shop.freed] == [10]
    assert not entry.factors


def test_newer_updates_supersede_older_ones_and_not_their_base(shop, under):
    older = shop.update(under)
    newer = shop.update(under, seed=1)
    assert older.pattern is newer.pattern
    assert older.superseded
    assert not newer.superseded
    assert not under.superseded


def test_any_order_of_uses_keeps_the_books(shop):
    """Random uses in a small cache: nothing that is pinned goes, nothing stands on what has gone, sums are right."""
    shop = Annex(256 << 10)
    rng = random.Random(730_118)
    bases = [operand(convection(10, seed=seed)) for seed in range(3)]
    pinned = []
    for _ in range(400):
        with_base = shop.matrix(rng.choice(bases))
        if SUPERLU not in with_base.factors:
            shop.factor(with_base, rng.randrange(10_000, 30_000))
        if with_base.live and SUPERLU in with_base.factors:
            entry = shop.update(with_base, rng.randrange(6), rng.choice((1, 4)))
            with shop.cache.pin(entry) as live:
                if SUPERLU in live.pattern.base.factors:
                    shop.updated(live, rng.randrange(1, 9_000))
                check(shop)
                if rng.random() < 0.1:
                    shop.cache.clear()
                    assert live.live
                    assert live.pattern.base.live
                    pinned.append(live)
        check(shop)
    assert pinned
    evictions = shop.cache.evictions()
    assert evictions.get("budget", 0) + evictions.get("superseded", 0) > 0
    shop.cache.clear()
    assert shop.held() == 0


def check(shop: Annex) -> None:
    patterns = list(shop.cache._shelf._patterns.values())
    matrices = [matrix for pattern in patterns for matrix in pattern.matrices.values()]
    factors = [factor for matrix in matrices for factor in matrix.factors.values()]
    everything = [*patterns, *matrices, *factors]
    assert all(each.live for each in everything)
    assert sum(each.nbytes for each in everything) == shop.held() <= 256 << 10
    for pattern in patterns:
        assert pattern.base is None or pattern.base.updates[pattern.digest] is pattern
        assert pattern.base is None or pattern.base in matrices
    for factor in factors:
        assert factor.base is None or (factor.base in factors and factor in factor.base.updates)
        assert all(above in factors for above in factor.updates)
