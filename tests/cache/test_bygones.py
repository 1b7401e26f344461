"""What is kept of a job whose values change in each step, and what is not."""

import gc
import weakref

import pytest

from backsolve_service.engine.operand import Operand
from cache.test_store import MIB, Shop, step
from cache.test_updates import Annex
from support.factors import SUPERLU, operand
from support.systems import convection, laplacian

BUDGET = 320 * MIB
"""A thirty-second of it holds ten factors of the steps below."""


@pytest.fixture
def shop() -> Shop:
    return Shop(BUDGET)


@pytest.fixture
def op() -> Operand:
    return operand(convection(10))


def trained(shop: Shop, op: Operand, numbers, nbytes: int = MIB):
    """The entries of training steps, each solved with while its values were the newest."""
    entries = []
    for number in numbers:
        entry = shop.matrix(step(op, number))
        with shop.cache.pin(entry):
            shop.factor(entry, nbytes - 64 * 1024)
            assert shop.cache.factor(entry, SUPERLU) is not None
        entries.append(entry)
    return entries


def held(entries) -> list[int]:
    return [number for number, entry in enumerate(entries) if entry.live]


def test_a_job_of_many_steps_keeps_a_small_part_of_the_budget(shop, op):
    shared = shop.matrix(operand(laplacian(9)))
    shop.factor(shared, MIB)
    entries = trained(shop, op, range(60))
    kept = held(entries)
    assert kept == list(range(kept[0], 60)), "the oldest go"
    assert BUDGET // 32 / MIB - 1 < len(kept) <= BUDGET // 32 / MIB + 1
    assert len(shop.freed) == 60 - len(kept)
    assert set(shop.heard.reasons) == {"superseded"}
    assert shared.live, "what is not superseded is none of its business"
    shop.cache.clear()
    assert shop.held() == 0
    assert len(shop.freed) == 61


def test_what_went_is_really_let_go(shop, op):
    first = trained(shop, op, [0])
    watch = weakref.ref(first[0].operand)
    del first
    trained(shop, op, range(1, 30))
    gc.collect()
    assert watch() is None, "something still holds the numbers of a matrix that was dropped"


def test_the_last_few_stay_however_large(shop, op):
    kept = held(trained(shop, op, range(12), 40 * MIB))
    assert kept == [7, 8, 9, 10, 11]


def test_matrices_that_come_back_are_kept_from_then_on(shop, op):
    first = trained(shop, op, range(40))
    assert not first[0].live
    again = trained(shop, op, range(40))
    assert held(again) == list(range(40)), "a set that is gone through again and again"
    assert all(shop.cache.factor(entry, SUPERLU) is not None for entry in again)


def test_a_matrix_that_is_asked_for_after_newer_ones_shows_that_its_pattern_recurs(shop, op):
    entries = trained(shop, op, range(8))
    assert shop.cache.factor(entries[2], SUPERLU) is not None
    entries += trained(shop, op, range(8, 60))
    assert held(entries) == list(range(60))


def test_another_tenants_return_says_nothing(shop, op):
    trained(shop, op, range(40))
    entry = shop.matrix(step(op, 0), "theirs")
    assert not entry.pattern.recurs


def test_what_is_in_use_stays_until_it_is_not(shop, op):
    used = trained(shop, op, [0])[0]
    with shop.cache.pin(used):
        trained(shop, op, range(1, 40))
        assert used.live
        assert shop.cache.at_hand(used.tenant, used.ref) is used
    trained(shop, op, range(40, 70))
    assert not used.live


def test_what_updates_stand_on_stays_with_them(op):
    shop = Annex(BUDGET)
    base = trained(shop, op, [0])[0]
    update = shop.update(base)
    with shop.cache.pin(update) as entry:
        shop.updated(entry, MIB)
    entries = trained(shop, op, range(1, 40))
    assert base.live
    assert update.live
    assert len(held(entries)) <= 11


def test_the_queue_holds_nothing_that_was_evicted_otherwise(shop, op):
    first = trained(shop, op, range(6))
    watches = [weakref.ref(entry) for entry in first]
    shop.cache.clear()
    assert shop.held() == 0
    del first
    gc.collect()
    assert not any(watch() for watch in watches)
    entries = trained(shop, op, range(100, 130))
    assert 9 <= len(held(entries)) <= 11
    assert len(shop.freed) == 36 - len(held(entries))
