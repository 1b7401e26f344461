"""What a call sends, and when: its steps are done here by hand, no server and no clock needed."""

import gc
import time
import weakref

import numpy as np
import pytest

from backsolve._calls.solve import solution
from backsolve._protocol import Exchange, Pause, Send, Step, Steps
from backsolve._steps import Progress
from backsolve._transports.base import PutCall, SolveCall, SolveReply
from backsolve.config import Endpoint
from backsolve.errors import (
    BacksolveError,
    DeadlineError,
    InternalError,
    InvalidShapeError,
    MatrixChangedError,
    NeedMatrixError,
    NeedValuesError,
    QueueFullError,
    UnreachableError,
)
from backsolve.errors import DigestMismatchError as Mismatch
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern
from backsolve.retry import Allowance
from backsolve.types import Certificate, Options, Status, Timings

HERE = (Endpoint("http", "here", 1),)


def ask(timeout: float | None = 30.0) -> Progress[Step, object]:
    return Progress(Exchange(HERE, 60.0).info(timeout))


def sent(progress: Progress[Step, object]) -> Send:
    """The next thing to send, after the pauses before it."""
    while isinstance(progress.step, Pause):
        progress.give(None)
    assert isinstance(progress.step, Send)
    return progress.step


def begin(exchange: Exchange, matrix: Matrix) -> Progress[Step, object]:
    call = SolveCall(matrix.ref, Options(), np.ones(matrix.n))
    return Progress(exchange.deliver(matrix, call, 30.0))


def dense() -> Matrix:
    return Matrix(DensePattern((3, 3)), np.random.default_rng(60317).normal(size=(3, 3)))


def test_a_busy_server_is_asked_again_no_sooner_than_it_said_and_not_by_all_at_once() -> None:
    progress, pauses = ask(), []
    for _ in range(3):
        sent(progress)
        progress.fail(QueueFullError("full", retry_after=0.75))
        assert isinstance(progress.step, Pause)
        pauses.append(progress.step.seconds)
    assert min(pauses) >= 0.75
    assert len(set(pauses)) == 3
    sent(progress)
    progress.give("answer")
    assert progress.step is None
    assert progress.result == "answer"


def test_pauses_grow_and_are_drawn_from_nothing_up() -> None:
    draws = iter([0.5] * 12 + [0.0, 0.999])
    exchange = Exchange(HERE, 60.0, Allowance(chance=lambda: next(draws)))
    progress, pauses = Progress(exchange.info(1e6)), []
    for _ in range(14):
        sent(progress)
        progress.fail(QueueFullError("full"))
        assert isinstance(progress.step, Pause)
        pauses.append(progress.step.seconds)
    assert pauses[:7] == pytest.approx([0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0])
    assert pauses[7:] == pytest.approx([1.0] * 5 + [0.0, 1.998])


def test_a_wrong_call_is_not_repeated() -> None:
    progress = ask()
    with pytest.raises(InvalidShapeError):
        progress.fail(InvalidShapeError("no"))


def test_an_internal_error_is_repeated_once() -> None:
    progress = ask()
    progress.fail(InternalError("id"))
    sent(progress)
    with pytest.raises(InternalError):
        progress.fail(InternalError("id"))


def test_attempts_share_one_deadline() -> None:
    progress, lefts = ask(0.4), []
    with pytest.raises((QueueFullError, DeadlineError)):  # noqa: PT012  (it is the loop that ends so)
        while True:
            if isinstance(progress.step, Pause):
                time.sleep(progress.step.seconds)
                progress.give(None)
            lefts.append(sent(progress).left)
            progress.fail(QueueFullError("full"))
    assert len(lefts) > 1
    assert lefts == sorted(lefts, reverse=True)


def test_a_server_that_never_answered_is_given_up_sooner() -> None:
    exchange, matrix = Exchange(HERE, 1e6), dense()
    stranger = begin(exchange, matrix)
    with pytest.raises(UnreachableError):  # noqa: PT012
        # It is no more than 5 s of pauses, which nobody waits for here: none may reach beyond that.
        for _ in range(1000):
            sent(stranger)
            stranger.fail(UnreachableError("gone", retry_after=6.0))
    known = begin(exchange, matrix)
    known.give("answer")
    known = begin(exchange, matrix)
    known.fail(UnreachableError("gone", retry_after=6.0))
    assert isinstance(known.step, Pause)


def test_no_deadline_hands_none_down() -> None:
    progress = ask(None)
    assert sent(progress).left is None


@pytest.mark.parametrize(("missing", "values_only"), [(NeedValuesError, True), (NeedMatrixError, False)])
def test_only_what_is_missing_is_uploaded_and_the_call_repeated(
    missing: type[BacksolveError], values_only: bool
) -> None:
    exchange, matrix = Exchange(HERE, 60.0), dense()
    progress = begin(exchange, matrix)
    call = sent(progress).call
    progress.fail(missing("no"))
    put = sent(progress).call
    assert isinstance(put, PutCall)
    assert put.matrix is matrix
    assert put.values_only is values_only
    progress.give(matrix.ref)
    assert sent(progress).call is call
    progress.give("answer")
    assert progress.result == "answer"
    assert exchange.uploads == 1


