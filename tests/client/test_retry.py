"""What a client repeats, under a clock that the test turns and chances that it draws."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from backsolve._protocol import Exchange, Pause, Send
from backsolve._steps import Progress
from backsolve.config import Endpoint
from backsolve.errors import BacksolveError, DrainingError, QueueFullError, RateLimitedError, UnreachableError
from backsolve.retry import RETRIES_PER_SECOND, RETRY_RESERVE, RETRY_SHARE, Allowance


class World:
    """A clock, and a client whose calls fail as they are told, each attempt after the pause that it asked for."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.attempts = 0
        self.oversleeps = 0.0
        draws = np.random.default_rng(733_901_245)
        self.exchange = Exchange(
            (Endpoint("http", "here", 1),), 60.0, Allowance(lambda: self.now, lambda: float(draws.random()))
        )

    def begin(self, timeout: float = 30.0) -> Progress:
        return Progress(self.exchange.info(timeout))

    def call(self, failure: Callable[[], BacksolveError | None], timeout: float = 30.0) -> None:
        """One call to its end, with nothing else going on."""
        progress = self.begin(timeout)
        while progress.step is not None:
            if isinstance(progress.step, Pause):
                self.now += progress.step.seconds + self.oversleeps
                progress.give(None)
                continue
            assert isinstance(progress.step, Send)
            self.attempts += 1
            error = failure()
            if error is None:
                progress.give("answer")
            else:
                progress.fail(error)


def full() -> BacksolveError:
    return QueueFullError("full", retry_after=0.01)


@pytest.mark.parametrize("kind", [QueueFullError, RateLimitedError])
def test_lasting_overload_is_not_made_worse(kind: type[BacksolveError]) -> None:
    """Calls come by the thousand, all fail, and each repetition would be one more."""
    world, calls = World(), 5000
    began = world.now
    for _ in range(calls):
        with pytest.raises(kind):
            world.call(lambda: kind("full"))
        world.now += 0.001
    repeated = world.attempts - calls
    allowed = RETRY_RESERVE + RETRY_SHARE * calls + RETRIES_PER_SECOND * (world.now - began)
    assert 0.9 * allowed < repeated <= allowed


def test_the_refusal_says_that_it_was_not_repeated() -> None:
    world = World()
    while (error := _spent(world)) is None:
        pass
    assert "not sent again" in error.__notes__[0]
    assert error.retry_after == 0.01


def test_overload_that_passes_is_waited_out_by_many_callers_at_once() -> None:
    world = World()
    callers = [world.begin() for _ in range(int(RETRY_RESERVE))]
    for caller in callers:
        caller.fail(full())
    assert all(isinstance(caller.step, Pause) for caller in callers)


def test_one_caller_alone_waits_until_its_deadline() -> None:
    """A job that makes one call at a time repeats it more slowly than its allowance grows."""
    world = World()
    for _ in range(3):
        began = world.now
        with pytest.raises(QueueFullError):
            world.call(lambda: QueueFullError("full", retry_after=1.0), timeout=600.0)
        assert world.now - began > 590.0


@pytest.mark.parametrize("kind", [UnreachableError, QueueFullError, DrainingError])
def test_a_pause_that_outlasts_the_deadline_does_not_hide_why_there_was_one(kind: type[BacksolveError]) -> None:
    world = World()
    world.oversleeps = 40.0
    with pytest.raises(kind, match="as told"):
        world.call(lambda: kind("as told"))
    assert world.attempts == 1


def test_calls_that_succeed_earn_repetitions() -> None:
    world = World()
    while _spent(world) is None:
        pass
    for _ in range(100):
        world.call(lambda: None)
    granted = 0
    while _spent(world) is None:
        granted += 1
    # Those that fail earn their share as well.
    assert granted == pytest.approx(100 * RETRY_SHARE / (1 - RETRY_SHARE), abs=1.5)


def _spent(world: World) -> BacksolveError | None:
    """Fail one call once: the error with which it ends, or None if it is to be repeated."""
    progress = world.begin()
    try:
        progress.fail(full())
    except QueueFullError as error:
        return error
    return None


@pytest.mark.parametrize("kind", [UnreachableError, DrainingError])
def test_a_server_that_is_replaced_is_waited_for_by_all(kind: type[BacksolveError]) -> None:
    """More callers than repetitions were saved up: whoever finds nobody loads nobody."""
    world = World()
    world.exchange._met_before = True
    callers = [world.begin() for _ in range(4 * int(RETRY_RESERVE))]
    for _ in range(3):
        for caller in callers:
            if isinstance(caller.step, Pause):
                caller.give(None)
            caller.fail(kind("gone"))
            assert isinstance(caller.step, Pause)


def test_threads_share_the_allowance() -> None:
    allowance = Allowance(clock=lambda: 5.0)
    granted: list[bool] = []

    def work() -> None:
        granted.extend([allowance.spend() for _ in range(100)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 800
    assert sum(granted) == RETRY_RESERVE
