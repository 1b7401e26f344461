"""When a factor of older values is kept: the rule alone, on made-up costs."""

import numpy as np
import pytest

from backsolve_service.engine.reuse import Lifetime, judge


def served(counts, factor=1000.0, solve=1.0, noise=None):
    """The steps that a factor serves before the rule lets it go, and their average cost; an iteration costs 1."""
    life = Lifetime(factor, solve).solved(solve, solve).solved(solve, solve)
    spent, steps = factor + 2 * solve, 1
    for count in counts:
        if not judge(life).reuse:
            break
        life = life.begun()
        for iterations in (count // 2, count - count // 2):
            seconds = iterations * (1.0 if noise is None else noise.lognormal(0.0, 0.7))
            life = life.preconditioned(seconds, iterations)
        spent, steps = spent + count, steps + 1
    return steps, spent / steps


def test_a_cheap_factor_is_never_reused():
    verdict = judge(Lifetime(factor_seconds=1.0, solve_seconds=0.5).solved(0.5, 0.5))
    assert not verdict.reuse
    assert "factorized anew" in verdict.reason


def test_a_dear_factor_is_tried_at_first():
    verdict = judge(Lifetime(factor_seconds=12.0, solve_seconds=0.25).solved(0.25, 0.25))
    assert verdict.reuse
    assert verdict.most_iterations == 32


def test_once_iterations_are_timed_their_price_bounds_them():
    life = Lifetime(12.0, 0.25).solved(0.25, 0.25).begun().preconditioned(2.0, 4)
    assert judge(life).most_iterations == 24


def test_a_right_hand_side_of_zeros_says_nothing_of_the_price():
    life = Lifetime(12.0, 0.25).solved(0.25, 0.25).begun().preconditioned(1e-6, 0)
    assert life.solve_seconds == 0.25
    assert judge(life) == judge(Lifetime(12.0, 0.25).solved(0.25, 0.25))


def test_refinements_are_no_part_of_what_one_use_of_the_factor_costs():
    """A factor in single precision takes two or three of them, and costs half as much to make."""
    life = Lifetime(10.0, 0.0).solved(4.0, 1.0)
    assert life.spent == 4.0
    assert judge(life).reuse


def test_steps_that_cost_alike_never_end_it():
    assert served([100] * 400)[0] == 401


SLOPES = pytest.mark.parametrize("slope", [5, 30, 100, 300])


def best_average(counts):
    totals = 1002.0 + np.concatenate([[0.0], np.cumsum(counts)])
    return (totals / (1 + np.arange(1 + len(counts)))).min()


@SLOPES
def test_rising_counts_end_it_near_the_cheapest_average(slope):
    counts = slope * (1 + np.arange(400))
    steps, average = served(counts.tolist())
    assert steps < 400
    assert average <= 1.15 * best_average(counts)


@SLOPES
def test_what_else_the_machine_does_hardly_moves_the_end(slope):
    """Single solves take half or twice as long as they would by themselves."""
    counts = slope * (1 + np.arange(400))
    noise = np.random.default_rng(580_117_246)
    averages = [served(counts.tolist(), noise=noise)[1] for _ in range(40)]
    assert np.median(averages) <= 1.2 * best_average(counts)


def test_one_step_on_an_old_factor_must_not_cost_more_than_a_new_one():
    life = Lifetime(10.0, 0.1).solved(0.1, 0.1).solved(0.1, 0.1).begun().preconditioned(25.0, 200)
    verdict = judge(life)
    assert not verdict.reuse
    assert "a new one pays" in verdict.reason
