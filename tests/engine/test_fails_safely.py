"""No method gives a wrong answer that says it is good: 500 hard systems, sent to each method by name."""

import numpy as np
import pytest

from backsolve import Client
from backsolve.types import Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls
from backsolve_service.engine.registry import ROWS
from engine.table import TABLE, array, factor_of, matrix, numbers
from loadtests.fails_safely.__main__ import cases, share
from loadtests.fails_safely.judge import OK, WRONG, backward_error, judge, optimality_error
from loadtests.fails_safely.systems import CONTROLS, COUNT, HARD, systems

SYSTEMS = list(systems())
CASES = list(cases())
PLAIN = (None, "none", "jacobi")
"""With a stronger preconditioner one iteration may be all there is."""

ITERATIVE = [row for row in TABLE if not ROWS[row.method].direct and not row.on_device and row.preconditioner in PLAIN]
SOLVES = {(row.method, row.layout, row.preconditioner, row.structure) for row in TABLE}
"""Which harmless systems a method must solve: those of a structure that the table says it solves."""


def name(case):
    return "-".join(part for part in case if part)


def must_solve(case, structure):
    method, layout, preconditioner = case
    return method == "auto" or (method, layout, preconditioner, structure) in SOLVES


def test_the_set_is_what_it_says():
    assert len(SYSTEMS) == COUNT
    assert sum(system.control for system in SYSTEMS) * 3 >= COUNT
    assert {system.kind for system in SYSTEMS} == {*CONTROLS, *HARD}
    # A third is harmless indeed.
    assert max(np.linalg.cond(system.a.astype(complex)) for system in SYSTEMS if system.control) < 1e4
    for one, other in zip(SYSTEMS[:20], systems(20), strict=True):
        np.testing.assert_array_equal(one.a, other.a)
        np.testing.assert_array_equal(one.b, other.b)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_no_wrong_answer_is_called_good(embedded: Client, case):
    method, layout, preconditioner = case
    for index in share(case, COUNT):
        system = SYSTEMS[index]
        verdict = judge(embedded, system, layout, method, preconditioner)
        where = f"system {index}: {system.kind}, {system.a.dtype}, n={system.a.shape[0]}, trans={system.trans}"
        assert verdict.outcome != WRONG, f"{where}: backward error {verdict.backward_error:.1e}"
        if system.kind == "NaN":
            assert verdict.outcome == "NonfiniteInputError", where
        if system.control and must_solve(case, system.kind):
            single = np.finfo(system.a.dtype).eps > 1e-10
            assert verdict.outcome == OK, where
            assert verdict.backward_error <= (1e-4 if single else 1e-9), where


@pytest.mark.parametrize("trans", ["N", "T", "H"])
def test_the_judge_knows_a_wrong_answer(trans):
    a, b = numbers((7, 7), "complex128", 803_114_265), numbers((7, 2), "complex128", 803_114_266)
    full = {"N": a, "T": a.T, "H": a.conj().T}[trans]
    x = np.linalg.solve(full, b)
    assert backward_error(a, b, x, trans) < 1e-14
    x[3, 1] *= 1 + 1e-4
    assert backward_error(a, b, x, trans) > 1e-6
    # Products of such numbers are beyond the largest double.
    assert backward_error(1e200 * a, 1e290 * b, 1e90 * x, trans) > 1e-6
    assert optimality_error(a, b, x, trans) > 1e-7
    assert optimality_error(a, b, np.linalg.lstsq(full, b)[0], trans) < 1e-14
    x[3, 1] = np.nan
    assert optimality_error(a, b, x, trans) == np.inf
    assert backward_error(a, b, x, trans) == np.inf


class Counted:
    """A matrix that counts the products it is asked for."""

    def __init__(self, a, counts):
        self._a, self._counts = a, counts

    def __getattr__(self, attribute):
        return getattr(self._a, attribute)

    def __matmul__(self, x):
        self._counts.append(x.shape)
        return self._a @ x


@pytest.mark.parametrize("row", ITERATIVE, ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_nan_stops_at_once(row, k):
    """Neither a whole run of iterations, nor one more for the columns that are not finite."""
    f = factor_of(row.method, matrix(row.layout, array(row.structure, "float64")), row.preconditioner)
    counts = []
    # Cached on first use; each product of the iteration goes through it.
    f.operand.__dict__["wide"] = tuple(Counted(a, counts) for a in f.operand.wide)
    b = numbers((40, k), "float64", 30_018_877)
    # So small a matrix is factorized completely by these: one iteration it is.
    least = 1 if row.preconditioner in ("amg", "ic") else 2
    assert answer(f, b, "N", Controls()).iterations[0] >= least
    assert len(counts) >= least
    counts.clear()
    b[5] = np.nan
    got = answer(f, b, "N", Controls())
    assert got.statuses == ((Status.NONFINITE_INPUT,) * k,)
    assert got.iterations[0] <= 1
    assert len(counts) <= 4
