"""KLU beyond what every method is tested for: pivots that are taken over, proved, and given up."""

import gc
import threading

import numpy as np
import pytest
from scipy.sparse import block_array, csr_array, diags_array, eye_array, random_array

from backsolve._transports.base import PutCall, SolveCall
from backsolve.errors import SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import Options
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.direct.columns import by_columns
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver
from engine.table import absent, factor_of, poisson
from support.factors import caller

pytestmark = pytest.mark.skipif(absent("klu") is not None, reason=str(absent("klu")))

N = 240


def canonical(a):
    a = csr_array(a)
    a.sort_indices()
    return Matrix(Pattern.from_csr(a), a.data)


def saddle(rng):
    """A KKT matrix: zeros in one corner of the diagonal."""
    h = random_array((N, N), density=0.02, rng=rng)
    b = random_array((N // 3, N), density=0.03, rng=rng) + eye_array(N // 3, N)
    return canonical(block_array([[h + h.T + 4 * eye_array(N), b.T], [b, None]]))


def permuted(rng):
    """Large entries along a permutation, none on the diagonal."""
    a = random_array((N, N), density=0.06, rng=rng).tolil()
    a.setdiag(0)
    rows, order = np.arange(N), np.roll(np.arange(N), 7)
    a[rows, order] = 3 + rng.random(N)
    return canonical(a.tocsr())


def rescaled(matrix, rng):
    """Each entry times its own factor between 1e-2 and 1e2."""
    return Matrix(matrix.pattern, matrix.values * 10 ** rng.uniform(-2, 2, matrix.values.size))


def nudged(matrix, rng):
    return Matrix(matrix.pattern, matrix.values * rng.uniform(0.95, 1.05, matrix.values.size))


def sequence(matrices):
    """Factors of values on one pattern, one after the other, and all held."""
    klu, spec = solver("klu"), FactorSpec("klu", None, "float64", "cpu")
    symbolic = klu.analyze(matrices[0].pattern, spec)
    return [klu.factorize(symbolic, Operand(matrix), spec) for matrix in matrices]


def worst(factor, trans="N"):
    """Backward error of one answer without any refinement by the engine."""
    rhs = np.random.default_rng(204_771_953).standard_normal((factor.operand.n, 1)).astype(factor.operand.dtype)
    return answer(factor, rhs, trans, Controls(refine=0)).backward_error.max()


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_values_nearby_take_over_the_pivots_and_leave_the_older_factor_as_it_was(dtype):
    rng = np.random.default_rng(551_038_264)
    first = poisson(15, dtype=dtype)
    first = Matrix(first.pattern, first.values * (1 + (0.1j if dtype == "complex128" else 0)))
    rhs = rng.standard_normal((225, 2)).astype(dtype)
    alone = answer(sequence([first])[0], rhs, "H", Controls()).x
    factors = sequence([first, nudged(first, rng), nudged(first, rng)])
    assert [factor.pivoting for factor in factors] == ["new", "kept", "kept"]
    assert "proved" in factors[1].note
    assert factors[0].note is None
    np.testing.assert_array_equal(answer(factors[0], rhs, "H", Controls()).x, alone)
    for factor in factors:
        for trans in ("N", "T", "H"):
            assert worst(factor, trans) < 1e-14


@pytest.mark.parametrize(("make", "bound"), [(saddle, None), (permuted, None), (saddle, 0.0)])
def test_pivots_that_lose_digits_are_refused_and_the_answer_is_right_all_the_same(make, bound, monkeypatch):
    """The pivots kept from before are bad here: without a proof the answer would be; either proof alone finds them."""
    if bound is not None:
        monkeypatch.setattr("backsolve_service.engine.direct.klu.solver._LEAST_GROWTH", bound)
    # One solve proves one right-hand side: others may be a little worse than it.
    limit = 1e-12 if bound is None else 1e-10
    rng = np.random.default_rng(640_219_375)
    unproved = []
    for _ in range(30):
        first = make(rng)
        old, new = sequence([first, rescaled(first, rng)])
        assert old.pivoting == "new"
        if new.pivoting == "refused":
            kept = old.handles[0].refactored(arranged(new.operand.matrix))
            unproved.append(np.inf if kept is None else blind(new, kept))
            assert "chosen anew" in new.note
        for trans in ("N", "T"):
            rhs = rng.standard_normal((new.operand.n, 1))
            assert answer(new, rhs, trans, Controls(refine=1)).backward_error.max() < limit
    assert max(unproved) > 1e-9


def arranged(matrix):
    """The values as KLU takes them."""
    return matrix.values.take(by_columns(matrix.pattern, "klu").positions)


def blind(factor, kept):
    """Backward error with pivots that nobody has proved."""
    b = np.random.default_rng(829_115_476).standard_normal((factor.operand.n, 1))
    x = kept.solve(b, "N")
    a = factor.operand.wide[0]
    return np.abs(b - a @ x).max() / (abs(a).sum(axis=1).max() * np.abs(x).max() + np.abs(b).max())


def test_a_pivot_that_becomes_zero_is_refused_and_a_singular_matrix_is_still_one():
    a = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 4.0]])
    first = canonical(csr_array(a))
    values = first.values.copy()
    values[0] = 0.0  # the first pivot
    second, third = sequence([first, Matrix(first.pattern, values)])[1], Matrix(first.pattern, 0.0 * values)
    assert second.pivoting == "refused"
    a[0, 0] = 0.0
    np.testing.assert_allclose(second.solve(np.ones((3, 1)), "N", Controls()).x, np.linalg.solve(a, np.ones((3, 1))))
    with pytest.raises(SingularMatrixError):
        sequence([first, third])


