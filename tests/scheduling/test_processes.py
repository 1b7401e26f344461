"""Workers that are processes: real ones, which are stopped and killed here."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from backsolve._transports.base import PutCall, SolveCall
from backsolve.errors import CancelledError, DeadlineError, InternalError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern, Pattern
from backsolve.types import Options
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.operand import Operand
from backsolve_service.observer import Silent
from backsolve_service.scheduling.process import ProcessLostError
from backsolve_service.scheduling.scheduler import Scheduler
from backsolve_service.scheduling.worker import FactorLostError
from support.factors import CG, PATIENCE, SUPERLU, caller, operand, solved_by, until
from support.systems import convection, dense, laplacian, random_like

ISOLATED = frozenset({"lu", "superlu", "cg"})
LU = FactorSpec("lu", None, "float64", "cpu")


class Heard(Silent):
    """Counts restarts."""

    def __init__(self):
        self.restarts = []

    def restarted(self, reason):
        self.restarts.append(reason)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Scheduler]:
    """One thread, and one process that lives as long as the tests that leave it whole."""
    one = Scheduler(1, 64, 1 << 30, isolated=ISOLATED)
    yield one
    assert one.close(PATIENCE)


@pytest.fixture
def frail() -> Iterator[Scheduler]:
    """A scheduler whose process may be killed."""
    one = Scheduler(1, 64, 1 << 30, Heard(), isolated=ISOLATED, stuck_seconds=0.2)
    yield one
    assert one.close(PATIENCE)


def build(scheduler, op, spec=SUPERLU):
    symbolic = scheduler.order_analysis(spec, op.pattern).result(PATIENCE).value
    return scheduler.order_factor(symbolic, op, spec).result(PATIENCE).value


def solve(scheduler, ref, rhs, trans="N", controls=None, context=None, instead=None):
    return solved_by(scheduler, ref, rhs, trans, controls or Controls(), context or caller(), instead=instead)


def beside(op, values):
    """Other values on the same pattern."""
    return Operand(Matrix(op.pattern, values))


def stop(worker):
    """Stop the process where it is: whatever it is asked from now on takes for ever."""
    os.kill(worker.pid, signal.SIGSTOP)


def same_on_threads(scheduler, matrix, spec, trans, columns=2):
    from backsolve_service.engine.answer import answer
    from support.factors import factorize

    op = Operand(matrix)
    rhs = random_like((op.n, columns), op.dtype.name, 605_918_243)
    remote = solve(scheduler, build(scheduler, op, spec), rhs, trans).answer
    local = answer(factorize(op, spec), rhs, trans, Controls())
    np.testing.assert_array_equal(remote.x, local.x)
    assert remote.statuses == local.statuses
    assert remote.iterations == local.iterations
    np.testing.assert_array_equal(remote.relative_residual, local.relative_residual)
    np.testing.assert_array_equal(remote.backward_error, local.backward_error)
    assert remote.condition == local.condition


@pytest.mark.parametrize("trans", ["N", "T", "H"])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_superlu_and_lu_answer_as_on_a_thread_bit_for_bit(scheduler, dtype, trans):
    a = convection(9, dtype)
    sparse = Matrix(Pattern.from_csr(a), a.data)
    same_on_threads(scheduler, sparse, FactorSpec("superlu", None, dtype, "cpu"), trans)
    full = Matrix(DensePattern((30, 30)), dense(30, dtype))
    same_on_threads(scheduler, full, FactorSpec("lu", None, dtype, "cpu"), trans)


def test_cg_answers_as_on_a_thread_bit_for_bit_and_takes_a_first_iterate(scheduler):
    a = laplacian(12)
    same_on_threads(scheduler, Matrix(Pattern.from_csr(a), a.data), CG, "N")
    op = operand(a)
    ref = build(scheduler, op, CG)
    x = random_like((op.n, 1), "float64", 771_204_953)
    begun = solve(scheduler, ref, a @ x, controls=Controls(x0=x)).answer
    assert begun.iterations == (0,)
    np.testing.assert_array_equal(begun.x, x)


def test_a_batch_is_solved_with_a_status_for_each(scheduler):
    from backsolve_service.engine.operand import Operand

    batch = np.stack([dense(6), np.zeros((6, 6))])
    ref = build(scheduler, Operand(Matrix(DensePattern((6, 6)), batch)), LU)
    answer = solve(scheduler, ref, np.ones((2, 6, 1))).answer
    assert [system[0].name for system in answer.statuses] == ["OK", "SINGULAR_NUMERIC"]
    np.testing.assert_allclose(batch[0] @ answer.x[0], 1.0, rtol=1e-12)


def test_a_typed_error_comes_back_as_it_was_raised(scheduler):
    a = convection(4)
    a.data = np.zeros_like(a.data)
    with pytest.raises(SingularMatrixError) as caught:
        build(scheduler, operand(a))
    assert caught.value.details["kind"] == "numeric"


def test_those_who_wait_for_one_factor_are_solved_as_one_block(scheduler):
    op = operand(convection(10))
    ref = build(scheduler, op)
    worker = ref.worker
    rhs = [random_like((op.n, 1), "float64", 319_640_288 + i) for i in range(5)]
    stop(worker)
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(solve, scheduler, ref, rhs[0])
        until(lambda: scheduler.stats.inflight == 1)
        rest = [pool.submit(solve, scheduler, ref, b) for b in rhs[1:]]
        until(lambda: scheduler.stats.depth == 4)
        os.kill(worker.pid, signal.SIGCONT)
        solved = [first.result(PATIENCE), *(each.result(PATIENCE) for each in rest)]
    assert [each.block_columns for each in solved] == [1, 4, 4, 4, 4]
    for b, each in zip(rhs, solved, strict=True):
        np.testing.assert_allclose(op.product(0, each.answer.x, "N"), b, rtol=1e-10, atol=1e-12)


def test_a_freed_factor_is_gone_and_the_load_tells(scheduler):
    ref = build(scheduler, operand(convection(10)))
    before = ref.worker.load[1]
    assert ref.nbytes > 0
    scheduler.free(ref)
    until(lambda: ref.worker.load[1] == before - ref.nbytes)
    with pytest.raises(FactorLostError):
        solve(scheduler, ref, np.ones((ref.n, 1)))


def test_a_large_right_hand_side_passes_through_shared_memory_that_is_given_back(scheduler):
    """100 MB: neither process ever holds it in a pickle, and the arena is gone afterwards."""
    before = shared_bytes(os.getpid())  # whatever other tests share
    a = laplacian(40)
    a.setdiag(1.0)
    op = operand(a)
    ref = build(scheduler, op, SUPERLU)
    columns = 100_000_000 // (8 * op.n)
    rhs = random_like((op.n, columns), "float64", 880_133_507)
    answer = solve(scheduler, ref, rhs).answer
    assert answer.x.nbytes == rhs.nbytes
    np.testing.assert_allclose(op.product(0, answer.x, "N")[:, ::97], rhs[:, ::97], rtol=1e-9, atol=1e-9)
    until(lambda: shared_bytes(ref.worker.pid) < 1 << 20)
    assert shared_bytes(os.getpid()) < before + (1 << 20)


def shared_bytes(pid):
    """Bytes of arenas that a process maps."""
    total = 0
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            if "memfd:backsolve" in line:
                begin, end = line.split()[0].split("-")
                total += int(end, 16) - int(begin, 16)
    return total


def test_a_deadline_frees_the_caller_and_the_process_goes_on(scheduler):
    op = operand(convection(10))
    ref = build(scheduler, op)
    stop(ref.worker)
    with pytest.raises(DeadlineError):
        solve(scheduler, ref, np.ones((op.n, 1)), context=caller(0.05))
    os.kill(ref.worker.pid, signal.SIGCONT)
    assert solve(scheduler, ref, np.ones((op.n, 1))).answer.statuses[0][0].name == "OK"


def test_cancellation_stops_an_iteration_in_the_process(scheduler):
    """Were it not heard, the iteration would go on to an answer."""
    op = operand(laplacian(300))
    ref = build(scheduler, op, FactorSpec("cg", "none", "float64", "cpu"))
    pid = ref.worker.pid
    with pytest.raises(CancelledError):
        solve(scheduler, ref, np.ones((op.n, 1)), controls=Controls(rtol=1e-12, cancelled=lambda: True))
    assert ref.worker.pid == pid, "it ended by itself, nobody killed it"


def test_cancellation_stops_an_iteration_on_a_factor_of_older_values_in_the_process(scheduler):
    """Values so far from those of the factor that the iteration would go on for hundreds of steps."""
    older = operand(laplacian(150))
    ref = build(scheduler, older)
    pid, rhs = ref.worker.pid, np.ones((older.n, 1))
    far = older.values * 10.0 ** np.random.default_rng(730_442_518).uniform(-6, 6, older.values.size)
    with pytest.raises(CancelledError, match="between two iterations"):
        solve(scheduler, ref, rhs, controls=Controls(rtol=1e-12, cancelled=lambda: True), instead=beside(older, far))
    assert ref.worker.pid == pid, "it ended by itself, nobody killed it"
    near = beside(older, older.values * 1.5)
    found = solve(scheduler, ref, rhs, controls=Controls(rtol=1e-10), instead=near).answer
    np.testing.assert_allclose(near.wide[0] @ found.x, rhs, rtol=0, atol=1e-8)


def test_a_killed_process_fails_its_job_and_is_started_again(frail):
    op = operand(convection(10))
    ref = build(frail, op)
    symbolic = frail.order_analysis(SUPERLU, op.pattern).result(PATIENCE).value
    assert ref.nbytes <= symbolic.predicted_nbytes("float64") <= 3 * ref.nbytes
    worker = ref.worker
    stop(worker)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(solve, frail, ref, np.ones((op.n, 1)))
        until(lambda: frail.stats.inflight == 1)
        waiting = pool.submit(solve, frail, ref, np.ones((op.n, 1)), "T")
        until(lambda: frail.stats.depth == 1)
        # Threads work on meanwhile.
        assert frail.run(lambda: 5, caller()) == 5
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(ProcessLostError, match=r"solve was killed by SIGKILL"):
            running.result(PATIENCE)
        with pytest.raises(FactorLostError):
            waiting.result(PATIENCE)
    assert worker.load[1] == 0
    # What was analysed in the lost process is analysed again where it is missing.
    again = frail.order_factor(symbolic, op, SUPERLU).result(PATIENCE).value
    np.testing.assert_allclose(op.product(0, solve(frail, again, np.ones((op.n, 1))).answer.x, "N"), 1.0, rtol=1e-10)
    assert frail._observer.restarts == ["crash"]


def test_a_process_that_dies_while_idle_costs_nobody_an_error(frail):
    op = operand(convection(10))
    ref = build(frail, op)
    os.kill(ref.worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, ref.worker.pid, os.WEXITED | os.WNOWAIT)
    assert not build(frail, op).worker.holds(ref)
    with pytest.raises(FactorLostError):
        solve(frail, ref, np.ones((op.n, 1)))


def test_a_process_that_works_on_for_nobody_is_killed(frail):
    op = operand(convection(10))
    ref = build(frail, op)
    stop(ref.worker)
    with pytest.raises(DeadlineError):
        solve(frail, ref, np.ones((op.n, 1)), context=caller(0.05))
    build(frail, op)
    assert frail._observer.restarts == ["stuck"]


def test_closing_does_not_wait_for_a_process_that_hangs():
    scheduler = Scheduler(1, 8, 1 << 20, isolated=ISOLATED)
    ref = build(scheduler, operand(convection(6)))
    stop(ref.worker)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(solve, scheduler, ref, np.ones((ref.n, 1)))
        until(lambda: scheduler.stats.inflight == 1)
        assert not scheduler.close(0.05)
        with pytest.raises(InternalError, match="SIGKILL"):
            running.result(PATIENCE)
    assert scheduler.close(PATIENCE)


def test_the_data_plane_rebuilds_what_was_lost_and_counts_it():
    plane = DataPlane(PlaneConfig(workers=1, isolated=frozenset({"superlu"})))
    a = convection(10)
    matrix = Matrix(Pattern.from_csr(a), a.data)
    b = random_like((a.shape[0],), "float64", 447_210_965)
    call = SolveCall(plane.put(PutCall(matrix.ref, matrix), caller()), Options(method="superlu"), b)
    plane.solve(call, caller())
    held = plane.stats()
    assert held["cache_entries_factor"] == 1
    worker = plane._scheduler._processes[0]
    stop(worker)
    with ThreadPoolExecutor(1) as pool:
        until(lambda: worker._lane.asleep)
        running = pool.submit(plane.solve, call, caller())
        until(lambda: worker._asked)  # what was not asked yet would be asked of the next process
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(ProcessLostError):
            running.result(PATIENCE)
    # The references are gone with the factors, whether anybody asks again or not.
    stats = plane.stats()
    assert stats["cache_entries_factor"] == 0
    assert stats["cache_bytes_factor"] == 0
    x = plane.solve(call, caller()).x
    np.testing.assert_allclose(a @ x, b, rtol=1e-10, atol=1e-12)
    # Killed while idle: the same call answers, with one more factorization and without an error.
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    np.testing.assert_array_equal(plane.solve(call, caller()).x, x)
    stats = plane.stats()
    assert (stats["factorizations"], stats["restarts"], stats["evictions"]) == (3, 2, 2)
    assert plane.close()


def run(code, **kwargs):
    env = {"PYTHONPATH": os.pathsep.join(["tests", *os.environ.get("PYTHONPATH", "").split(os.pathsep)])}
    return subprocess.Popen(
        [sys.executable, *kwargs.pop("arguments", ("-c", textwrap.dedent(code)))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env | {"OMP_NUM_THREADS": "1"},
        **kwargs,
    )


SCRIPT = """
    import sys
    import numpy as np
    from backsolve_service.scheduling.scheduler import Scheduler
    from support.factors import SUPERLU, caller, operand, solved_by
    from support.systems import convection
    from backsolve_service.engine.base import Controls
    print("main", flush=True)
    scheduler = Scheduler(1, 8, 1 << 20, isolated=frozenset({"superlu"}))
    op = operand(convection(8))
    symbolic = scheduler.order_analysis(SUPERLU, op.pattern).result().value
    ref = scheduler.order_factor(symbolic, op, SUPERLU).result().value
    solved_by(scheduler, ref, np.ones((op.n, 1)), "N", Controls(), caller())
    print(ref.worker.pid, flush=True)
