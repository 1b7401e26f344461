"""A machine whose libraries answer wrongly is found before a caller is."""

from dataclasses import replace

import numpy as np
import pytest

from backsolve._transports.base import PutCall, SolveCall
from backsolve.errors import NotSupportedError, SingularMatrixError
from backsolve.matrix import Matrix
from backsolve.pattern import Pattern
from backsolve.types import Options
from backsolve_service import selftest
from backsolve_service.context import CallContext
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.engine.registry import ROWS, methods


class Faulty:
    """A data plane whose answers to some calls are changed."""

    def __init__(self, plane, change):
        self.plane, self.change = plane, change

    def put(self, call, context):
        return self.plane.put(call, context)

    def solve(self, call, context):
        return self.change(call, lambda call: self.plane.solve(call, context))


@pytest.fixture
def plane():
    made = DataPlane()
    yield made
    made.close()


@pytest.fixture(scope="module")
def warm():
    """One for many runs: its processes are started once."""
    made = DataPlane()
    yield made
    made.close()


def test_every_method_is_tested_and_passes(plane):
    assert selftest.run(plane) == selftest.Verdict(methods(), {})
    # Each layout of each method is factorized once: N, T and H share a factor.
    assert plane.stats()["factorizations"] == sum(len(ROWS[name].layouts) for name in methods())


SWAPS = [("T", "N"), ("H", "T")]


@pytest.mark.parametrize(
    ("method", "asked", "given"),
    # A diagonal matrix is its transpose; least squares has one operator.
    [
        (name, *swap)
        for name in methods()
        if not ROWS[name].least_squares
        for swap in SWAPS[ROWS[name].needs in ("diagonal", "transpose") :]
    ],
)
def test_a_wrong_operator_is_found(warm, method, asked, given):
    def swap(call, solve):
        if (call.options.method, call.options.trans) == (method, asked):
            call = replace(call, options=replace(call.options, trans=given))
        return solve(call)

    fault = f"method '{method}' answers wrongly for trans='{asked}'"
    if ROWS[method].requires is None:
        with pytest.raises(selftest.SelfTestError, match=fault):
            selftest.run(Faulty(warm, swap))
        return
    verdict = selftest.run(Faulty(warm, swap))
    assert verdict.fit == tuple(name for name in methods() if name != method)
    assert fault in verdict.unfit[method]


def test_an_optional_method_that_fails_is_not_offered(plane, caplog):
    """Whatever it raises; the others are tested all the same."""
    optional = next((name for name in methods() if ROWS[name].requires is not None), None)
    if optional is None:
        pytest.skip("no optional library is installed")

    def fail(call, solve):
        if call.options.method == optional:
            raise ImportError("it was built for another processor")
        return solve(call)

    verdict = selftest.run(Faulty(plane, fail))
    assert optional in caplog.text
    assert set(verdict.fit) == set(methods()) - {optional}
    without = DataPlane(PlaneConfig(unfit=verdict.unfit))
    assert optional not in without.info().methods
    assert set(verdict.fit) == set(without.info().methods)
    matrix = Matrix(Pattern([0, 1, 2], [0, 1], (2, 2)), np.array([2.0, 4.0]))
    context = CallContext.within(60.0, "embedded")
    ref = without.put(PutCall(matrix.ref, matrix), context)
    with pytest.raises(NotSupportedError, match="another processor"):
        without.solve(SolveCall(ref, Options(method=optional), np.ones(2)), context)
    without.close()


def test_an_answer_of_nan_is_found(plane):
    def spoil(call, solve):
        reply = solve(call)
        return replace(reply, x=reply.x * float("nan"))

    with pytest.raises(selftest.SelfTestError, match="answers wrongly"):
        selftest.run(Faulty(plane, spoil))


def test_an_error_is_told_with_its_method(plane):
    def fail(call, solve):
        if call.options.method == "superlu":
            raise SingularMatrixError("no")
        return solve(call)

    with pytest.raises(selftest.SelfTestError, match=r"method 'superlu' with trans='N' failed: no"):
        selftest.run(Faulty(plane, fail))
