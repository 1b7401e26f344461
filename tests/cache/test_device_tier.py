"""The device's memory as a tier of the cache with a budget of its own."""

from dataclasses import replace

import pytest

from backsolve.errors import DeviceOutOfMemoryError
from backsolve_service.cache.store import FactorCache
from backsolve_service.engine.base import FactorSpec
from backsolve_service.engine.structure import inspect, inspect_pattern
from support.factors import caller, operand, reference
from support.systems import convection

from .test_store import MIB, Listening, Ref, done

SPEC = FactorSpec("lu", None, "float64", "cuda")


class Shop:
    """A cache with a device of 10 MiB, and the words to fill it."""

    def __init__(self, budget: int = 64 * MIB) -> None:
        self.freed, self.moved, self.heard = [], [], Listening()
        self.cache: FactorCache[Ref] = FactorCache(
            budget,
            self.freed.append,
            self.heard,
            device_bytes=10 * MIB,
            move=lambda ref, out: self.moved.append((ref, out)),
        )

    def entry(self, number: int):
        op = operand(convection(8 + number))
        facts = inspect_pattern(op.pattern)
        pattern = self.cache.add_pattern("public", reference(op).pattern, op.pattern, facts)
        return self.cache.add_matrix(pattern, reference(op).values, op, inspect(facts, op))

    def factor(self, entry, ref, predicted: int = 0, spec=SPEC):
        with self.cache.pin(entry) as live:
            return self.cache.get_factor(live, spec, lambda: done(ref, 0.1), caller(), predicted).value

    def held(self) -> tuple[int, int]:
        """Bytes of factors on the host (without what is counted for each entry), and on the device."""
        return sum(self.cache.bytes().values()), self.cache.device_bytes()


@pytest.fixture
def shop() -> Shop:
    return Shop()


def on_device(mib: int, *, movable: bool = True) -> Ref:
    return Ref(mib * MIB, mib * MIB, movable)


def test_a_factor_on_the_device_is_counted_there_alone(shop):
    entry = shop.entry(0)
    before, _ = shop.held()
    shop.factor(entry, Ref(5 * MIB, 4 * MIB, True))
    after, device = shop.held()
    assert (after - before, device) == (MIB + 1024, 4 * MIB)


def test_what_finds_no_room_sends_the_least_missed_to_the_host_and_back_when_it_is_asked_for(shop):
    first, second = shop.entry(0), shop.entry(1)
    a, b = on_device(6), on_device(6)
    shop.factor(first, a)
    host, _ = shop.held()
    shop.factor(second, b)
    assert shop.moved == [(a, True)]
    assert shop.held() == (host + 6 * MIB + 1024, 6 * MIB)
    assert not shop.freed
    assert shop.heard.reasons == []
    with shop.cache.pin(first) as live:
        assert shop.cache.factor(live, SPEC) is a
    # It came back, and the other one had to go.
    assert shop.moved == [(a, True), (b, True), (a, False)]
    assert shop.held() == (host + 6 * MIB + 1024, 6 * MIB)
    with shop.cache.pin(first) as live:
        assert shop.cache.factor(live, SPEC) is a
    assert len(shop.moved) == 3


def test_what_cannot_be_moved_is_dropped(shop):
    a, b = on_device(6, movable=False), on_device(6)
    shop.factor(shop.entry(0), a)
    shop.factor(shop.entry(1), b)
    assert (shop.freed, shop.moved, shop.heard.reasons) == ([a], [], ["budget"])
    assert shop.cache.device_bytes() == 6 * MIB


def test_what_the_host_has_no_room_for_is_dropped():
    shop = Shop(budget=4 * MIB)
    a, b = on_device(6), on_device(6)
    shop.factor(shop.entry(0), a)
    shop.factor(shop.entry(1), b)
    assert (shop.freed, shop.moved) == ([a], [])


def test_the_order_is_that_of_the_cache(shop):
    """The factor that saves more seconds a byte, and more often, stays."""
    entries = [shop.entry(number) for number in range(3)]
    refs = [on_device(3) for _ in entries]
    for entry, ref in zip(entries, refs, strict=True):
        shop.factor(entry, ref)
    for used in (entries[0], entries[2]):
        with shop.cache.pin(used) as live:
            shop.cache.factor(live, SPEC)
    shop.factor(shop.entry(3), on_device(4))
    assert shop.moved == [(refs[1], True)]


def test_what_is_in_use_stays_and_the_error_says_what_holds_the_room(shop):
    first, second = shop.entry(0), shop.entry(1)
    a, b = on_device(6), on_device(6)
    shop.factor(first, a)
    with shop.cache.pin(first), pytest.raises(DeviceOutOfMemoryError, match="BACKSOLVE_DEVICE_CACHE_BYTES") as caught:
        shop.factor(second, b)
    assert caught.value.details["in_use"] == str(6 * MIB)
    assert (shop.freed, shop.moved) == ([b], [])
    assert shop.cache.device_bytes() == 6 * MIB


def test_nothing_leaves_for_what_finds_no_room_anyway(shop):
    held, idle = shop.entry(0), shop.entry(1)
    shop.factor(held, on_device(6))
    shop.factor(idle, on_device(2))
    with shop.cache.pin(held), pytest.raises(DeviceOutOfMemoryError):
        shop.factor(shop.entry(2), on_device(6))
    assert not shop.moved
    assert shop.cache.device_bytes() == 8 * MIB


def test_room_is_set_aside_on_the_device_before_a_factor_is_built(shop):
    first, second = shop.entry(0), shop.entry(1)
    a = on_device(6)
    shop.factor(first, a)
    shop.factor(second, on_device(1), predicted=9 * MIB)
    assert shop.moved == [(a, True)]
    host = replace(SPEC, device="cpu")
    shop.factor(second, Ref(1), predicted=40 * MIB, spec=host)
    assert len(shop.moved) == 1


def test_no_factor_comes_back_where_it_has_no_room(shop):
    first, second = shop.entry(0), shop.entry(1)
    a, b = on_device(6), on_device(6)
    shop.factor(first, a)
    shop.factor(second, b)
    with shop.cache.pin(second), shop.cache.pin(first) as live:
        assert shop.cache.factor(live, SPEC) is a  # and is used from the host
    assert shop.moved == [(a, True)]


def test_the_device_can_be_vacated(shop):
    a, b = on_device(4), on_device(4, movable=False)
    shop.factor(shop.entry(0), a)
    shop.factor(shop.entry(1), b)
    assert shop.cache.vacate_device()
    assert (shop.moved, shop.freed) == ([(a, True)], [b])
    assert shop.cache.device_bytes() == 0
    assert not shop.cache.vacate_device()


def test_what_is_forgotten_or_cleared_leaves_the_device(shop):
    a, b, c = on_device(2), on_device(3), on_device(4)
    for number, ref in enumerate((a, b, c)):
        shop.factor(shop.entry(number), ref)
    shop.cache.forget(lambda ref: ref is a)
    assert shop.cache.device_bytes() == 7 * MIB
    shop.cache.clear()
    assert shop.held() == (0, 0)
