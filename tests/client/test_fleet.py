"""Which replica gets a call, under a clock that the test turns; what is sent is done here by hand."""

from collections import Counter
from contextlib import ExitStack

import numpy as np
import pytest

from backsolve._fleet import BALANCE, FREE_HAND, LONGEST_REST_SECONDS, Fleet, Replica, rendezvous
from backsolve._protocol import Dismiss, Exchange, LookUp, Pause, Send
from backsolve._steps import Progress
from backsolve._transports.base import PutCall, SolveCall
from backsolve.config import Endpoint
from backsolve.errors import (
    BacksolveError,
    DeadlineError,
    DrainingError,
    InvalidShapeError,
    NeedMatrixError,
    QueueFullError,
    UnreachableError,
)
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern
from backsolve.retry import RETRY_RESERVE, Allowance
from backsolve.structured import LowRankUpdate
from backsolve.types import Options

NAMES = [f"10.0.0.{place}:8080" for place in range(1, 6)]
KEYS = [np.random.default_rng(640_117 + seed).bytes(16) for seed in range(4000)]


# -- the ranking ------------------------------------------------------------------------------


def best(key: bytes, names: list[str]) -> str:
    return names[rendezvous(key, names)[0]]


def test_patterns_are_spread_evenly() -> None:
    counts = Counter(best(key, NAMES) for key in KEYS)
    expected = len(KEYS) / len(NAMES)
    # Five standard deviations of a binomial count.
    slack = 5 * (expected * (1 - 1 / len(NAMES))) ** 0.5
    assert counts.keys() == set(NAMES)
    assert all(abs(count - expected) < slack for count in counts.values())


def test_a_replica_that_is_lost_moves_its_own_patterns_alone_and_spreads_them() -> None:
    lost, left = NAMES[2], [*NAMES[:2], *NAMES[3:]]
    moved = Counter()
    for key in KEYS:
        before = best(key, NAMES)
        if before == lost:
            moved[best(key, left)] += 1
        else:
            assert best(key, left) == before
    assert moved.keys() == set(left)
    assert max(moved.values()) < 2 * min(moved.values())


def test_the_order_of_the_names_means_nothing() -> None:
    other = [*reversed(NAMES)]
    for key in KEYS[:200]:
        assert [NAMES[place] for place in rendezvous(key, NAMES)] == [other[place] for place in rendezvous(key, other)]


# -- the fleet --------------------------------------------------------------------------------


class World:
    """A fleet, its clock, and chances that are always a half."""

    def __init__(self, *names: str, chance: float = 0.5) -> None:
        self.now = 500.0
        self.allowance = Allowance(lambda: self.now, lambda: chance)
        endpoints = [Endpoint("http", *_split(name)) for name in names or NAMES]
        self.fleet = Fleet(endpoints, self.allowance.clock, self.allowance.chance)
        self.endpoints = endpoints

    def place(self, key: bytes, *avoid: Replica) -> Replica:
        with self.fleet.visit(key, avoid) as replica:
            return replica

    def fail(self, key: bytes, error: BacksolveError) -> Replica:
        with pytest.raises(type(error)), self.fleet.visit(key) as replica:
            raise error
        return replica


def _split(name: str) -> tuple[str, int]:
    host, _, port = name.partition(":")
    return host, int(port)


def test_a_call_goes_to_the_first_of_its_rank() -> None:
    world = World()
    for key in KEYS[:200]:
        assert world.place(key).name == best(key, NAMES)
    assert sum(replica.spilled for replica in world.fleet.members) == 0
    assert sum(replica.calls for replica in world.fleet.members) == 200


def test_a_pattern_that_everybody_asks_for_spills_over_in_its_rank() -> None:
    world, key = World(), KEYS[0]
    order = [NAMES[place] for place in rendezvous(key, NAMES)]
    with ExitStack() as calls:
        taken = [calls.enter_context(world.fleet.visit(key)).name for _ in range(200)]
        counts = Counter(taken)
    assert taken[:FREE_HAND] == [order[0]] * FREE_HAND
    assert taken[FREE_HAND] == order[1]
    assert max(counts.values()) <= BALANCE * 200 / len(NAMES) + 1
    of_rank = [counts[name] for name in order]
    assert of_rank == sorted(of_rank, reverse=True)
    assert all(replica.in_flight == 0 for replica in world.fleet.members)
    assert world.place(key).name == order[0]