"""


def gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_script_without_a_guard_runs_once_and_leaves_nothing_behind(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = run("", arguments=(str(script),))
    out, err = done.communicate(timeout=PATIENCE)
    lines = out.split()
    assert (done.returncode, lines[0], len(lines), err) == (0, "main", 2, "")
    until(lambda: gone(lines[1]))


def test_a_process_dies_with_its_owner_even_while_it_works():
    owner = run(SCRIPT + "    import time; time.sleep(600)\n")
    assert owner.stdout.readline() == "main\n"
    pid = int(owner.stdout.readline())
    os.kill(pid, signal.SIGSTOP)
    owner.kill()
    owner.communicate(timeout=PATIENCE)
    until(lambda: gone(pid))


def test_a_fork_of_the_owner_makes_processes_of_its_own():
    code = (
        SCRIPT
        + """
    import os
    child = os.fork()
    if child == 0:
        fresh = Scheduler(1, 8, 1 << 20, isolated=frozenset({"superlu"}))
        symbolic = fresh.order_analysis(SUPERLU, op.pattern).result().value
        other = fresh.order_factor(symbolic, op, SUPERLU).result().value
        solved_by(fresh, other, np.ones((op.n, 1)), "N", Controls(), caller())
        print(other.worker.pid != ref.worker.pid, flush=True)
        sys.exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
    solved_by(scheduler, ref, np.ones((op.n, 1)), "N", Controls(), caller())
    print("solved", flush=True)
