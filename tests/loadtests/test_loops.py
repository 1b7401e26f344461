"""A server that stalls shows in the percentiles of an open loop, and every run ends by itself."""

import time

import numpy as np
import pytest

from loadtests.served.generator import Plan, run
from loadtests.served.schedule import poisson
from loadtests.served.tally import NOT_SENT, WRONG
from support.stalling import Asking, StallingServer

STALL = 1.5


def measured(plan, server):
    begun = []

    def arm():
        server.arm()
        begun.append(time.monotonic())

    return run(plan, arm), begun[0]


def test_a_stall_shows_in_every_step_that_was_due_meanwhile():
    """With one caller only one request is ever in the stalled server: the others wait for their turn, and count."""
    with StallingServer(after=0.5, seconds=STALL) as server:
        plan = Plan(Asking(server.url), server.url, 3.0, callers=1, rate=40.0)
        tally, begun = measured(plan, server)
    began, ended = server.stalled
    assert ended - began >= STALL
    # Those due in the first half of the stall, by the latest moment at which the run can have begun.
    due = begun + 0.2 + poisson(40.0, 3.0, plan.seed, plan.most)
    waited = np.count_nonzero((due > began) & (due < began + STALL / 2 - 0.5))
    assert waited > 2
    slow = 1 - waited / tally.answered.count
    assert tally.answered.percentile(100 * slow + 0.01) >= STALL / 2
    assert tally.answered.percentile(99) >= STALL / 2
    assert tally.right == due.size
    assert not tally.errors


def test_a_closed_loop_sees_the_same_stall_once():
    with StallingServer(after=0.5, seconds=STALL) as server:
        tally, _ = measured(Plan(Asking(server.url), server.url, 3.0, callers=1), server)
    assert server.stalled is not None
    assert tally.answered.percentile(100) >= STALL
    assert tally.right > 20
    assert tally.late.count == 0


def test_no_more_steps_than_were_asked_for():
    with StallingServer(after=1e9, seconds=0) as server:
        closed, _ = measured(Plan(Asking(server.url), server.url, 30.0, most=25, callers=3), server)
        several, _ = measured(Plan(Asking(server.url), server.url, 30.0, most=24, callers=4, processes=2), server)
        spread, _ = measured(
            Plan(Asking(server.url), server.url, 2.0, callers=4, rate=50.0, processes=2, most=1000), server
        )
    assert closed.steps == 25
    assert several.steps == 24
    # Two processes share one schedule: no step is left out, none is done twice.
    assert spread.steps == poisson(50.0, 2.0, Plan(Asking(""), "", 1).seed, 1000).size


def test_steps_that_no_caller_was_free_for_are_counted():
    with StallingServer(after=0.0, seconds=2.5) as server:
        tally, _ = measured(Plan(Asking(server.url), server.url, 1.0, callers=1, rate=30.0, timeout=1.0), server)
    assert tally.errors[NOT_SENT] > 0
    assert tally.steps == poisson(30.0, 1.0, Plan(Asking(""), "", 1).seed, 1000).size


def test_a_fast_wrong_server_is_no_fast_server():
    with StallingServer(after=1e9, seconds=0) as server:
        plan = Plan(Asking(server.url, right=False), server.url, 30.0, most=40, callers=1, check_every=4)
        tally, _ = measured(plan, server)
    assert tally.checked == 10
    assert tally.errors[WRONG] == 10
    assert tally.right == 30


def test_a_generator_that_fails_says_how():
    with (
        StallingServer(after=1e9, seconds=0) as server,
        pytest.raises(RuntimeError, match="a generator process failed: ConnectionRefusedError"),
    ):
        run(Plan(Asking("http://127.0.0.1:1"), server.url, 1.0))
