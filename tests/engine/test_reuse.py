"""When a factor of older values is kept: the rule alone, on made-up costs."""

import numpy as np
import pytest

from backsolve_service.engine.reuse import Lifetime, judge


def served(costs, factor=10.0, solve=0.1):
    """The steps that a factor serves before the rule lets it go, and their average cost."""
    life = Lifetime(factor, solve).solved(2 * solve, 0)
    spent, steps = factor + 2 * solve, 1
    for cost in costs:
        if not judge(life).reuse:
            break
        life = life.begun().solved(cost / 2, 5).solved(cost / 2, 5)
        spent, steps = spent + cost, steps + 1
    return steps, spent / steps


def test_a_cheap_factor_is_never_reused():
    verdict = judge(Lifetime(factor_seconds=1.0, solve_seconds=0.5).solved(0.5, 0))
    assert not verdict.reuse
    assert "factorized anew" in verdict.reason


def test_a_dear_factor_is_tried_at_first():
    verdict = judge(Lifetime(factor_seconds=12.0, solve_seconds=0.25).solved(0.25, 0))
    assert verdict.reuse
    assert verdict.most_iterations == 32


def test_steps_that_cost_alike_never_end_it():
    assert served([1.0] * 400)[0] == 401


@pytest.mark.parametrize("slope", [0.05, 0.3, 1.0, 3.0])
def test_rising_costs_end_it_near_the_cheapest_average(slope):
    costs = slope * (1 + np.arange(400))
    totals = 10.2 + np.concatenate([[0.0], np.cumsum(costs)])
    best = (totals / (1 + np.arange(401))).min()
    steps, average = served(costs)
    assert steps < 400
    assert average <= 1.15 * best


def test_one_step_on_an_old_factor_must_not_cost_more_than_a_new_one():
    life = Lifetime(10.0, 0.1).solved(0.2, 0).begun().solved(25.0, 200)
    verdict = judge(life)
    assert not verdict.reuse
    assert "a new one pays" in verdict.reason