def test_a_dead_replica_is_left_alone_and_probed_by_one_call() -> None:
    world, key = World(), KEYS[1]
    dead = world.fail(key, UnreachableError("gone"))
    second = world.place(key)
    assert second is not dead
    assert second.name == NAMES[rendezvous(key, NAMES)[1]]
    world.now += 0.6
    with world.fleet.visit(key) as probe:
        assert probe is dead
        assert world.place(key) is second
    # The probe was answered.
    assert world.place(key) is dead


def test_a_replica_that_stays_dead_is_asked_less_and_less() -> None:
    world, key = World(), KEYS[2]
    rests = []
    for _ in range(12):
        dead = world.fail(key, UnreachableError("gone"))
        rests.append(dead.rests_until - world.now)
        world.now = dead.rests_until
    assert rests[:4] == pytest.approx([0.5, 1.0, 2.0, 4.0])
    assert rests[-1] == LONGEST_REST_SECONDS


def test_rests_differ_from_client_to_client() -> None:
    short, long = World(chance=0.0), World(chance=0.999)
    rests = [each.fail(KEYS[2], UnreachableError("gone")).rests_until - each.now for each in (short, long)]
    assert rests == pytest.approx([0.25, 0.7495])


def test_a_draining_replica_is_left_alone_for_as_long_as_it_says() -> None:
    world, key = World(), KEYS[3]
    leaving = world.fail(key, DrainingError("bye", retry_after=3.0))
    world.now += 2.9
    assert world.place(key) is not leaving


@pytest.mark.parametrize("error", [QueueFullError("full"), InvalidShapeError("no"), DeadlineError("late")])
def test_other_errors_kill_nobody(error: BacksolveError) -> None:
    world, key = World(), KEYS[4]
    assert world.fail(key, error) is world.place(key)


def test_a_late_answer_does_not_bring_a_dead_replica_back() -> None:
    world, key = World(), KEYS[4]
    dead = world.fail(key, UnreachableError("gone"))
    world.now = dead.rests_until
    assert world.fail(key, DeadlineError("late")) is dead
    assert world.place(key) is not dead


def test_when_all_are_dead_somebody_is_asked() -> None:
    world, key = World(), KEYS[5]
    for _ in NAMES:
        world.fail(key, UnreachableError("gone"))
    assert not world.fleet.others([])
    assert world.place(key).name == best(key, NAMES)


# -- names ------------------------------------------------------------------------------------


def test_a_name_is_looked_up_again_and_what_is_known_stays() -> None:
    now = 100.0
    named = Endpoint("dns+http", "solvers", 8080, "secret")
    fleet = Fleet([named], lambda: now, lambda: 0.5)
    assert fleet.to_look_up() is named
    assert fleet.found(["10.0.0.2", "10.0.0.1"]) == []
    first, second = fleet.members
    assert [replica.endpoint for replica in fleet.members] == [
        Endpoint("http", host, 8080, "secret") for host in ("10.0.0.1", "10.0.0.2")
    ]
    assert fleet.to_look_up() is None
    now += 31.0
    assert fleet.to_look_up() is named
    assert fleet.to_look_up() is None, "one caller looks"
    key = next(key for key in KEYS if best(key, [first.name, second.name]) == first.name)
    with fleet.visit(key) as busy:
        assert busy is first
        assert fleet.found(["10.0.0.2", "10.0.0.3"]) == [], "a call is under way there"
        assert fleet.known == (*fleet.members, first)
    assert fleet.members[0] is second
    assert fleet.found(["10.0.0.2", "10.0.0.3"]) == [first]
    assert fleet.known == fleet.members
    assert fleet.found(["10.0.0.2", "10.0.0.3"]) == []


def test_a_dead_address_has_its_name_looked_up_soon() -> None:
    now = 100.0
    fleet = Fleet([Endpoint("dns+http", "solvers", 8080)], lambda: now, lambda: 0.5)
    fleet.to_look_up()
    fleet.found(["10.0.0.1", "10.0.0.2"])
    with pytest.raises(UnreachableError), fleet.visit(KEYS[0]):
        raise UnreachableError("gone")
    now += 1.0
    assert fleet.to_look_up() is not None


# -- calls ------------------------------------------------------------------------------------


