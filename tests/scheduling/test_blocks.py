"""Solves that wait for the same factor run as one block, and nobody can tell by the answer."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from backsolve.errors import CancelledError, DeadlineError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.types import Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, Factor, FactorSpec, Outcome
from backsolve_service.engine.operand import Operand
from backsolve_service.observer import Silent
from backsolve_service.scheduling.jobs import Solved
from backsolve_service.scheduling.scheduler import Scheduler
from support.factors import CG, PATIENCE, SUPERLU, caller, factorize, held_up, operand, solved_by, until
from support.systems import convection, laplacian, random_like

SEED = 903_417_226


class Listening(Silent):
    """Writes down the width of every block."""

    def __init__(self) -> None:
        self.blocks: list[int] = []

    def block(self, columns: int) -> None:
        self.blocks.append(columns)


class Recording(Factor):
    """A factor whose solves may be watched, delayed or failed; it inverts a multiple of the identity."""

    direct = False
    max_columns = 64

    def __init__(self, op: Operand, hook) -> None:
        self.operand = op
        self.hook = hook

    @property
    def nbytes(self) -> int:
        return 64

    @property
    def condition(self) -> float | None:
        return None

    def solve(self, rhs, trans, controls):
        self.hook(rhs, controls)
        return Outcome(rhs / self.operand.values[0], (Status.OK,), (1,))


@pytest.fixture
def heard() -> Listening:
    return Listening()


@pytest.fixture
def scheduler(heard) -> Iterator[Scheduler]:
    one = Scheduler(1, 256, 1 << 26, heard)
    yield one
    assert one.close(PATIENCE)


def kept(scheduler: Scheduler, op: Operand, spec: FactorSpec = SUPERLU):
    return scheduler.build(spec, lambda: factorize(op, spec), caller()).value


def together(scheduler: Scheduler, calls) -> list[Future[Solved]]:
    """Ask for all of these while the worker is held up, in this order."""
    with ThreadPoolExecutor(len(calls)) as pool, held_up(scheduler):
        futures = []
        for call in calls:
            depth = scheduler.stats.depth
            futures.append(pool.submit(solved_by, scheduler, *call))
            until(lambda depth=depth: scheduler.stats.depth == depth + 1)
    return futures


@pytest.mark.parametrize("trans", ["N", "T", "H"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("widths", [(1, 2, 1, 3, 1), (1, 1, 1)], ids=["wide", "single"])
def test_a_block_answers_as_single_solves_do(scheduler, heard, trans, dtype, widths):
    op = operand(convection(15, dtype))
    spec = FactorSpec("superlu", None, dtype, "cpu")
    ref, alone = kept(scheduler, op, spec), factorize(op, spec)
    sides = [random_like((op.n, k), dtype, SEED + i) for i, k in enumerate(widths)]
    futures = together(scheduler, [(ref, b, trans, Controls(), caller()) for b in sides])
    assert heard.blocks == [sum(widths)]
    for b, future in zip(sides, futures, strict=True):
        solved, single = future.result(), answer(alone, b, trans, Controls())
        assert solved.block_columns == sum(widths)
        np.testing.assert_allclose(solved.answer.x, single.x, rtol=0, atol=1e-14 * np.abs(single.x).max())
        base = solved.answer.x.base
        assert base is None or base.size == b.size, "a view would keep everybody's answer"
        assert solved.answer.statuses == single.statuses
        assert solved.answer.relative_residual.shape == single.relative_residual.shape == (1, b.shape[1])
        np.testing.assert_allclose(solved.answer.backward_error, single.backward_error, atol=1e-15)


@pytest.mark.parametrize("spoilt", [np.nan, 1e308])
def test_single_columns_are_answered_whatever_one_of_them_is(scheduler, heard, spoilt):
    op = operand(convection(15))
    ref, alone = kept(scheduler, op), factorize(op)
    sides = [random_like((op.n, 1), "float64", SEED + i) for i in range(3)]
    sides[1][4] = spoilt
    futures = together(scheduler, [(ref, b, "N", Controls(), caller()) for b in sides])
    assert heard.blocks == [3]
    for b, future in zip(sides, futures, strict=True):
        found, single = future.result().answer, answer(alone, b, "N", Controls())
        assert found.statuses == single.statuses
        size = np.nanmax(np.abs(single.x), initial=0.0)
        np.testing.assert_allclose(found.x, single.x, rtol=0, atol=1e-14 * size)


def test_iterative_solves_of_one_tolerance_share_a_block(scheduler, heard):
    op = operand(laplacian(12))
    ref = kept(scheduler, op, CG)
    sides = [random_like((op.n, 1), "float64", SEED + i) for i in range(4)]
    tolerances = [1e-6, 1e-9, 1e-6, 1e-9]
    futures = together(
        scheduler, [(ref, b, "N", Controls(rtol=r), caller()) for b, r in zip(sides, tolerances, strict=True)]
    )
    assert heard.blocks == [2, 2]
    for b, rtol, future in zip(sides, tolerances, futures, strict=True):
        x = future.result().answer.x
        assert np.linalg.norm(b - op.product(0, x, "N")) <= rtol * np.linalg.norm(b)


def test_what_differs_is_never_mixed(scheduler, heard):
    op = operand(laplacian(8))
    one, other = kept(scheduler, op, CG), kept(scheduler, op, CG)
    b = random_like((op.n, 1), "float64", SEED)
    calls = [
        (one, b, "N", Controls(), caller()),
        (other, b, "N", Controls(), caller()),
        (one, b, "T", Controls(), caller()),
        (one, b, "N", Controls(maxiter=50), caller()),
        (one, b, "N", Controls(atol=1e-3), caller()),
        (one, b, "N", Controls(x0=np.zeros_like(b)), caller()),
        (one, b, "N", Controls(x0=np.zeros_like(b)), caller()),
        (one, b, "N", Controls(), caller()),
    ]
    futures = together(scheduler, calls)
    assert sorted(heard.blocks) == [1] * 6 + [2]
    assert [f.result().block_columns for f in futures] == [2, 1, 1, 1, 1, 1, 1, 2]


def test_a_batch_is_solved_alone(scheduler, heard):
    single = operand(convection(6))
    values = np.stack([single.values, 2 * single.values])
    op = Operand(Matrix(single.pattern, values))
    ref = kept(scheduler, op)
    b = random_like((2, op.n, 1), "float64", SEED)
    futures = together(scheduler, [(ref, b, "N", Controls(), caller())] * 2)
    assert heard.blocks == [1, 1]
    for future in futures:
        x = future.result().answer.x
        np.testing.assert_allclose(op.product(1, x[1], "N"), b[1], rtol=1e-11)


def test_a_block_is_no_wider_than_pays_and_a_wider_job_runs_alone(scheduler, heard):
    op = operand(convection(6))
    ref = kept(scheduler, op)
    cap = ref.max_columns
    wide = random_like((op.n, cap + 3), "float64", SEED)
    narrow = random_like((op.n, 1), "float64", SEED + 1)
    calls = [(ref, narrow, "N", Controls(), caller()) for _ in range(cap + 2)]
    futures = together(scheduler, [*calls, (ref, wide, "N", Controls(), caller())])
    assert sorted(heard.blocks) == [2, cap, cap + 3]
    assert futures[-1].result().answer.x.shape == wide.shape


@pytest.mark.parametrize(("most", "widths"), [(1, [1] * 5), (2, [1, 2, 2]), (500, [5])])
def test_a_bound_on_blocks_is_kept(heard, most, widths):
    scheduler = Scheduler(1, 256, 1 << 26, heard, block_columns=most)
    op = operand(convection(6))
    ref = kept(scheduler, op)
    sides = [random_like((op.n, 1), "float64", SEED + i) for i in range(5)]
    futures = together(scheduler, [(ref, b, "N", Controls(), caller()) for b in sides])
    assert sorted(heard.blocks) == widths
    for b, future in zip(sides, futures, strict=True):
        np.testing.assert_allclose(op.product(0, future.result().answer.x, "N"), b, rtol=1e-11)
    assert scheduler.close(PATIENCE)


def test_a_caller_who_left_drops_out_of_the_block(scheduler, heard):
    op = operand(convection(6))
    ref = kept(scheduler, op)
    b = random_like((op.n, 1), "float64", SEED)
    gone, brief = caller(), caller(0.2)
    with ThreadPoolExecutor(3) as pool, held_up(scheduler):
        futures = [pool.submit(solved_by, scheduler, ref, b, "N", Controls(), c) for c in (caller(), gone, brief)]
        until(lambda: scheduler.stats.depth == 3)
        gone.cancel()
        with pytest.raises(CancelledError):
            futures[1].result(PATIENCE)
        with pytest.raises(DeadlineError):
            futures[2].result(PATIENCE)
        until(lambda: scheduler.stats.depth == 1)
    assert heard.blocks == [1]
    np.testing.assert_allclose(op.product(0, futures[0].result().answer.x, "N"), b, rtol=1e-11)


def test_a_running_block_is_cancelled_only_when_all_of_its_callers_left(scheduler):
    op = operand(laplacian(4))
    entered, seen = threading.Event(), []
    contexts = [caller(), caller()]

    def hook(rhs, controls):
        seen.append(controls.cancelled())
        contexts[0].cancel()
        seen.append(controls.cancelled())
        contexts[1].cancel()
        seen.append(controls.cancelled())
        entered.set()
        raise CancelledError("nobody waits")

    ref = scheduler.build(CG, lambda: Recording(op, hook), caller()).value
    b = np.ones((op.n, 1))
    futures = together(scheduler, [(ref, b, "N", Controls(), context) for context in contexts])
    assert entered.wait(PATIENCE)
    assert seen == [False, False, True], "the block was not solved again for callers who left"
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(PATIENCE)


def test_an_iterative_solve_past_its_deadline_says_deadline_not_cancelled(scheduler):
    op = operand(laplacian(4))

    def hook(rhs, controls):
        while not controls.cancelled():  # without a pause: the engine may notice before the caller wakes
            pass
        raise CancelledError("the engine only knows that it was told to stop")

    ref = scheduler.build(CG, lambda: Recording(op, hook), caller()).value
    for _ in range(20):
        with pytest.raises(DeadlineError):
            solved_by(scheduler, ref, np.ones((op.n, 1)), "N", Controls(), caller(0.02))


def test_one_callers_fault_does_not_fail_the_others(scheduler, heard):
    op = operand(laplacian(4))
    widths = []

    def hook(rhs, controls):
        widths.append(rhs.shape[1])
        if np.any(rhs == 7.0):
            raise SingularMatrixError("seven")

    ref = scheduler.build(CG, lambda: Recording(op, hook), caller()).value
    sides = [np.full((op.n, 1), value) for value in (1.0, 7.0, 3.0)]
    futures = together(scheduler, [(ref, b, "N", Controls(), caller()) for b in sides])
    assert widths == [3, 1, 1, 1]
    with pytest.raises(SingularMatrixError, match="seven"):
        futures[1].result()
    for index in (0, 2):
        np.testing.assert_array_equal(futures[index].result().answer.x, sides[index] / op.values[0])


def test_a_nonfinite_column_harms_no_neighbour(scheduler):
    op = operand(convection(6))
    ref = kept(scheduler, op)
    good = random_like((op.n, 1), "float64", SEED)
    bad = good.copy()
    bad[3] = np.nan
    futures = together(scheduler, [(ref, b, "N", Controls(), caller()) for b in (good, bad, good)])
    for index in (0, 2):
        np.testing.assert_allclose(op.product(0, futures[index].result().answer.x, "N"), good, rtol=1e-11)
    bad_answer = futures[1].result().answer
    assert np.isnan(bad_answer.x).all()
    assert bad_answer.statuses == ((Status.NONFINITE_INPUT,),)


def test_other_factors_are_served_in_their_turn(scheduler):
    """A stream of solves on one factor does not overtake beyond its block."""
    op = operand(laplacian(4))
    order: list[int] = []
    refs = [
        scheduler.build(CG, lambda i=i: Recording(op, lambda rhs, c: order.append(i)), caller()).value for i in range(3)
    ]
    b = np.ones((op.n, 1))
    together(scheduler, [(refs[i], b, "N", Controls(), caller()) for i in (0, 1, 0, 2, 1, 0)])
    assert order == [0, 1, 2]


def test_right_hand_sides_are_not_modified(scheduler):
    op = operand(convection(6))
    ref = kept(scheduler, op)
    b = random_like((op.n, 2), "float64", SEED)
    b.flags.writeable = False
    before = b.copy()
    futures = together(scheduler, [(ref, b, "N", Controls(), caller())] * 3)
    np.testing.assert_array_equal(b, before)
    answers = [f.result().answer.x for f in futures]
    np.testing.assert_allclose(answers[0], answers[2], rtol=1e-13)
    assert not np.shares_memory(answers[0], answers[1])


def test_no_columns_are_answered(scheduler):
    op = operand(convection(4))
    ref = kept(scheduler, op)
    solved = solved_by(scheduler, ref, np.ones((op.n, 0)), "N", Controls(), caller())
    assert solved.answer.x.shape == (op.n, 0)