def test_a_full_server_is_asked_whether_it_has_room_before_it_is_sent_values() -> None:
    exchange, pattern, rng = Exchange(HERE, 60.0), DensePattern((3, 3)), np.random.default_rng(23_019)
    certificate = Certificate(Status.OK, "dense_lu", "", "float64", 0, 0.0, 0.0, None, False, False, Timings(), "x")
    answer = SolveReply(np.ones(3), certificate)

    def calls(full: bool = False) -> list[tuple[bool, bool]]:
        """Whether each thing that a call with new values sends has values with it, and is marked as repeated."""
        progress, seen, refused = begin(exchange, Matrix(pattern, rng.normal(size=(3, 3)))), [], full
        while progress.step is not None:
            call = sent(progress).call
            with_values = isinstance(call, PutCall) or call.values is not None
            seen.append((with_values, call.repeated))
            if refused:
                refused = False
                progress.fail(QueueFullError("full"))
            elif with_values:
                progress.give(call.ref if isinstance(call, PutCall) else answer)
            elif any(values for values, _ in seen[full:]):
                progress.give(answer)
            else:
                progress.fail(NeedValuesError("no"))
        assert progress.result is answer
        return seen

    assert calls() == [(False, False), (True, False), (False, False)], "it is asked, sent, asked again"
    assert calls() == [(True, False)], "and from then on sent"
    assert calls(full=True) == [(True, False), (True, True)], "whose turn it is expects room"
    assert calls(full=True) == [(False, False), (True, True)], "but it is asked first"
    for _ in range(3):
        assert calls() == [(False, False), (True, False)]
    assert calls() == [(True, False)], "there has been room for a while"


def test_the_time_of_hashing_is_this_sides_own() -> None:
    times = Timings(hash=2.0, solve=5.0)
    certificate = Certificate(Status.OK, "dense_lu", "", "float64", 0, 0.0, 0.0, None, False, False, times, "x")
    reply = SolveReply(np.ones(3), certificate)
    for hashed in (0.5, 2.0):
        seconds = solution(reply, hashed).stats.seconds
        assert (seconds.hash, seconds.solve) == (hashed, 5.0)


def test_values_go_unnamed_only_where_they_go_unasked() -> None:
    class Overlapping:
        overlaps = True

    exchange, values = Exchange(HERE, 60.0), np.random.default_rng(88_120).normal(size=(3, 64, 64))
    first, second, third = (Matrix(DensePattern((64, 64)), each) for each in values)
    replica = exchange.fleet.members[0]
    replica.carried_by(Overlapping())
    replica.news.missed(first.ref)
    assert exchange.name(second, "solve").ref.is_unnamed
    replica.news.refused()
    assert exchange.name(third, "solve").ref == third.ref


def test_values_alone_may_come_too_late() -> None:
    progress = begin(Exchange(HERE, 60.0), dense())
    progress.fail(NeedValuesError("no"))
    progress.fail(NeedMatrixError("evicted meanwhile"))
    put = sent(progress).call
    assert isinstance(put, PutCall)
    assert put.values_only is False


def test_a_matrix_that_is_always_lost_ends_the_call() -> None:
    progress = begin(Exchange(HERE, 60.0), dense())
    with pytest.raises(NeedMatrixError):  # noqa: PT012
        for _ in range(100):
            if isinstance(sent(progress).call, PutCall):
                progress.give(None)
            else:
                progress.fail(NeedMatrixError("no"))


def test_a_digest_that_the_server_denies_is_looked_into() -> None:
    matrix = dense()
    progress = begin(Exchange(HERE, 60.0), matrix)
    progress.fail(NeedMatrixError("no"))
    progress.fail(Mismatch("damaged on the way, perhaps: once more"))
    matrix.values[0, 0] += 1.0
    with pytest.raises(MatrixChangedError):
        progress.fail(Mismatch("other"))

    unchanged = begin(Exchange(HERE, 60.0), dense())
    unchanged.fail(NeedMatrixError("no"))
    unchanged.fail(Mismatch("other"))
    with pytest.raises(Mismatch) as caught:
        unchanged.fail(Mismatch("other"))
    assert caught.type is Mismatch


def test_a_failed_call_keeps_nothing_alive() -> None:
    """Its error's traceback must not refer back to the error, or only the garbage collector frees the operands."""

    class Operand:
        pass

    def steps(operand: Operand) -> Steps[None]:
        yield from Exchange(HERE, 60.0).info(None)
        del operand

    operand = Operand()
    seen = weakref.ref(operand)
    gc.disable()
    try:
        progress = Progress(steps(operand))
        with pytest.raises(InvalidShapeError) as caught:
            progress.fail(InvalidShapeError("no"))
        del progress, operand, caught
        assert seen() is None
    finally:
        gc.enable()