"""
    )
    done = run(code)
    out, err = done.communicate(timeout=PATIENCE)
    assert (done.returncode, out.split()[2:], err) == (0, ["True", "0", "solved"], "")


def test_a_quiet_solve_is_asked_for_on_the_callers_own_thread(scheduler):
    """The worker's thread sleeps on: it is not woken once in fifty solves."""
    op = operand(convection(10))
    ref = build(scheduler, op)
    until(lambda: ref.worker._lane.asleep)
    before = switches(ref.worker)
    for seed in range(50):
        b = random_like((op.n, 1), "float64", 560_177_320 + seed)
        np.testing.assert_allclose(op.product(0, solve(scheduler, ref, b).answer.x, "N"), b, rtol=1e-10, atol=1e-12)
    assert switches(ref.worker) - before < 10


def switches(worker):
    """How often the worker's thread has gone to sleep."""
    with open(f"/proc/self/task/{worker._lane._thread.native_id}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("voluntary_ctxt_switches"))


def test_a_reply_that_comes_after_its_caller_has_left_is_nobody_elses(scheduler):
    op = operand(convection(10))
    ref = build(scheduler, op)
    until(lambda: ref.worker._lane.asleep)
    for seed in range(3):
        stop(ref.worker)
        with pytest.raises(DeadlineError):
            solve(scheduler, ref, random_like((op.n, 1), "float64", 118_406_332 + seed), context=caller(0.03))
        os.kill(ref.worker.pid, signal.SIGCONT)
        b = random_like((op.n, 2), "float64", 734_920_118 + seed)
        np.testing.assert_allclose(op.product(0, solve(scheduler, ref, b).answer.x, "N"), b, rtol=1e-10, atol=1e-12)


def test_an_interrupted_caller_leaves_the_worker_fit_for_the_next(frail):
    """Ctrl-C in the midst of a conversation: whatever was half sent is not taken for the next request."""
    op = operand(convection(10))

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for seconds in (0.001, 0.003, 0.02):
            ref = build(frail, op)
            until(lambda worker=ref.worker: worker._lane.asleep)
            stop(ref.worker)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            with pytest.raises(KeyboardInterrupt):
                solve(frail, ref, np.ones((op.n, 1)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    ref = build(frail, op)
    b = random_like((op.n, 1), "float64", 991_702_543)
    np.testing.assert_allclose(op.product(0, solve(frail, ref, b).answer.x, "N"), b, rtol=1e-10, atol=1e-12)