def test_each_system_of_a_batch_takes_over_the_pivots_of_the_one_before():
    first = poisson(9)
    values = np.stack([first.values, first.values * 1.01, np.zeros_like(first.values), first.values * 0.99])
    factor = factor_of("klu", Matrix(first.pattern, values))
    assert [status.name for status in factor.statuses] == ["OK", "OK", "SINGULAR_NUMERIC", "OK"]
    b = np.ones((4, 81, 1))
    x = factor.solve(b, "N", Controls()).x
    for index in (0, 1, 3):
        np.testing.assert_allclose(Operand(Matrix(first.pattern, values[index])).product(0, x[index], "N"), 1.0)


def test_pivots_go_with_their_last_factor():
    klu, spec, matrix = solver("klu"), FactorSpec("klu", None, "float64", "cpu"), poisson(8)
    symbolic = klu.analyze(matrix.pattern, spec)
    first = klu.factorize(symbolic, Operand(matrix), spec)
    assert len(symbolic.latest) == 1
    del first
    gc.collect()
    assert not symbolic.latest
    assert klu.factorize(symbolic, Operand(matrix), spec).pivoting == "new"


def test_many_copies_and_releases_leave_memory_as_it_was():
    """Each copy is 7 MB: a hundred that were not freed would show."""
    matrix = poisson(110)
    factors = sequence([matrix])
    values = arranged(matrix)
    kept = factors[0].handles[0].refactored(values)
    before = resident()
    for _ in range(100):
        kept = kept.refactored(values)
    assert resident() - before < 50e6
    b = np.ones((110 * 110, 1))
    np.testing.assert_array_equal(kept.solve(b, "T"), factors[0].handles[0].refactored(values).solve(b, "T"))


def resident():
    with open("/proc/self/statm") as file:
        return 4096 * int(file.read().split()[1])


def test_threads_solve_and_refactor_at_once_and_all_get_their_own_answers():
    """KLU's room for solving lies inside the factor: without turns most of these would be wrong."""
    rng = np.random.default_rng(190_665_832)
    matrix = poisson(60)
    factor = sequence([matrix])[0]
    sides = [rng.standard_normal((3600, 2)) for _ in range(4)]
    expected = [factor.solve(b, "N", Controls()).x for b in sides]
    values = arranged(matrix)
    wrong = []

    def work(b, x):
        for _ in range(40):
            if not np.array_equal(factor.solve(b, "N", Controls()).x, x):
                wrong.append(1)
            factor.handles[0].refactored(values)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(sides, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_certificate_and_the_counters_tell_whose_pivots_they_are():
    rng = np.random.default_rng(377_402_918)
    plane = DataPlane(PlaneConfig(workers=1))
    first = permuted(rng)
    matrices = [first, nudged(first, rng), *(rescaled(first, rng) for _ in range(6))]
    reasons = []
    for matrix in matrices:
        call = SolveCall(plane.put(PutCall(matrix.ref, matrix), caller()), Options(method="klu"), np.ones(N))
        reply = plane.solve(call, caller())
        reasons.append(reply.certificate.reason)
        assert reply.certificate.backward_error < 1e-12
    stats = plane.stats()
    assert "proved" in reasons[1]
    assert stats["factorizations"] == len(matrices)
    assert stats["pivots_kept"] == sum("proved" in reason for reason in reasons) >= 1
    assert stats["pivots_refused"] == sum("chosen anew" in reason for reason in reasons) >= 1
    assert plane.close()


def test_a_library_that_is_laid_out_otherwise_is_not_used(monkeypatch):
    from backsolve_service.engine.direct.klu import library

    assert library.usable()
    loaded = library.load()
    assert library._as_expected(loaded)
    moved = type("Moved", (library.Structure,), {"_fields_": (("more", library.c_double), *library.Numeric._fields_)})
    monkeypatch.setattr(loaded.klu_factor, "restype", library.POINTER(moved))
    monkeypatch.setattr(loaded.klu_free_numeric, "argtypes", None)
    assert not library._as_expected(loaded)


def test_circuit_with_blocks_of_one_row_takes_over_pivots():
    """Blocks of one row hold no L and U of their own: there is nothing of them to copy."""
    rng = np.random.default_rng(480_771_206)
    a = canonical(diags_array([rng.uniform(1, 2, 50), rng.uniform(-1, 1, 49)], offsets=[0, 1]))
    factors = sequence([a, nudged(a, rng)])
    assert factors[1].pivoting == "kept"
    assert worst(factors[1], "T") < 1e-14
