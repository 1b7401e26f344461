"""The condition number that LSMR meets on its way, and what `rcond` makes of it."""

import numpy as np
import pytest

from backsolve import Client
from backsolve.errors import IllConditionedWarning
from backsolve.matrix import Matrix
from backsolve.pattern import DensePattern
from backsolve.types import Status
from backsolve_service.engine.answer import answer
from backsolve_service.engine.base import Controls, FactorSpec
from backsolve_service.engine.operand import Operand
from backsolve_service.engine.registry import solver

LEVELS = np.array([1.0, 0.9, 0.8, 0.7, 1e-5, 0.9e-5, 0.8e-5, 0.7e-5])
"""Singular values: the directions of the first four are found before the others matter."""


def system(values: np.ndarray = LEVELS, m: int = 40, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with these singular values, and a right-hand side with parts in all directions."""
    rng = np.random.default_rng(730_118_449)
    n = values.size
    u, v = np.linalg.qr(rng.standard_normal((m, n)))[0], np.linalg.qr(rng.standard_normal((n, n)))[0]
    return scale * (u * values) @ v.T, rng.standard_normal(m)


def factor(a: np.ndarray, rcond: float | None, damp: float = 0.0):
    """A factor of LSMR, of a matrix or of a batch."""
    m = Matrix(DensePattern((a.shape[-2], a.shape[-1])), a)
    method = solver("lstsq_lsmr")
    spec = FactorSpec("lstsq_lsmr", None, m.dtype.name, "cpu", damp=damp, rcond=rcond)
    return method.factorize(method.analyze(m.pattern), Operand(m), spec)


@pytest.mark.parametrize("scale", [1.0, 1e-40, 1e40])
@pytest.mark.parametrize("damp", [0.0, 1e-3])
def test_the_condition_is_a_bound_from_below_whatever_the_scale(damp, scale):
    values = np.logspace(0, -4, 10)
    a, b = system(values, scale=scale)
    got = answer(factor(a, None, damp * scale), b[:, None], "N", Controls(rtol=1e-12, maxiter=500))
    true = np.hypot(values[0], damp) / np.hypot(values[-1], damp)
    assert true / 10 < got.condition <= true * (1 + 1e-6)


def test_the_condition_never_falls_as_the_iteration_goes_on():
    a, b = system(np.logspace(0, -3, 16))
    f = factor(a, None)
    met = [answer(f, b[:, None], "N", Controls(rtol=1e-12, maxiter=k, refine=0)).condition for k in range(1, 60)]
    assert met == sorted(met)
    assert met[0] == 1 < met[10]


def test_columns_meet_together_what_they_meet_alone():
    """One column is solved at once; what its recurrence would find after that is rounding."""
    a, b = system(np.linspace(1, 0.5, 30))
    f, columns = factor(a, None), np.stack([np.linalg.svd(a)[0][:, 0], b], axis=1)
    alone = [answer(f, columns[:, [k]], "N", Controls(rtol=1e-10)).condition for k in range(2)]
    assert alone[0] == 1 < alone[1]
    assert answer(f, columns, "N", Controls(rtol=1e-10)).condition == pytest.approx(alone[1], rel=1e-12)


def test_a_small_singular_value_ends_the_iteration_and_is_told():
    a, b = system()
    whole = answer(factor(a, None), b[:, None], "N", Controls(rtol=1e-10, maxiter=400, refine=0))
    cut = answer(factor(a, 1e-3), b[:, None], "N", Controls(rtol=1e-10, maxiter=400))
    assert whole.statuses == ((Status.OK,),)
    assert cut.statuses == ((Status.ILL_CONDITIONED,),)
    assert cut.iterations[0] < whole.iterations[0]
    assert cut.condition >= 1e3
    assert cut.refinements == 0  # they would bring back what was left out


def test_an_rcond_that_is_not_met_changes_nothing():
    a, b = system(np.linspace(1, 0.1, 8))
    plain = answer(factor(a, None), b[:, None], "N", Controls(rtol=1e-10))
    asked = answer(factor(a, 1e-3), b[:, None], "N", Controls(rtol=1e-10))
    assert asked.statuses == ((Status.OK,),)
    np.testing.assert_array_equal(asked.x, plain.x)


def test_systems_of_a_batch_are_told_apart():
    (bad, b), (good, _) = system(), system(np.linspace(1, 0.1, 8))
    got = answer(
        factor(np.stack([good, bad]), 1e-3), np.stack([b, b])[:, :, None], "N", Controls(rtol=1e-10, maxiter=400)
    )
    assert got.statuses == ((Status.OK,), (Status.ILL_CONDITIONED,))


def test_a_column_that_is_done_is_not_cut_by_its_neighbours():
    """One column is solved at once, and what its recurrence would do afterwards counts no more."""
    a, _ = system()
    u = np.linalg.svd(a)[0]
    got = answer(factor(a, 1e-3), np.stack([u[:, 0], u[:, 1]], axis=1), "N", Controls(rtol=1e-10, maxiter=400))
    assert got.statuses == ((Status.OK, Status.OK),)
    assert got.condition < 1e3


def test_gradients_are_warned_of_where_the_iteration_was_cut(embedded: Client):
    a, b = system()
    with pytest.warns(IllConditionedWarning):
        x = embedded.lstsq(a, b, method="lstsq_lsmr", rcond=1e-3, rtol=1e-10)
    assert x.stats.condition_estimate >= 1e3
    with pytest.warns(IllConditionedWarning):
        gradients = embedded.lstsq_vjp(a, b, x.x, np.ones(8), method="lstsq_lsmr", rcond=1e-3, rtol=1e-10)
    assert gradients.stats.condition_estimate >= 1e3
