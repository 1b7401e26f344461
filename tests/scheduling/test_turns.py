"""Who finds no room is told when to come back: one after the other, and in time for the answer or not at all."""

import pytest

from backsolve_service.scheduling.turns import Turns

NOW, EACH, MOST = 1000.0, 0.1, 8


def keep(turns: Turns, tenant: str = "one", left: float | None = None, now: float = NOW) -> float:
    return turns.keep(now, EACH, tenant, left)


def test_those_turned_away_come_back_one_after_the_other_as_fast_as_calls_are_served() -> None:
    turns = Turns(MOST)
    assert [keep(turns) for _ in range(4)] == pytest.approx([0.4, 0.5, 0.6, 0.7]), "when half the queue has gone"
    assert keep(turns, now=NOW + 0.3) == pytest.approx(0.5), "after the last of them"
    assert keep(turns, now=NOW + 9.0) == pytest.approx(0.4), "when all of them have been"


def test_tenants_share_the_turns() -> None:
    turns = Turns(MOST)
    many = [keep(turns, "many") for _ in range(20)]
    assert keep(turns, "few") == pytest.approx(many[0]), "no tenant waits behind the crowd of another"
    after = [keep(turns, "many"), keep(turns, "many")]
    assert after[1] - after[0] == pytest.approx(2 * EACH), "each has half of what is served"


@pytest.mark.parametrize("left", [0.5, 1.5])
def test_who_cannot_be_answered_in_time_gets_no_turn_and_is_told_later_than_that(left: float) -> None:
    turns = Turns(MOST)
    assert keep(turns, left=left) >= left
    assert turns.room(NOW, repeated=False) == MOST, "nothing is kept for it"
    keep(turns, left=2.0)
    assert keep(turns) == pytest.approx(0.5), "one turn is taken"


def test_nobody_is_told_to_come_back_after_more_than_half_a_minute_or_at_once() -> None:
    slow, quick = Turns(MOST), Turns(MOST)
    assert slow.keep(NOW, 1000.0, "one", None) == 30.0
    assert slow.keep(NOW, 1000.0, "one", 3600.0) == 30.0
    assert slow.room(NOW, repeated=False) == MOST
    assert quick.keep(NOW, 0.0, "one", None) == pytest.approx(0.05)


def test_newcomers_leave_half_of_the_queue_to_those_whose_turn_it_is() -> None:
    turns = Turns(MOST)
    assert turns.room(NOW, repeated=False) == MOST
    keep(turns)
    assert turns.room(NOW, repeated=False) == MOST // 2
    assert turns.room(NOW, repeated=True) == MOST
    assert turns.room(NOW + 1.0, repeated=False) == MOST, "their turns are over, whether they came or not"
    single = Turns(1)
    keep(single)
    assert single.room(NOW, repeated=False) == 1, "a newcomer has a chance in any case"