class Client:
    """A client whose steps are done by hand, and one call of it."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.now = 700.0
        self.exchange = Exchange(endpoints, 60.0, Allowance(lambda: self.now, lambda: 0.5))
        self.matrix = Matrix(DensePattern((3, 3)), np.random.default_rng(57_203).normal(size=(3, 3)))
        self.order = [endpoints[place] for place in rendezvous(self.key, [at.address for at in endpoints])]

    @property
    def key(self) -> bytes:
        return self.matrix.ref.route_key.encode()

    def call(self) -> Progress:
        return Progress(self.exchange.deliver(self.matrix, SolveCall(self.matrix.ref, Options(), np.ones(3)), 30.0))


THREE = [Endpoint("http", *_split(name)) for name in NAMES[:3]]


def sent_to(progress: Progress) -> Endpoint:
    assert isinstance(progress.step, Send)
    return progress.step.to.endpoint


def test_a_dead_replica_costs_one_upload_at_the_next_of_the_rank() -> None:
    client = Client(*THREE)
    call = client.call()
    assert sent_to(call) == client.order[0]
    call.fail(UnreachableError("gone"))
    assert sent_to(call) == client.order[1]
    call.fail(NeedMatrixError("no"))
    assert isinstance(call.step.call, PutCall)
    assert sent_to(call) == client.order[1]
    call.give(None)
    assert sent_to(call) == client.order[1]
    call.give("answer")
    assert call.result == "answer"
    again = client.call()
    assert sent_to(again) == client.order[1]
    assert client.exchange.uploads == 1


def test_an_upload_goes_where_the_call_goes_even_if_that_has_its_hands_full_by_now() -> None:
    client = Client(*THREE)
    call = client.call()
    others = [client.call() for _ in range(3 * FREE_HAND)]
    assert len({sent_to(other) for other in others}) == 3
    call.fail(NeedMatrixError("no"))
    assert sent_to(call) == client.order[0]
    call.give(None)
    assert sent_to(call) == client.order[0]


def test_a_full_replica_is_passed_over_while_the_allowance_lasts() -> None:
    client = Client(*THREE)
    moved = 0
    for _ in range(10 * int(RETRY_RESERVE)):
        call = client.call()
        try:
            call.fail(QueueFullError("full"))
        except QueueFullError:
            break
        if isinstance(call.step, Send):
            assert sent_to(call) == client.order[1]
            moved += 1
        call.give("answer")
    assert RETRY_RESERVE <= moved < 1.5 * RETRY_RESERVE


def test_all_are_tried_before_the_first_pause() -> None:
    client = Client(*THREE)
    call, asked = client.call(), []
    while isinstance(call.step, Send):
        asked.append(sent_to(call))
        call.fail(UnreachableError("gone"))
    assert asked == client.order
    assert isinstance(call.step, Pause)
    call.give(None)
    assert sent_to(call) == client.order[0]


def test_a_call_that_ends_early_is_counted_out() -> None:
    client = Client(*THREE)
    steps = client.exchange.deliver(client.matrix, SolveCall(client.matrix.ref, Options(), np.ones(3)), 30.0)
    Progress(steps)
    assert sum(replica.in_flight for replica in client.exchange.fleet.members) == 1
    steps.close()
    assert sum(replica.in_flight for replica in client.exchange.fleet.members) == 0


def test_an_update_goes_where_its_matrix_is() -> None:
    rng = np.random.default_rng(884_391)
    s = rng.normal(size=(4, 4))
    below = Matrix(DensePattern((4, 4)), s)
    for seed in range(8):
        update = LowRankUpdate(s, np.random.default_rng(seed).normal(size=(4, 1 + seed % 3))).matrix()
        assert update.ref.pattern != below.ref.pattern
        assert update.ref.route_key == below.ref.route_key


def test_names_are_looked_up_by_a_step_of_the_call_and_what_is_gone_is_dismissed() -> None:
    client = Client(Endpoint("dns+http", "solvers", 8080))
    call = client.call()
    assert isinstance(call.step, LookUp)
    call.fail(UnreachableError("no such name"))
    assert isinstance(call.step, Pause)
    call.give(None)
    assert isinstance(call.step, LookUp)
    call.give(["10.0.0.1"])
    assert sent_to(call) == Endpoint("http", "10.0.0.1", 8080)
    call.give("answer")
    client.now += 60.0
    call = client.call()
    assert isinstance(call.step, LookUp)
    call.give(["10.0.0.7"])
    assert isinstance(call.step, Dismiss)
    assert call.step.replica.endpoint.host == "10.0.0.1"
    call.give(None)
    assert sent_to(call).host == "10.0.0.7"
    client.now += 60.0
    call = client.call()
    call.fail(UnreachableError("the name server is gone"))
    assert sent_to(call).host == "10.0.0.7"
